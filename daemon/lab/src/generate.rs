//! Continues a text.

use andon_engine::generate::{GenerationRequest, Generator, GeneratorOptions};
use andon_engine::grammar::{Constraint, Grammar, parse_json};
use andon_engine::sample::SamplingOptions;
use andon_engine::tokenizer::Special;
use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::answer::{Answer, question};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: crate::Run,
    /// The text to continue.
    #[arg(long)]
    prompt_text: String,
    /// Treat the text as a question and apply the model's chat template.
    #[arg(long)]
    chat: bool,
    /// Most tokens generated.
    #[arg(long = "gen", default_value_t = 128)]
    generate: usize,
    /// Go on past the tokens that end an answer.
    #[arg(long)]
    ignore_end: bool,
    /// 0 takes the most probable token each time.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only the k most probable tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Only the most probable tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Only tokens at least this probable relative to the most probable one.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Hold the answer to the JSON Schema in this file.
    #[arg(long, group = "constraint")]
    json_schema: Option<PathBuf>,
    /// Hold the answer to the GBNF grammar in this file.
    #[arg(long, group = "constraint")]
    gbnf: Option<PathBuf>,
    /// Hold the answer to this regular expression.
    #[arg(long, group = "constraint")]
    regex: Option<String>,
    /// Take tokens that are forced one by one.
    #[arg(long, requires = "constraint")]
    one_by_one: bool,
    /// Print the token ids, too.
    #[arg(long)]
    ids: bool,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// What the answer is held to.
    fn constraint(&self) -> Result<Option<Constraint>> {
        let read = |path: &PathBuf| {
            let context = || format!("`{}` cannot be read", path.display());
            std::fs::read_to_string(path).with_context(context)
        };
        Ok(if let Some(path) = &self.json_schema {
            let schema = parse_json(read(path)?.as_bytes()).context("the schema is not JSON")?;
            Some(Constraint::JsonSchema(schema))
        } else if let Some(path) = &self.gbnf {
            Some(Constraint::Gbnf(read(path)?))
        } else {
            self.regex.clone().map(Constraint::Regex)
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let model = arguments.run.load()?;
    let prompt = if arguments.chat {
        let prompt = question(&model, &arguments.prompt_text)?;
        prompt.context("the model has no chat template")?
    } else {
        let tokenizer = model.tokenizer();
        tokenizer.encode_prompt(&arguments.prompt_text, Special::Parse)
    };
    let (grammar, compiled) = match arguments.constraint()? {
        None => (None, None),
        Some(constraint) => {
            let start = Instant::now();
            let before = resident();
            let vocabulary = model.grammar_vocabulary()?;
            let known = Instant::now();
            let grown = resident()
                .zip(before)
                .map(|(now, before)| now.saturating_sub(before));
            let grammar = Grammar::compile(vocabulary, &constraint, arguments.generate)?;
            let report = json!({
                "vocabulary_ms": (known - start).as_secs_f64() * 1e3,
                "vocabulary_bytes": vocabulary.bytes(),
                "resident_bytes_more": grown,
                "compile_ms": known.elapsed().as_secs_f64() * 1e3,
            });
            (Some(Arc::new(grammar)), Some(report))
        }
    };
    let executor = arguments
        .run
        .executor(&model, prompt.len() + arguments.generate)?;
    let options = GeneratorOptions {
        parallel_max: 1,
        prefill_chunk_tokens: executor.batch_tokens_max(),
        ..GeneratorOptions::default()
    };
    let mut generator = Generator::new(executor, options);
    let request = GenerationRequest {
        prompt: prompt.clone(),
        tokens_max: Some(arguments.generate),
        sampling: SamplingOptions {
            temperature: arguments.temperature,
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            min_p: arguments.min_p,
            seed: arguments.seed,
            ..SamplingOptions::default()
        },
        ignore_end: arguments.ignore_end,
        constraint: grammar.clone(),
        one_by_one: arguments.one_by_one,
        ..GenerationRequest::default()
    };
    let mut stdout = std::io::stdout().lock();
    let Answer {
        ids,
        text,
        finish,
        usage,
        timings,
    } = Answer::of(&mut generator, request, |text| {
        if arguments.json {
            return Ok(());
        }
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    })?;
    let rate = |tokens: usize, ns: u64| {
        if ns == 0 {
            0.0
        } else {
            (tokens as f64 / (ns as f64 / 1e9) * 100.0).round() / 100.0
        }
    };
    let prefill = rate(usage.prompt_tokens, timings.prefill_ns);
    let decode = rate(usage.completion_tokens.saturating_sub(1), timings.decode_ns);
    if arguments.json {
        let mut report = json!({
            "model": arguments.run.model,
            "text": text,
            "finish": finish,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "first_token_ms": timings.first_token_ns as f64 / 1e6,
            "prefill_tok_s": prefill,
            "decode_tok_s": decode,
        });
        if let Some((mut compiled, grammar)) = compiled.zip(grammar) {
            let (masks, mean, worst) = masks(&grammar, arguments.generate, &ids)?;
            let made = generator.constraint_counts();
            compiled["choices"] = json!(made.choices);
            compiled["masks_made"] = json!(made.masks);
            compiled["masks_if_all"] = json!(masks);
            compiled["mask_us"] = json!(mean);
            compiled["mask_us_worst"] = json!(worst);
            report["constraint"] = compiled;
        }
        if arguments.ids {
            report["prompt_ids"] = json!(prompt);
            report["ids"] = json!(ids);
        }
        writeln!(stdout, "{report}")?;
    } else {
        writeln!(stdout)?;
        if arguments.ids {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            writeln!(stdout, "{}", ids.join(" "))?;
        }
        eprintln!(
            "{} tokens read at {prefill} tokens/s, {} written at {decode} tokens/s, end: {finish}",
            usage.prompt_tokens, usage.completion_tokens
        );
    }
    Ok(())
}

/// The masks that an answer needs if each choice needs one, computed with nothing beside: how many, and their
/// microseconds, mean and worst.
fn masks(grammar: &Grammar, tokens_max: usize, ids: &[u32]) -> Result<(usize, f64, f64)> {
    let mut state = grammar.state();
    state.begin(false, tokens_max)?;
    let mut times = Vec::new();
    for &id in ids {
        if state.is_finished() {
            break;
        }
        if state.forced().is_empty() {
            let start = Instant::now();
            state.prepare()?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        state.accept(id)?;
    }
    let sum: f64 = times.iter().sum();
    let worst = times.iter().copied().fold(0.0, f64::max);
    Ok((times.len(), sum / times.len().max(1) as f64, worst))
}

/// Memory of the process that is there now, pages of files left out.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
