//! What a draft is worth: how many of its guesses come true by how many are made, on answers that it has not learnt from;
//! what a guess costs; and from which acceptance on it pays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_engine::sample::{LogitBias, SamplingOptions};
use andon_engine::speculate::{DraftModel, Drafter, NEAR_TOKENS, Wanted};
use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model};
use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Progress;
use super::dataset::Record;

/// Guesses made at a time.
const LENGTHS: [usize; 4] = [1, 2, 3, 4];

/// Tokens of the largest pass: the most guesses behind the token that is known.
const PASS_TOKENS_MAX: usize = LENGTHS.len() + 1;

/// Times that each pass is taken.
const ROUNDS: usize = 25;

/// What was measured of guesses of one length.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct OfLength {
    /// Guesses made at a time.
    pub(super) length: usize,
    pub(super) guessed: usize,
    pub(super) accepted: usize,
    /// Of the guesses.
    pub(super) acceptance: f64,
    /// A pass of the target that verifies them, relative to one over a token.
    pub(super) pass_cost: f64,
    /// The acceptance at which guesses of this length cost what they gain.
    pub(super) break_even: f64,
    /// What follows for greedy answers.
    pub(super) speedup: f64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Worth {
    /// Prompts whose answers were guessed.
    pub(super) prompts: usize,
    /// A pass of the draft, relative to one of the target over a token.
    pub(super) cost: f64,
    pub(super) lengths: Vec<OfLength>,
}

/// Measures on greedy answers of the target. Nothing, if all are too short for that.
pub(super) fn worth(
    target: &mut Executor,
    draft: Arc<Model>,
    options: &ExecutorOptions,
    records: &[Record],
) -> Result<Option<Worth>> {
    let length = |record: &Record| record.answers.first().map_or(0, |first| first.tokens.len());
    let longest = records.iter().max_by_key(|record| length(record));
    // What is timed follows a token of the answer.
    let Some(timed) = longest.filter(|record| length(record) > PASS_TOKENS_MAX) else {
        return Ok(None);
    };
    let mut draft = DraftModel::new(draft, target, options)?;
    let progress = Progress::new("measuring", LENGTHS.len() * records.len());
    let mut counts = Vec::new();
    for length in LENGTHS {
        let (mut guessed, mut accepted) = (0, 0);
        for (index, record) in records.iter().enumerate() {
            let counted = guess(
                &mut draft,
                target,
                record,
                length,
                counts.len() * records.len() + index,
            )?;
            guessed += counted.0;
            accepted += counted.1;
            progress.at(counts.len() * records.len() + index + 1);
        }
        counts.push((length, guessed, accepted));
    }
    let (cost, passes) = costs(&mut draft, target, timed)?;
    let lengths = counts.into_iter().map(|(length, guessed, accepted)| {
        let acceptance = accepted as f64 / f64::from(guessed.max(1) as u32);
        let spent = length as f64 * cost + passes[length];
        OfLength {
            length,
            guessed,
            accepted,
            acceptance,
            pass_cost: passes[length],
            break_even: ((spent - 1.0) / length as f64).max(0.0),
            speedup: (1.0 + acceptance * length as f64) / spent,
        }
    });
    Ok(Some(Worth {
        prompts: records.len(),
        cost,
        lengths: lengths.collect(),
    }))
}

/// Goes through an answer as verifying would: guesses, takes those that are right, and the token behind them.
fn guess(
    draft: &mut DraftModel,
    target: &mut Executor,
    record: &Record,
    length: usize,
    id: usize,
) -> Result<(usize, usize)> {
    let Some(answer) = record.answers.first() else {
        return Ok((0, 0));
    };
    let id = id as u64;
    let mut text = record.prompt.clone();
    text.extend(&answer.tokens);
    let (mut guessed, mut accepted) = (0, 0);
    // The first token comes with the prompt.
    let mut at = record.prompt.len() + 1;
    while at < text.len() {
        let count = length.min(text.len() - at);
        let guesses = guesses(draft, target, &text[..at], record.prompt.len(), count, id)?;
        let right = guesses
            .iter()
            .zip(&text[at..])
            .take_while(|(guess, token)| guess == token)
            .count();
        guessed += guesses.len();
        accepted += right;
        at += right + 1;
    }
    draft.forget(id);
    Ok((guessed, accepted))
}

fn guesses(
    draft: &mut DraftModel,
    target: &mut Executor,
    text: &[u32],
    prompt_tokens: usize,
    count: usize,
    id: u64,
) -> Result<Vec<u32>> {
    while draft
        .missing(id, text)
        .context("the draft cannot read this text")?
        > NEAR_TOKENS
    {
        let read = draft.read(Some(target), id, text);
        anyhow::ensure!(
            read > 0,
            "the draft has no room for a text of {} tokens",
            text.len()
        );
    }
    let mut guesses = Vec::new();
    let wanted = Wanted {
        before: 0,
        id,
        text,
        prompt_tokens,
        sampling: &SamplingOptions::default(),
        bias: &LogitBias::default(),
        limits: None,
        count,
        guesses: &mut guesses,
    };
    draft.draft(Some(target), &mut [wanted]);
    Ok(guesses)
}

/// A pass of the draft relative to one of the target over a token, and passes of the target over one more token than
/// the index, all in turn: what the machine does beside changes from minute to minute.
fn costs(
    draft: &mut DraftModel,
    target: &mut Executor,
    record: &Record,
) -> Result<(f64, Vec<f64>)> {
    let mut text = record.prompt.clone();
    text.extend(
        record
            .answers
            .iter()
            .take(1)
            .flat_map(|answer| &answer.tokens),
    );
    let (before, behind) = text.split_at(text.len().saturating_sub(PASS_TOKENS_MAX));
    let mut sequence = target.sequence();
    for tokens in before.chunks(target.batch_tokens_max()) {
        target.forward(&mut [Chunk {
            sequence: &mut sequence,
            tokens,
            logits: LogitsFor::None,
        }])?;
    }
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); behind.len() + 1];
    let count = LENGTHS[LENGTHS.len() - 1];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        // Of the text it keeps all but the last token: as many passes as guesses.
        guesses(draft, target, before, record.prompt.len(), count, u64::MAX)?;
        times[0].push(start.elapsed() / count as u32);
        for tokens in 1..=behind.len() {
            let tokens = &behind[..tokens];
            let start = Instant::now();
            let guesses = LogitsFor::Guesses(tokens.len() - 1);
            target.forward(&mut [Chunk {
                sequence: &mut sequence,
                tokens,
                logits: guesses,
            }])?;
            times[tokens.len()].push(start.elapsed());
            sequence.truncate(before.len());
        }
    }
    draft.forget(u64::MAX);
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times
            .get(times.len() / 2)
            .map_or(0.0, Duration::as_secs_f64)
    };
    let medians: Vec<f64> = times.iter_mut().map(median).collect();
    let one = medians
        .get(1)
        .copied()
        .unwrap_or(1.0)
        .max(f64::MIN_POSITIVE);
    Ok((
        medians[0] / one,
        medians[1..].iter().map(|time| time / one).collect(),
    ))
}
