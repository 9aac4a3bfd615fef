//! llama.cpp on the same card and the same file: its `llama-bench`, in turn with the same work here, and the ratio of medians.

use crate::Run;
use crate::models;
use andon_cuda_check::figures::median;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Tokens of a prompt, and of an answer from an empty context, as that program calls them `pp` and `tg`.
const PROMPT: usize = 512;
const ANSWER: usize = 128;
/// Runs of each.
const ROUNDS: usize = 3;

/// Tokens per second of the prompt and of the answer, of what the program printed as JSON.
fn rates(said: &str) -> Result<(f64, f64)> {
    let tests: Vec<Value> = serde_json::from_str(said).context("it printed no JSON")?;
    let rate = |prompt: usize, answer: usize| {
        let of = |test: &&Value| test["n_prompt"] == prompt && test["n_gen"] == answer;
        let test = tests.iter().find(of);
        test.and_then(|test| test["avg_ts"].as_f64())
            .with_context(|| format!("no test of {prompt} and {answer} tokens in {said}"))
    };
    Ok((rate(PROMPT, 0)?, rate(0, ANSWER)?))
}

fn theirs(program: &Path, model: &Path) -> Result<(f64, f64)> {
    let output = Command::new(program)
        .arg("-m")
        .arg(model)
        .args(["-p", &PROMPT.to_string(), "-n", &ANSWER.to_string()])
        .args(["-r", "1", "-ngl", "99", "-o", "json"])
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {complained}", output.status);
    rates(&String::from_utf8_lossy(&output.stdout))
}

/// Both in turn on one file.
pub(crate) fn check(run: &Run<'_>, program: &Path, name: &str, model: &Path) -> Result<String> {
    let mut ours = models::Timed::new(model, PROMPT, ANSWER)?;
    let (mut prompts, mut answers) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for (whose, (prompt, answer)) in [ours.rates()?, theirs(program, model)?]
            .into_iter()
            .enumerate()
        {
            prompts[whose].push(prompt);
            answers[whose].push(answer);
        }
    }
    let prompts = prompts.map(|rates| median(&rates));
    let answers = answers.map(|rates| median(&rates));
    let figures = run.figures;
    for (what, [ours, theirs]) in [("prompts", prompts), ("decoding", answers)] {
        figures.note(format!("rival {name}: {what}, ours"), ours, "tokens/s");
        figures.note(format!("rival {name}: {what}, theirs"), theirs, "tokens/s");
        let ratio = format!("rival {name}: {what}, ours to theirs");
        figures.note(ratio, ours / theirs, "");
    }
    Ok(format!(
        "prompts of {PROMPT} tokens: {:.0} tokens/s and theirs {:.0} ({:.2}); answers of {ANSWER}: {:.1} and theirs {:.1} ({:.2})",
        prompts[0],
        prompts[1],
        prompts[0] / prompts[1],
        answers[0],
        answers[1],
        answers[0] / answers[1]
    ))
}

#[cfg(test)]
mod tests {
    use super::rates;

    #[test]
    fn what_llama_bench_prints_is_understood() {
        let said = r#"[
            {"build_commit": "b1", "model_n_params": 1235814432, "n_prompt": 512, "n_gen": 0, "avg_ns": 17655432,
             "avg_ts": 29000.5, "stddev_ts": 0.0, "samples_ts": [ 29000.5 ]},
            {"build_commit": "b1", "model_n_params": 1235814432, "n_prompt": 0, "n_gen": 128, "avg_ns": 17655432,
             "avg_ts": 611.25, "stddev_ts": 0.0, "samples_ts": [ 611.25 ]}
        ]"#;
        assert_eq!(rates(said).expect("both tests"), (29000.5, 611.25));
        assert!(rates(&said.replace("512", "128")).is_err());
        assert!(rates("error: no device").is_err());
    }
}
