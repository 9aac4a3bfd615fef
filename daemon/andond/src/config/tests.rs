//! The configuration as a whole: every problem at once, and the file that is shipped.

use andon_engine::tokenizer::TemplateChoice;

use super::speculation::CorpusScope;
use super::{Config, Problems, read};

/// The annotated default, as it is installed.
const SHIPPED: &str = include_str!("../../../../systemd/andond.toml");

fn problems(text: &str) -> Problems {
    Config::parse(text).expect_err("the text has problems")
}

#[test]
fn every_problem_is_reported_at_once_with_line_key_and_way_out() {
    let problems = problems(
        "[gateway]\n\
         name = \"a/b\"\n\
         [engine]\n\
         thread = 4\n\
         batch-tokens-max = \"many\"\n\
         parallel-max = 0\n\
         [http]\n\
         socket-mode = \"0999\"\n\
         listen = \"10.0.0.1:80\"\n\
         [htttp]\n\
         [limits]\n\
         queue-max = -1\n",
    );
    let found: Vec<(Option<usize>, &str)> = problems
        .iter()
        .map(|problem| (problem.line, problem.key.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (Some(2), "gateway.name"),
            (Some(4), "engine.thread"),
            (Some(5), "engine.batch-tokens-max"),
            (Some(6), "engine.parallel-max"),
            (Some(8), "http.socket-mode"),
            (Some(9), "http.listen"),
            (Some(10), "htttp"),
            (Some(12), "limits.queue-max"),
            (None, "model.path"),
        ]
    );
    let text = problems.to_string();
    assert!(
        text.contains("line 4: engine.thread: unknown key; did you mean threads?"),
        "{text}"
    );
    assert!(
        text.contains("htttp: unknown section; did you mean http?"),
        "{text}"
    );
}

#[test]
fn broken_toml_hides_nothing_else() {
    let problems =
        problems("[model]\npath = \"/m.gguf\"\n[engine\nthreads = 0\n[log]\nlevel = =\n");
    assert!(
        problems.iter().any(|problem| problem.line == Some(3)),
        "{problems}"
    );
    assert!(
        problems.iter().any(|problem| problem.line == Some(6)),
        "{problems}"
    );
}

#[test]
fn sections_that_are_not_tables_are_named() {
    let problems = problems("engine = 5\n[model]\npath = \"/m.gguf\"\n[task]\nx = 1\n");
    let keys: Vec<&str> = problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    assert_eq!(keys, ["engine", "task.x"]);
}

#[test]
fn one_socket_cannot_serve_two_protocols() {
    let problems = problems(
        "[model]\npath = \"/m.gguf\"\n[http]\nsocket = \"/run/a\"\n[wire]\nsocket = \"/run/a\"\n",
    );
    assert_eq!(problems.len(), 1);
    assert!(
        problems.to_string().contains("line 6: wire.socket"),
        "{problems}"
    );
}

#[test]
fn an_unknown_pre_tokenizer_is_named_and_so_are_those_that_are_known() {
    let text = "[model]\npath = \"/m.gguf\"\npre-tokenizer = \"qwen2\"\n";
    let config = Config::parse(text).expect("a known one");
    let options = config.model.load_options();
    assert_eq!(options.pre_tokenizer.as_deref(), Some("qwen2"));
    let problems = problems(&text.replace("qwen2", "qwen-two"));
    assert_eq!(problems.len(), 1);
    let said = problems.to_string();
    assert!(said.contains("line 3: model.pre-tokenizer"), "{said}");
    assert!(
        said.contains("qwen-two") && said.contains("llama-bpe, "),
        "{said}"
    );
}

#[test]
fn a_chat_template_is_a_name_or_a_path() {
    let text = "[model]\npath = \"/m.gguf\"\nchat-template = \"chatml\"\n";
    for (value, is_named) in [("chatml", true), ("/etc/andon/t.jinja", false)] {
        let config = Config::parse(&text.replace("chatml", value)).expect("a choice");
        let choice = config.model.load_options().chat_template;
        let named = matches!(choice, Some(TemplateChoice::Named(_)));
        assert!(choice.is_some() && named == is_named, "{choice:?}");
    }
    let problems = problems(&text.replace("chatml", "chatty"));
    assert_eq!(problems.len(), 1);
    let said = problems.to_string();
    assert!(said.contains("line 3: model.chat-template"), "{said}");
    assert!(
        said.contains("chatty") && said.contains("chatml, llama3"),
        "{said}"
    );
}

#[test]
fn guesses_come_from_ones_own_answers_unless_said_otherwise() {
    let text = "[model]\npath = \"/m.gguf\"\n[speculation]\ncorpus = \"task\"\n";
    let read = |text: &str| Config::parse(text).expect("in order").speculation;
    assert_eq!(read(text).corpus, CorpusScope::Task);
    let plain = read(&text.replace("corpus = \"task\"", ""));
    assert!(plain.enabled && plain.lookup && plain.corpus_keep);
    assert_eq!(plain.corpus, CorpusScope::Client);
    for (key, value) in [
        ("corpus", "\"all\""),
        ("corpus-tokens-max", "255"),
        ("corpus-tokens-max", "1048577"),
        ("corpora-max", "0"),
        ("corpora-max", "1025"),
    ] {
        let problems = problems(&text.replace("corpus = \"task\"", &format!("{key} = {value}")));
        assert_eq!(problems.len(), 1, "{key} = {value}");
        let said = problems.to_string();
        assert!(
            said.contains(&format!("line 4: speculation.{key}")),
            "{said}"
        );
    }
}

#[test]
fn a_file_that_is_no_text_or_not_there_is_one_problem() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("andond.toml");
    assert_eq!(Config::read(&path).expect_err("not there").len(), 1);
    std::fs::write(&path, b"\xff\xfe").expect("writable");
    let problems = Config::read(&path).expect_err("not UTF-8");
    assert!(problems.to_string().contains("UTF-8"), "{problems}");
}

#[test]
fn whatever_the_text_parsing_ends() {
    for text in [
        "\u{0}",
        "[",
        "[[task]]",
        "a.b.c = 1",
        "[task.\"\"]\n",
        "[model]\n[model]\n",
        "\"\"=1",
    ] {
        // The point is that it returns at all, with problems.
        assert!(!problems(text).is_empty(), "{text:?}");
    }
    let deep = format!("[log]\nlevel = {}", "[".repeat(10_000));
    assert!(!problems(&deep).is_empty());
}

#[test]
fn the_shipped_file_is_taken_as_it_is() {
    Config::parse(SHIPPED).expect("the shipped file is in order");
}

#[test]
fn answers_at_once_and_an_alarm_have_places_in_a_pass() {
    let text = |batch: u32, parallel: u32| {
        format!(
            "[model]\npath = \"/m.gguf\"\n[engine]\nbatch-tokens-max = {batch}\nparallel-max = {parallel}\n"
        )
    };
    assert!(Config::parse(&text(9, 8)).is_ok());
    let keys: Vec<String> = problems(&text(8, 8))
        .iter()
        .map(|problem| problem.key.clone())
        .collect();
    assert_eq!(keys, ["engine.parallel-max"]);
}

#[test]
fn prompts_are_not_kept_in_the_clear_beside_encrypted_ones_unless_somebody_says_so() {
    let keeps = |text: &str| {
        let text = format!("[model]\npath = \"/m.gguf\"\n{text}");
        Config::parse(&text).expect("in order").keeps_pages()
    };
    let key = "[spool]\nkey-file = \"/k\"\n";
    assert!(keeps("") && !keeps(key));
    assert!(!keeps("[cache]\nkv-keep = false\n"));
    assert!(keeps(&format!("{key}[cache]\nkv-keep = true\n")));
    assert!(!keeps("[engine]\nprefix-cache = false\n"));
}

/// The annotated configuration with every example in force.
pub(crate) fn shown() -> String {
    SHIPPED
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(code) if !code.starts_with(' ') && !code.is_empty() => format!("{code}\n"),
            _ => format!("{line}\n"),
        })
        .collect()
}

/// With every example uncommented the file is still in order but for what needs another key first.
#[test]
fn the_shipped_file_shows_every_key_and_no_other() {
    let text = shown();
    let problems: Vec<String> = Config::parse(&text).map_or_else(
        |problems| problems.iter().map(|problem| problem.key.clone()).collect(),
        |_| Vec::new(),
    );
    // These examples go with `tls = true`, which is not the default.
    let expected = ["mqtt.ca-file", "mqtt.certificate-file", "mqtt.key-file"];
    assert_eq!(problems, expected);

    let shown: toml::Table = text.parse().expect("it was parsed above");
    for (section, known) in read::all_known_keys() {
        let tables = match &shown[section] {
            toml::Value::Array(tables) => tables.as_slice(),
            _ if section == "task" => std::slice::from_ref(&shown["task"]["explain-fault"]),
            table => std::slice::from_ref(table),
        };
        for key in known {
            assert!(
                tables.iter().any(|table| table.get(key).is_some()),
                "systemd/andond.toml does not show {section}.{key}"
            );
        }
    }
}

#[test]
fn keys_are_read_and_required_where_signatures_are() {
    // The one of RFC 8032, 7.1, test 1.
    let key = "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    let parse = |models: &str| Config::parse(&format!("[model]\nname = \"m\"\n[models]\n{models}"));
    let good = parse(&format!(
        "signature = \"require\"\ntrusted-keys = [\"{key}\"]\n"
    ));
    assert_eq!(good.unwrap().models.trusted_keys, [key]);
    // The neutral element, which fits signatures of anything.
    let weak = "MCowBQYDK2VwAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (models, word) in [
        ("signature = \"require\"\n", "no key is trusted"),
        ("signature = \"maybe\"\n", "models.signature"),
        (
            &format!("trusted-keys = [\"{key}\", \"{weak}\"]\n"),
            "number 2 is no",
        ),
        (
            &format!("trusted-keys = [\"{}\"]\n", &key[..40]),
            "number 1 is no",
        ),
        ("trusted-keys = [\"own.pem\"]\n", "number 1 is no"),
    ] {
        let text = parse(models).unwrap_err().to_string();
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

#[test]
fn who_ends_when_nothing_is_asked_must_be_reachable_by_its_sockets_alone() {
    let text =
        |more: &str| format!("[model]\npath = \"/m.gguf\"\n[gateway]\nidle-exit-s = 60\n{more}");
    let config = Config::parse(&text("")).expect("nothing is wrong");
    assert_eq!(
        config.gateway.idle_exit().map(|after| after.as_secs()),
        Some(60)
    );
    assert_eq!(Config::default().gateway.idle_exit(), None);
    for (more, key) in [
        ("[mqtt]\nenabled = true\n", "[mqtt] enabled"),
        (
            "[http]\nlisten = \"127.0.0.1:8311\"\ntoken-file = \"/t\"\n",
            "[http] listen",
        ),
        (
            "[metrics]\nlisten = \"127.0.0.1:9311\"\n",
            "[metrics] listen",
        ),
    ] {
        let problems = problems(&text(more));
        let all: Vec<_> = problems.iter().collect();
        assert_eq!(all.len(), 1, "{problems}");
        assert_eq!(
            (all[0].line, all[0].key.as_str()),
            (Some(4), "gateway.idle-exit-s")
        );
        assert!(all[0].what.contains(key), "{problems}");
    }
}
