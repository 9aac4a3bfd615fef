//! The text of an answer between the tokens it is made of and the caller who reads it.
//!
//! Invariant: what has been delivered is a prefix of the decoded text in whole characters, and no
//! part of a stop string that was found.

use super::event::TokenLogprob;
use super::stop::{Scan, StopMatcher};
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// A piece that is ready for the caller.
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) ids: &'a [u32],
    pub(super) tokens: &'a [TokenLogprob],
}

#[derive(Debug)]
pub(super) struct Output {
    decoder: StreamDecoder,
    stops: StopMatcher,
    /// Decoded text that has not been delivered.
    text: String,
    /// Of `text`, the bytes that may be delivered.
    free_bytes: usize,
    /// Tokens not delivered: where in `text` each begins, its id, and its log probability if wanted.
    starts: Vec<usize>,
    ids: Vec<u32>,
    tokens: Vec<TokenLogprob>,
    ended: bool,
}

impl Output {
    pub(super) fn new(decoder: StreamDecoder, stop: &[String]) -> Self {
        Self {
            decoder,
            stops: StopMatcher::new(stop),
            text: String::new(),
            free_bytes: 0,
            starts: Vec::new(),
            ids: Vec::new(),
            tokens: Vec::new(),
            ended: false,
        }
    }

    /// Takes the next token. Says whether its text completed a stop string; the answer then ends before that.
    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        token: Option<TokenLogprob>,
    ) -> bool {
        self.starts.push(self.text.len());
        self.ids.push(id);
        self.tokens.extend(token);
        let piece = self.decoder.push(tokenizer, id);
        Self::absorb(
            &mut self.text,
            &mut self.free_bytes,
            &mut self.stops,
            piece,
            &mut self.ended,
        );
        self.ended
    }

    /// Ends the answer: nothing is held back any more. Says whether the end completed a stop string.
    pub(super) fn finish(&mut self) -> bool {
        if !self.ended {
            let piece = self.decoder.finish();
            Self::absorb(
                &mut self.text,
                &mut self.free_bytes,
                &mut self.stops,
                piece,
                &mut self.ended,
            );
            self.free_bytes = self.text.len();
        }
        self.ended
    }

    fn absorb(
        text: &mut String,
        free_bytes: &mut usize,
        stops: &mut StopMatcher,
        piece: &str,
        ended: &mut bool,
    ) {
        let before = text.len();
        text.push_str(piece);
        match stops.scan(piece) {
            Scan::Held(held) => *free_bytes = text.len().saturating_sub(held),
            Scan::Found { end, bytes } => {
                text.truncate((before + end).saturating_sub(bytes));
                *free_bytes = text.len();
                *ended = true;
            }
        }
    }

    /// What can be delivered now, if anything. `last` also gives the tokens that have no text of
    /// their own at the end, unless a stop string ended the answer.
    ///
    /// [`Output::delivered`] must follow.
    pub(super) fn ready(&self, last: bool) -> Option<Piece<'_>> {
        let count = self.ready_count(last);
        let text = self.text.get(..self.free_bytes).unwrap_or_default();
        (count > 0 || !text.is_empty()).then(|| Piece {
            text,
            ids: &self.ids[..count],
            tokens: self.tokens.get(..count).unwrap_or_default(),
        })
    }

    /// Forgets what [`Output::ready`] gave.
    pub(super) fn delivered(&mut self, last: bool) {
        let count = self.ready_count(last);
        self.starts.drain(..count);
        self.ids.drain(..count);
        if !self.tokens.is_empty() {
            self.tokens.drain(..count);
        }
        for start in &mut self.starts {
            *start = start.saturating_sub(self.free_bytes);
        }
        self.text.drain(..self.free_bytes);
        self.free_bytes = 0;
    }

    /// Tokens that begin in the text that can be delivered.
    fn ready_count(&self, last: bool) -> usize {
        if last && !self.ended {
            self.starts.len()
        } else {
            self.starts
                .partition_point(|&start| start < self.free_bytes)
        }
    }
}
