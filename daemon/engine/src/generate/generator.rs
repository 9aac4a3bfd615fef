//! The loop that runs generations side by side.

mod outcome;
mod room;

use std::time::{Duration, Instant};

use thiserror::Error;

use super::active::{Active, ChooseError, Chosen};
use super::constrained::{ConstraintCounts, Masker};
use super::drafting::Drafting;
use super::event::{Event, FinishReason, GenerationId};
use super::forward::{Forward, PassError};
use super::guessing::Guessing;
use super::reading::{self, Reader, Reading};
use crate::sample::Sampler;
use crate::speculate::{COLUMNS_MAX, Drafter, GuessCount, PassCosts};
use crate::tokenizer::Special;
use crate::{Chunk, Executor, ForwardError, LogitsFor};

/// Bounds of a [`Generator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// Most generations at once; at least 1 and at most a batch of the executor (else taken as that).
    pub parallel_max: usize,
    /// Most generations that are parked beside them.
    pub parked_max: usize,
    /// Most tokens of prompts in one step, where the step does not say: what prompts may delay others by. At least 1.
    pub prefill_chunk_tokens: usize,
    /// Room of the KV cache, in tokens, that is promised to none but urgent requests, and to those that would not fit
    /// otherwise however few there were.
    pub kv_tokens_for_urgent: usize,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            parallel_max: 4,
            parked_max: 0,
            prefill_chunk_tokens: 256,
            kv_tokens_for_urgent: 0,
        }
    }
}

impl GeneratorOptions {
    /// Most rows of logits that one pass gives: those of guesses and of what they stand behind, and one for each prompt
    /// that ends.
    #[must_use]
    pub fn output_rows_max(&self) -> usize {
        COLUMNS_MAX.saturating_add(self.parallel_max)
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
    parked_max: usize,
    prefill_chunk_tokens: usize,
    /// Pages of the KV cache in all, and those of them for urgent requests.
    kv_pages: usize,
    kv_pages_for_urgent: usize,
    /// In order of their start.
    active: Vec<Active>,
    /// The KV state of `active`, one by one; apart, because a pass changes these and reads those. `None` for one that
    /// follows another.
    sequences: Vec<Option<F::Sequence>>,
    next_id: u64,
    sampler: Sampler,
    /// Of the step under way: the prompts that are read; index and token count of each part of the pass; and the tokens
    /// chosen after it, those of one generation in order.
    readers: Vec<Reader>,
    reading: Vec<usize>,
    parts: Vec<(usize, usize)>,
    /// Indexes of those whose logits the pass gives, in its order, and how many rows.
    wanting: Vec<(usize, usize)>,
    chosen: Vec<(usize, Result<Chosen, ChooseError>)>,
    masker: Masker,
    constraints: ConstraintCounts,
    guessing: Guessing,
    /// The memory of a pass's chunks, empty between passes.
    chunks: Vec<Chunk<'static, F::Sequence>>,
    /// Whether a pass over a prompt that is not urgent was given up, and none was made since.
    given_up: bool,
    /// What the step under way has spent on restoring.
    restoring: Duration,
    last_pass: LastPass,
}

/// What the pass of a step was made for; nothing if there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastPass {
    /// Generations that were answering.
    pub answering: usize,
    /// Tokens of prompts that were read.
    pub prompt_tokens: usize,
    /// What it took to get parts of prompts from where they are kept: no part of the pass.
    pub restoring: Duration,
}

impl<F: Forward> Generator<F> {
    /// The executor, if that is what makes the passes: to take times of it between steps.
    pub fn executor_mut(&mut self) -> Option<&mut Executor> {
        self.forward.executor_mut()
    }

    /// A generator without generations. Values of `options` out of their bounds are moved to the nearest.
    pub fn new(forward: F, options: GeneratorOptions) -> Self {
        let batch = forward.batch_tokens_max().max(1);
        let page_tokens = forward.kv_page_tokens().max(1);
        Self {
            parallel_max: options.parallel_max.clamp(1, batch),
            parked_max: options.parked_max,
            prefill_chunk_tokens: options.prefill_chunk_tokens.clamp(1, batch),
            kv_pages: forward.kv_tokens_free() / page_tokens,
            kv_pages_for_urgent: options.kv_tokens_for_urgent.div_ceil(page_tokens),
            forward,
            active: Vec::new(),
            sequences: Vec::new(),
            next_id: 0,
            sampler: Sampler::new(),
            readers: Vec::new(),
            reading: Vec::new(),
            parts: Vec::new(),
            wanting: Vec::new(),
            chunks: Vec::new(),
            chosen: Vec::new(),
            masker: Masker::default(),
            constraints: ConstraintCounts::default(),
            guessing: Guessing::default(),
            given_up: false,
            restoring: Duration::ZERO,
            last_pass: LastPass::default(),
        }
    }

    /// Sets what passes are expected to cost, by which it is decided how many guesses are tried. What is known of the
    /// drafter's cost stays.
    pub fn set_costs(&mut self, costs: PassCosts) {
        self.guessing.costs = costs.with_drafter_of(&self.guessing.costs);
    }

    /// What passes cost, as far as is known.
    #[must_use]
    pub fn costs(&self) -> &PassCosts {
        &self.guessing.costs
    }

    /// Sets what makes guesses for requests that ask for it ([`crate::speculate::Sources::model`]), and what its going
    /// through its weights is expected to cost, relative to a pass over one token.
    pub fn set_drafter(&mut self, drafter: Box<dyn Drafter>, cost: f32) {
        self.guessing.costs.expect_drafts(cost);
        let vocabulary_count = self.forward.vocabulary_count();
        self.guessing.drafting = Some(Drafting::new(drafter, vocabulary_count));
    }

    /// Has the drafter guess behind a text of its own, to see what that takes; between steps. False if there is no drafter,
    /// or it guesses nothing.
    pub fn time_drafter(&mut self) -> bool {
        let mut text = self
            .forward
            .tokenizer()
            .encode_prompt("Hello", Special::Plain);
        if text.is_empty() {
            // A vocabulary without these letters still has a first token.
            text.push(0);
        }
        self.guessing
            .time_drafter(&text, self.forward.executor_mut())
    }

    /// What a drafter's pass costs by now, relative to a pass over one token; `None` if there is no drafter.
    pub fn draft_cost(&self) -> Option<f32> {
        let guessing = &self.guessing;
        guessing
            .drafting
            .as_ref()
            .map(|_| guessing.costs.of_draft())
    }

    /// The guesses tried so far, by where they came from and how well they matched.
    pub fn guess_counts(&self) -> impl Iterator<Item = GuessCount> + '_ {
        self.guessing.acceptance.counts()
    }

    /// What constraints took so far.
    pub fn constraint_counts(&self) -> ConstraintCounts {
        self.constraints
    }

    /// The executor, for what it can tell about itself.
    pub fn executor(&self) -> &F {
        &self.forward
    }

    /// Generations that have not been reported as finished.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Reports what was cancelled, whose places and pages are free then. The next step would.
    pub fn end_cancelled(&mut self, sink: &mut dyn FnMut(GenerationId, Event<'_>)) {
        while let Some(index) = self.active.iter().position(|active| active.cancelled) {
            self.end(index, FinishReason::Cancelled, sink);
        }
    }

    /// Whether the next pass over prompts that are not urgent, or over guesses, is made whoever interrupts: the last one was
    /// given up.
    #[must_use]
    pub fn goes_through(&self) -> bool {
        self.given_up
    }

    /// What the pass of the last step was made for.
    #[must_use]
    pub fn last_pass(&self) -> LastPass {
        self.last_pass
    }

    /// Makes one pass: the next token of every answer under way, and pieces of prompts not yet read. Does nothing if
    /// there is no generation that is not parked.
    ///
    /// A generation that cannot go on is reported as failed while the others do.
    ///
    /// # Errors
    ///
    /// [`StepError`] if the pass itself failed; all generations have then been reported as failed,
    /// and the generator is empty and usable. Where a device failed and something else can compute
    /// ([`Executor::fall_back`]), all of them read their texts again there, and their answers go on as if nothing had been.
    pub fn step(&mut self, sink: &mut dyn FnMut(GenerationId, Event<'_>)) -> Result<(), StepError> {
        let reading = Reading {
            tokens_max: self.prefill_chunk_tokens,
            order: None,
        };
        self.step_reading(reading, sink, &|| false)
    }

    /// [`Generator::step`] that reads what it is told, and whose pass is given up if `interrupted` says so while it reads prompts
    /// none of which is urgent, or tries guesses, which make a pass as long: nothing has then changed, and the next step begins
    /// where this one did. It is asked before every layer, but not in the first such pass after one that was given up
    /// ([`Generator::goes_through`]): who interrupts all the time would let no prompt be read.
    ///
    /// # Errors
    ///
    /// As for [`Generator::step`].
    pub fn step_reading(
        &mut self,
        reading: Reading<'_>,
        sink: &mut dyn FnMut(GenerationId, Event<'_>),
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), StepError> {
        self.end_cancelled(sink);
        self.last_pass = LastPass::default();
        self.restoring = Duration::ZERO;
        while self.active.iter().any(|active| !active.parked) {
            let mut result = self.pass(reading, true, interrupted);
            if result == Err(PassError::KvFull) {
                // Guesses take no room from anyone.
                result = self.pass(reading, false, interrupted);
            }
            match result {
                Ok(last) => {
                    self.last_pass = LastPass {
                        restoring: std::mem::take(&mut self.restoring),
                        ..last
                    };
                    self.report(sink);
                    break;
                }
                Err(PassError::Interrupted) => break,
                Err(PassError::KvFull) => {
                    let message = "the KV cache is full".to_owned();
                    self.end(self.least_promised(), FinishReason::Failed(message), sink);
                }
                Err(PassError::Forward(error)) if self.go_on_elsewhere(&error) => {}
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
        let has_pages = |active: &Active| !active.aside;
        let last = self.active.iter().rposition(has_pages);
        self.active
            .iter()
            .rposition(|active| !active.limited && has_pages(active))
            .or(last)
            .unwrap_or(0)
    }

    /// Settles which prompts the next pass reads and how much of each: at most `tokens_max` tokens, one at least.
    /// Prompts of which more is still to be taken from where it is kept are left for another pass.
    fn choose_readers(
        &mut self,
        order: Option<&[GenerationId]>,
        tokens_max: usize,
        interrupted: &dyn Fn() -> bool,
    ) {
        let now = Instant::now();
        self.readers.clear();
        reading::ordered(&self.active, order, &mut self.reading);
        let page_tokens = self.forward.kv_page_tokens().max(1);
        let mut left = tokens_max.max(1);
        for place in 0..self.reading.len() {
            let index = self.reading[place];
            if left == 0 {
                break;
            }
            if reading::read_by_another(&self.active, &self.readers, index, page_tokens) {
                continue;
            }
            if self.active[index].pass_begins(now) {
                self.look_again(index);
            }
            let began = Instant::now();
            let restored = self.restore(index, left, interrupted);
            if restored.more {
                self.restoring += began.elapsed();
                left = left.saturating_sub(restored.tokens);
                continue;
            }
            let tokens = self.active[index].next_tokens(left).len();
            left -= tokens;
            self.readers.push(Reader { index, tokens });
        }
    }

    /// One forward pass, with guesses if `guess`; what was chosen after it is left in `chosen`, and no generation has
    /// changed yet but for the guesses that were tried.
    fn pass(
        &mut self,
        reading: Reading<'_>,
        guess: bool,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<LastPass, PassError> {
        self.parts.clear();
        self.wanting.clear();
        self.chosen.clear();
        let batch = self.forward.batch_tokens_max();
        let deciding = || {
            let answering = |active: &&Active| !active.reads_prompt() && !active.waits();
            self.active.iter().filter(answering)
        };
        let reads = self
            .active
            .iter()
            .any(|active| active.reads_prompt() && !active.waits());
        // Each has a place of the batch, a prompt that is read too; then come tokens that were forced.
        let places = deciding().count();
        let room = batch.saturating_sub(places + usize::from(reads));
        let forced: usize = deciding()
            .map(|active| active.unfed().saturating_sub(1))
            .sum();
        let all_fit = forced <= room;
        let mut spare = forced.min(room);
        let columns = places + spare;
        let most = batch.saturating_sub(columns).max(1);
        self.choose_readers(reading.order, reading.tokens_max.min(most), interrupted);
        let urgent = self
            .readers
            .iter()
            .any(|reader| self.active[reader.index].urgent);
        let reading: usize = self.readers.iter().map(|reader| reader.tokens).sum();
        // What others guess would only keep an urgent prompt waiting.
        if guess && all_fit && !urgent {
            let others = reading + forced;
            let executor = self.forward.executor_mut();
            self.guessing
                .guess(&mut self.active, others, batch, executor);
        }
        let guesses = self
            .active
            .iter()
            .any(|active| !active.parked && !active.tried().is_empty());
        let patient = !urgent && (guesses || !self.readers.is_empty());
        let may_stop = patient && !self.given_up;
        let interrupted = || may_stop && interrupted();
        // Guesses were held against what may come; from here on that is found out beside the pass.
        for active in self.active.iter().filter(|active| !active.parked) {
            active.prepare(&mut self.masker);
        }
        let mut chunks = emptied(std::mem::take(&mut self.chunks));
        for (index, (active, sequence)) in self.active.iter().zip(&mut self.sequences).enumerate() {
            let Some(sequence) = sequence else {
                continue;
            };
            let reads = active.reads_prompt();
            let read = self.readers.iter().find(|reader| reader.index == index);
            let tokens = match read {
                _ if active.parked => continue,
                None if reads => continue,
                Some(reader) => active.next_tokens(reader.tokens),
                None => active.next_tokens(1 + spare),
            };
            let logits = if !active.wants_logits(tokens.len()) {
                LogitsFor::None
            } else if reads {
                LogitsFor::Last
            } else {
                LogitsFor::Guesses(active.tried().len())
            };
            if !reads {
                spare = spare.saturating_sub(active.unfed().saturating_sub(1));
            }
            match logits {
                LogitsFor::Guesses(count) => self.wanting.push((index, count + 1)),
                LogitsFor::Last => self.wanting.push((index, 1)),
                LogitsFor::None | LogitsFor::All => {}
            }
            self.parts.push((index, tokens.len()));
            chunks.push(Chunk {
                sequence,
                tokens,
                logits,
            });
        }
        if chunks.is_empty() {
            // Whoever is not parked waits for the prompt of one that is, or for its turn to be read.
            self.chunks = emptied(chunks);
            return Ok(LastPass::default());
        }
        let columns: usize = self.parts.iter().map(|&(_, count)| count).sum();
        let (actives, chosen, sampler) = (&self.active, &mut self.chosen, &mut self.sampler);
        let mut wanting = self.wanting.iter();
        let (mut current, mut row, mut rows, mut wrong) = (0, 0, 0, false);
        let began = Instant::now();
        let result = self.forward.pass(&mut chunks, &interrupted, &mut |logits| {
            if row == rows {
                let Some(&(index, count)) = wanting.next() else {
                    return;
                };
                (current, row, rows, wrong) = (index, 0, count, false);
            }
            let right = row;
            row += 1;
            let Some(active) = actives.get(current).filter(|_| !wrong) else {
                return;
            };
            let token = active.choose(right, logits, sampler);
            // After a guess that was wrong, the logits are those of another text.
            let guess = active.tried().get(right);
            wrong =
                guess.is_some_and(|&guess| !token.as_ref().is_ok_and(|token| token.id == guess));
            chosen.push((current, token));
            // What comes after the prompt is chosen by each that waited for it.
            for (index, follower) in followers(actives, active.id) {
                chosen.push((index, follower.choose(0, logits, sampler)));
            }
        });
        if result.is_ok() && reading == 0 {
            self.guessing.costs.saw(columns, began.elapsed());
        }
        self.chunks = emptied(chunks);
        if result.is_err() {
            self.active.iter_mut().for_each(Active::drop_guesses);
        }
        if patient {
            self.given_up = result == Err(PassError::Interrupted);
        }
        result.map(|()| LastPass {
            answering: places,
            prompt_tokens: reading,
            restoring: Duration::ZERO,
        })
    }
}

/// The memory of `chunks`, for others of another lifetime: collecting a vector's own elements reuses it.
fn emptied<'b, S>(mut chunks: Vec<Chunk<'_, S>>) -> Vec<Chunk<'b, S>> {
    chunks.clear();
    chunks.into_iter().map_while(|_| None).collect()
}

/// Those that wait for the prompt of `leader`, with their places.
fn followers(active: &[Active], leader: GenerationId) -> impl Iterator<Item = (usize, &Active)> {
    active
        .iter()
        .enumerate()
        .filter(move |(_, active)| active.follows == Some(leader))
}
