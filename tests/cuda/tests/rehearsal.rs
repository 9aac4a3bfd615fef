//! The run that a card gets, with the emulated one: it ends well only where everything is right, and leaves its results.

#![forbid(unsafe_code)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// The run with these arguments; `None`, which is said, where there is no C++ compiler.
fn rehearse(arguments: &[&str], wrong: Option<&str>, results: &Path) -> Option<(Output, Value)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_andon-cuda-check"));
    command.args(["--emulated", "--results"]).arg(results);
    command.args(arguments);
    if let Some(kernel) = wrong {
        command.env("ANDON_EMULATED_WRONG", kernel);
    }
    let output = command.output().expect("it is started");
    if output.status.code() == Some(77) {
        println!("skipped: there is no C++ compiler");
        return None;
    }
    let text = std::fs::read_to_string(results.join("cuda-check.json")).expect("it leaves results");
    Some((output, serde_json::from_str(&text).expect("they are JSON")))
}

/// What failed, of the last line that was printed and of the results.
fn failed(output: &Output, results: &Value) -> (String, Vec<String>) {
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default().to_owned();
    let named = results["failed"].as_array().expect("a list");
    let name = |failed: &Value| failed.as_str().expect("text").to_owned();
    (last, named.iter().map(name).collect())
}

#[test]
fn a_wrong_bit_of_a_kernel_fails_the_run_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let only = [
        "--only",
        "heads,glu,speed-attention,models",
        "--tokens",
        "2",
    ];
    let wrong = Some("heads_q8");
    let Some((output, results)) = rehearse(&only, wrong, folder.path()) else {
        return;
    };
    assert_eq!(output.status.code(), Some(1));
    let (last, named) = failed(&output, &results);
    let expected = [
        "kernels: heads failed",
        "models: compare-smollm2-135m failed",
        "models: compare-gemma3-270m failed",
    ];
    assert_eq!(named, expected);
    assert!(last.starts_with("FAILED: kernels: heads failed"), "{last}");
    let sections = results["sections"].as_array().expect("a list");
    let names: Vec<_> = sections.iter().map(|section| &section["name"]).collect();
    assert_eq!(names, ["device", "kernels", "models", "speed"]);
    // What is right is told beside it.
    let steps = sections[1]["steps"].as_array().expect("a list");
    let glu = steps.iter().find(|step| step["name"] == "glu");
    assert_eq!(glu.expect("it ran")["outcome"], "passed");
    let heads = steps.iter().find(|step| step["name"] == "heads");
    let said = heads.expect("it ran")["said"].to_string();
    assert!(said.contains("seed") && said.contains("Q8"), "{said}");
}

#[test]
fn a_run_without_time_fails_by_what_was_not_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["--only", "quantize", "--seconds", "0"];
    let Some((output, results)) = rehearse(&arguments, None, folder.path()) else {
        return;
    };
    assert_eq!(output.status.code(), Some(1));
    let (last, named) = failed(&output, &results);
    assert_eq!(named, ["device: device not finished"]);
    assert!(last.contains("not finished"), "{last}");
}
