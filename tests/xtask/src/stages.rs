//! `cargo xtask test`: the stages, what each needs, and the summary.
//!
//! A stage that cannot run here is skipped with its reason, which the summary repeats; a stage that
//! runs and fails does not keep the later ones from running.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    cuda, deb, emulate, manual, model, no_std, oracle, packages, python, shell, system, units,
};

/// A part of `cargo xtask test`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// `cargo fmt --check`.
    Format,
    /// Clippy over every target, warnings denied.
    Clippy,
    /// Every test of the workspace.
    Tests,
    /// The documentation, warnings denied.
    Docs,
    /// The client side links without std.
    NoStd,
    /// The CUDA kernels give the processor's bytes in an emulation, and compile within their limits of registers.
    Cuda,
    /// systemd's own opinion of our units.
    Units,
    /// Manual pages say what the programs say of themselves.
    Manual,
    /// The Debian packages build, and are what `cargo xtask install` installs.
    Package,
    /// Licences, sources and banned crates.
    Deny,
    /// The daemon and its client built for aarch64, beside the stages before; the crates below the daemon, and the daemon itself, tested on emulated processors.
    Aarch64,
    /// andon installed into a root that a real systemd boots, asked, hung, deprived of its power.
    System,
}

const ALL: [Stage; 12] = [
    Stage::Format,
    Stage::Clippy,
    Stage::Tests,
    Stage::Docs,
    Stage::NoStd,
    Stage::Cuda,
    Stage::Units,
    Stage::Manual,
    Stage::Package,
    Stage::System,
    Stage::Deny,
    Stage::Aarch64,
];
const FAST: [Stage; 3] = [Stage::Format, Stage::Clippy, Stage::Tests];

impl Stage {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// How a stage ended, with a note for the summary or the reason.
pub(crate) enum Outcome {
    Passed(String),
    Skipped(String),
}

/// What the set-up found or made; each absence has its reason.
#[derive(Default)]
struct Setup {
    model: Option<PathBuf>,
    python: Option<PathBuf>,
    /// Files of cases by the variable that names them.
    cases: Vec<(&'static str, Vec<PathBuf>)>,
    without: Vec<String>,
}

impl Setup {
    /// Installs and fetches what the tests can use; what cannot be had is noted, not fatal.
    fn make() -> Setup {
        let mut setup = Setup::default();
        let needs = [
            &packages::VENV,
            &packages::BROKER,
            &packages::BROKER_CLIENTS,
            &packages::SOCKETS,
        ];
        if let Err(error) = packages::ensure(&needs) {
            setup
                .without
                .push(format!("some system packages: {error:#}"));
        }
        setup.python = setup.note("the official client", python::ensure());
        setup.model = setup.note("SmolLM2", model::ensure());
        if let (Some(python), Some(model)) = (&setup.python, &setup.model) {
            let tokens = oracle::tokens(python, model);
            let formats = oracle::formats(python, model);
            let templates = oracle::chat_templates(python, model);
            setup.cases = [
                ("ANDON_TOKENIZER_CASES", "tokens", tokens),
                (
                    "ANDON_FORMAT_CASES",
                    "blocks",
                    formats.map(|path| vec![path]),
                ),
                (
                    "ANDON_CHAT_TEMPLATE_CASES",
                    "chat templates",
                    templates.map(|path| vec![path]),
                ),
            ]
            .into_iter()
            .filter_map(|(variable, what, made)| {
                let made = setup.note(&format!("second opinions on {what}"), made)?;
                Some((variable, made))
            })
            .collect();
        }
        setup
    }

    fn note<T>(&mut self, what: &str, made: Result<T>) -> Option<T> {
        made.map_err(|error| self.without.push(format!("{what}: {error:#}")))
            .ok()
    }

    /// The variables that tell the tests where things are.
    fn variables(&self) -> Vec<(&'static str, OsString)> {
        let path = |path: &PathBuf| path.clone().into_os_string();
        let model = self
            .model
            .as_ref()
            .map(|model| ("ANDON_TEST_MODEL", path(model)));
        let python = self
            .python
            .as_ref()
            .map(|python| ("ANDON_TEST_PYTHON", path(python)));
        let cases = self.cases.iter().filter_map(|(variable, files)| {
            let list = env::join_paths(files).ok()?;
            (!list.is_empty()).then_some((*variable, list))
        });
        [model, python].into_iter().flatten().chain(cases).collect()
    }
}

/// Prints the environment of the tests, for running one of them by hand.
pub(crate) fn print_setup() -> Result<ExitCode> {
    let setup = Setup::make();
    for missing in &setup.without {
        println!("  without {missing}");
    }
    for (name, value) in setup.variables() {
        println!("export {name}={}", value.display());
    }
    Ok(if setup.without.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the stages and prints their summary.
pub(crate) fn run(fast: bool, only: &[Stage]) -> Result<ExitCode> {
    let stages: Vec<Stage> = match (only, fast) {
        ([], true) => FAST.to_vec(),
        ([], false) => ALL.to_vec(),
        (only, _) => ALL
            .into_iter()
            .filter(|stage| only.contains(stage))
            .collect(),
    };
    let start = Instant::now();
    let mut setup = Setup::default();
    if !fast && stages.contains(&Stage::Tests) {
        println!("== setup");
        setup = Setup::make();
    }
    let setup_time = start.elapsed();
    let mut building = stages
        .contains(&Stage::Aarch64)
        .then(emulate::Building::start);
    let mut making = stages.contains(&Stage::System).then(system::Making::start);
    let packed = [Stage::Package, Stage::System];
    let mut tool = packed
        .iter()
        .any(|stage| stages.contains(stage))
        .then(deb::Tool::start);

    let mut lines = Vec::new();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for stage in stages {
        println!("== {}", stage.name());
        let began = Instant::now();
        let (mark, note) = match run_stage(stage, &setup, &mut building, &mut making, &mut tool) {
            Ok(Outcome::Passed(note)) => {
                passed += 1;
                ("passed", note)
            }
            Ok(Outcome::Skipped(reason)) => {
                skipped += 1;
                ("skipped", reason)
            }
            Err(error) => {
                failed += 1;
                println!("{error:#}");
                ("FAILED", first_line(&format!("{error:#}")))
            }
        };
        lines.push(format!(
            "  {:<8} {mark:<8} {:>8}  {note}",
            stage.name(),
            seconds(began.elapsed())
        ));
    }

    println!("== summary");
    println!("  {:<8} {:<8} {:>8}", "setup", "", seconds(setup_time));
    for line in lines {
        println!("{line}");
    }
    for missing in &setup.without {
        println!("  without {missing}");
    }
    println!("  total {}", seconds(start.elapsed()));
    println!("stages: {passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run_stage(
    stage: Stage,
    setup: &Setup,
    building: &mut Option<emulate::Building>,
    making: &mut Option<system::Making>,
    tool: &mut Option<deb::Tool>,
) -> Result<Outcome> {
    let done = |()| Outcome::Passed(String::new());
    let mut packer = || tool.get_or_insert_with(deb::Tool::start).packer();
    match stage {
        Stage::Format => shell::run(&mut shell::cargo(&["fmt", "--all", "--check"])).map(done),
        Stage::Clippy => {
            let clippy = [
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ];
            shell::run(&mut shell::cargo(&clippy)).map(done)
        }
        Stage::Tests => tests(setup),
        Stage::Docs => {
            let mut docs =
                shell::cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--keep-going"]);
            // Private items are documented too, so links to them lead somewhere.
            docs.arg("--document-private-items");
            shell::run(docs.env(
                "RUSTDOCFLAGS",
                "-D warnings -A rustdoc::private-intra-doc-links",
            ))
            .map(done)
        }
        Stage::NoStd => no_std::check().map(done),
        Stage::Cuda => cuda::stage(),
        Stage::Units => units::check(),
        Stage::Manual => manual::check(),
        Stage::Package => deb::check(packer()),
        Stage::Deny => deny(),
        Stage::System => {
            let making = making.take().unwrap_or_else(system::Making::start);
            system::check(making, packer())
        }
        Stage::Aarch64 => {
            emulate::aarch64(building.take().unwrap_or_else(emulate::Building::start))
        }
    }
}

/// Builds the programs, then runs every test with the paths of what the set-up made.
fn tests(setup: &Setup) -> Result<Outcome> {
    // One build for programs and tests, so that both see the same features of their dependencies.
    shell::run(&mut shell::cargo(&[
        "test",
        "--quiet",
        "--workspace",
        "--no-run",
    ]))?;
    shell::run(&mut shell::cargo(&[
        "build",
        "--quiet",
        "--workspace",
        "--bins",
    ]))?;
    let variables = || {
        let programs = shell::target_directory().join("debug").into_os_string();
        setup
            .variables()
            .into_iter()
            .chain([("ANDON_BIN_DIR", programs)])
    };
    let mut counts = Counts::default();
    if packages::has_broker() {
        counts.take(&["--workspace"], variables())?;
    } else {
        println!("  without mosquitto: the tests of MQTT with a real broker are left out");
        counts.take(&["--workspace", "--exclude", "andon-tests"], variables())?;
        counts.take(
            &["--package", "andon-tests", "--", "--skip", "mqtt::"],
            variables(),
        )?;
    }
    let Counts {
        passed,
        failed,
        ignored,
        ..
    } = counts;
    let note = format!("{passed} tests passed, {failed} failed, {ignored} ignored");
    if !counts.sound || failed > 0 {
        bail!("{note}");
    }
    if passed == 0 {
        bail!("cargo test ran no test");
    }
    Ok(Outcome::Passed(note))
}

/// Tests counted over several runs of cargo.
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Whether every run of cargo ended well.
    sound: bool,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            passed: 0,
            failed: 0,
            ignored: 0,
            sound: true,
        }
    }
}

impl Counts {
    /// Runs `cargo test` with these arguments, shows what it prints, and counts.
    fn take(
        &mut self,
        arguments: &[&str],
        variables: impl Iterator<Item = (&'static str, OsString)>,
    ) -> Result<()> {
        let mut cargo = shell::cargo(&["test", "--no-fail-fast"]);
        cargo.args(arguments).envs(variables);
        println!("  $ {}", shell::line(&cargo));
        let mut child = cargo
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run cargo test")?;
        let stdout = child.stdout.take().context("no output of cargo test")?;
        for line in BufReader::new(stdout).lines() {
            let line = line.context("output of cargo test")?;
            println!("{line}");
            if let Some(counts) = line.strip_prefix("test result: ") {
                self.passed += count(counts, "passed");
                self.failed += count(counts, "failed");
                self.ignored += count(counts, "ignored");
            }
        }
        self.sound &= child.wait()?.success();
        Ok(())
    }
}

/// The number before ` word` in cargo's line of counts.
fn count(counts: &str, word: &str) -> u64 {
    let before = counts
        .split(&[';', '.'][..])
        .find_map(|part| part.trim().strip_suffix(word));
    before
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

fn deny() -> Result<Outcome> {
    if shell::find("cargo-deny").is_none() {
        return Ok(Outcome::Skipped(
            "cargo-deny is not installed (cargo install cargo-deny)".to_owned(),
        ));
    }
    // Advisories need a database from the network; they are looked at when dependencies are updated.
    let mut deny = shell::cargo(&["deny", "--offline", "check", "bans", "licenses", "sources"]);
    shell::run(&mut deny).map(|()| Outcome::Passed(String::new()))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts_are_read_from_cargos_line() {
        let line =
            "FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.1s";
        assert_eq!(
            (
                count(line, "passed"),
                count(line, "failed"),
                count(line, "ignored")
            ),
            (12, 3, 1)
        );
        assert_eq!(count("ok.", "passed"), 0);
    }
}
