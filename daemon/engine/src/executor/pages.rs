//! Sequences that begin with what is already computed: what the KV cache remembers, and what a store keeps beyond it.
//!
//! Invariant: a page that is taken up again has the bytes that computing it would give.

use super::Executor;
use crate::kv::disk::{self, PageCopy, PageStore};
use crate::kv::{PAGE, Remembered, Sequence};
use std::sync::Arc;

impl Executor {
    /// An empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.cache.sequence()
    }

    /// A sequence that begins with as much of `tokens` as the KV cache remembers: whole pages, and never all of it. The
    /// rest is to be appended; the logits are then the same bytes as if all had been.
    #[must_use]
    pub fn sequence_of(&self, tokens: &[u32]) -> Sequence {
        let sequence = self.cache.sequence_of(tokens);
        if let Some(store) = &self.store
            && !sequence.is_empty()
        {
            store.touch(&sequence.names());
        }
        sequence
    }

    /// Bytes of a page's content.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.cache.page_bytes()
    }

    /// Has [`Executor::restore`] look for pages in `store`, and pages worth keeping be handed out for it
    /// ([`Executor::page_to_keep`]). Nothing comes of it where the KV cache remembers nothing.
    pub fn keep_pages_in(&mut self, store: Arc<PageStore>) {
        self.cache.set_root(store.root());
        self.store = Some(store);
    }

    /// Forgets what the KV cache remembers of sequences that have gone, and gives the memory of that back to the system.
    pub fn shed(&mut self) {
        self.cache.shed();
    }

    /// What the KV cache remembers, to be forgotten.
    #[must_use]
    pub fn remembered(&self) -> Remembered {
        self.cache.remembered()
    }

    /// Appends the next page of `text`, which `sequence` has the beginning of, if it is kept in the store: the same bytes
    /// that computing it would give. False, and nothing appended, if it is not, if the sequence ends within a page, if it
    /// is the text's end, since only a token that is computed has logits, or if there is no room.
    pub fn restore(&mut self, sequence: &mut Sequence, text: &[u32]) -> bool {
        let Some(store) = self.store.clone().filter(|_| self.cache.owns(sequence)) else {
            return false;
        };
        let (start, end) = (sequence.len(), sequence.len() + PAGE);
        let tokens = text.get(start..end).filter(|_| text.len() > end);
        let (Some(tokens), Some(parent)) = (tokens, sequence.end()) else {
            return false;
        };
        let (Ok(depth), name) = (u32::try_from(start / PAGE), parent.below(tokens)) else {
            return false;
        };
        let Some(mut page) = store.read(depth, name) else {
            return false;
        };
        if end > self.context_tokens_max() || !self.cache.reserve(sequence, end) {
            return false;
        }
        let place = sequence.pages()[start / PAGE];
        let read = self.cache.import(place, |piece| page.fill(piece));
        match read.and_then(|()| page.finish()) {
            Ok(()) => {
                sequence.append(tokens, 0);
                store.was_read(depth, name, parent);
                true
            }
            Err(error) => {
                sequence.trim();
                store.give_up(depth, name, &error);
                false
            }
        }
    }

    /// Appends the tokens of `text`, which `sequence` has the beginning of, that the next page has in common with one that the KV
    /// cache remembers: the same bytes that computing them would give. Returns how many; at least the last one is left.
    pub fn lengthen(&mut self, sequence: &mut Sequence, text: &[u32]) -> usize {
        if !self.cache.owns(sequence) {
            return 0;
        }
        self.cache.lengthen(sequence, text)
    }

    /// Takes the first page of `text` that is not remembered from the store, and remembers it. Nothing holds it then, so that
    /// it takes no room from anyone. False where [`Executor::restore`] says so.
    pub fn remember_next(&mut self, text: &[u32]) -> bool {
        let mut sequence = self.sequence_of(text);
        self.restore(&mut sequence, text)
    }

    /// A copy of a page that is worth keeping and that the store does not have, those before it in a text first; `None`
    /// if there is none. Worth keeping is what a later sequence was begun with again.
    #[must_use]
    pub fn page_to_keep(&self) -> Option<PageCopy> {
        let store = self.store.as_ref()?;
        let generation = store.generation();
        loop {
            let (page, age, named) = self.cache.next_worthy()?;
            let Ok(depth) = u32::try_from(named.depth) else {
                continue;
            };
            if !store.contains(depth, named.name) {
                return Some(PageCopy {
                    parent: named.parent,
                    name: named.name,
                    depth,
                    tokens: named.tokens,
                    content: self.cache.export(page)?,
                    used: (age > 0).then(|| self.kept_all_at.saturating_sub(age)),
                    generation,
                });
            }
        }
    }

    /// Has all that the KV cache remembers be worth keeping, the last used before others, `pages_max` pages at most.
    pub fn keep_all(&mut self, pages_max: usize) {
        if self.store.is_some() {
            self.kept_all_at = disk::now();
            self.cache.all_found(pages_max);
        }
    }

    /// A second sequence of the same tokens, sharing the full pages; `None` if the KV cache has no page for the rest,
    /// or the sequence belongs to another executor.
    #[must_use]
    pub fn fork(&mut self, sequence: &Sequence) -> Option<Sequence> {
        if self.cache.owns(sequence) {
            self.cache.fork(sequence)
        } else {
            None
        }
    }
}
