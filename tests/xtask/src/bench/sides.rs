//! Our side of a round.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::definition::{Definition, Kind};
use super::rival::Variant;
use super::{Programs, daemon, first_token, load, parallel};
use crate::shell;

/// Our name among the figures.
pub(super) const ANDON: &str = "andon";

/// Whether figures of this name are of a program of ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(ANDON)
}

/// What is written on when the wall clock is read.
const OUTSIDE_PROMPT: &str = "The quick brown fox";

/// The streaming read now.
///
/// # Errors
/// When `andon-lab` does not say.
pub(super) fn read_gb_s(lab: &Path, threads: usize) -> Result<f64> {
    let mut command = Command::new(lab);
    command.args(["limits", "--json", "--threads", &threads.to_string()]);
    let report = parse(&shell::output(&mut command)?)?;
    report["bandwidth_gb_s"]
        .as_f64()
        .context("andon-lab limits has no bandwidth_gb_s")
}

/// Measures andon once, by the kind of the definition, and with it these servers of the rival.
///
/// # Errors
/// When a program does not run, or says something else than figures.
pub(super) fn andon(
    programs: &Programs,
    definition: &Definition,
    model: &Path,
    servers: &[Variant],
) -> Result<BTreeMap<String, Value>> {
    let lab = programs.lab();
    let figures = match definition.kind {
        Kind::Speed => bench(&lab, definition, model)?,
        Kind::Hogs => {
            let alone = bench(&lab, definition, model)?;
            let beside = {
                let _hogs = Hogs::start(definition.hogs)?;
                bench(&lab, definition, model)?
            };
            let speed = |report: &Value| report["decode_tok_s"].as_f64().unwrap_or(f64::NAN);
            json!({
                "decode_tok_s": speed(&alone),
                "hogs_decode_tok_s": speed(&beside),
                "hogs-ratio": speed(&beside) / speed(&alone),
            })
        }
        Kind::Outside => outside(&lab, definition, model)?,
        Kind::Start => daemon::start(&programs.folder, definition, model)?,
        Kind::Load => load::load(&programs.folder, definition, model)?,
        Kind::FirstToken => return first_token::measure(programs, definition, model, servers),
        Kind::Parallel => return parallel::measure(programs, definition, model, servers),
    };
    Ok(BTreeMap::from([(ANDON.to_owned(), figures)]))
}

/// What every subcommand of `andon-lab` that runs a model is told.
fn model_arguments(command: &mut Command, definition: &Definition, model: &Path) {
    command.arg(model);
    command.args(["--threads", &definition.threads.to_string()]);
    if let Some(isa) = &definition.isa {
        command.args(["--isa", isa]);
    }
    if let Some(kv) = &definition.kv {
        command.args(["--kv", kv]);
    }
    if definition.raw {
        command.arg("--raw");
    }
}

fn bench(lab: &Path, definition: &Definition, model: &Path) -> Result<Value> {
    let mut command = Command::new(lab);
    command.arg("bench");
    model_arguments(&mut command, definition, model);
    for (name, value) in [
        ("--prompt", definition.prompt),
        ("--gen", definition.generate),
        ("--depth", definition.depth),
        ("--runs", definition.runs),
    ] {
        command.arg(name).arg(value.to_string());
    }
    if definition.columns {
        command.arg("--columns");
    }
    let report = parse(&shell::output(command.arg("--json"))?)?;
    let mut figures = json!({});
    for (key, name) in [
        ("prefill_tok_s", "prefill_tok_s"),
        ("decode_tok_s", "decode_tok_s"),
        ("bandwidth_share", "bandwidth-share"),
        ("int8_share", "int8-share"),
        ("depth_ratio", "depth-ratio"),
        ("bandwidth_gb_s", "bandwidth_gb_s"),
        ("int8_gmac_s", "int8_gmac_s"),
        ("load_ms", "load_ms"),
    ] {
        if report[key].is_number() {
            figures[name] = report[key].clone();
        }
    }
    let rows = report["rows"].as_array().into_iter().flatten();
    let costs: Vec<&Value> = rows
        .map(|row| &row["cost"])
        .filter(|cost| cost.is_number())
        .collect();
    for (count, name) in [(4, "cost-of-4"), (8, "cost-of-8")] {
        if let Some(cost) = costs.get(count - 1) {
            figures[name] = (*cost).clone();
        }
    }
    if !costs.is_empty() {
        figures["costs"] = json!(costs);
    }
    Ok(figures)
}

/// Tokens per second of `andon-lab generate` by the wall clock: what more tokens take longer.
fn outside(lab: &Path, definition: &Definition, model: &Path) -> Result<Value> {
    let seconds = |tokens: usize| -> Result<f64> {
        let mut command = Command::new(lab);
        command.arg("generate");
        model_arguments(&mut command, definition, model);
        command.args(["--prompt-text", OUTSIDE_PROMPT, "--ignore-end", "--json"]);
        command.args(["--gen", &tokens.to_string()]);
        let start = Instant::now();
        let report = parse(&shell::output(&mut command)?)?;
        let seconds = start.elapsed().as_secs_f64();
        if report["completion_tokens"] != json!(tokens) {
            bail!("andon-lab generate made other than {tokens} tokens");
        }
        Ok(seconds)
    };
    let mut speeds = Vec::new();
    for _ in 0..definition.runs {
        let one = seconds(1)?;
        let all = seconds(definition.generate)?;
        speeds.push((definition.generate - 1) as f64 / (all - one));
    }
    Ok(json!({ "outside_tok_s": super::median(&speeds) }))
}

fn parse(output: &str) -> Result<Value> {
    serde_json::from_str(output).context("andon-lab printed no JSON")
}

/// Processes that keep a processor busy each, until dropped.
struct Hogs(Vec<Child>);

impl Hogs {
    fn start(count: usize) -> Result<Hogs> {
        let mut hogs = Hogs(Vec::new());
        for _ in 0..count {
            let mut command = Command::new("sh");
            command
                .args(["-c", "while :; do :; done"])
                .stdin(Stdio::null());
            hogs.0
                .push(command.spawn().context("cannot start a process")?);
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            // Nothing is left to be done about one that cannot be ended.
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}
