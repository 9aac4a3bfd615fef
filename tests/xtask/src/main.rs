//! Development commands of the workspace.
//!
//! `cargo xtask demo` shows the service answering; `cargo xtask test` is all that must hold before a
//! change lands. Both do their own set-up and say what they install and where. Nothing here knows a
//! crate of ours: the programs are built and started like anybody would.

#![forbid(unsafe_code)]

mod assets;
mod bench;
mod cache;
mod campaign;
mod cuda;
mod deb;
mod demo;
mod emulate;
mod fuzz;
mod install;
mod manual;
mod model;
mod no_std;
mod oracle;
mod packages;
mod python;
mod sbom;
mod shell;
mod sim;
mod stages;
mod system;
mod units;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands of andon.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch a model, start a broker and andond, and ask over every interface.
    Demo {
        /// Leave everything running until Ctrl-C, and print what to try.
        #[arg(long)]
        keep: bool,
        /// Use this GGUF file instead of fetching SmolLM2.
        #[arg(long, value_name = "PATH")]
        model: Option<PathBuf>,
    },
    /// Format, lints, tests, documentation: what must hold before a change lands.
    Test {
        /// Only what needs no set-up: format, lints, and tests without a real model or other programs.
        #[arg(long)]
        fast: bool,
        /// Only the stage `system`: andon installed into a root that a real systemd boots.
        #[arg(long, conflicts_with_all = ["fast", "only"])]
        system: bool,
        /// With --system: boot by user-mode Linux instead, and look at memory and at what a power cut leaves on the disk.
        #[arg(long, requires = "system")]
        uml: bool,
        /// With --system: optimized programs and SmolLM2 instead, and look at how fast a start by a socket is, or with --uml at memory.
        #[arg(long, requires = "system")]
        release: bool,
        /// Run this stage alone; may be given several times.
        #[arg(long, value_name = "STAGE", value_enum)]
        only: Vec<stages::Stage>,
    },
    /// Fuzz what comes from outside; what was learnt stays in target/fuzz for the next run.
    Fuzz {
        /// Only this target; may be given several times.
        #[arg(long, value_name = "TARGET")]
        target: Vec<String>,
        /// How long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Targets at a time.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
    },
    /// Load and run model files changed at random.
    Mutate {
        /// Number of the first case: a run can go on where another ended.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many cases.
        #[arg(long, default_value_t = 1_000_000)]
        cases: u64,
        /// Cases at a time.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Run the scheduler in worlds made of numbers, with their own clock, engine, clients and broker, and routing on days of a
    /// link that flaps.
    Sim {
        /// Seed of the first world.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many events in all around the scheduler.
        #[arg(long, default_value_t = 10_000_000)]
        events: u64,
        /// How many days of a flapping link.
        #[arg(long, default_value_t = 500)]
        days: u64,
    },
    /// Kill the daemon under load wherever a request changes its state, and its network, and hold a publisher's ledger against it.
    Crash {
        /// How often.
        #[arg(long, default_value_t = 200)]
        rounds: u64,
        /// What chance follows from; a failure says it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Send hostile requests over every front end to a real model's daemon, and judge what they leave behind.
    Hostile {
        /// How many over each.
        #[arg(long, default_value_t = 100_000)]
        count: u64,
        /// What chance follows from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only over this: http, wire or mqtt.
        #[arg(long, value_name = "FRONT_END")]
        only: Option<String>,
    },
    /// Load the daemon for hours and watch what it holds; what was ended goes on where it was.
    Soak {
        /// How long in all.
        #[arg(long, default_value_t = 2.0)]
        hours: f64,
        /// Where looks are kept, to go on from: target/soak.jsonl unless said.
        #[arg(long, value_name = "PATH")]
        state: Option<PathBuf>,
    },
    /// Measure andon beside llama.cpp on the same files, and record it.
    Bench(bench::Options),
    /// Lay what is shipped into a root: programs, units, configuration, pages, completions.
    Install(install::Options),
    /// List what is inside our programs, as a CycloneDX document.
    Sbom(sbom::Options),
    /// Write the manual pages of programs that describe themselves into systemd/man.
    Manual,
    /// Install a compiler of CUDA kernels into the cache unless there is one, and print how it is named to the build.
    Cuda,
    /// Check every CUDA kernel on the device of this machine, also under compute-sanitizer, and measure them.
    CudaCheck(cuda::Check),
    /// Do the set-up of the tests and print the environment they run in.
    Setup,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo { keep, model } => demo::run(keep, model),
        Command::Test { uml, release, .. } if uml || release => {
            system::run(system::Options { uml, release })
        }
        Command::Test { system: true, .. } => stages::run(false, &[stages::Stage::System]),
        Command::Test { fast, only, .. } => stages::run(fast, &only),
        Command::Fuzz {
            target,
            seconds,
            jobs,
        } => fuzz::run(&target, seconds, jobs),
        Command::Mutate { from, cases, jobs } => fuzz::mutate(from, cases, jobs),
        Command::Sim { seed, events, days } => sim::run(seed, events, days),
        Command::Crash { rounds, seed } => fuzz::crash(rounds, seed),
        Command::Hostile { count, seed, only } => campaign::hostile(count, seed, only.as_deref()),
        Command::Soak { hours, state } => campaign::soak(hours, state),
        Command::Bench(options) => bench::run(&options),
        Command::Install(options) => install::run(&options),
        Command::Sbom(options) => sbom::run(&options),
        Command::Manual => manual::write().map(|()| ExitCode::SUCCESS),
        Command::Cuda => cuda::install(),
        Command::CudaCheck(check) => cuda::check(&check),
        Command::Setup => stages::print_setup(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
