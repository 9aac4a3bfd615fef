//! Measures what guessing tokens ahead gains: every prompt is answered with and without, in turn, and the answers must be
//! the same.

mod prompts;
mod simulated;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use andon_engine::generate::{GenerationRequest, Generator, GeneratorOptions};
use andon_engine::sample::SamplingOptions;
use andon_engine::speculate::{Corpus, DraftModel, PassCosts, Sources};
use andon_engine::{Executor, ExecutorOptions};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use prompts::Prompt;
#[cfg(feature = "draft")]
pub(crate) use prompts::{Line, tokens_of};
use serde_json::json;
use simulated::Simulated;

use crate::answer::Answer;
use crate::calibrate::calibrate;

/// Answers that repeat this many tokens as often as [`REPEATS_MAX`] are left out: a loop is easy to guess, and worth nothing.
const REPEATED_TOKENS: usize = 8;
const REPEATS_MAX: usize = 3;

/// Tokens of a pass up to which its cost is reported.
const COSTS_SHOWN: usize = 12;

/// Tokens of a class's earlier answers that are looked through.
const CORPUS_TOKENS: usize = 1 << 16;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: crate::Run,
    /// JSON lines, each with a `prompt` (or `turns`, of which the first is taken), a `task` or `category` by which
    /// results are grouped, and perhaps a `json_schema` that the answer is held to; without guesses, it is then made one
    /// token at a time.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Where guesses come from: `own`, the prompt and the answer so far; `corpus`, earlier answers of the same group;
    /// `model`, the one that `--draft` or `--simulate` stands for [default: own, or model with one of these].
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    sources: Vec<SourceName>,
    /// GGUF file of a small model to guess from, best of the same vocabulary: of another, guesses are taken by their text.
    #[arg(long, value_name = "FILE", conflicts_with = "simulate")]
    draft: Option<PathBuf>,
    /// Have a draft model simulated whose guesses are right with this probability. Answers then go on past their end, and
    /// none is left out as a loop unless its text is guessed from, too: it need not make sense.
    #[arg(long, value_name = "PROBABILITY", value_parser = share)]
    simulate: Option<f64>,
    /// What a guess of it costs, relative to a pass over one token: so long is waited.
    #[arg(long, value_name = "SHARE", default_value_t = 0.06, value_parser = share, requires = "simulate")]
    simulate_cost: f64,
    /// Most prompts that are answered, spread over the file.
    #[arg(long)]
    limit: Option<usize>,
    /// Most tokens of an answer.
    #[arg(long = "gen", default_value_t = 128)]
    generate: usize,
    /// Only prompts with a `json_schema`.
    #[arg(long, conflicts_with = "unconstrained")]
    constrained: bool,
    /// Hold no answer to its prompt's `json_schema`.
    #[arg(long)]
    unconstrained: bool,
    /// Only prompts of this task or category.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Write each answer and what was measured of it to this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Longest prompt that is answered, in tokens.
    #[arg(long, default_value_t = 2048)]
    prompt_tokens_max: usize,
    /// Times that each prompt is answered with and without; the fastest of each counts.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// 0 takes the most probable token each time.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SourceName {
    Own,
    Corpus,
    Model,
}

/// A number between 0 and 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number between 0 and 1".to_owned()),
    }
}

impl Arguments {
    fn guesses_from(&self, source: SourceName) -> bool {
        if self.sources.is_empty() {
            let drafts = self.simulate.is_some() || self.draft.is_some();
            let default = if drafts {
                SourceName::Model
            } else {
                SourceName::Own
            };
            return source == default;
        }
        self.sources.contains(&source)
    }

    /// Whether answers that repeat themselves are easier to guess than others.
    fn leaves_out_loops(&self) -> bool {
        self.guesses_from(SourceName::Own) || self.guesses_from(SourceName::Corpus)
    }
}

/// What was measured of one prompt, or added up over several.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    prompts: usize,
    looped: usize,
    /// Answers held to a schema, and those of them that the limit cut off.
    constrained: usize,
    cut: usize,
    tokens: usize,
    guessed: usize,
    accepted: usize,
    plain_ns: u64,
    guessing_ns: u64,
    /// Sum of the prompts' speed-ups, and the least of them.
    speedups: f64,
    worst: f64,
}

impl Measured {
    fn add(&mut self, other: &Measured) {
        self.worst = match (self.prompts, other.prompts) {
            (0, _) => other.worst,
            (_, 0) => self.worst,
            _ => self.worst.min(other.worst),
        };
        self.prompts += other.prompts;
        self.looped += other.looped;
        self.constrained += other.constrained;
        self.cut += other.cut;
        self.tokens += other.tokens;
        self.guessed += other.guessed;
        self.accepted += other.accepted;
        self.plain_ns += other.plain_ns;
        self.guessing_ns += other.guessing_ns;
        self.speedups += other.speedups;
    }

    fn share(part: usize, whole: usize) -> f64 {
        if whole == 0 {
            0.0
        } else {
            part as f64 / whole as f64
        }
    }

    /// Tokens that a pass gave.
    fn tokens_per_pass(&self) -> f64 {
        Measured::share(self.tokens, self.tokens - self.accepted)
    }

    fn acceptance(&self) -> f64 {
        Measured::share(self.accepted, self.guessed)
    }

    /// Mean of the prompts' speed-ups.
    fn speedup(&self) -> f64 {
        if self.prompts == 0 {
            1.0
        } else {
            self.speedups / self.prompts as f64
        }
    }

    /// Speed-up of all of them together.
    fn total_speedup(&self) -> f64 {
        if self.guessing_ns == 0 {
            1.0
        } else {
            self.plain_ns as f64 / self.guessing_ns as f64
        }
    }

    fn json(&self) -> serde_json::Value {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        json!({
            "prompts": self.prompts,
            "left_out_loops": self.looped,
            "constrained": self.constrained,
            "constrained_cut": self.cut,
            "tokens": self.tokens,
            "tokens_per_pass": round(self.tokens_per_pass()),
            "acceptance": round(self.acceptance()),
            "speedup_mean": round(self.speedup()),
            "speedup_total": round(self.total_speedup()),
            "speedup_worst": round(self.worst),
            "decode_tok_s_plain": round(self.tokens as f64 * 1e9 / self.plain_ns.max(1) as f64),
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds must be at least 1");
    ensure!(
        arguments.simulate.is_some()
            || arguments.draft.is_some()
            || !arguments.guesses_from(SourceName::Model),
        "the source `model` needs --draft or --simulate"
    );
    let model = arguments.run.load()?;
    let prompts = prompts::read(arguments, &model)?;
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max();
    let longest = longest.context("the file has no prompt that is short enough")?;
    let mut executor = arguments
        .run
        .executor(&model, longest + arguments.generate)?;
    let costs = calibrated(&mut executor);
    let draft = arguments
        .draft
        .as_deref()
        .map(|path| draft(arguments, path, &executor))
        .transpose()?;
    let options = GeneratorOptions {
        parallel_max: 1,
        prefill_chunk_tokens: executor.batch_tokens_max(),
        ..GeneratorOptions::default()
    };
    let mut generator = Generator::new(executor, options);
    generator.set_costs(costs);
    if let Some(draft) = draft {
        let cost = draft.expected_cost(&model);
        generator.set_drafter(Box::new(draft), cost);
    }
    let simulated = arguments
        .simulate
        .map(|right| Simulated::new(right, arguments.simulate_cost));
    if let Some(simulated) = &simulated {
        generator.set_drafter(Box::new(simulated.clone()), arguments.simulate_cost as f32);
    }
    let mut answers = match &arguments.answers {
        None => None,
        Some(path) => {
            let context = || format!("`{}` cannot be written", path.display());
            Some(std::fs::File::create(path).with_context(context)?)
        }
    };
    let mut groups: BTreeMap<&str, Measured> = BTreeMap::new();
    let mut corpora: BTreeMap<&str, Arc<Corpus>> = BTreeMap::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let corpus = corpora
            .entry(&prompt.group)
            .or_insert_with(|| Arc::new(Corpus::new(CORPUS_TOKENS)));
        let sources = Sources {
            own: arguments.guesses_from(SourceName::Own),
            corpus: arguments
                .guesses_from(SourceName::Corpus)
                .then(|| Arc::clone(corpus)),
            model: arguments.guesses_from(SourceName::Model),
            // An answer is no source for itself: it is added after all its rounds.
            learns: false,
        };
        let generator = &mut generator;
        let simulated = simulated.as_ref();
        let (measured, answer) = measure(arguments, generator, simulated, prompt, &sources, index)?;
        corpus.add(&prompt.tokens, &answer.ids);
        if let Some(answers) = &mut answers {
            let line = json!({
                "id": prompt.id,
                "group": prompt.group,
                "text": answer.text,
                "finish": answer.finish,
                "measured": measured.json(),
            });
            writeln!(answers, "{line}")?;
        }
        groups.entry(&prompt.group).or_default().add(&measured);
        if !arguments.json {
            eprint!("\r{} of {} prompts", index + 1, prompts.len());
        }
    }
    report(arguments, &groups, generator.costs())
}

/// The draft model, with a KV cache like that of `executor`.
fn draft(arguments: &Arguments, path: &Path, executor: &Executor) -> Result<DraftModel> {
    let model = arguments.run.load_draft(path)?;
    let options = ExecutorOptions {
        kv_tokens_max: executor.kv_tokens_max(),
        kv_type: arguments.run.kv,
        ..ExecutorOptions::default()
    };
    let draft = DraftModel::new(model, executor, &options);
    draft.with_context(|| format!("`{}` is no draft for this model", path.display()))
}

/// What passes cost on this machine; what is taken for granted if it cannot be measured.
fn calibrated(executor: &mut Executor) -> PassCosts {
    match calibrate(executor) {
        Some((calibration, _)) => {
            executor.adapt(&calibration);
            PassCosts::of_calibration(&calibration)
        }
        None => PassCosts::default(),
    }
}

/// Answers a prompt in turn with guesses and without.
fn measure(
    arguments: &Arguments,
    generator: &mut Generator,
    simulated: Option<&Simulated>,
    prompt: &Prompt,
    sources: &Sources,
    index: usize,
) -> Result<(Measured, Answer)> {
    let mut best: [Option<Answer>; 2] = [None, None];
    let know = |plain: &Answer| {
        if let Some(simulated) = simulated {
            let passes = plain.usage.completion_tokens.saturating_sub(1).max(1) as u64;
            let pass = Duration::from_nanos(plain.timings.decode_ns / passes);
            simulated.know(&plain.ids, pass, index as u64);
        }
    };
    if simulated.is_some() {
        know(&answer(arguments, generator, prompt, None)?);
    }
    for round in 0..arguments.rounds {
        for turn in 0..2 {
            // Neither is always the first.
            let guessing = (turn + round + index) % 2;
            let sources = (guessing == 1).then_some(sources);
            let answer = answer(arguments, generator, prompt, sources)?;
            if guessing == 0 {
                know(&answer);
            }
            let best = &mut best[guessing];
            if best
                .as_ref()
                .is_none_or(|best| answer.timings.decode_ns < best.timings.decode_ns)
            {
                *best = Some(answer);
            }
        }
    }
    let [Some(plain), Some(guessing)] = best else {
        bail!("no round was made");
    };
    ensure!(
        plain.ids == guessing.ids && plain.text == guessing.text,
        "the answer to {} is another one with guesses: please report this",
        prompt.id
    );
    let mut measured = Measured {
        constrained: usize::from(prompt.grammar.is_some()),
        cut: usize::from(prompt.grammar.is_some() && plain.finish != "stop"),
        ..Measured::default()
    };
    // The first token comes with the prompt.
    let tokens = plain.usage.completion_tokens.saturating_sub(1);
    if arguments.leaves_out_loops() && looped(&plain.ids).is_some() {
        measured.looped = 1;
    } else if tokens > 0 && plain.timings.decode_ns > 0 && guessing.timings.decode_ns > 0 {
        let speedup = plain.timings.decode_ns as f64 / guessing.timings.decode_ns as f64;
        measured = Measured {
            prompts: 1,
            tokens,
            guessed: guessing.usage.guessed_tokens,
            accepted: guessing.usage.accepted_tokens,
            plain_ns: plain.timings.decode_ns,
            guessing_ns: guessing.timings.decode_ns,
            speedups: speedup,
            worst: speedup,
            ..measured
        };
    }
    Ok((measured, guessing))
}

/// How many tokens there are until [`REPEATED_TOKENS`] have come [`REPEATS_MAX`] times, if they do.
pub(crate) fn looped(ids: &[u32]) -> Option<usize> {
    let mut counts: BTreeMap<&[u32], usize> = BTreeMap::new();
    let start = ids.windows(REPEATED_TOKENS).position(|window| {
        let count = counts.entry(window).or_default();
        *count += 1;
        *count >= REPEATS_MAX
    })?;
    Some(start + REPEATED_TOKENS)
}

/// Answers a prompt; one token at a time if there are no sources of guesses.
fn answer(
    arguments: &Arguments,
    generator: &mut Generator,
    prompt: &Prompt,
    sources: Option<&Sources>,
) -> Result<Answer> {
    let request = GenerationRequest {
        prompt: prompt.tokens.clone(),
        tokens_max: Some(arguments.generate),
        sampling: SamplingOptions {
            temperature: arguments.temperature,
            seed: arguments.seed,
            ..SamplingOptions::default()
        },
        ignore_end: arguments.simulate.is_some(),
        constraint: prompt.grammar.clone(),
        one_by_one: sources.is_none(),
        sources: sources.cloned().unwrap_or_default(),
        ..GenerationRequest::default()
    };
    Answer::of(generator, request, |_| Ok(())).with_context(|| prompt.id.clone())
}

fn report(
    arguments: &Arguments,
    groups: &BTreeMap<&str, Measured>,
    costs: &PassCosts,
) -> Result<()> {
    let costs: Vec<f32> = (1..=COSTS_SHOWN)
        .map(|columns| (costs.of(columns) * 100.0).round() / 100.0)
        .collect();
    let mut all = Measured::default();
    for measured in groups.values() {
        all.add(measured);
    }
    let mut stdout = std::io::stdout().lock();
    if arguments.json {
        let groups: serde_json::Map<String, serde_json::Value> = groups
            .iter()
            .map(|(name, measured)| ((*name).to_owned(), measured.json()))
            .collect();
        writeln!(
            stdout,
            "{}",
            json!({
                "model": arguments.run.model,
                "draft": arguments.draft,
                "simulated": arguments.simulate.map(|right| json!({
                    "right": right,
                    "cost": arguments.simulate_cost,
                })),
                "pass_costs": costs,
                "all": all.json(),
                "groups": groups,
            })
        )?;
        return Ok(());
    }
    eprintln!();
    writeln!(
        stdout,
        "{:<24} {:>7} {:>5} {:>7} {:>9} {:>8} {:>8} {:>7} {:>7}",
        "group", "prompts", "loops", "tokens", "tok/pass", "accepted", "speed-up", "total", "worst"
    )?;
    let named = groups.iter().map(|(name, measured)| (*name, measured));
    for (name, measured) in named.chain([("all", &all)]) {
        writeln!(
            stdout,
            "{:<24} {:>7} {:>5} {:>7} {:>9.2} {:>7.1}% {:>7.2}x {:>6.2}x {:>6.2}x",
            name,
            measured.prompts,
            measured.looped,
            measured.tokens,
            measured.tokens_per_pass(),
            measured.acceptance() * 100.0,
            measured.speedup(),
            measured.total_speedup(),
            measured.worst,
        )?;
    }
    let costs: Vec<String> = costs.iter().map(|cost| format!("{cost:.2}")).collect();
    writeln!(
        stdout,
        "cost of a pass over 1 to {COSTS_SHOWN} tokens: {}",
        costs.join(" ")
    )?;
    if all.constrained > 0 {
        writeln!(
            stdout,
            "{} answers were held to a schema, {} of them cut off by --gen",
            all.constrained, all.cut
        )?;
    }
    Ok(())
}
