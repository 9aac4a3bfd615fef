//! The text of an answer between the tokens it is made of and the caller who reads it.
//!
//! Invariant: what has been delivered is a prefix of the decoded text in whole characters, and no
//! part of a stop string that was found. Calls of tools are whole: stop strings end only the text before them.

use super::event::TokenLogprob;
use super::stop::{Scan, StopMatcher};
use crate::calls::Opener;
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// A piece that is ready for the caller.
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) ids: &'a [u32],
    pub(super) tokens: &'a [TokenLogprob],
}

/// From where on stop strings end nothing.
#[derive(Debug)]
enum Calls {
    /// There are no calls.
    Never,
    /// Behind the end of what this finds.
    Behind(StopMatcher),
    /// If the answer begins with this, of which so many bytes have come.
    Start(String, usize),
    /// From here on.
    Here,
}

#[derive(Debug)]
pub(super) struct Output {
    decoder: StreamDecoder,
    stops: StopMatcher,
    calls: Calls,
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

impl Calls {
    /// What of the next piece is text before calls, and what they begin with.
    fn text_before<'a>(&mut self, piece: &'a str) -> &'a str {
        let end = match self {
            Self::Never => return piece,
            Self::Here => return "",
            Self::Behind(opener) => match opener.scan(piece) {
                Scan::Held(_) => return piece,
                Scan::Found { end, .. } => end,
            },
            Self::Start(opener, come) => {
                let due = &opener[*come..];
                if piece.starts_with(due) {
                    due.len()
                } else if due.starts_with(piece) {
                    *come += piece.len();
                    return piece;
                } else {
                    *self = Self::Never;
                    return piece;
                }
            }
        };
        *self = Self::Here;
        piece.get(..end).unwrap_or(piece)
    }
}

impl Output {
    /// `calls` is what calls of tools begin with, and whether the answer is nothing else.
    pub(super) fn new(
        decoder: StreamDecoder,
        stop: &[String],
        calls: Option<(&Opener, bool)>,
    ) -> Self {
        let calls = match calls {
            None => Calls::Never,
            Some((_, true)) => Calls::Here,
            Some((Opener::Start(text), false)) => Calls::Start(text.clone(), 0),
            Some((opener, false)) => Calls::Behind(StopMatcher::new(&[opener.text().to_owned()])),
        };
        Self {
            decoder,
            stops: StopMatcher::new(stop),
            calls,
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
            (&mut self.stops, &mut self.calls),
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
                (&mut self.stops, &mut self.calls),
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
        (stops, calls): (&mut StopMatcher, &mut Calls),
        piece: &str,
        ended: &mut bool,
    ) {
        let before = text.len();
        text.push_str(piece);
        let said = calls.text_before(piece);
        match stops.scan(said) {
            Scan::Held(_) if matches!(calls, Calls::Here) => *free_bytes = text.len(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn said(calls: &mut Calls, pieces: &[&str]) -> String {
        pieces
            .iter()
            .map(|piece| calls.text_before(piece))
            .collect()
    }

    #[test]
    fn stop_strings_see_no_calls() {
        let behind = || Calls::Behind(StopMatcher::new(&["<call>".to_owned()]));
        assert_eq!(said(&mut behind(), &["a <ca", "ll", ">b", "c"]), "a <call>");
        assert_eq!(said(&mut behind(), &["<call", "<call"]), "<call<call");
        let start = || Calls::Start("{\"a\"".to_owned(), 0);
        assert_eq!(said(&mut start(), &["{", "\"", "a\":1", "2"]), "{\"a\"");
        assert_eq!(said(&mut start(), &["{", "\"b", "{\"a\""]), "{\"b{\"a\"");
        assert_eq!(said(&mut Calls::Here, &["x"]), "");
    }
}
