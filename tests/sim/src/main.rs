//! Many worlds, one after the other: `cargo xtask sim`.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

/// The scheduler in worlds made of numbers, and routing on days of a flapping link.
#[derive(Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
struct Arguments {
    /// Seed of the first world.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many events in all.
    #[arg(long, default_value_t = 10_000_000)]
    events: u64,
    /// How many days of a flapping link.
    #[arg(long, default_value_t = 500)]
    days: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let began = Instant::now();
    let worlds = andon_sim::campaign(arguments.seed, arguments.events);
    let days = andon_sim::link::campaign(arguments.seed, arguments.days);
    let reports = worlds.and_then(|worlds| Ok(format!("{worlds}\n{}", days?)));
    match reports {
        Ok(reports) => {
            println!("{reports}");
            println!("{:.1} s", began.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(broken) => {
            eprintln!("{broken}");
            ExitCode::FAILURE
        }
    }
}
