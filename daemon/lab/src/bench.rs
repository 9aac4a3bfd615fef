//! Speed of prefill and decode, and the share of the machine's streaming read that decoding reaches.
//!
//! Prompts are random tokens from a fixed seed. Each run reads a prompt of `--prompt` tokens into an empty sequence,
//! then, in another with `--depth` tokens, takes `--gen` steps of one token, each with its logits. A first run warms
//! up; medians of the others are reported.

use std::time::Instant;

use andon_engine::{Chunk, Executor, LogitsFor, Sequence};
use andon_kernels::Table;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use crate::stream::read_gb_s;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: crate::Run,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens decoded.
    #[arg(long = "gen", default_value_t = 128)]
    generate: usize,
    /// Tokens in the context when decoding starts.
    #[arg(long, default_value_t = 0)]
    depth: usize,
    /// Runs that count.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.prompt > 0 && arguments.generate > 0 && arguments.runs > 0,
        "--prompt, --gen and --runs must be at least 1"
    );
    let start = Instant::now();
    let model = arguments.run.load()?;
    let tokens = arguments.prompt.max(arguments.depth + arguments.generate);
    let mut executor = arguments.run.executor(&model, tokens)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let prompt = random_tokens(executor.model().info().vocabulary_count, arguments.prompt);
    let table =
        Table::new(executor.isa()).context("the executor's instruction set is not there")?;
    let mut bandwidth = read_gb_s(&table, executor.threads());
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for index in 0..=arguments.runs {
        let speeds = one_run(&mut executor, arguments, &prompt)?;
        if index > 0 {
            prefill.push(speeds.0);
            decode.push(speeds.1);
        }
    }
    // The better of before and after: a busy moment must not make the share look good.
    bandwidth = bandwidth.max(read_gb_s(&table, executor.threads()));
    let (prefill, decode) = (median(&mut prefill), median(&mut decode));
    let bytes_per_token = executor.model().info().bytes_per_token;
    let share = decode * bytes_per_token as f64 / (bandwidth * 1e9);
    if arguments.json {
        let report = json!({
            "model": arguments.run.model,
            "prefill_tok_s": round(prefill),
            "decode_tok_s": round(decode),
            "load_ms": round(load_ms),
            "isa": executor.isa().name(),
            "threads": executor.threads(),
            "bytes_per_token": bytes_per_token,
            "bandwidth_gb_s": round(bandwidth),
            "bandwidth_share": (share * 1e4).round() / 1e4,
            "prompt": arguments.prompt,
            "gen": arguments.generate,
            "depth": arguments.depth,
            "runs": arguments.runs,
        });
        println!("{report}");
    } else {
        println!(
            "model      {} ({} MB read per token)",
            executor.model().info().name,
            bytes_per_token / 1_000_000
        );
        println!(
            "machine    {} threads, {}, reads {bandwidth:.1} GB/s",
            executor.threads(),
            executor.isa().name()
        );
        println!("load       {load_ms:.1} ms");
        println!(
            "prefill    {prefill:.1} tokens/s ({} tokens)",
            arguments.prompt
        );
        println!(
            "decode     {decode:.1} tokens/s ({} tokens after {}), {:.1} % of the bandwidth",
            arguments.generate,
            arguments.depth,
            share * 100.0
        );
    }
    Ok(())
}

/// Prefill and decode speed of one run, in tokens per second.
fn one_run(executor: &mut Executor, arguments: &Arguments, prompt: &[u32]) -> Result<(f64, f64)> {
    let mut sequence = executor.sequence();
    let start = Instant::now();
    append(executor, &mut sequence, prompt)?;
    let prefill = prompt.len() as f64 / start.elapsed().as_secs_f64();
    sequence.truncate(0);
    let context: Vec<u32> = prompt
        .iter()
        .copied()
        .cycle()
        .take(arguments.depth)
        .collect();
    append(executor, &mut sequence, &context)?;
    let start = Instant::now();
    for &token in prompt.iter().cycle().take(arguments.generate) {
        append(executor, &mut sequence, &[token])?;
    }
    Ok((
        prefill,
        arguments.generate as f64 / start.elapsed().as_secs_f64(),
    ))
}

/// Appends tokens in the largest batches there are and computes the logits of the last.
fn append(executor: &mut Executor, sequence: &mut Sequence, tokens: &[u32]) -> Result<()> {
    let mut pieces = tokens.chunks(executor.batch_tokens_max()).peekable();
    while let Some(tokens) = pieces.next() {
        let logits = if pieces.peek().is_none() {
            LogitsFor::Last
        } else {
            LogitsFor::None
        };
        executor.forward(&mut [Chunk {
            sequence,
            tokens,
            logits,
        }])?;
    }
    Ok(())
}

/// The same tokens in every run: a linear congruential sequence (Numerical Recipes' constants).
fn random_tokens(vocabulary: usize, count: usize) -> Vec<u32> {
    let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let states = std::iter::successors(Some(1u32), next).skip(1);
    states
        .take(count)
        .map(|state| ((u64::from(state) * vocabulary as u64) >> 32) as u32)
        .collect()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
