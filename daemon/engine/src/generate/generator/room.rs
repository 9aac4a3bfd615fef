//! Who has room: places in passes, and pages of the KV cache.
//!
//! Invariant: pages that were promised are there when they are needed, whoever else begins.

use std::num::NonZero;

use super::super::active::Active;
use super::super::event::GenerationId;
use super::super::forward::Forward;
use super::super::request::{GenerationRequest, StartError};
use super::Generator;
use crate::ForwardError;

impl<F: Forward> Generator<F> {
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

    /// Ends a generation; the next step reports it as
    /// [`FinishReason::Cancelled`](crate::generate::FinishReason::Cancelled) and does no more work for it. Says whether there was one to end.
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

    /// After a pass that `error` ended: has something else compute, if it can. What was in the KV cache is gone then, and every
    /// generation reads its text again. False, and all sequences given away, if nothing else can compute, or there is not the
    /// room for all of them, which had shared more.
    pub(super) fn go_on_elsewhere(&mut self, error: &ForwardError) -> bool {
        if !matches!(error, ForwardError::Device(_)) {
            return false;
        }
        let mut under_way = Vec::new();
        for (active, sequence) in self.active.iter_mut().zip(&mut self.sequences) {
            self.guessing.forget(active.id);
            *sequence = None;
            // One that follows another has nothing yet.
            if active.follows.is_none() && !active.aside {
                if !active.parked {
                    under_way.push(active.id);
                }
                active.put_aside();
            }
        }
        self.forward.fall_back(error) && under_way.into_iter().all(|id| self.resume(id))
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
}
