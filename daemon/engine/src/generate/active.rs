//! One generation under way, without its KV sequence.

use std::time::{Duration, Instant};

use super::event::{Event, FinishReason, GenerationId, Timings, TokenLogprob, Usage};
use super::output::Output;
use super::request::GenerationRequest;
use crate::sample::{History, SampleError, Sampler, SamplingOptions};
use crate::tokenizer::Tokenizer;

/// Where the caller's events go.
pub(super) type Sink<'a> = &'a mut dyn FnMut(GenerationId, Event<'_>);

/// A token and what was asked to be known about it.
#[derive(Debug)]
pub(super) struct Chosen {
    id: u32,
    logprob: Option<TokenLogprob>,
}

#[derive(Debug)]
pub(super) struct Active {
    pub(super) id: GenerationId,
    prompt: Vec<u32>,
    generated: Vec<u32>,
    /// Tokens of the prompt that were read.
    read: usize,
    tokens_max: usize,
    /// Whether the caller limited the answer, so that its KV pages are promised.
    pub(super) limited: bool,
    sampling: SamplingOptions,
    logprobs: Option<u8>,
    ignore_end: bool,
    output: Output,
    pub(super) cancelled: bool,
    clock: Clock,
}

#[derive(Debug)]
struct Clock {
    started: Instant,
    first_pass: Option<Instant>,
    prompt_done: Option<Instant>,
    first_token: Option<Instant>,
}

impl Active {
    /// A generation of a checked request whose prompt is shorter than `context`.
    pub(super) fn new(id: GenerationId, request: GenerationRequest, context: usize) -> Self {
        let room = context.saturating_sub(request.prompt.len());
        Self {
            id,
            output: Output::new(&request.stop),
            prompt: request.prompt,
            generated: Vec::new(),
            read: 0,
            tokens_max: request.tokens_max.map_or(room, |tokens| tokens.min(room)),
            limited: request.tokens_max.is_some(),
            sampling: request.sampling,
            logprobs: request.logprobs,
            ignore_end: request.ignore_end,
            cancelled: false,
            clock: Clock {
                started: Instant::now(),
                first_pass: None,
                prompt_done: None,
                first_token: None,
            },
        }
    }

    /// KV tokens promised at the start: the prompt, and the answer if it was limited.
    pub(super) fn kv_tokens_promised(&self) -> usize {
        self.prompt.len() + if self.limited { self.tokens_max } else { 0 }
    }

    /// KV tokens held now: all but the last one chosen, which the next pass appends.
    pub(super) fn kv_tokens(&self) -> usize {
        self.read + self.generated.len().saturating_sub(1)
    }

    pub(super) fn reads_prompt(&self) -> bool {
        self.read < self.prompt.len()
    }

    /// Tokens for the next pass: a piece of the prompt of at most `chunk_tokens`, or the last one chosen.
    pub(super) fn next_tokens(&self, chunk_tokens: usize) -> &[u32] {
        if self.reads_prompt() {
            let end = self
                .read
                .saturating_add(chunk_tokens)
                .min(self.prompt.len());
            &self.prompt[self.read..end]
        } else {
            &self.generated[self.generated.len().saturating_sub(1)..]
        }
    }

    /// Whether a pass over the next `count` tokens is followed by choosing a token.
    pub(super) fn wants_logits(&self, count: usize) -> bool {
        self.read + count >= self.prompt.len() && self.tokens_max > 0
    }

    /// Chooses the token after a pass; changes nothing here.
    pub(super) fn choose(
        &self,
        logits: &[f32],
        sampler: &mut Sampler,
    ) -> Result<Chosen, SampleError> {
        let history = History {
            prompt: &self.prompt,
            generated: &self.generated,
        };
        let position = self.prompt.len() + self.generated.len();
        let id = sampler.sample(logits, &self.sampling, history, position as u64)?;
        let logprob = match self.logprobs {
            Some(top) => {
                let known = sampler.logprobs(logits, id, top)?;
                Some(TokenLogprob {
                    id,
                    logprob: known.logprob,
                    top: known.top,
                })
            }
            None => None,
        };
        Ok(Chosen { id, logprob })
    }

    /// Notes that a pass over a piece of the prompt begins.
    pub(super) fn pass_begins(&mut self, now: Instant) {
        self.clock.first_pass.get_or_insert(now);
    }

    /// Takes the outcome of a pass over `count` tokens of the prompt. Says why the generation is over, if it is.
    pub(super) fn prompt_read(
        &mut self,
        count: usize,
        now: Instant,
        sink: Sink<'_>,
    ) -> Option<FinishReason> {
        self.read = self.read.saturating_add(count).min(self.prompt.len());
        if self.reads_prompt() {
            return None;
        }
        self.clock.prompt_done = Some(now);
        sink(
            self.id,
            Event::PromptDone {
                prompt_tokens: self.prompt.len(),
                cached_tokens: 0,
            },
        );
        (self.tokens_max == 0).then_some(FinishReason::Length)
    }

    /// Takes the token chosen after a pass and delivers what text it settles. Says why the
    /// generation is over, if it is.
    pub(super) fn accept(
        &mut self,
        chosen: Chosen,
        tokenizer: &Tokenizer,
        now: Instant,
        sink: Sink<'_>,
    ) -> Option<FinishReason> {
        self.clock.first_token.get_or_insert(now);
        self.generated.push(chosen.id);
        if !self.ignore_end && tokenizer.is_end_of_generation(chosen.id) {
            return Some(FinishReason::Stop);
        }
        if self.output.push(tokenizer, chosen.id, chosen.logprob) {
            return Some(FinishReason::Stop);
        }
        self.deliver(false, sink);
        (self.generated.len() >= self.tokens_max).then_some(FinishReason::Length)
    }

    /// Delivers what is left and reports the end.
    pub(super) fn finish(mut self, reason: FinishReason, sink: Sink<'_>) {
        let mut reason = reason;
        // Who cancelled has stopped reading; everyone else gets the text held back.
        if reason != FinishReason::Cancelled {
            if self.output.finish() && reason == FinishReason::Length {
                reason = FinishReason::Stop;
            }
            self.deliver(true, sink);
        }
        let usage = Usage {
            prompt_tokens: self.prompt.len(),
            cached_tokens: 0,
            completion_tokens: self.generated.len(),
        };
        sink(
            self.id,
            Event::Finished {
                reason,
                usage,
                timings: self.clock.timings(Instant::now()),
            },
        );
    }

    fn deliver(&mut self, last: bool, sink: Sink<'_>) {
        if let Some(piece) = self.output.ready(last) {
            sink(
                self.id,
                Event::Text {
                    text: piece.text,
                    ids: piece.ids,
                    tokens: piece.tokens,
                },
            );
            self.output.delivered(last);
        }
    }
}

impl Clock {
    fn timings(&self, now: Instant) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => nanoseconds(to.saturating_duration_since(from)),
            _ => 0,
        };
        Timings {
            queue_ns: between(Some(self.started), self.first_pass),
            prefill_ns: between(self.first_pass, self.prompt_done),
            first_token_ns: between(Some(self.started), self.first_token),
            decode_ns: between(self.first_token, Some(now)),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
