//! Every CUDA kernel against the processor's, and how fast they are: `cargo xtask cuda-check`.
//!
//! Each check runs in a process of its own, so that one which breaks the device does not hide what the others find.
//! Invariant: outputs are poisoned before every launch, and compared to the bit.

#![forbid(unsafe_code)]

mod attention;
mod cache;
mod columns;
mod compare;
mod data;
mod hand_over;
mod heads;
mod layer;
mod models;
mod products;
mod quantize;
mod sanitize;
mod speed;
mod stand_ins;
mod top_k;

use andon_cuda::{Device, Format};
use andon_cuda_check::{emulation, passes};
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The CUDA kernels against the scalar ones, and how fast they are.
#[derive(Parser)]
#[command(name = "cargo xtask cuda-check", bin_name = "cargo xtask cuda-check")]
struct Arguments {
    /// Only this check, in this process; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only checks, no speeds.
    #[arg(long)]
    no_speed: bool,
    /// A model whose logits and greedy tokens are compared with the processor's, and whose tokens per second are measured; may be
    /// given several times.
    #[arg(long, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Greedy tokens that are compared.
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// No run under compute-sanitizer.
    #[arg(long)]
    no_sanitizer: bool,
    /// This program, built so that both warps of a hand-over wait: what racecheck is asked about.
    #[arg(long, value_name = "PROGRAM")]
    both_wait: Option<PathBuf>,
    /// Small sizes only: for a run under compute-sanitizer.
    #[arg(long)]
    small: bool,
    /// On a processor, by the driver of tests/cuda/emulation: small sizes, and no speeds.
    #[arg(long)]
    emulated: bool,
    /// Number of the device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// What chance follows from; a failure says it. Without, the time.
    #[arg(long)]
    seed: Option<u64>,
    /// Dense bf16 products of this card, in TFLOP/s, that prefill is set against.
    #[arg(long, value_name = "TFLOPS")]
    dense: Option<f64>,
}

/// What ends a run that there was nothing for: the exit code that test drivers take for "skipped".
const SKIPPED: u8 = 77;

/// What a check is run with.
struct Run<'a> {
    device: &'a Device,
    /// Its number.
    ordinal: usize,
    seed: u64,
    small: bool,
    dense: Option<f64>,
}

type Check = fn(&Run<'_>) -> Result<String>;

/// Every check by its name, and those that only measure.
const CHECKS: &[(&str, Check)] = &[
    ("quantize", quantize::check),
    ("norm", layer::norm),
    ("glu", layer::glu),
    ("columns", columns::check),
    ("embed", columns::embed),
    ("heads", heads::check),
    ("attention", attention::check),
    ("stand_ins", stand_ins::check),
    ("top_k", top_k::check),
    ("graphs", |run| {
        let passes = passes::check(run.device);
        Ok(format!("{passes} recorded passes are what others give"))
    }),
    ("hand_over", hand_over::check),
    ("q4_0", |run| products::check(run, Format::Q4_0)),
    ("q4_1", |run| products::check(run, Format::Q4_1)),
    ("q5_0", |run| products::check(run, Format::Q5_0)),
    ("q5_1", |run| products::check(run, Format::Q5_1)),
    ("q8_0", |run| products::check(run, Format::Q8_0)),
    ("q3_k", |run| products::check(run, Format::Q3K)),
    ("q4_k", |run| products::check(run, Format::Q4K)),
    ("q5_k", |run| products::check(run, Format::Q5K)),
    ("q6_k", |run| products::check(run, Format::Q6K)),
    ("iq4_nl", |run| products::check(run, Format::IQ4NL)),
    ("iq4_xs", |run| products::check(run, Format::IQ4XS)),
];

const SPEEDS: &[(&str, Check)] = &[
    ("speed-q4_k", |run| speed::products(run, Format::Q4K)),
    ("speed-q8_0", |run| speed::products(run, Format::Q8_0)),
    ("speed-q4_0", |run| speed::products(run, Format::Q4_0)),
    ("speed-q6_k", |run| speed::products(run, Format::Q6K)),
    ("speed-attention", speed::attention),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = if let ([model], true) = (arguments.model.as_slice(), arguments.only == [MODEL]) {
        models::check(model, arguments.tokens, !arguments.no_speed)
            .map(|said| println!("{}: {said}", model.display()))
    } else if arguments.emulated {
        match emulated(arguments) {
            Ok(true) => Ok(()),
            Ok(false) => {
                println!("skipped: there is no C++ compiler");
                return ExitCode::from(SKIPPED);
            }
            Err(error) => Err(error),
        }
    } else if arguments.only.is_empty() {
        whole(&arguments)
    } else {
        some(&arguments)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every check in the emulation, and the handing over as it is built for tools that watch races; `false` where nothing can be
/// emulated.
fn emulated(mut arguments: Arguments) -> Result<bool> {
    arguments.small = true;
    // A library path is read when a program starts.
    let Some(folder) = emulation::driver()? else {
        return Ok(false);
    };
    let path = emulation::library_path(&folder);
    arguments.no_speed = true;
    if !arguments.model.is_empty() {
        for model in &arguments.model {
            on_model(&arguments, model, Some(&path))?;
        }
        return Ok(true);
    }
    each(&arguments, CHECKS, Some(&path))?;
    if arguments.only.is_empty() {
        let folder = emulation::driver_with(&["ANDON_HAND_OVER_SYNC"])?;
        let path = folder.map(|folder| emulation::library_path(&folder));
        println!("where both warps of a hand-over wait:");
        arguments.only = vec!["hand_over".to_owned()];
        each(&arguments, CHECKS, path.as_deref())?;
    }
    Ok(true)
}

/// What names the comparison of a model.
const MODEL: &str = "model";

/// Compares a model in a process of its own.
fn on_model(arguments: &Arguments, model: &Path, library_path: Option<&OsStr>) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--only", MODEL, "--model"]).arg(model);
    command.args(["--tokens", &arguments.tokens.to_string()]);
    if arguments.no_speed {
        command.arg("--no-speed");
    }
    if let Some(path) = library_path {
        command.env("LD_LIBRARY_PATH", path);
    }
    ensure!(command.status()?.success(), "{}", model.display());
    Ok(())
}

/// All that there is to do on a device: checks, the same under compute-sanitizer, speeds.
fn whole(arguments: &Arguments) -> Result<()> {
    let device = Device::open(arguments.device)?;
    println!("{:?}", device.limits()?);
    drop(device);
    let mut failed = Vec::new();
    failed.extend(each(arguments, CHECKS, None).err());
    if !arguments.no_sanitizer {
        match sanitize::find() {
            Some(sanitizer) => {
                let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
                let done = sanitize::all(&sanitizer, &names, arguments.both_wait.as_deref());
                failed.extend(done.err());
            }
            None => println!("without compute-sanitizer: there is none"),
        }
    }
    for model in &arguments.model {
        failed.extend(on_model(arguments, model, None).err());
    }
    if !arguments.no_speed {
        failed.extend(each(arguments, SPEEDS, None).err());
    }
    if failed.is_empty() {
        return Ok(());
    }
    let failed: Vec<String> = failed.iter().map(|error| format!("{error:#}")).collect();
    bail!("{}", failed.join("; "));
}

fn some(arguments: &Arguments) -> Result<()> {
    let device = Device::open(arguments.device)?;
    let now = || {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
        since.map_or(1, |since| since.as_nanos() as u64)
    };
    let seed = arguments.seed.unwrap_or_else(now);
    let run = Run {
        device: &device,
        ordinal: arguments.device,
        seed,
        small: arguments.small,
        dense: arguments.dense,
    };
    for name in &arguments.only {
        let found = CHECKS.iter().chain(SPEEDS).find(|(known, _)| known == name);
        let (_, check) = found.with_context(|| format!("there is no check {name}"))?;
        let began = Instant::now();
        let said = check(&run).with_context(|| format!("{name}, seed {seed}"))?;
        println!("{name}: {said} ({:.1} s)", began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Those of `checks` that are asked for, each in a process of its own, which finds the driver by `library_path`.
fn each(
    arguments: &Arguments,
    checks: &[(&str, Check)],
    library_path: Option<&OsStr>,
) -> Result<()> {
    for name in &arguments.only {
        let known = checks.iter().any(|(known, _)| known == name);
        ensure!(known, "there is no check {name}");
    }
    let program = std::env::current_exe()?;
    let named = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|wanted| wanted == name)
    };
    let mut failed = Vec::new();
    for (name, _) in checks.iter().filter(|(name, _)| named(name)) {
        let mut command = Command::new(&program);
        command.args(["--only", name]);
        command.args(["--device", &arguments.device.to_string()]);
        if let Some(seed) = arguments.seed {
            command.args(["--seed", &seed.to_string()]);
        }
        if let Some(dense) = arguments.dense {
            command.args(["--dense", &dense.to_string()]);
        }
        if arguments.small {
            command.arg("--small");
        }
        if let Some(path) = library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
        if !command.status()?.success() {
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join(", "));
    }
    Ok(())
}
