//! The real program on the real model that `ANDON_TEST_MODEL` names, and on the data beside the checkout, where there
//! are such; a test that lacks what it needs says so and passes.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn lab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_andon-lab"))
        .args(arguments)
        // One folder for all tests: none packs what another has.
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("the program runs")
}

fn stdout(arguments: &[&str]) -> String {
    let output = lab(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(arguments)).expect("one JSON value")
}

fn model() -> Option<String> {
    let model = std::env::var("ANDON_TEST_MODEL").ok();
    if model.is_none() {
        eprintln!("skipped: ANDON_TEST_MODEL is not set");
    }
    model
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared")
        .join(path);
    if !path.exists() {
        eprintln!("skipped: there is no {}", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn greedy_tokens_are_pinned() {
    let Some(model) = model() else { return };
    for isa in andon_kernels::Isa::ALL.map(andon_kernels::Isa::name) {
        let supported =
            andon_kernels::Isa::from_name(isa).is_some_and(andon_kernels::Isa::is_supported);
        if !supported {
            continue;
        }
        let report = json(&[
            "generate",
            &model,
            "--prompt-text",
            "The quick brown fox",
            "--gen",
            "16",
            "--ids",
            "--json",
            "--isa",
            isa,
        ]);
        let prompt = [504, 2365, 6354, 16438];
        let expected = [
            351, 253, 2365, 6354, 7012, 30, 198, 198, 504, 2798, 6330, 314, 253, 8170, 1183, 282,
        ];
        assert_eq!(report["prompt_ids"], serde_json::json!(prompt), "{isa}");
        assert_eq!(report["ids"], serde_json::json!(expected), "{isa}");
        assert_eq!(report["finish"], "length");
    }
}

#[test]
fn packed_weights_continue_a_text_as_raw_ones_do() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("UTF-8");
    let ids = |more: &[&str]| {
        let arguments = ["generate", &model, "--prompt-text", "The", "--gen", "8"];
        json(&[&arguments[..], &["--ids", "--json"], more].concat())["ids"].clone()
    };
    let raw = ids(&["--raw", "--pack-dir", dir]);
    let packs = || std::fs::read_dir(dir).expect("a folder").count();
    assert_eq!(packs(), 0);
    // The second time the pack is there.
    for _ in 0..2 {
        assert_eq!(ids(&["--pack-dir", dir]), raw);
        assert_eq!(packs(), 1);
    }
    // A folder that cannot be keeps no model from running.
    assert_eq!(ids(&["--pack-dir", "/dev/null/packs"]), raw);
}

#[test]
fn bench_reports_every_key() {
    let Some(model) = model() else { return };
    let report = json(&[
        "bench",
        &model,
        "--threads",
        "2",
        "--prompt",
        "16",
        "--gen",
        "4",
        "--depth",
        "8",
        "--columns",
        "--runs",
        "1",
        "--json",
    ]);
    for key in [
        "prefill_tok_s",
        "decode_tok_s",
        "load_ms",
        "bytes_per_token",
        "bandwidth_gb_s",
        "bandwidth_share",
        "multiply_adds_per_token",
        "int8_gmac_s",
        "int8_share",
        "depth_ratio",
    ] {
        assert!(
            report[key].as_f64().is_some_and(|value| value > 0.0),
            "{key} in {report}"
        );
    }
    assert_eq!(report["threads"], 2);
    assert_eq!(report["packed"], true);
    // Prefill, decode without and with a context, and passes over 1 to 8 tokens.
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 11);
    assert_eq!(rows[3]["cost"], 1.0);
    assert_eq!(report["isa"], andon_kernels::Isa::best().name());
}

#[test]
fn random_models_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("random.gguf");
    let path = file.to_str().expect("UTF-8");
    let vocabulary = ["--vocabulary", "600"];
    for format in ["q4_0", "q4_k"] {
        let shape = ["synth", path, "--shape", "25m", "--format", format];
        stdout(&[&shape[..], &vocabulary].concat());
        assert!(stdout(&["verify", path]).contains("every scale and value is finite"));
        let text = ["generate", path, "--prompt-text", "belt", "--gen", "2"];
        let report = json(&[&text[..], &["--ignore-end", "--json"]].concat());
        assert_eq!(report["completion_tokens"], 2, "{format}");
        let report = json(&["calibrate", path, "--threads", "2", "--json"]);
        assert!(report["bandwidth_gb_s"].as_f64() > Some(0.0), "{report}");
        assert_eq!(report["column_cost"][0], 1.0);
    }
    assert_eq!(
        lab(&["synth", path, "--shape", "1q"]).status.code(),
        Some(2)
    );
    assert_eq!(
        lab(&["synth", path, "--vocabulary", "256"]).status.code(),
        Some(1)
    );
}

#[test]
fn every_kernel_is_measured() {
    let text = stdout(&[
        "kernels",
        "--shrink",
        "512",
        "--k",
        "256",
        "--columns",
        "1,16",
        "--time-ms",
        "1",
        "--json",
    ]);
    let kernels: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let tables = andon_kernels::Table::runnable().count();
    let packed = andon_kernels::Format::ALL
        .into_iter()
        .filter(|&format| andon_kernels::pack::tile_bytes(format, 256).is_some());
    let layouts = andon_kernels::Format::ALL.len() + packed.count();
    assert_eq!(kernels.len(), layouts * tables * 2);
    let positive = |kernel: &Value| kernel["gb_s"].as_f64() > Some(0.0);
    assert!(kernels.iter().all(positive));
}

#[test]
fn perplexity_is_that_of_llama_cpp() {
    let (Some(model), Some(records)) = (model(), shared("data/wikitext2.jsonl")) else {
        return;
    };
    let records = std::fs::read_to_string(records).expect("readable");
    let text: String = records
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["text"]
                .as_str()
                .expect("text")
                .to_owned()
        })
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text");
    std::fs::write(&file, text).expect("writable");
    let file = file.to_str().expect("UTF-8");
    let report = json(&[
        "ppl", &model, "--text", file, "--ctx", "512", "--chunks", "20", "--json",
    ]);
    let ppl = report["ppl"].as_f64().expect("a number");
    assert_eq!(report["scored"], 20 * 255);
    // llama.cpp's figure on the same text.
    assert!((ppl / 15.724 - 1.0).abs() < 0.005, "perplexity {ppl}");
}

#[test]
fn tokenize_gives_the_ids_of_the_cases() {
    let Some(folder) = shared("data/vocab") else {
        return;
    };
    for name in ["gpt-2", "llama-bpe", "qwen2"] {
        let path = |ending: &str| folder.join(format!("ggml-vocab-{name}.gguf{ending}"));
        let text = |ending: &str| path(ending).to_str().expect("UTF-8").to_owned();
        let actual = stdout(&["tokenize", &text(""), "--file", &text(".inp"), "--inp"]);
        let expected = std::fs::read_to_string(path(".out")).expect("readable");
        let lines = |text: &str| {
            text.lines()
                .map(|line| line.trim().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(&actual), lines(&expected), "{name}");
    }
}

#[test]
fn failures_say_what_and_where() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("no-model.gguf");
    let path = file.to_str().expect("UTF-8");
    for (content, expected) in [
        (None, "No such file"),
        (Some(&b""[..]), "empty"),
        (Some(b"garbage that is no model"), "GGUF"),
    ] {
        if let Some(content) = content {
            std::fs::write(&file, content).expect("writable");
        }
        for arguments in [
            &["bench", path][..],
            &["generate", path, "--prompt-text", "x"],
            &["tokenize", path, "--file", path],
        ] {
            let output = lab(arguments);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            assert!(
                error.contains(path) && error.contains(expected),
                "{arguments:?}: {error}"
            );
        }
    }
    assert_eq!(lab(&["bench", path, "--isa", "mmx"]).status.code(), Some(2));
}

#[cfg(feature = "draft")]
mod draft {
    use super::{json, lab, stdout};
    use std::path::Path;

    fn text(path: &Path) -> &str {
        path.to_str().expect("UTF-8")
    }

    /// A small model of random weights.
    fn synth(target: &Path, vocabulary: &str) {
        let options = "--shape 25m --format q8_0 --head q8_0 --vocabulary";
        let mut arguments = vec!["synth", text(target)];
        arguments.extend(options.split(' '));
        arguments.push(vocabulary);
        stdout(&arguments);
    }

    fn error(arguments: &[&str]) -> String {
        let output = lab(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    #[test]
    fn a_draft_is_made_and_a_run_goes_on_where_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let (target, prompts, draft) = (
            path("target.gguf"),
            path("prompts.jsonl"),
            path("draft.gguf"),
        );
        synth(&target, "400");
        let line = |index| {
            format!(
                "{{\"prompt\": \"say {index}\", \"template\": \"{}\"}}\n",
                index % 5
            )
        };
        std::fs::write(&prompts, (0..10).map(line).collect::<String>()).expect("written");
        let arguments = [
            "draft",
            text(&target),
            "--raw",
            "--threads",
            "1",
            "--prompts",
            text(&prompts),
            "--output",
            text(&draft),
            "--layers",
            "2",
            "--neurons",
            "256",
            "--vocabulary",
            "300",
            "--gen",
            "8",
            "--samples",
            "1",
            "--sequences",
            "2",
            "--sequence-tokens",
            "64",
            "--steps",
            "2",
            "--format",
            "q4_0",
            "--json",
        ];
        let report = json(&arguments);
        assert_eq!(report["layers"], serde_json::json!([0, 3]));
        assert_eq!(
            (&report["steps"], &report["worth"]["prompts"]),
            (&2.into(), &2.into())
        );
        assert_eq!(report["worth"]["lengths"][2]["length"], 3);
        let made = std::fs::read(&draft).expect("read");

        // Nothing is left to do but to write it again.
        std::fs::remove_file(&draft).expect("removed");
        json(&arguments);
        assert_eq!(std::fs::read(&draft).expect("read"), made);
        let speculate = [
            "speculate",
            text(&target),
            "--raw",
            "--threads",
            "1",
            "--prompts",
            text(&prompts),
            "--draft",
            text(&draft),
            "--gen",
            "8",
            "--rounds",
            "1",
            "--json",
        ];
        assert_eq!(json(&speculate)["all"]["prompts"], 10);

        // More steps go on from there.
        let steps = arguments
            .iter()
            .position(|argument| *argument == "--steps")
            .expect("given");
        let mut more = arguments;
        more[steps + 1] = "3";
        assert_eq!(json(&more)["steps"], 3);
        assert_ne!(std::fs::read(&draft).expect("read"), made);

        // Another draft begins with what this one learnt, on other prompts and for other tokens.
        let (other_prompts, other_draft) = (path("other.jsonl"), path("other.gguf"));
        std::fs::write(&other_prompts, (20..30).map(line).collect::<String>()).expect("written");
        let work = path("draft.gguf.work");
        let mut again = arguments.to_vec();
        for (name, value) in [
            ("--prompts", text(&other_prompts)),
            ("--output", text(&other_draft)),
            ("--vocabulary", "350"),
            ("--layers", text(&work)),
        ] {
            let place = again.iter().position(|argument| *argument == name);
            again[place.expect("given") + 1] = value;
        }
        let refused = error(&[&again[..], &["--begin-from", text(&work)]].concat());
        assert!(refused.contains("--layers"), "{refused}");
        let place = again.iter().position(|argument| *argument == "--layers");
        again[place.expect("given")] = "--begin-from";
        let place = again.iter().position(|argument| *argument == "--neurons");
        again.drain(place.expect("given")..=place.expect("given") + 1);
        let report = json(&again);
        assert_eq!(
            (&report["layers"], &report["steps"]),
            (&serde_json::json!([0, 3]), &2.into())
        );
        assert!(other_draft.exists());

        // Other options are another draft, for which there must be another folder.
        let other = [&arguments[..], &["--seed", "1"]].concat();
        let error = error(&other);
        assert!(error.contains("--work"), "{error}");
    }

    #[test]
    fn what_cannot_be_made_is_refused_before_anything_is_done() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let (target, prompts, draft) = (
            path("target.gguf"),
            path("prompts.jsonl"),
            path("draft.gguf"),
        );
        synth(&target, "300");
        let tried = |lines: &str, more: &[&str]| {
            std::fs::write(&prompts, lines).expect("written");
            let mut given = vec!["draft", text(&target), "--raw", "--prompts", text(&prompts)];
            for default in [["--output", text(&draft)], ["--layers", "2"]] {
                if !more.contains(&default[0]) {
                    given.extend(default);
                }
            }
            error(&[&given[..], more].concat())
        };
        let good = "{\"prompt\": \"a\"}\n";
        for (lines, more, expected) in [
            (
                "{\"prompt\": \"a\"}\n{\"prompt\": 3}\n",
                &[][..],
                "prompts.jsonl:2",
            ),
            ("{\"text\": \"a\"}\n", &[], "neither `prompt` nor `turns`"),
            ("", &[], "no prompt to learn from"),
            (good, &["--device", "cuda"], "cuda"),
            (
                good,
                &["--hold-out", "0", "--layers", "9", "--gen", "4"],
                "4 layers",
            ),
            (good, &["--sequences", "0"], "--sequences"),
            (good, &["--sequence-tokens", "64"], "no room"),
            (good, &["--neurons", "500"], "500, are not whole blocks"),
            (good, &["--format", "q2_k"], "not written"),
            (good, &["--refit-tokens", "4294967295"], "MiB of memory"),
            (good, &["--output", text(&prompts)], "from which"),
            (good, &["--output", text(&target)], "from which"),
            (good, &["--output", text(folder.path())], "not a file"),
            (
                good,
                &["--output", "no/such/folder/draft.gguf"],
                "no folder",
            ),
        ] {
            let error = tried(lines, more);
            assert!(error.contains(expected), "{error}");
            assert!(!draft.exists());
        }
        std::fs::write(&target, b"GGUF").expect("written");
        assert!(tried(good, &[]).contains("target.gguf"));
    }
}

#[test]
fn labels_are_measured_once_and_say_how_sure_the_answer_was() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (questions, labels) = (path("cities.jsonl"), path("labels.jsonl"));
    let lines = [
        r#"{"id": "a", "question": "The capital of France is", "choices": ["Paris", "a kind of cheese"], "answer": 0}"#,
        r#"{"id": "b", "question": "What is 2 + 2?", "answer": "4"}"#,
        r#"{"id": "c", "context": "One, two, three, four,", "continuation": "five"}"#,
        r#"{"id": "d", "prompt": "Write a poem."}"#,
        r#"{"id": "e", "context": "One, two, three, four,", "continuation": "elephants"}"#,
    ];
    std::fs::write(&questions, lines.join("\n")).expect("written");
    let label = |output: &str, scoring: &str| {
        stdout(&[
            "router",
            "label",
            &model,
            "--questions",
            &questions,
            "--output",
            output,
            "--scoring",
            scoring,
            "--gen",
            "24",
        ]);
        std::fs::read_to_string(output).expect("written")
    };
    let read = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().expect("JSON lines")
    };
    let text = label(&labels, "likelihood");
    let measured = read(&text);
    assert_eq!(measured.len(), 3, "{text}");
    // The likelier choice is Paris, and five comes after four.
    for (line, id) in measured.iter().zip(["a", "c"]) {
        assert_eq!((&line["id"], &line["label"]), (&id.into(), &1.into()));
        assert_eq!(line["set"], "cities");
        let signal = |name: &str| line["signals"][name].as_f64().expect("a number");
        assert!(signal("logprob_min") <= signal("logprob_mean"), "{line}");
        assert!(signal("logprob_mean") < 0.0 && signal("entropy_mean") > 0.0);
    }
    // What was expected says nothing of how sure the model is of what it says.
    let (right, wrong) = (&measured[1], &measured[2]);
    assert_eq!((&wrong["id"], &wrong["label"]), (&"e".into(), &0.into()));
    assert_eq!(wrong["answer"].as_str().map(str::trim), Some("five"));
    assert_eq!(wrong["signals"], right["signals"]);
    // The last line was cut off in the middle: it is measured again, the same, and nothing else is.
    let cut = &text[..text.len() - 20];
    std::fs::write(&labels, cut).expect("written");
    assert_eq!(label(&labels, "likelihood"), text);
    // Another scoring has a file of its own.
    let refused = lab(&[
        "router",
        "label",
        &model,
        "--questions",
        &questions,
        "--output",
        &labels,
    ]);
    assert!(!refused.status.success());
    let answers = path("answers.jsonl");
    let answered = read(&label(&answers, "answer"));
    let ids: Vec<_> = answered.iter().map(|line| &line["id"]).collect();
    assert_eq!(ids.len(), 2, "{answered:?}");
    assert!(ids.contains(&&"a".into()) && ids.contains(&&"b".into()));
}

/// A label as `router label` writes it, of an answer with this mean log-probability.
fn label(index: usize, right: bool, logprob: f64) -> Value {
    serde_json::json!({
        "set": "made", "id": index.to_string(), "task": "sums", "prompt": format!("{index} + 1?"),
        "question": format!("{index} + 1?"), "label": u8::from(right), "weight": 1.0, "model": "none",
        "scoring": "answer", "answer": "?", "expected": "!",
        "signals": {
            "tokens": 10, "logprob_mean": logprob, "logprob_min": 3.0 * logprob, "entropy_mean": -logprob,
            "entropy_max": -2.0 * logprob, "repetition": 0.0, "retries": 0, "ended": true,
        },
    })
}

#[test]
fn a_threshold_sends_up_the_answers_that_are_least_sure() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (labels, strong) = (path("labels.jsonl"), path("strong.jsonl"));
    // Half are right, and nine of ten of these are surer than all that are wrong.
    let lines: Vec<String> = (0..400)
        .map(|index| {
            let right = index % 2 == 0;
            let sure = right && index % 20 != 0;
            let spread = (index % 37) as f64 / 100.0;
            label(
                index,
                right,
                if sure { -0.1 - spread } else { -1.5 - spread },
            )
            .to_string()
        })
        .collect();
    std::fs::write(&labels, lines.join("\n")).expect("written");
    // Upstream is right of all sums but one in ten.
    let lines: Vec<String> = (1000..1010)
        .map(|index| {
            serde_json::json!({"prompt": format!("{index}?"), "subject": "sums", "strong_correct": index != 1000})
                .to_string()
        })
        .collect();
    std::fs::write(&strong, lines.join("\n")).expect("written");
    let calibrate = |more: &[&str]| {
        let arguments = ["router", "calibrate", "--labels", &labels, "--json"];
        json(&[&arguments[..], &["--strong", &strong], more].concat())
    };
    let report = calibrate(&["--share", "0.25"]);
    assert_eq!(
        (&report["answers"], &report["right"]),
        (&400.into(), &0.5.into())
    );
    assert_eq!(
        (&report["strong"], &report["strong_by_subject"]),
        (&0.9.into(), &400.into())
    );
    let number = |value: &Value| value.as_f64().expect("a number");
    let fitted = &report["confidence"];
    assert!(number(&fitted["auc"]) > 0.9, "{report}");
    assert!(number(&fitted["calibration_error"]) < 0.05, "{report}");
    // A quarter goes up, nearly all of it wrong: by 0.9 of a quarter less its few right ones, of a distance of 0.4.
    let recovered = number(&fitted["recovered"]);
    assert!((0.45..0.57).contains(&recovered), "{report}");
    let interval = &fitted["recovered_95"];
    assert!(number(&interval[0]) <= recovered && recovered <= number(&interval[1]));
    let threshold = number(&report["fitted"]["cascade-threshold"]);
    assert!((0.0..0.5).contains(&threshold), "{report}");
    // Whoever knows what is wrong sends up wrong answers only.
    assert_eq!(report["recovered_at_best"], 0.5625);
    // With an estimate of each question there is one more to weigh, and what it is worth alone.
    let weighed = &report["fitted"]["cascade-weights"];
    assert_eq!(weighed.as_array().map(Vec::len), Some(10), "{report}");
    assert!(report["estimate"].is_null() && report["both"].is_null());
    let with = calibrate(&["--weights", "shipped"]);
    assert!(with["estimate"]["auc"].is_number(), "{with}");
    assert!(number(&with["both"]["auc"]) > 0.9, "{with}");
    // The same command says the same, and a quality is a share.
    assert_eq!(calibrate(&["--share", "0.25"]), report);
    let share = number(&calibrate(&["--quality", "0.7"])["fitted"]["share"]);
    assert!((0.2..0.32).contains(&share), "{share}");
    // Figures of a handful of answers would say nothing.
    std::fs::write(&labels, label(1, true, -1.0).to_string()).expect("written");
    assert!(
        !lab(&["router", "calibrate", "--labels", &labels])
            .status
            .success()
    );
}

/// Questions of two kinds in many words: easy ones ask to look something up, hard ones to think something out. Of each
/// twentieth the label is wrong. A stronger model is right wherever there is an answer.
fn routing_records() -> String {
    const THINGS: [&str; 8] = [
        "pump", "valve", "belt", "press", "oven", "mixer", "drill", "crane",
    ];
    const EASY: [&str; 3] = [
        "List the alarms of the {} of line {}.",
        "Give the temperature of the {} in hall {} in one word.",
        "Extract the date from this note: {} {} greased.",
    ];
    const HARD: [&str; 3] = [
        "Explain why the {} trips in cell {} and rank the root causes by evidence.",
        "Design a plan to find out why the {} of line {} vibrates, and justify each step.",
        "Compare what it costs to repair the {} or to replace it within {} months, and decide.",
    ];
    let mut lines = String::new();
    for index in 0..240 {
        let (hard, wording) = (index % 2 == 1, index / 2 % 3);
        let form = if hard { HARD[wording] } else { EASY[wording] };
        let text =
            form.replacen("{}", THINGS[index % 8], 1)
                .replacen("{}", &(index / 3).to_string(), 1);
        let label = u8::from(hard == (index % 20 == 19));
        lines += &format!(
            "{{\"prompt\":\"{text}\",\"label\":{label},\"strong\":1,\"model\":\"m\",\"set\":\"s\",\"task\":\"{hard}-{wording}\"}}\n"
        );
    }
    lines
}

#[test]
fn a_router_learns_what_is_hard_and_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (records, weights, again) = (
        path("records.jsonl"),
        path("one.weights"),
        path("two.weights"),
    );
    std::fs::write(&records, routing_records()).expect("written");
    for output in [&weights, &again] {
        stdout(&[
            "router", "train", &records, "--output", output, "--passes", "5", "--seed", "3",
        ]);
    }
    let bytes = |path: &str| std::fs::read(path).expect("written");
    assert!(
        bytes(&weights) == bytes(&again),
        "the same seed gave other weights"
    );
    assert!(bytes(&weights).len() < 3_000_000);

    // Of each kind one wording is left out, so that it takes more than knowing the wording.
    let eval = [
        "router",
        "eval",
        &records,
        "--leave-out",
        "task",
        "--passes",
        "5",
        "--json",
    ];
    let plots = folder.path().to_str().expect("UTF-8");
    let report = json(&[&eval[..], &["--plots", plots]].concat());
    let group = &report["groups"][0];
    let number = |name: &str| group[name].as_f64().expect("a number");
    assert_eq!(report["records"], 240);
    assert!(number("auc") > 0.85, "{report}");
    assert!(
        number("recovered_25") > 0.4 && number("least_above_random") >= 0.0,
        "{report}"
    );
    let followed = |name: &str| group["followed_25"][name].as_f64().expect("a number");
    assert!((followed("sent") - 0.25).abs() < 0.02, "{report}");
    assert!(followed("recovered") > 0.35, "{report}");
    for chart in ["calibration.svg", "curve.svg"] {
        let chart = std::fs::read_to_string(folder.path().join(chart)).expect("written");
        assert!(
            chart.starts_with("<svg") && chart.contains(">m</text>"),
            "{chart}"
        );
    }

    let explain = |text: &str| {
        let more = ["--weights", &weights, "--model", "m", "--json"];
        json(&[&["router", "explain", text][..], &more].concat())
    };
    let easy = explain("List the alarms of the saw.");
    let hard = explain("Explain why the saw stops, rank the root causes and justify the plan.");
    let will_do = |explained: &Value| explained["will_do"].as_f64().expect("a number");
    assert!(
        will_do(&easy) > 0.6 && will_do(&hard) < 0.4,
        "{easy} {hard}"
    );
    let figures = hard["parts"].as_array().expect("reasons").iter();
    assert!(
        figures
            .clone()
            .any(|part| part["what"] == "causes asked for" || part["what"] == "thinking asked for"),
        "{hard}"
    );

    let unknown = lab(&[
        "router",
        "explain",
        "x",
        "--weights",
        &weights,
        "--model",
        "other",
    ]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("they know any, m"));
    std::fs::write(&again, b"ANDONRTW").expect("written");
    let damaged = lab(&["router", "explain", "x", "--weights", &again]);
    assert!(
        String::from_utf8_lossy(&damaged.stderr).contains("router weights"),
        "{damaged:?}"
    );
}
