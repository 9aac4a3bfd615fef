//! How many tokens eight clients get together, by what one gets alone, and by what llama-server gives as many.
//!
//! Everybody has the model loaded and is asked the same prompts, each with a mark before it so that no server knows a part of it
//! from before. A daemon that does not guess is asked too: guesses make one client faster, so that eight gain less by it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::daemon::{self, Folder};
use super::definition::Definition;
use super::llama_server::{Room, Server};
use super::rival::Variant;
use super::service::Address;
use super::{Programs, median, sides};

/// Longest prompt taken, in bytes: answers are what is measured.
const PROMPT_BYTES_MAX: usize = 600;

/// Tokens of context for each client.
const CONTEXT: usize = 1024;

/// While what is measured once is.
const SETTLE: Duration = Duration::from_secs(3);

/// The name of the daemon that does not guess.
const PLAIN: &str = "andon without guesses";

/// Starts everybody, asks, and returns the figures of each by name.
///
/// # Errors
/// When one does not start or does not answer.
pub(super) fn measure(
    programs: &Programs,
    definition: &Definition,
    model: &Path,
    variants: &[Variant],
) -> Result<BTreeMap<String, Value>> {
    let folder = Folder::make()?;
    let mut daemons = Vec::new();
    let mut servers = Vec::new();
    let mut sides = Vec::new();
    for (name, more) in [
        (sides::ANDON, ""),
        (PLAIN, "[speculation]\nenabled = false\n"),
    ] {
        let place = folder.sub(name)?;
        daemon::configure(&place, definition, model, "idle", more.parse()?)?;
        let mut daemon = daemon::launch(&programs.folder, &place)?;
        daemon.wait_ready(&place)?;
        daemon::wait_for_pack(&place.join("cache"))?;
        daemons.push(daemon);
        sides.push((name.to_owned(), Address::Socket(place.join("http.sock"))));
    }
    let room = Room {
        threads: definition.threads,
        parallel: definition.clients,
        context: CONTEXT,
    };
    for variant in variants {
        let server = Server::start(folder.path(), variant, model, room)?;
        sides.push((variant.name(), server.address()));
        servers.push(server);
    }
    thread::sleep(SETTLE);
    let prompts: Vec<&String> = programs
        .prompts
        .iter()
        .filter(|prompt| prompt.len() <= PROMPT_BYTES_MAX)
        .collect();
    ensure!(!prompts.is_empty(), "no prompt is short enough");
    let wanted = match definition.requests {
        0 => 4 * definition.clients,
        count => count,
    };
    let mut burst = 0;
    let mut all: BTreeMap<&str, [Vec<f64>; 2]> = BTreeMap::new();
    for run in 0..definition.runs {
        let mut turns: Vec<&(String, Address)> = sides.iter().collect();
        if run % 2 == 1 {
            turns.reverse();
        }
        for (name, address) in turns {
            if run == 0 {
                // Memory is touched once before.
                speed(
                    address,
                    definition.clients,
                    &vec!["Say what this is.".to_owned(); definition.clients],
                    4,
                )?;
            }
            for (index, clients) in [1, definition.clients].into_iter().enumerate() {
                burst += 1;
                let marked: Vec<String> = (0..wanted)
                    .map(|number| {
                        let prompt = prompts[(run * wanted + number) % prompts.len()];
                        format!("({burst}.{number}) {prompt}")
                    })
                    .collect();
                let speed = speed(address, clients, &marked, definition.generate)?;
                all.entry(name).or_default()[index].push(speed);
            }
        }
    }
    let figures = all.into_iter().map(|(name, [one, many])| {
        let (one, many) = (median(&one), median(&many));
        let figures = json!({
            "one_tok_s": one,
            "aggregate_tok_s": many,
            "parallel-ratio": many / one,
        });
        (name.to_owned(), figures)
    });
    Ok(figures.collect())
}

/// Tokens of answers a second, while so many clients ask one prompt after the other until there is none left.
fn speed(address: &Address, clients: usize, prompts: &[String], tokens: usize) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let made = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while let Some(prompt) = prompts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match address.whole(&vec![("user", prompt.clone())], tokens) {
                        Ok(answer) => drop(made.fetch_add(answer.completion, Ordering::Relaxed)),
                        Err(error) => {
                            if let Ok(mut failed) = failed.lock() {
                                *failed = Some(error);
                            }
                            return;
                        }
                    }
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    match failed.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(made.into_inner() as f64 / seconds),
    }
}
