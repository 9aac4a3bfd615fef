//! Fuzzing with libFuzzer, and model files changed at random: long runs that go on where they ended.
//!
//! The targets are a workspace of their own (`tests/fuzz`), laid out for `cargo fuzz`. They are built here without it,
//! on the stable compiler: the instrumentation that libFuzzer needs is a pass of LLVM, and our own allocator stands in
//! for the sanitizers, which need a nightly one.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use crate::{campaign, shell};

/// The targets, each a file in `tests/fuzz/targets`.
const TARGETS: [&str; 20] = [
    "gguf",
    "pack",
    "tokenizer",
    "template",
    "grammar",
    "calls",
    "wire",
    "manifest",
    "http",
    "mqtt",
    "packet",
    "config",
    "spool",
    "record",
    "page",
    "corpus",
    "state",
    "audit",
    "redact",
    "upstream",
];

/// What `cargo fuzz` gives the compiler, without the sanitizer.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=16";

/// A single case that takes longer hangs.
const CASE_SECONDS_MAX: u32 = 60;
/// Memory of a whole run; a case's own limit is the target's.
const RUN_MEBIBYTES_MAX: u32 = 4096;
/// Longest input: libFuzzer would else go no further than the longest seed.
const INPUT_BYTES_MAX: u32 = 65_536;

fn folder() -> PathBuf {
    shell::target_directory().join("fuzz")
}

/// Builds the targets and runs each for so many seconds, `jobs` of them at a time.
///
/// # Errors
/// When a target cannot be built, or something was found.
pub(crate) fn run(targets: &[String], seconds: u32, jobs: usize) -> Result<ExitCode> {
    for target in targets {
        if !TARGETS.contains(&target.as_str()) {
            bail!(
                "there is no target {target}; there are {}",
                TARGETS.join(", ")
            );
        }
    }
    let targets: Vec<&str> = TARGETS
        .into_iter()
        .filter(|target| targets.is_empty() || targets.iter().any(|asked| asked == target))
        .collect();
    let seeds = folder().join("seeds");
    shell::run(
        shell::cargo(&[
            "test",
            "--quiet",
            "--package",
            "andon-tests",
            "--test",
            "fuzz",
            "seeds_are_written",
        ])
        .env("ANDON_FUZZ_SEEDS", &seeds),
    )?;
    let programs = build(&targets)?;
    let waiting = Mutex::new(targets.iter().copied().collect::<VecDeque<_>>());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = waiting
                        .lock()
                        .ok()
                        .and_then(|mut waiting| waiting.pop_front());
                    let Some(target) = next else {
                        return;
                    };
                    let result = one(target, &programs, &seeds, seconds);
                    if let Ok(mut results) = results.lock() {
                        results.push((target, result));
                    }
                }
            });
        }
    });
    println!("== summary");
    let mut sound = true;
    for (target, result) in results.into_inner().unwrap_or_default() {
        match result {
            Ok(line) => println!("  {target:<10} {line}"),
            Err(error) => {
                sound = false;
                println!("  {target:<10} FAILED: {error:#}");
            }
        }
    }
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the programs and says where they are.
fn build(targets: &[&str]) -> Result<PathBuf> {
    let version = shell::output(Command::new("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not name its host")?;
    let output = folder().join("build");
    let mut cargo = shell::cargo(&["build", "--quiet", "--release"]);
    cargo
        .arg("--manifest-path")
        .arg(shell::root().join("tests/fuzz/Cargo.toml"));
    // With a target named, what runs while building is not instrumented.
    cargo.args(["--target", host]);
    cargo.arg("--target-dir").arg(&output);
    for target in targets {
        cargo.args(["--bin", target]);
    }
    shell::run(cargo.env("RUSTFLAGS", INSTRUMENTATION))?;
    Ok(output.join(host).join("release"))
}

/// Runs one target; its corpus stays for the next time.
fn one(target: &str, programs: &Path, seeds: &Path, seconds: u32) -> Result<String> {
    let make = |kind: &str| -> Result<PathBuf> {
        let path = folder().join(kind).join(target);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    };
    let (corpus, artifacts) = (make("corpus")?, make("artifacts")?);
    let log = folder().join(format!("{target}.log"));
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(programs.join(target));
    command
        .arg(&corpus)
        .arg(seeds.join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={CASE_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={RUN_MEBIBYTES_MAX}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    println!("  $ {}", shell::line(&command));
    let status = command
        .status()
        .with_context(|| format!("cannot run {target}"))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        bail!(
            "{status}; see {} and {}",
            log.display(),
            artifacts.display()
        );
    }
    let number = |name: &str| {
        said.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    let runs = number("stat::number_of_executed_units:");
    let files = fs::read_dir(&corpus)?.count();
    Ok(format!(
        "{runs} runs, {} a second, {files} files in the corpus",
        runs / u64::from(seconds.max(1))
    ))
}

/// Model files changed at random: `cases` of them from number `from` on, `jobs` at a time.
///
/// # Errors
/// When one of them panics, hangs or takes more memory than is stated.
pub(crate) fn mutate(from: u64, cases: u64, jobs: usize) -> Result<ExitCode> {
    let mut cargo = shell::cargo(&[
        "test",
        "--release",
        "--package",
        "andon-tests",
        "--test",
        "mutation",
    ]);
    cargo.args(["mutated_files_do_no_harm", "--", "--nocapture"]);
    cargo
        .env("ANDON_MUTATIONS_FROM", from.to_string())
        .env("ANDON_MUTATIONS", cases.to_string())
        .env("ANDON_MUTATIONS_JOBS", jobs.to_string());
    shell::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}

/// Rounds of kill -9 under load, from a seed.
///
/// # Errors
/// When a request is lost or answered in two ways.
pub(crate) fn crash(rounds: u64, seed: u64) -> Result<ExitCode> {
    shell::run(&mut shell::cargo(&[
        "build",
        "--package",
        "andond",
        "--package",
        "andonctl",
    ]))?;
    let mut cargo = campaign::tests(&["spool::campaign", "spool::network"], 3)?;
    cargo
        .env("ANDON_CRASH_ROUNDS", rounds.to_string())
        .env("ANDON_CRASH_SEED", seed.to_string());
    shell::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
