//! The loop that runs generations side by side.

use std::time::Instant;

use thiserror::Error;

use super::active::{Active, Chosen, Sink};
use super::event::{Event, FinishReason, GenerationId};
use super::forward::{Forward, Part, PassError};
use super::request::{GenerationRequest, StartError};
use crate::sample::{SampleError, Sampler};
use crate::{Executor, ForwardError};

/// Bounds of a [`Generator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// Most generations at once; at least 1 and at most a batch of the executor (else taken as that).
    pub parallel_max: usize,
    /// Most tokens of a prompt in one step: what a prompt may delay others by. At least 1.
    pub prefill_chunk_tokens: usize,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            parallel_max: 4,
            prefill_chunk_tokens: 256,
        }
    }
}

/// A step could not be made; every generation has been reported as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the forward pass failed: {0}")]
pub struct StepError(#[from] pub ForwardError);

/// Runs generations over one executor. See the module for what it promises.
#[derive(Debug)]
pub struct Generator<F: Forward = Executor> {
    forward: F,
    parallel_max: usize,
    prefill_chunk_tokens: usize,
    /// In order of their start, which is the order in which prompts are read.
    active: Vec<Active>,
    /// The KV state of `active`, one by one; apart, because a pass changes these and reads those.
    sequences: Vec<F::Sequence>,
    next_id: u64,
    sampler: Sampler,
    /// Of the step under way: index and token count of each part of the pass, and the tokens chosen after it.
    parts: Vec<(usize, usize)>,
    chosen: Vec<(usize, Result<Chosen, SampleError>)>,
}

impl<F: Forward> Generator<F> {
    /// A generator without generations. Values of `options` out of their bounds are moved to the nearest.
    pub fn new(forward: F, options: GeneratorOptions) -> Self {
        let batch = forward.batch_tokens_max().max(1);
        Self {
            parallel_max: options.parallel_max.clamp(1, batch),
            prefill_chunk_tokens: options.prefill_chunk_tokens.clamp(1, batch),
            forward,
            active: Vec::new(),
            sequences: Vec::new(),
            next_id: 0,
            sampler: Sampler::new(),
            parts: Vec::new(),
            chosen: Vec::new(),
        }
    }

    /// The executor, for what it can tell about itself.
    pub fn executor(&self) -> &F {
        &self.forward
    }

    /// Generations that have not been reported as finished.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Admits a generation; its first step reads the prompt.
    ///
    /// KV pages for the prompt, and for the answer too if `tokens_max` limits it, are promised here and
    /// will be there. An answer without a limit grows as long as unpromised pages last and fails when
    /// they are used up.
    ///
    /// # Errors
    ///
    /// [`StartError`]; [`StartError::Busy`] and [`StartError::KvFull`] may pass when others have finished.
    pub fn start(&mut self, request: GenerationRequest) -> Result<GenerationId, StartError> {
        let context = self.forward.context_tokens_max();
        request.check(context, self.forward.vocabulary_count())?;
        if self.active.len() >= self.parallel_max {
            return Err(StartError::Busy {
                active: self.active.len(),
            });
        }
        let id = GenerationId(self.next_id);
        let active = Active::new(id, request, context);
        self.admit(&active)?;
        self.next_id += 1;
        self.active.push(active);
        self.sequences.push(self.forward.sequence());
        Ok(id)
    }

    /// Whether the pages that are not promised to others hold what `new` is promised.
    fn admit(&self, new: &Active) -> Result<(), StartError> {
        let page_tokens = self.forward.kv_page_tokens().max(1);
        let pages = |tokens: usize| tokens.div_ceil(page_tokens);
        let promised: usize = self
            .active
            .iter()
            .map(|active| {
                pages(active.kv_tokens_promised()).saturating_sub(pages(active.kv_tokens()))
            })
            .sum();
        let free = (self.forward.kv_tokens_free() / page_tokens).saturating_sub(promised);
        let needed = new.kv_tokens_promised();
        if pages(needed) > free {
            return Err(StartError::KvFull {
                tokens_needed: needed,
                tokens_free: free * page_tokens,
            });
        }
        Ok(())
    }

    /// Ends a generation; the next step reports it as [`FinishReason::Cancelled`] and does no more work
    /// for it. Says whether there was one to end.
    pub fn cancel(&mut self, id: GenerationId) -> bool {
        match self
            .active
            .iter_mut()
            .find(|active| active.id == id && !active.cancelled)
        {
            Some(active) => {
                active.cancelled = true;
                true
            }
            None => false,
        }
    }

    /// Makes one pass: the next token of every answer under way, and one piece of the oldest prompt
    /// not yet read. Does nothing if there is no generation.
    ///
    /// A generation that cannot go on is reported as failed while the others do.
    ///
    /// # Errors
    ///
    /// [`StepError`] if the pass itself failed; all generations have then been reported as failed,
    /// and the generator is empty and usable.
    pub fn step(&mut self, sink: &mut dyn FnMut(GenerationId, Event<'_>)) -> Result<(), StepError> {
        while let Some(index) = self.active.iter().position(|active| active.cancelled) {
            self.end(index, FinishReason::Cancelled, sink);
        }
        while !self.active.is_empty() {
            match self.pass() {
                Ok(()) => {
                    self.report(sink);
                    break;
                }
                Err(PassError::KvFull) => {
                    let message = "the KV cache is full".to_owned();
                    self.end(self.least_promised(), FinishReason::Failed(message), sink);
                }
                Err(PassError::Forward(error)) => {
                    let error = StepError(error);
                    while !self.active.is_empty() {
                        self.end(0, FinishReason::Failed(error.to_string()), sink);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The generation that gives way when pages run out: the youngest without a promise for its answer.
    fn least_promised(&self) -> usize {
        let last = self.active.len().saturating_sub(1);
        self.active
            .iter()
            .rposition(|active| !active.limited)
            .unwrap_or(last)
    }

    /// One forward pass; what was chosen after it is left in `chosen`, and no generation has changed yet.
    fn pass(&mut self) -> Result<(), PassError> {
        self.parts.clear();
        self.chosen.clear();
        let now = Instant::now();
        let deciding = self
            .active
            .iter()
            .filter(|active| !active.reads_prompt())
            .count();
        // Others decode beside a prompt, so at least one place of the batch is left for it.
        let chunk_tokens = self.prefill_chunk_tokens.min(
            self.forward
                .batch_tokens_max()
                .saturating_sub(deciding)
                .max(1),
        );
        let reader = self.active.iter().position(Active::reads_prompt);
        if let Some(active) = reader.and_then(|index| self.active.get_mut(index)) {
            active.pass_begins(now);
        }
        let mut wanting = Vec::with_capacity(self.active.len());
        let mut parts = Vec::with_capacity(self.active.len());
        for (index, (active, sequence)) in self.active.iter().zip(&mut self.sequences).enumerate() {
            if active.reads_prompt() && reader != Some(index) {
                continue;
            }
            let tokens = active.next_tokens(chunk_tokens);
            let logits = !active.reads_prompt() || active.wants_logits(tokens.len());
            if logits {
                wanting.push(index);
            }
            self.parts.push((index, tokens.len()));
            parts.push(Part {
                sequence,
                tokens,
                logits,
            });
        }
        let (active, chosen, sampler) = (&self.active, &mut self.chosen, &mut self.sampler);
        let mut wanting = wanting.into_iter();
        self.forward.pass(&mut parts, &mut |logits| {
            if let Some((index, active)) = wanting
                .next()
                .and_then(|index| Some((index, active.get(index)?)))
            {
                chosen.push((index, active.choose(logits, sampler)));
            }
        })
    }

    /// Takes the outcome of a pass to the generations it was for, and removes those that are over.
    fn report(&mut self, sink: Sink<'_>) {
        let now = Instant::now();
        let mut over = Vec::new();
        for &(index, count) in &self.parts {
            let Some(active) = self.active.get_mut(index) else {
                continue;
            };
            if active.reads_prompt()
                && let Some(reason) = active.prompt_read(count, now, sink)
            {
                over.push((index, reason));
            }
        }
        for (index, chosen) in self.chosen.drain(..) {
            let Some(active) = self.active.get_mut(index) else {
                continue;
            };
            let reason = match chosen {
                Ok(chosen) => active.accept(chosen, self.forward.tokenizer(), now, sink),
                Err(error) => Some(FinishReason::Failed(error.to_string())),
            };
            over.extend(reason.map(|reason| (index, reason)));
        }
        // From the last, so that the indexes of the others stay what they are.
        over.sort_unstable_by_key(|&(index, _)| core::cmp::Reverse(index));
        for (index, reason) in over {
            self.end(index, reason, sink);
        }
    }

    /// Removes a generation, frees its KV pages and reports it.
    fn end(&mut self, index: usize, reason: FinishReason, sink: Sink<'_>) {
        if index < self.active.len() {
            drop(self.sequences.remove(index));
            self.active.remove(index).finish(reason, sink);
        }
    }
}
