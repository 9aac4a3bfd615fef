//! Perplexity of a text: it is cut into contexts that do not overlap, and the second half of each is scored, every token
//! given all before it in its context. `llama-perplexity` does the same, except that for models whose texts begin with a
//! token of their own it puts that in place of each context's first; here it is before the text only.

use andon_engine::tokenizer::Special;
use andon_engine::{Chunk, LogitsFor};
use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: crate::Run,
    /// Text file, UTF-8.
    #[arg(long)]
    text: PathBuf,
    /// Tokens of a context.
    #[arg(long, default_value_t = 512)]
    ctx: usize,
    /// Most contexts scored [default: all].
    #[arg(long)]
    chunks: Option<usize>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Rows of logits computed at a time: they are as long as the vocabulary.
const ROWS: usize = 32;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.ctx >= 4, "--ctx must be at least 4");
    let model = arguments.run.load()?;
    let mut executor = arguments.run.executor(&model, arguments.ctx)?;
    let tokens = model
        .tokenizer()
        .encode_prompt(&crate::read_text(&arguments.text)?, Special::Parse);
    let first = arguments.ctx / 2;
    let (mut sum, mut scored) = (0.0, 0usize);
    for context in tokens
        .chunks_exact(arguments.ctx)
        .take(arguments.chunks.unwrap_or(usize::MAX))
    {
        let mut sequence = executor.sequence();
        for tokens in context[..first].chunks(executor.batch_tokens_max()) {
            executor.forward(&mut [Chunk {
                sequence: &mut sequence,
                tokens,
                logits: LogitsFor::None,
            }])?;
        }
        // The last token predicts one that is not in the context.
        for start in (first..context.len() - 1).step_by(ROWS) {
            let end = (start + ROWS).min(context.len() - 1);
            let chunk = Chunk {
                sequence: &mut sequence,
                tokens: &context[start..end],
                logits: LogitsFor::All,
            };
            let logits = executor.forward(&mut [chunk])?;
            for (row, &next) in context[start + 1..=end].iter().enumerate() {
                sum += negative_log_likelihood(logits.row(row), next as usize);
                scored += 1;
            }
        }
    }
    ensure!(
        scored > 0,
        "the text has {} tokens, fewer than one context of {}",
        tokens.len(),
        arguments.ctx
    );
    ensure!(
        sum.is_finite(),
        "the model computed values that are not finite: its weights are damaged"
    );
    let ppl = (sum / scored as f64).exp();
    if arguments.json {
        let report = json!({
            "model": arguments.run.model,
            "ppl": (ppl * 1e4).round() / 1e4,
            "scored": scored,
            "ctx": arguments.ctx,
            "isa": executor.isa().name(),
            "kv": arguments.run.kv.name(),
        });
        println!("{report}");
    } else {
        println!(
            "perplexity {ppl:.4} ({scored} tokens scored in contexts of {})",
            arguments.ctx
        );
    }
    Ok(())
}

/// `-ln softmax(logits)[token]` in double precision.
fn negative_log_likelihood(logits: &[f32], token: usize) -> f64 {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, &logit| {
        largest.max(f64::from(logit))
    });
    let total: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - largest).exp())
        .sum();
    largest + total.ln() - f64::from(logits[token])
}
