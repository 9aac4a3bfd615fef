//! What a pass comes to for the generations it was for, and what need not be computed for them.

use std::time::Instant;

use super::super::active::{Active, Sink};
use super::super::event::FinishReason;
use super::super::forward::Forward;
use super::super::reading::Restored;
use super::{Generator, followers};

impl<F: Forward> Generator<F> {
    /// Takes the outcome of a pass to the generations it was for, and removes those that are over.
    pub(super) fn report(&mut self, sink: Sink<'_>) {
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
    pub(super) fn look_again(&mut self, reader: usize) {
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
    pub(super) fn restore(
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
                active.restored(self.forward.lengthen(sequence, active.prompt().0));
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
    pub(super) fn part_followers(&mut self, leader: usize, over: &mut Vec<(usize, FinishReason)>) {
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
    pub(super) fn end(&mut self, index: usize, reason: FinishReason, sink: Sink<'_>) {
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
