//! The text that a draft learns from: the target's own answers, each place with the tokens that it found most probable.
//!
//! Drafts are asked for what the target says, so that is what they see, not what somebody else wrote (sequence-level
//! distillation: Kim and Rush, 2016; of drafts: Zhou and others, DistillSpec, 2024).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use andon_engine::Model;
use andon_engine::generate::{
    Event, FinishReason, GenerationId, GenerationRequest, Generator, GeneratorOptions, StartError,
};
use andon_engine::sample::SamplingOptions;
use anyhow::{Context as _, Result, bail, ensure};

use super::Progress;
use super::dataset::{Answer, Log, Record, TOP};
use crate::speculate::Line;

/// Answers that are written at a time: the weights are read once for all.
const PARALLEL: usize = 16;

/// A prompt as the model reads it.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    /// What it has in common with others: those of one template are learnt from together or not at all.
    pub(super) template: String,
    pub(super) tokens: Vec<u32>,
    /// Its line of the file.
    pub(super) line: String,
}

/// The prompts of a file that are no longer than `tokens_max`.
pub(super) fn prompts(path: &Path, model: &Model, tokens_max: usize) -> Result<Vec<Prompt>> {
    let text = crate::read_text(path)?;
    let mut prompts = Vec::new();
    for line in Line::all(path, &text) {
        let (number, place, line, read) = line?;
        let place = || place.clone();
        let question = read.question().with_context(place)?;
        let tokens = crate::speculate::tokens_of(model, question).with_context(place)?;
        ensure!(!tokens.is_empty(), "{}: the prompt is empty", place());
        if tokens.len() <= tokens_max {
            let template = read.template.or(read.task);
            let template = template.unwrap_or_else(|| format!("line {number}"));
            prompts.push(Prompt {
                template,
                tokens,
                line: line.to_owned(),
            });
        }
    }
    Ok(prompts)
}

/// Answers every prompt, and adds what is missing of that to the log: once with the likeliest tokens, and `samples` times
/// drawn.
pub(super) fn complete(
    run: &crate::Run,
    model: &Arc<Model>,
    log: &mut Log,
    records: &mut Vec<Record>,
    prompts: &[(u32, &Prompt)],
    options: &Options,
) -> Result<()> {
    let asked: BTreeMap<u32, &[u32]> = prompts
        .iter()
        .map(|&(index, prompt)| (index, &prompt.tokens[..]))
        .collect();
    // The log's purpose has the prompts, but not where in their file they are.
    ensure!(
        records
            .iter()
            .all(|record| asked.get(&record.prompt_index) == Some(&&record.prompt[..])),
        "the prompts that were answered before have other lines now; name another --work folder"
    );
    let known: BTreeSet<u32> = records.iter().map(|record| record.prompt_index).collect();
    let missing: Vec<_> = prompts
        .iter()
        .filter(|(index, _)| !known.contains(index))
        .collect();
    let Some(longest) = missing.iter().map(|(_, prompt)| prompt.tokens.len()).max() else {
        return Ok(());
    };
    let parallel = PARALLEL.max(options.samples as usize);
    // Pages of the cache are promised whole.
    let tokens = (longest + options.tokens_max).next_multiple_of(64) + 64;
    let executor = run.executor(model, parallel * tokens)?;
    let chunk = executor.batch_tokens_max();
    let mut generator = Generator::new(
        executor,
        GeneratorOptions {
            parallel_max: parallel,
            prefill_chunk_tokens: chunk,
            ..GeneratorOptions::default()
        },
    );
    let progress = Progress::new("answering", prompts.len());
    progress.at(known.len());
    let drawn = u32::from(options.samples > 0);
    let mut waiting: VecDeque<(usize, u32)> = (0..missing.len())
        .flat_map(|index| (0..=drawn).map(move |drawn| (index, drawn)))
        .collect();
    let mut running: BTreeMap<GenerationId, (usize, u32, Answer)> = BTreeMap::new();
    let mut done: BTreeMap<usize, Vec<(u32, Answer)>> = BTreeMap::new();
    let mut next = 0;
    while next < missing.len() {
        while let Some(&(index, drawn)) = waiting.front() {
            let (prompt_index, prompt) = missing[index];
            let request = request(prompt, *prompt_index, drawn > 0, options);
            let count = if drawn > 0 { options.samples } else { 1 };
            match generator.start_group(request, NonZero::new(count).unwrap_or(NonZero::<u32>::MIN))
            {
                Ok(ids) => running.extend(
                    (drawn..)
                        .zip(ids)
                        .map(|(choice, id)| (id, (index, choice, Answer::default()))),
                ),
                Err(StartError::Busy { .. } | StartError::KvFull { .. }) if !running.is_empty() => {
                    break;
                }
                Err(error) => return Err(error).context("a prompt cannot be answered"),
            }
            waiting.pop_front();
        }
        let mut failed = None;
        generator.step(&mut |id, event| match event {
            Event::PromptDone { .. } => {}
            Event::Text { tokens, .. } => {
                let Some((_, _, answer)) = running.get_mut(&id) else {
                    return;
                };
                for token in tokens {
                    answer.tokens.push(token.id);
                    let likely = token
                        .top
                        .iter()
                        .map(|top| (top.id, top.logprob.exp().clamp(0.0, 1.0)));
                    answer.likely.push(likely.collect());
                }
            }
            Event::Finished { reason, .. } => {
                let Some((index, choice, mut answer)) = running.remove(&id) else {
                    return;
                };
                match reason {
                    FinishReason::Failed(message) => failed = Some(message),
                    FinishReason::Stop => end(&mut answer, model),
                    FinishReason::Length | FinishReason::Cancelled => {}
                }
                shorten(&mut answer);
                done.entry(index).or_default().push((choice, answer));
            }
        })?;
        if let Some(message) = failed {
            bail!("an answer failed: {message}");
        }
        // In the order of the prompts, so that the log is the same whatever ends first.
        let whole = 1 + options.samples as usize;
        while let Some(mut answers) = done.remove(&next) {
            if answers.len() < whole {
                done.insert(next, answers);
                break;
            }
            answers.sort_by_key(|&(choice, _)| choice);
            let (prompt_index, prompt) = missing[next];
            let record = Record {
                prompt_index: *prompt_index,
                prompt: prompt.tokens.clone(),
                answers: different(answers.into_iter().map(|(_, answer)| answer)),
            };
            log.add(&record)?;
            records.push(record);
            next += 1;
            progress.at(known.len() + next);
        }
    }
    records.sort_by_key(|record| record.prompt_index);
    Ok(())
}

/// Answers without those that say nothing or the same as one before.
fn different(answers: impl Iterator<Item = Answer>) -> Vec<Answer> {
    let mut different: Vec<Answer> = Vec::new();
    for answer in answers {
        let new = different.iter().all(|other| other.tokens != answer.tokens);
        if new && !answer.tokens.is_empty() {
            different.push(answer);
        }
    }
    different
}

/// What answers are like.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) tokens_max: usize,
    /// Answers that are drawn, beside the likeliest.
    pub(super) samples: u32,
    pub(super) temperature: f32,
    pub(super) seed: u64,
}

fn request(prompt: &Prompt, index: u32, drawn: bool, options: &Options) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.tokens.clone(),
        tokens_max: Some(options.tokens_max),
        sampling: SamplingOptions {
            temperature: if drawn { options.temperature } else { 0.0 },
            seed: options.seed.wrapping_add(u64::from(index)),
            ..SamplingOptions::default()
        },
        logprobs: Some(TOP as u8),
        ..GenerationRequest::default()
    }
}

/// Notes what ended an answer; that may be the last of its tokens.
fn end(answer: &mut Answer, model: &Model) {
    let tokenizer = model.tokenizer();
    let last = answer.tokens.last().copied();
    answer.end = last
        .filter(|&token| tokenizer.is_end_of_generation(token))
        .or(tokenizer.eos());
    if last == answer.end {
        answer.tokens.pop();
        answer.likely.pop();
    }
}

/// Cuts an answer off where it repeats itself too often: a loop is nothing new.
fn shorten(answer: &mut Answer) {
    if let Some(end) = crate::speculate::looped(&answer.tokens) {
        answer.tokens.truncate(end);
        answer.likely.truncate(end);
        answer.end = None;
    }
}

#[cfg(test)]
mod tests {
    use super::shorten;
    use crate::draft::dataset::Answer;

    #[test]
    fn loops_are_cut_off() {
        let mut answer = Answer {
            tokens: (0..100).map(|index| index % 10).collect(),
            end: Some(1),
            likely: vec![Vec::new(); 100],
        };
        shorten(&mut answer);
        assert_eq!(
            (answer.tokens.len(), answer.likely.len(), answer.end),
            (28, 28, None)
        );
    }
}
