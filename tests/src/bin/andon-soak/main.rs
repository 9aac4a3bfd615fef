//! The soak of `cargo xtask soak`: mixed load for hours, and a look at what the daemon holds every few seconds.
//!
//! Every look is a line of the state file. A soak that was ended goes on with a new daemon and adds to the file, until there
//! have been as many hours; each part warms up by itself and is judged by itself.

#![forbid(unsafe_code)]

mod load;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::Broker;
use andon_tests::daemon::Daemon;
use andon_tests::vitals::Vitals;
use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);

/// What a part takes to fill its caches; it is judged from then on.
const WARM_UP: Duration = Duration::from_secs(600);

/// How far resident memory may be from its middle.
const FLAT: f64 = 0.02;

/// Private memory beside weights and KV cache.
const PRIVATE_MAX: f64 = (40 << 20) as f64;

/// Loads a daemon for hours and watches what it holds.
#[derive(Parser)]
struct Arguments {
    /// The folder with andond.
    #[arg(long)]
    programs: PathBuf,
    /// The model that answers.
    #[arg(long)]
    model: PathBuf,
    /// How long in all, over every part.
    #[arg(long)]
    hours: f64,
    /// Where looks are kept.
    #[arg(long)]
    state: PathBuf,
}

/// A look.
#[derive(Clone, Copy)]
struct Look {
    part: u64,
    /// Seconds since its part began.
    at: f64,
    vitals: Vitals,
    /// Most bytes of activations and KV cache, as the daemon says.
    working: f64,
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
    let mut looks = read(&arguments.state)?;
    let wanted = arguments.hours * 3600.0;
    let done = seconds(&looks);
    if done < wanted {
        soak(arguments, wanted - done, &mut looks)?;
    }
    Ok(judge(&looks))
}

fn soak(arguments: &Arguments, wanted: f64, looks: &mut Vec<Look>) -> Result<()> {
    if let Some(folder) = arguments.state.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(&arguments.state)?;
    let part = looks.last().map_or(1, |look| look.part + 1);
    let broker = Broker::start()?;
    let config = broker.config() + load::CONFIG;
    let mut daemon = Daemon::builder()
        .programs(&arguments.programs)
        .model(&arguments.model)
        .config(&config)
        .start()?;
    println!("part {part}: {wanted:.0} s are left");
    let over = AtomicBool::new(false);
    let counts = load::Counts::default();
    let outcome = thread::scope(|scope| {
        let loads = load::start(scope, &daemon.http(), &broker, &over, &counts);
        let watched = (|| -> Result<()> {
            let began = Instant::now();
            while began.elapsed().as_secs_f64() < wanted {
                thread::sleep(LOOK);
                ensure!(daemon.is_running(), "andond has ended: {}", daemon.log());
                let look = Look {
                    part,
                    at: began.elapsed().as_secs_f64(),
                    vitals: Vitals::of(daemon.pid())?,
                    working: working(&daemon)?,
                };
                let line = json!({
                    "part": part, "at": look.at, "working": look.working,
                    "resident": look.vitals.resident, "anonymous": look.vitals.anonymous,
                    "descriptors": look.vitals.descriptors, "threads": look.vitals.threads,
                    "load": counts.said(),
                });
                writeln!(file, "{line}")?;
                looks.push(look);
            }
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        for load in loads {
            if load.join().is_err() {
                eprintln!("a part of the load panicked");
            }
        }
        watched
    });
    println!("load: {}", counts.said());
    outcome
}

/// Most bytes of activations and KV cache.
fn working(daemon: &Daemon) -> Result<f64> {
    let text = daemon.http().get("/metrics")?.text();
    let found = text.lines().find_map(|line| {
        let rest = line.strip_prefix("andon_memory_max_bytes")?;
        let value = rest
            .contains("working")
            .then(|| rest.rsplit(' ').next())??;
        value.parse().ok()
    });
    found.context("the metrics do not say what the KV cache takes")
}

fn read(state: &std::path::Path) -> Result<Vec<Look>> {
    let Ok(file) = File::open(state) else {
        return Ok(Vec::new());
    };
    let mut looks = Vec::new();
    for line in BufReader::new(file).lines() {
        // The last line may be cut off.
        let Ok(value) = serde_json::from_str::<Value>(&line?) else {
            continue;
        };
        let number = |name: &str| value[name].as_u64();
        let look = (|| {
            Some(Look {
                part: number("part")?,
                at: value["at"].as_f64()?,
                vitals: Vitals {
                    resident: number("resident")?,
                    anonymous: number("anonymous")?,
                    descriptors: number("descriptors")?,
                    threads: number("threads")?,
                },
                working: value["working"].as_f64()?,
            })
        })();
        looks.extend(look);
    }
    Ok(looks)
}

/// How long all parts took.
fn seconds(looks: &[Look]) -> f64 {
    let last = |looks: &[Look]| looks.last().map_or(0.0, |look| look.at);
    looks
        .chunk_by(|one, next| one.part == next.part)
        .map(last)
        .sum()
}

/// Says how every part went, and whether all was as it should be.
fn judge(looks: &[Look]) -> bool {
    let mut sound = true;
    for part in looks.chunk_by(|one, next| one.part == next.part) {
        let warm: Vec<&Look> = part
            .iter()
            .filter(|look| look.at >= WARM_UP.as_secs_f64())
            .collect();
        let number = part.first().map_or(0, |look| look.part);
        let length = seconds(part);
        if warm.is_empty() {
            println!("part {number}: {length:.0} s, too short to judge");
            continue;
        }
        let of = |value: fn(&Look) -> f64| {
            let mut values: Vec<f64> = warm.iter().map(|look| value(look)).collect();
            values.sort_by(f64::total_cmp);
            (
                values[0],
                values[values.len() / 2],
                values[values.len() - 1],
            )
        };
        let mebibytes = f64::from(1 << 20);
        let (least, middle, most) = of(|look| look.vitals.resident as f64);
        let flat = least >= middle * (1.0 - FLAT) && most <= middle * (1.0 + FLAT);
        let (_, _, anonymous) = of(|look| look.vitals.anonymous as f64);
        let (_, _, private) = of(|look| look.vitals.anonymous as f64 - look.working);
        let (fewest, _, descriptors) = of(|look| look.vitals.descriptors as f64);
        let (_, _, threads) = of(|look| look.vitals.threads as f64);
        // Descriptors come and go with connections: what counts is whether the fewest of the end are more than of the beginning.
        let half = warm.len() / 2;
        let fewest_of = |looks: &[&Look]| looks.iter().map(|look| look.vitals.descriptors).min();
        let grown = half > 0 && fewest_of(&warm[half..]) > fewest_of(&warm[..half]);
        sound &= flat && !grown && private <= PRIVATE_MAX;
        println!(
            "part {number}: {length:.0} s; resident {:.1} to {:.1} MiB, middle {:.1}{}; of no file at most {:.1} MiB, beside what \
             activations and KV may take {:.1}{}; descriptors {fewest} to {descriptors}{}; at most {threads} threads",
            least / mebibytes,
            most / mebibytes,
            middle / mebibytes,
            if flat { "" } else { ", NOT FLAT" },
            anonymous / mebibytes,
            private / mebibytes,
            if private <= PRIVATE_MAX {
                ""
            } else {
                ", TOO MUCH"
            },
            if grown { ", GROWING" } else { "" },
        );
    }
    sound
}
