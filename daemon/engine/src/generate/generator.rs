//! The loop that runs generations side by side.

use std::num::NonZero;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::active::{Active, ChooseError, Chosen, Sink};
use super::constrained::{ConstraintCounts, Masker};
use super::drafting::Drafting;
use super::event::{Event, FinishReason, GenerationId};
use super::forward::{Forward, PassError};
use super::guessing::Guessing;
use super::reading::{self, Reader, Reading, Restored};
use super::request::{GenerationRequest, StartError};
use crate::sample::Sampler;
use crate::speculate::{Drafter, GuessCount, PassCosts};
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
    /// What was spent on restoring since the last pass that was made.
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
        let mut ids = self.start_group(request, NonZero::<u32>::MIN)?;
        Ok(ids.next().unwrap_or(GenerationId(self.next_id)))
    }

    /// Admits `count` generations of one request, all or none. The prompt is read once and its KV pages are shared; the
    /// draws of each are its own (see [`crate::sample::SamplingOptions::choice`]), those of the first as if it were alone.
    ///
    /// # Errors
    ///
    /// As for [`Generator::start`].
    pub fn start_group(
        &mut self,
        request: GenerationRequest,
        count: NonZero<u32>,
    ) -> Result<impl Iterator<Item = GenerationId> + use<F>, StartError> {
        let context = self.forward.context_tokens_max();
        request.check(context, self.forward.vocabulary_count())?;
        let all = self.parallel_max.saturating_add(self.parked_max);
        let places = all.saturating_sub(self.active.len()).min(self.places());
        if usize::try_from(count.get()).map_or(true, |count| count > places) {
            return Err(StartError::Busy {
                active: self.active.len(),
            });
        }
        let (sequence, cached) = self.forward.sequence(&request.prompt);
        let first = self.next_id;
        let tokenizer = self.forward.tokenizer();
        let group = Active::group(first, count.get(), request, context, cached, tokenizer)?;
        let page_tokens = self.forward.kv_page_tokens().max(1);
        let needed = group
            .iter()
            .map(|active| active.kv_pages_due(page_tokens))
            .sum();
        let (known, urgent) = group.first().map_or((0, false), |first| {
            (first.kv_pages_known(page_tokens), first.urgent)
        });
        self.admit(needed, known, urgent, self.pages_due())?;
        self.next_id += u64::from(count.get());
        self.sequences.push(Some(sequence));
        self.sequences
            .resize_with(self.active.len() + group.len(), || None);
        self.active.extend(group);
        Ok((first..self.next_id).map(GenerationId))
    }

    /// Pages that are promised and not yet taken.
    fn pages_due(&self) -> usize {
        let page_tokens = self.forward.kv_page_tokens().max(1);
        let due = |active: &Active| active.kv_pages_due(page_tokens);
        self.active.iter().map(due).sum()
    }

    /// Whether the pages that are not promised to others, to whom `due` are, hold `needed` for one that has `known` already.
    fn admit(
        &self,
        needed: usize,
        known: usize,
        urgent: bool,
        due: usize,
    ) -> Result<(), StartError> {
        let page_tokens = self.forward.kv_page_tokens().max(1);
        // What the new one holds already no longer counts as free.
        let free = (self.forward.kv_tokens_free() / page_tokens).saturating_sub(due);
        let kept = if urgent { 0 } else { self.kv_pages_for_urgent };
        // What is known of the prompt is not free and not needed: it counts as a part of what they take in all.
        let taken = needed.saturating_add(known);
        let free = free.saturating_sub(kept.min(self.kv_pages.saturating_sub(taken)));
        if needed > free {
            return Err(StartError::KvFull {
                tokens_needed: needed * page_tokens,
                tokens_free: free * page_tokens,
            });
        }
        Ok(())
    }

    /// Has a generation take no part in passes, as [`Generator::park`], and gives its KV pages away: when it is resumed, what
    /// was in them is read again, so that its answer is the same. Says whether it has pages to give; one of several answers
    /// to a request has none, whose pages the others share.
    pub fn set_aside(&mut self, id: GenerationId) -> bool {
        let Some(index) = self.active.iter().position(|active| active.id == id) else {
            return false;
        };
        let follows = |active: &Active| active.follows == Some(id);
        let active = &mut self.active[index];
        if active.follows.is_some() || active.aside {
            return false;
        }
        if self.active.iter().any(follows) {
            return false;
        }
        self.active[index].put_aside();
        self.sequences[index] = None;
        self.guessing.forget(id);
        true
    }

    /// Tokens that the KV pages hold which a generation has or was promised; none if they were given away.
    #[must_use]
    pub fn kv_tokens_of(&self, id: GenerationId) -> usize {
        let has = |active: &&Active| active.id == id && !active.aside;
        let active = self.active.iter().find(has);
        active.map_or(0, Active::kv_tokens_promised)
    }

    /// Whether the KV pages of a generation were given away, and what was in them is not there again.
    #[must_use]
    pub fn is_aside(&self, id: GenerationId) -> bool {
        let lacks = |active: &Active| active.aside || active.reads_again();
        self.active
            .iter()
            .any(|active| active.id == id && lacks(active))
    }

    /// Gives pages to a generation that gave its own away. False if there is no room for what it needs.
    fn take_up(&mut self, index: usize) -> bool {
        let page_tokens = self.forward.kv_page_tokens().max(1);
        let (sequence, found) = self.forward.sequence(self.active[index].text_to_read());
        let due = self.pages_due();
        let active = &mut self.active[index];
        active.take_up(found);
        let needed = active.kv_pages_due(page_tokens);
        let (known, urgent) = (found.div_ceil(page_tokens), active.urgent);
        if self.admit(needed, known, urgent, due).is_err() {
            self.active[index].put_aside();
            return false;
        }
        self.sequences[index] = Some(sequence);
        true
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

    /// How far a generation has come: tokens of its prompt that are read, and of its answer that are settled. `None` if it
    /// is parked, or there is none.
    #[must_use]
    pub fn progress(&self, id: GenerationId) -> Option<usize> {
        let running = |active: &&Active| active.id == id && !active.parked;
        self.active.iter().find(running).map(Active::progress)
    }

    /// Places in passes that are free.
    fn places(&self) -> usize {
        let running = self.active.iter().filter(|active| !active.parked).count();
        self.parallel_max.saturating_sub(running)
    }

    /// Has a generation take no part in passes until it is resumed. What was computed of it is kept, so that its answer
    /// is the same as if it had never been parked. Says whether there is one that was not parked.
    pub fn park(&mut self, id: GenerationId) -> bool {
        let running = |active: &&mut Active| active.id == id && !active.parked;
        match self.active.iter_mut().find(running) {
            Some(active) => {
                active.parked = true;
                true
            }
            None => false,
        }
    }

    /// Has a parked generation take part in passes again. Says whether there is one, and a place for it, and room for the
    /// pages of one that was set aside.
    pub fn resume(&mut self, id: GenerationId) -> bool {
        let parked = |active: &Active| active.id == id && active.parked;
        let Some(index) = self.active.iter().position(parked) else {
            return false;
        };
        if self.places() == 0 || (self.active[index].aside && !self.take_up(index)) {
            return false;
        }
        self.active[index].parked = false;
        true
    }

    /// Reports what was cancelled, whose places and pages are free then. The next step would.
    pub fn end_cancelled(&mut self, sink: &mut dyn FnMut(GenerationId, Event<'_>)) {
        while let Some(index) = self.active.iter().position(|active| active.cancelled) {
            self.end(index, FinishReason::Cancelled, sink);
        }
    }

    /// Whether the next pass over prompts that are not urgent is made whoever interrupts: the last one was given up.
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
    /// and the generator is empty and usable.
    pub fn step(&mut self, sink: &mut dyn FnMut(GenerationId, Event<'_>)) -> Result<(), StepError> {
        let reading = Reading {
            tokens_max: self.prefill_chunk_tokens,
            order: None,
        };
        self.step_reading(reading, sink, &|| false)
    }

    /// [`Generator::step`] that reads what it is told, and whose pass is given up if `interrupted` says so while it reads a
    /// prompt that is not urgent: nothing has then changed, and the next step begins where this one did. It is asked before
    /// every layer, but not in the first such pass after one that was given up ([`Generator::goes_through`]): who interrupts
    /// all the time would let no prompt be read.
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
        let patient = !self.readers.is_empty()
            && !self
                .readers
                .iter()
                .any(|reader| self.active[reader.index].urgent);
        let may_stop = patient && !self.given_up;
        let interrupted = || may_stop && interrupted();
        let reading: usize = self.readers.iter().map(|reader| reader.tokens).sum();
        if guess && all_fit {
            let others = reading + forced;
            let executor = self.forward.executor_mut();
            self.guessing
                .guess(&mut self.active, others, batch, executor);
        }
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

    /// Takes the outcome of a pass to the generations it was for, and removes those that are over.
    fn report(&mut self, sink: Sink<'_>) {
        let now = Instant::now();
        let mut over = Vec::new();
        for part in 0..self.parts.len() {
            let (index, count) = self.parts[part];
            let Some(active) = self.active.get_mut(index) else {
                continue;
            };
            if !active.reads_prompt() {
                active.feed(count);
            } else {
                over.extend(
                    active
                        .prompt_read(count, now, sink)
                        .map(|reason| (index, reason)),
                );
                if !self.active[index].reads_prompt() {
                    self.part_followers(index, &mut over);
                }
            }
        }
        let mut chosen = self.chosen.drain(..).peekable();
        while let Some(&(index, _)) = chosen.peek() {
            let mut of_this = std::iter::from_fn(|| {
                let next = chosen.next_if(|&(other, _)| other == index)?;
                Some(next.1)
            });
            let ended = over.iter().any(|&(ended, _)| ended == index);
            if let Some(active) = self.active.get_mut(index).filter(|_| !ended) {
                let reason = active.accept(
                    &mut of_this,
                    self.forward.tokenizer(),
                    now,
                    &mut self.guessing.acceptance,
                    sink,
                );
                self.constraints.add(active.constraint_counts());
                // Also of one that is over: what follows its answer finds the pages that guesses filled.
                if let Some(sequence) = &mut self.sequences[index] {
                    self.forward.keep(sequence, active.kept());
                }
                over.extend(reason.map(|reason| (index, reason)));
            }
            of_this.for_each(drop);
        }
        drop(chosen);
        // From the last, so that the indexes of the others stay what they are.
        over.sort_unstable_by_key(|&(index, _)| core::cmp::Reverse(index));
        for (index, reason) in over {
            self.end(index, reason, sink);
        }
    }

    /// Looks again for the beginning of a prompt: those before it in the queue may have read it meanwhile.
    fn look_again(&mut self, reader: usize) {
        let (prompt, cached) = self.active[reader].prompt();
        let (sequence, found) = self.forward.sequence(prompt);
        if found > cached {
            self.sequences[reader] = Some(sequence);
            self.active[reader].found(found);
        }
    }

    /// Takes what comes next of a prompt from where it is kept, rather than compute it: all there is, but while others answer
    /// no more than `tokens_max` tokens or a page, and no more than a page where `interrupted` asks one that is not urgent to
    /// give way.
    fn restore(
        &mut self,
        reader: usize,
        tokens_max: usize,
        interrupted: &dyn Fn() -> bool,
    ) -> Restored {
        let page_tokens = self.forward.kv_page_tokens().max(1);
        let answering = |active: &Active| !active.reads_prompt() && !active.waits();
        let most = if self.active.iter().any(answering) {
            (tokens_max / page_tokens).max(1)
        } else {
            usize::MAX
        };
        let mut restored = Restored::default();
        let Some(sequence) = &mut self.sequences[reader] else {
            return restored;
        };
        if self.active[reader].reads_again() {
            return restored;
        }
        let active = &mut self.active[reader];
        for _ in 0..most {
            if !self.forward.restore(sequence, active.prompt().0) {
                return restored;
            }
            active.restored(page_tokens);
            restored.tokens += page_tokens;
            if !active.urgent && interrupted() {
                break;
            }
        }
        restored.more = true;
        restored
    }

    /// Lets those that follow the generation at `leader`, which has read the prompt, go on by themselves.
    fn part_followers(&mut self, leader: usize, over: &mut Vec<(usize, FinishReason)>) {
        let (id, head) = match self.active.get(leader) {
            Some(leader) => (leader.id, leader.head()),
            None => return,
        };
        for index in 0..self.active.len() {
            if self.active[index].follows != Some(id) {
                continue;
            }
            let sequence = self.sequences[leader]
                .as_ref()
                .and_then(|sequence| self.forward.fork(sequence));
            let reason = if sequence.is_some() {
                self.active[index].part(head)
            } else {
                Some(FinishReason::Failed("the KV cache is full".to_owned()))
            };
            self.sequences[index] = sequence;
            over.extend(reason.map(|reason| (index, reason)));
        }
    }

    /// Removes a generation, frees its KV pages and reports it. If others wait for its prompt, one of them reads on.
    fn end(&mut self, index: usize, reason: FinishReason, sink: Sink<'_>) {
        if index >= self.active.len() {
            return;
        }
        let sequence = self.sequences.remove(index);
        let ended = self.active.remove(index);
        self.guessing.forget(ended.id);
        let mut waiting = followers(&self.active, ended.id).map(|(index, _)| index);
        if let Some(next) = waiting.next() {
            let others: Vec<usize> = waiting.collect();
            let leader = &mut self.active[next];
            leader.lead(&ended);
            let leader = leader.id;
            self.sequences[next] = sequence;
            for other in others {
                self.active[other].follows = Some(leader);
            }
        }
        ended.finish(reason, sink);
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
