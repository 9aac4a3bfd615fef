//! Choices scored by how likely the model thinks their texts. The question is read once; the choices follow it side by side.

use std::sync::Arc;

use andon_engine::sample::Sampler;
use andon_engine::tokenizer::Special;
use andon_engine::{Chunk, Executor, LogitsFor, Model, Sequence};
use andon_policy::confidence::{ALTERNATIVES, Gauge, entropy};
use anyhow::{Context as _, Result};

use super::question::{Question, Truth};
use super::{Arguments, Outcome, Output};

/// Room for the texts of all choices of a question.
const CHOICES_TOKENS: usize = 8192;

/// What is known of one text behind its context.
struct Scored {
    /// Sum of the log-probabilities of its tokens.
    sum: f64,
    gauge: Gauge,
    /// The likeliest tokens, up to the first that is not the text's.
    likeliest: Vec<u32>,
    own: Gauge,
    /// Whether each token was the likeliest.
    greedy: bool,
}

pub(super) fn measure(
    arguments: &Arguments,
    model: &Arc<Model>,
    questions: &[Question],
    output: &mut Output,
) -> Result<()> {
    let room = arguments.prompt_tokens_max + CHOICES_TOKENS;
    let mut scorer = Scorer {
        executor: arguments.run.executor(model, room)?,
        sampler: Sampler::new(),
        tokens_max: arguments.prompt_tokens_max,
    };
    for question in questions {
        let place = || format!("{}: {}", question.set, question.id);
        match scorer.outcome(question).with_context(place)? {
            Some(outcome) => output.add(question, outcome)?,
            None => output.leave_out(),
        }
    }
    Ok(())
}

struct Scorer {
    executor: Executor,
    sampler: Sampler,
    tokens_max: usize,
}

impl Scorer {
    /// What the model makes of a question; `None` if it is too long.
    fn outcome(&mut self, question: &Question) -> Result<Option<Outcome>> {
        match &question.truth {
            Truth::Choice { scored, right, .. } => {
                let Some(each) = self.score(scored)? else {
                    return Ok(None);
                };
                let length = |text: &str| text.trim().len().max(1) as f64;
                let scores: Vec<f64> = each
                    .iter()
                    .zip(scored)
                    .map(|(each, (_, text))| each.sum / length(text))
                    .collect();
                let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
                let best = best.context("there are no choices")?;
                Ok(Some(Outcome {
                    answer: scored[best].1.trim().to_owned(),
                    right: best == *right,
                    signals: each[best].gauge.signals(),
                    scores: scores
                        .iter()
                        .map(|score| (score * 1e5).round() / 1e5)
                        .collect(),
                }))
            }
            Truth::Continuation { context, word } => {
                let one = [(context.clone(), format!(" {}", word.trim_start()))];
                let scored = self.score(&one)?;
                Ok(scored
                    .and_then(|scored| scored.into_iter().next())
                    .map(|scored| Outcome {
                        answer: self.executor.model().tokenizer().decode(&scored.likeliest),
                        right: scored.greedy,
                        // Of its own tokens: those of the expected word would give the label away.
                        signals: scored.own.signals(),
                        scores: Vec::new(),
                    }))
            }
            Truth::Short(_) | Truth::Text(_) | Truth::Fields(_) => Ok(None),
        }
    }

    /// Scores each text behind its context; `None` if they are too long.
    fn score(&mut self, texts: &[(String, String)]) -> Result<Option<Vec<Scored>>> {
        let model = Arc::clone(self.executor.model());
        let encode = |text: &str| model.tokenizer().encode_prompt(text, Special::Plain);
        let tokens: Vec<(usize, Vec<u32>)> = texts
            .iter()
            .map(|(context, text)| {
                let whole = encode(&format!("{context}{text}"));
                // Where the text's beginning is in one token with the context's end, that token is scored, too.
                let before = encode(context);
                let before = before.iter().zip(&whole).take_while(|(a, b)| a == b);
                let before = before.count().clamp(1, whole.len().max(2) - 1);
                (before, whole)
            })
            .collect();
        let too_long = tokens.iter().any(|(before, whole)| {
            *before > self.tokens_max || whole.len() < 2 || whole.len() > self.tokens_max
        });
        let total: usize = tokens
            .iter()
            .map(|(before, whole)| (whole.len() - before).next_multiple_of(64) + 64)
            .sum();
        if too_long || total > CHOICES_TOKENS {
            return Ok(None);
        }
        // All contexts have this beginning; the token before the first that is scored is not in it, since its logits count.
        let shared = (0..)
            .take_while(|&at| {
                tokens
                    .iter()
                    .all(|(before, whole)| at + 1 < *before && whole.get(at) == tokens[0].1.get(at))
            })
            .count();
        let mut common = self.executor.sequence();
        let batch = self.executor.batch_tokens_max();
        for tokens in tokens[0].1[..shared].chunks(batch) {
            self.read(&mut common, tokens)?;
        }
        let mut scored = Vec::with_capacity(tokens.len());
        let mut begin = 0;
        while begin < tokens.len() {
            // As many as a batch takes; one alone is read in pieces.
            let mut count = 0;
            let mut sum = 0;
            for (_, whole) in &tokens[begin..] {
                sum += whole.len() - 1 - shared;
                if count > 0 && sum > batch {
                    break;
                }
                count += 1;
            }
            scored.extend(self.score_batch(&common, shared, &tokens[begin..begin + count])?);
            begin += count;
        }
        Ok(Some(scored))
    }

    fn read(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<()> {
        self.executor.forward(&mut [Chunk {
            sequence,
            tokens,
            logits: LogitsFor::None,
        }])?;
        Ok(())
    }

    fn score_batch(
        &mut self,
        common: &Sequence,
        shared: usize,
        tokens: &[(usize, Vec<u32>)],
    ) -> Result<Vec<Scored>> {
        let batch = self.executor.batch_tokens_max();
        let mut sequences = Vec::with_capacity(tokens.len());
        for _ in tokens {
            let fork = self.executor.fork(common);
            sequences.push(fork.context("the KV cache has no room for the choices")?);
        }
        let mut starts = vec![shared; tokens.len()];
        if let [(_, whole)] = tokens {
            while whole.len() - 1 - starts[0] > batch {
                let end = starts[0] + batch;
                // Pieces whose logits are asked for are short enough: a choice is shorter than a batch.
                self.read(&mut sequences[0], &whole[starts[0]..end])?;
                starts[0] = end;
            }
        }
        let mut chunks: Vec<Chunk<'_>> = sequences
            .iter_mut()
            .zip(tokens)
            .zip(&starts)
            .map(|((sequence, (before, whole)), &start)| Chunk {
                sequence,
                tokens: &whole[start..whole.len() - 1],
                // The last token of the context and all of the text but its last.
                logits: LogitsFor::Guesses(whole.len() - 1 - before),
            })
            .collect();
        let logits = self.executor.forward(&mut chunks)?;
        let mut row = 0;
        let mut scored = Vec::with_capacity(tokens.len());
        for (before, whole) in tokens {
            let mut one = Scored {
                sum: 0.0,
                gauge: Gauge::new(),
                likeliest: Vec::new(),
                own: Gauge::new(),
                greedy: true,
            };
            for &id in &whole[*before..] {
                let known = self.sampler.logprobs(logits.row(row), id, ALTERNATIVES)?;
                one.sum += f64::from(known.logprob);
                let choice = entropy(known.top.iter().map(|ranked| ranked.logprob));
                if let Some(best) = known.top.first().filter(|_| one.greedy) {
                    one.likeliest.push(best.id);
                    one.own.token(best.id, best.logprob, choice);
                    one.greedy = best.id == id;
                }
                one.gauge.token(id, known.logprob, choice);
                row += 1;
            }
            scored.push(one);
        }
        Ok(scored)
    }
}
