//! The soak of `cargo xtask soak`: mixed load for hours, and a look at what the daemon holds every few seconds.
//!
//! Every look is a line of the state file. A soak that was ended goes on with a new daemon and adds to the file, until there
//! have been as many hours of this program with this model; each part warms up by itself.

#![forbid(unsafe_code)]

mod judge;
mod load;
mod record;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use andon_tests::broker::Broker;
use andon_tests::daemon::Daemon;
use andon_tests::vitals::Vitals;
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use record::{Look, State};

/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);

/// Loads a daemon for hours and watches what it holds.
#[derive(Parser)]
struct Arguments {
    /// The folder with andond.
    #[arg(long)]
    programs: PathBuf,
    /// The model that answers.
    #[arg(long)]
    model: PathBuf,
    /// How long in all, over every part that counts.
    #[arg(long)]
    hours: f64,
    /// Where looks are kept.
    #[arg(long)]
    state: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let subject = record::subject(&arguments.programs.join("andond"), &arguments.model)?;
    let mut state = State::open(&arguments.state, &subject)?;
    let wanted = arguments.hours * 3600.0;
    let left = wanted - judge::seconds(state.parts());
    if left > 0.0 {
        let number = state.begin()?;
        println!("part {number}: {left:.0} s are left");
        // The rest may be shorter than what is judged.
        let length = left.max(judge::SHORTEST + LOOK.as_secs_f64());
        let outcome = soak(arguments, length, &mut state);
        if let Err(error) = &outcome {
            state.failed(&format!("{error:#}"))?;
        }
    }
    Ok(judge::judge(state.parts(), wanted))
}

fn soak(arguments: &Arguments, wanted: f64, state: &mut State) -> Result<()> {
    let broker = Broker::start()?;
    let config = broker.config() + &load::config();
    let mut daemon = Daemon::builder()
        .programs(&arguments.programs)
        .model(&arguments.model)
        .config(&config)
        .start()?;
    let over = AtomicBool::new(false);
    let counts = load::Counts::default();
    thread::scope(|scope| {
        let loads = load::start(scope, &daemon.http(), &broker, &over, &counts)?;
        let watched = watch(&mut daemon, wanted, state, &loads, &counts);
        over.store(true, Ordering::Relaxed);
        let ended = loads.into_iter().try_for_each(|load| {
            let outcome = load.join();
            outcome.unwrap_or_else(|_| bail!("a part of the load panicked"))
        });
        watched.and(ended)
    })
}

/// Looks until so many seconds have passed.
fn watch(
    daemon: &mut Daemon,
    wanted: f64,
    state: &mut State,
    loads: &[ScopedJoinHandle<'_, Result<()>>],
    counts: &load::Counts,
) -> Result<()> {
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < wanted {
        thread::sleep(LOOK);
        ensure!(daemon.is_running(), "andond has ended: {}", daemon.log());
        ensure!(
            loads.iter().all(|load| !load.is_finished()),
            "a part of the load has ended"
        );
        let metrics = daemon.http().get("/metrics")?.text();
        state.look(&Look {
            at: began.elapsed().as_secs_f64(),
            vitals: Vitals::of(daemon.pid())?,
            kv_cache: figure(&metrics, "andon_memory_max_bytes", "kv_cache")?,
            tokens_read: figure(&metrics, "andon_prompt_tokens_total", "")?
                - figure(&metrics, "andon_cached_tokens_total", "")?,
            load: counts.now(),
        })?;
    }
    Ok(())
}

/// The sum of a metric's samples that have `label` among their labels.
fn figure(metrics: &str, name: &str, label: &str) -> Result<u64> {
    let samples = metrics.lines().filter_map(|line| {
        let (sample, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let is_it = sample.is_empty() || sample.starts_with('{');
        (is_it && sample.contains(label)).then(|| value.parse::<u64>().ok())?
    });
    let found = samples.reduce(|sum, value| sum + value);
    found.with_context(|| format!("the metrics have no {name}"))
}
