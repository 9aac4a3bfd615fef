//! What this machine can do at most: streaming read, and multiply-adds of each instruction set.

use andon_engine::calibrate::limits::{multiply_adds_per_s, read_bytes_per_s};
use andon_kernels::Table;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Map, json};

use crate::bench::round;

/// More threads than any machine served has; each takes a quarter of a gigabyte.
const THREADS_MAX: usize = 1024;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Threads [default: as many as this process may keep busy].
    #[arg(long)]
    threads: Option<usize>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let threads = arguments
        .threads
        .unwrap_or_else(andon_os::available_threads);
    ensure!(
        (1..=THREADS_MAX).contains(&threads),
        "--threads must be between 1 and {THREADS_MAX}"
    );
    let tables: Vec<Table> = Table::runnable().collect();
    let best = tables.last().context("there is always a scalar table")?;
    let read = read_bytes_per_s(best, threads) / 1e9;
    let mut rates = Map::new();
    for table in &tables {
        let rate = multiply_adds_per_s(table, threads) / 1e9;
        rates.insert(table.isa().name().to_owned(), json!(round(rate, 1)));
    }
    if arguments.json {
        let report = json!({
            "threads": threads,
            "bandwidth_gb_s": round(read, 2),
            "int8_gmac_s": rates,
        });
        println!("{report}");
    } else {
        println!("{threads} threads read {read:.1} GB/s");
        for (isa, rate) in rates {
            println!("{isa:<12} {rate:>8} G multiply-adds/s");
        }
    }
    Ok(())
}
