//! Speed of prefill and decode, and what share of the machine's limits they reach.
//!
//! Prompts are random tokens from a fixed seed. Each run reads a prompt of `--prompt` tokens into an empty sequence,
//! then takes `--gen` steps of one token, each with its logits, from an empty context and, if `--depth` is given, from one
//! of that many tokens. `--columns` also times passes over 1 to 8 tokens that all have logits, as speculation makes them.
//! A first run warms up; medians of the others are reported, and how far they spread. The limits are measured before
//! and after with the same threads and instruction set, and the better counts.

use std::fmt::Write as _;
use std::time::Instant;

use andon_engine::calibrate::Limits;
use andon_engine::kv::PAGE;
use andon_engine::{Chunk, Executor, LogitsFor, ModelInfo, Sequence};
use andon_kernels::Table;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

/// Most tokens of a pass that `--columns` times.
const COLUMNS_MAX: usize = 8;

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
    /// Tokens in the context when decoding starts, in a row beside that of an empty context.
    #[arg(long, default_value_t = 0)]
    depth: usize,
    /// Also time passes over 1 to 8 tokens.
    #[arg(long)]
    columns: bool,
    /// Runs that count.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// What was timed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// A prompt of so many tokens.
    Prefill { tokens: usize, passes: usize },
    /// One token at a time, after so many.
    Decode { depth: usize, tokens: usize },
    /// One pass over so many tokens, after `depth`.
    Columns { depth: usize, tokens: usize },
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Prefill { .. } => "prefill",
            Phase::Decode { .. } => "decode",
            Phase::Columns { .. } => "columns",
        }
    }

    fn tokens(self) -> usize {
        match self {
            Phase::Prefill { tokens, .. }
            | Phase::Decode { tokens, .. }
            | Phase::Columns { tokens, .. } => tokens,
        }
    }

    fn depth(self) -> usize {
        match self {
            Phase::Prefill { .. } => 0,
            Phase::Decode { depth, .. } | Phase::Columns { depth, .. } => depth,
        }
    }

    /// Bytes that the phase has to read: weights once a pass, and the context of each step.
    fn bytes(self, info: &ModelInfo) -> f64 {
        let (weights, kv) = (info.bytes_per_token as f64, info.kv_bytes_per_token as f64);
        match self {
            Phase::Prefill { passes, .. } => passes as f64 * weights,
            Phase::Decode { depth, tokens } => {
                tokens as f64 * (weights + kv * (depth as f64 + tokens as f64 / 2.0))
            }
            Phase::Columns { depth, .. } => weights + kv * depth as f64,
        }
    }

    /// Products of weights and activations that the phase takes.
    fn multiply_adds(self, info: &ModelInfo) -> f64 {
        let (all, output) = (
            info.multiply_adds_per_token as f64,
            info.output_multiply_adds as f64,
        );
        match self {
            Phase::Prefill { tokens, .. } => (all - output) * tokens as f64 + output,
            Phase::Decode { tokens, .. } | Phase::Columns { tokens, .. } => all * tokens as f64,
        }
    }
}

/// A phase and the seconds that its runs took.
#[derive(Debug)]
struct Row {
    phase: Phase,
    seconds: Vec<f64>,
}

impl Row {
    fn new(phase: Phase) -> Row {
        let seconds = Vec::new();
        Row { phase, seconds }
    }

    fn median(&self) -> f64 {
        median(&self.seconds)
    }

    /// Tokens per second: median, least and most.
    fn speeds(&self) -> [f64; 3] {
        let tokens = self.phase.tokens() as f64;
        let most = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let least = self.seconds.iter().copied().fold(0.0, f64::max);
        [self.median(), least, most].map(|seconds| tokens / seconds)
    }
}

/// Everything measured.
struct Report<'a> {
    arguments: &'a Arguments,
    info: &'a ModelInfo,
    /// Whether the weights are packed, rather than as the file has them.
    packed: bool,
    isa: &'static str,
    threads: usize,
    load_ms: f64,
    limits: Limits,
    rows: Vec<Row>,
}

impl Report<'_> {
    /// Share of the streaming read, and of the multiply-add rate.
    fn shares(&self, row: &Row) -> [f64; 2] {
        let seconds = row.median();
        [
            row.phase.bytes(self.info) / seconds / self.limits.read_bytes_per_s,
            row.phase.multiply_adds(self.info) / seconds / self.limits.multiply_adds_per_s,
        ]
    }

    /// How much longer than a pass over one token one over `row`'s takes.
    fn cost(&self, row: &Row) -> Option<f64> {
        let is_one = |row: &&Row| matches!(row.phase, Phase::Columns { tokens: 1, .. });
        let one = self.rows.iter().find(is_one)?;
        matches!(row.phase, Phase::Columns { .. }).then(|| row.median() / one.median())
    }

    fn find(&self, name: &str, depth: usize) -> Option<&Row> {
        let mut rows = self.rows.iter();
        rows.find(|row| row.phase.name() == name && row.phase.depth() == depth)
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let ([median, least, most], [bandwidth, int8]) = (row.speeds(), self.shares(row));
            let mut value = json!({
                "phase": row.phase.name(),
                "tokens": row.phase.tokens(),
                "depth": row.phase.depth(),
                "tok_s": round(median, 2),
                "tok_s_min": round(least, 2),
                "tok_s_max": round(most, 2),
                "bandwidth_share": round(bandwidth, 4),
                "int8_share": round(int8, 4),
            });
            if let Some(cost) = self.cost(row) {
                value["cost"] = json!(round(cost, 3));
            }
            value
        });
        let mut report = json!({
            "model": self.arguments.run.model,
            "load_ms": round(self.load_ms, 2),
            "packed": self.packed,
            "isa": self.isa,
            "kv": self.arguments.run.kv.name(),
            "threads": self.threads,
            "bytes_per_token": self.info.bytes_per_token,
            "multiply_adds_per_token": self.info.multiply_adds_per_token,
            "bandwidth_gb_s": round(self.limits.read_bytes_per_s / 1e9, 2),
            "int8_gmac_s": round(self.limits.multiply_adds_per_s / 1e9, 1),
            "prompt": self.arguments.prompt,
            "gen": self.arguments.generate,
            "depth": self.arguments.depth,
            "runs": self.arguments.runs,
            "rows": rows.collect::<Vec<_>>(),
        });
        if let Some(row) = self.find("prefill", 0) {
            report["prefill_tok_s"] = json!(round(row.speeds()[0], 2));
            report["int8_share"] = json!(round(self.shares(row)[1], 4));
        }
        if let Some(row) = self.find("decode", self.arguments.depth) {
            report["decode_tok_s"] = json!(round(row.speeds()[0], 2));
            report["bandwidth_share"] = json!(round(self.shares(row)[0], 4));
            if let Some(empty) = self.find("decode", 0).filter(|_| self.arguments.depth > 0) {
                let ratio = row.speeds()[0] / empty.speeds()[0];
                report["depth_ratio"] = json!(round(ratio, 4));
            }
        }
        report
    }

    fn text(&self) -> Result<String> {
        let mut text = String::new();
        let info = self.info;
        writeln!(
            text,
            "model    {}, {}: {:.1} MB and {:.1} M multiply-adds a token",
            info.name,
            if self.packed { "packed" } else { "not packed" },
            info.bytes_per_token as f64 / 1e6,
            info.multiply_adds_per_token as f64 / 1e6
        )?;
        writeln!(
            text,
            "machine  {} threads, {}: reads {:.1} GB/s, {:.0} G multiply-adds/s",
            self.threads,
            self.isa,
            self.limits.read_bytes_per_s / 1e9,
            self.limits.multiply_adds_per_s / 1e9
        )?;
        writeln!(text, "load     {:.1} ms", self.load_ms)?;
        writeln!(
            text,
            "\n{:<10} {:>6} {:>6} {:>10} {:>19} {:>10} {:>7} {:>6}",
            "phase", "tokens", "depth", "tokens/s", "from to", "bandwidth", "int8", "T/T(1)"
        )?;
        for row in &self.rows {
            let ([median, least, most], [bandwidth, int8]) = (row.speeds(), self.shares(row));
            let cost = self.cost(row).map(|cost| format!("{cost:.2}"));
            writeln!(
                text,
                "{:<10} {:>6} {:>6} {median:>10.1} {:>19} {:>8.1} % {:>5.1} % {:>6}",
                row.phase.name(),
                row.phase.tokens(),
                row.phase.depth(),
                format!("{least:.1} {most:.1}"),
                bandwidth * 100.0,
                int8 * 100.0,
                cost.unwrap_or_default()
            )?;
        }
        Ok(text)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.prompt > 0 && arguments.generate > 0 && arguments.runs > 0,
        "--prompt, --gen and --runs must be at least 1"
    );
    // Packing, where it is still to be done, is not what is measured.
    drop(arguments.run.load()?);
    let start = Instant::now();
    let model = arguments.run.load()?;
    let steps = arguments.generate.max(COLUMNS_MAX);
    // One sequence that begins empty and one with the context, each in whole pages.
    let tokens = arguments.prompt.max(steps) + arguments.depth + steps + 2 * PAGE;
    let mut executor = arguments.run.executor(&model, tokens)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let table =
        Table::new(executor.isa()).context("the executor's instruction set is not there")?;
    let threads = executor.threads();
    let before = Limits::measure(&table, threads);
    let rows = measure(&mut executor, arguments)?;
    let info = ModelInfo {
        bytes_per_token: model.bytes_per_token(),
        kv_bytes_per_token: executor.kv_bytes_per_token(),
        ..model.info().clone()
    };
    let report = Report {
        arguments,
        info: &info,
        packed: model.pack().is_some(),
        isa: executor.isa().name(),
        threads,
        load_ms,
        limits: before.max(Limits::measure(&table, threads)),
        rows,
    };
    if arguments.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text()?);
    }
    Ok(())
}

/// Every row, over all runs.
fn measure(executor: &mut Executor, arguments: &Arguments) -> Result<Vec<Row>> {
    let prompt = random_tokens(executor.model().info().vocabulary_count, arguments.prompt);
    let mut rows = vec![Row::new(Phase::Prefill {
        tokens: prompt.len(),
        passes: prompt.len().div_ceil(executor.batch_tokens_max()),
    })];
    let mut depths = vec![0, arguments.depth];
    depths.dedup();
    let decode = |&depth: &usize| {
        Row::new(Phase::Decode {
            depth,
            tokens: arguments.generate,
        })
    };
    rows.extend(depths.iter().map(decode));
    if arguments.columns {
        let depth = arguments.depth;
        let most = COLUMNS_MAX.min(executor.batch_tokens_max());
        rows.extend((1..=most).map(|tokens| Row::new(Phase::Columns { depth, tokens })));
    }
    let (mut empty, mut deep) = (executor.sequence(), executor.sequence());
    for index in 0..=arguments.runs {
        for row in &mut rows {
            let sequence = match row.phase.depth() {
                0 => &mut empty,
                _ => &mut deep,
            };
            let seconds = one_run(executor, sequence, row.phase, &prompt)?;
            if index > 0 {
                row.seconds.push(seconds);
            }
        }
    }
    Ok(rows)
}

/// Seconds that a phase takes. The sequence keeps the context that it begins with.
fn one_run(
    executor: &mut Executor,
    sequence: &mut Sequence,
    phase: Phase,
    prompt: &[u32],
) -> Result<f64> {
    let depth = phase.depth();
    sequence.truncate(depth);
    let context: Vec<u32> = prompt.iter().copied().cycle().take(depth).collect();
    append(executor, sequence, &context[sequence.len()..])?;
    let tokens: Vec<u32> = prompt
        .iter()
        .copied()
        .cycle()
        .take(phase.tokens())
        .collect();
    let start = Instant::now();
    match phase {
        Phase::Prefill { .. } => append(executor, sequence, &tokens)?,
        Phase::Decode { .. } => {
            for token in &tokens {
                append(executor, sequence, std::slice::from_ref(token))?;
            }
        }
        Phase::Columns { .. } => {
            let tokens = &tokens;
            let logits = LogitsFor::All;
            executor.forward(&mut [Chunk {
                sequence,
                tokens,
                logits,
            }])?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    sequence.truncate(depth);
    Ok(seconds)
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

/// The middle one of several values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

/// `value` to so many digits behind the point.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}
