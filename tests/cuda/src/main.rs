//! Everything that can be tried with a card, in one bounded run: `cargo xtask cuda-check`, or this program alone where there is
//! a card and no toolchain (kernels/cuda/README.md, "On a card"). Without a card `--emulated` makes the same run, small.
//!
//! Each check runs in a process of its own, so that one which breaks the device does not hide what the others find.
//! Invariant: outputs are poisoned before every launch, and compared to the bit.

#![forbid(unsafe_code)]

mod attention;
mod cache;
mod children;
mod columns;
mod compare;
mod data;
mod dense;
mod floats;
mod hand_over;
mod heads;
mod layer;
mod models;
mod products;
mod quantize;
mod report;
mod rival;
mod sanitize;
mod sections;
mod speed;
mod stand_ins;
mod top_k;

use andon_cuda::{Device, Format};
use andon_cuda_check::figures::Figures;
use andon_cuda_check::passes;
use anyhow::{Context, Result};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Everything that can be tried with a card, in one bounded run.
#[derive(Parser)]
#[command(name = "cargo xtask cuda-check", bin_name = "cargo xtask cuda-check")]
struct Arguments {
    /// Only these sections: kernels, interfaces, models, speed, daemon, rival, sanitize; or only these checks, by name (`tokens`: the
    /// speeds of whole models).
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// When the run ends, whatever is left to do: what was not finished is named, and is a failure.
    #[arg(long, value_name = "SECONDS", default_value_t = 540)]
    seconds: u64,
    /// Where cuda-check.json goes, with all that was found and measured.
    #[arg(long, value_name = "FOLDER")]
    results: Option<PathBuf>,
    /// A model whose logits and greedy tokens are compared with the processor's, and whose tokens per second are measured, beside
    /// synthetic ones; may be given several times.
    #[arg(long, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Greedy tokens that are compared.
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// A folder with room for synthetic models, of which the largest takes 5 GB; the system's for temporary files, unless given.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// This program, built so that both warps of a hand-over wait: what racecheck is asked about. This and the next two are
    /// looked for beside this program.
    #[arg(long, value_name = "PROGRAM")]
    both_wait: Option<PathBuf>,
    /// The tests of what stands on passes: `andon-accelerated`.
    #[arg(long, value_name = "PROGRAM")]
    interfaces: Option<PathBuf>,
    /// The daemon.
    #[arg(long, value_name = "PROGRAM")]
    andond: Option<PathBuf>,
    /// llama.cpp's `llama-bench`, built for this card; ANDON_LLAMA_BENCH names it, too.
    #[arg(long, value_name = "PROGRAM")]
    llama_bench: Option<PathBuf>,
    /// Everything on a processor, by the driver of tests/cuda/emulation: small sizes, whose figures mean nothing.
    #[arg(long)]
    emulated: bool,
    /// Number of the device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// What chance follows from; a failure says it. Without, the time.
    #[arg(long)]
    seed: Option<u64>,
    /// Dense bf16 products of this card, in TFLOP/s, that prefill is set against. Without, PyTorch measures them, if there is one.
    #[arg(long, value_name = "TFLOPS")]
    dense: Option<f64>,
    /// Checks of kernels at once; unless given, as many as there are processors for them.
    #[arg(long)]
    jobs: Option<usize>,
    /// This check, in this process.
    #[arg(long, value_name = "CHECK", hide = true)]
    here: Option<String>,
    /// Small sizes only.
    #[arg(long, hide = true)]
    small: bool,
    /// Where this process appends what it measures.
    #[arg(long, value_name = "FILE", hide = true)]
    figures: Option<PathBuf>,
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
    figures: &'a Figures,
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
    ("floats", floats::check),
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
    let done = match &arguments.here {
        Some(check) => here(&arguments, check),
        None => match sections::all(arguments) {
            Ok(true) => Ok(()),
            Ok(false) => {
                println!("skipped: there is no C++ compiler");
                return ExitCode::from(SKIPPED);
            }
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A seed by the time.
fn any_seed() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.map_or(1, |since| since.as_nanos() as u64)
}

/// One check, in this process.
fn here(arguments: &Arguments, name: &str) -> Result<()> {
    let figures = Figures::to_file(arguments.figures.as_deref());
    if let Some(done) = sections::without_device(arguments, name, &figures) {
        println!("{name}: {}", done.with_context(|| name.to_owned())?);
        return Ok(());
    }
    let device = Device::open(arguments.device)?;
    let seed = arguments.seed.unwrap_or_else(any_seed);
    let run = Run {
        device: &device,
        ordinal: arguments.device,
        seed,
        small: arguments.small,
        dense: arguments.dense,
        figures: &figures,
    };
    let began = Instant::now();
    let said = match CHECKS
        .iter()
        .chain(SPEEDS)
        .find(|(known, _)| *known == name)
    {
        Some((_, check)) => check(&run),
        None => sections::of_models(arguments, name, &run),
    };
    let said = said.with_context(|| format!("{name}, seed {seed}"))?;
    println!("{name}: {said} ({:.1} s)", began.elapsed().as_secs_f64());
    Ok(())
}
