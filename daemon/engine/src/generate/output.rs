//! The text of an answer between the tokens it is made of and the caller who reads it.
//!
//! Invariant: what has been delivered is a prefix of the decoded text in whole characters, and no
//! part of a stop string that was found. Calls of tools are whole: stop strings are looked for only in the text before
//! them. What may yet turn out to be what calls begin with is looked at once it is known not to be.

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

/// Where text ends and calls of tools begin.
#[derive(Debug)]
enum Calls {
    /// There are no calls.
    Never,
    /// With what this finds.
    Behind(StopMatcher),
    /// At the start, if the answer begins with this, of which so many bytes have come.
    Start(String, usize),
    /// Before what comes next.
    Here,
}

/// The text of an answer that has not been delivered.
#[derive(Debug)]
struct Said {
    stops: StopMatcher,
    calls: Calls,
    text: String,
    /// Of `text`, the bytes that stop strings were looked for in, or need not be.
    seen_bytes: usize,
    /// Of `text`, the bytes that may be delivered.
    free_bytes: usize,
    ended: bool,
}

#[derive(Debug)]
pub(super) struct Output {
    decoder: StreamDecoder,
    said: Said,
    /// Tokens not delivered: where in the text each begins, its id, and its log probability if wanted.
    starts: Vec<usize>,
    ids: Vec<u32>,
    tokens: Vec<TokenLogprob>,
}

impl Calls {
    /// Takes the next piece. How many bytes of what came last may be, or are, no text before calls.
    fn take(&mut self, piece: &str) -> usize {
        let held = match self {
            Self::Never => return 0,
            Self::Here => return piece.len(),
            Self::Behind(opener) => match opener.scan(piece) {
                Scan::Held(held) => return held,
                Scan::Found { end, bytes } => piece.len().saturating_sub(end) + bytes,
            },
            Self::Start(opener, come) => {
                let due = &opener[*come..];
                if piece.starts_with(due) {
                    *come + piece.len()
                } else if due.starts_with(piece) {
                    *come += piece.len();
                    return *come;
                } else {
                    *self = Self::Never;
                    return 0;
                }
            }
        };
        *self = Self::Here;
        held
    }
}

impl Said {
    fn new(stop: &[String], calls: Option<(&Opener, bool)>) -> Self {
        // Where nothing is looked for, it is all the same where calls begin.
        let calls = calls.filter(|_| !stop.is_empty());
        let calls = match calls {
            None => Calls::Never,
            Some((_, true)) => Calls::Here,
            Some((Opener::Start(text), false)) => Calls::Start(text.clone(), 0),
            Some((opener, false)) => Calls::Behind(StopMatcher::new(&[opener.text().to_owned()])),
        };
        Self {
            stops: StopMatcher::new(stop),
            calls,
            text: String::new(),
            seen_bytes: 0,
            free_bytes: 0,
            ended: false,
        }
    }

    /// Takes the next piece; the last is the end of the answer.
    fn take(&mut self, piece: &str, last: bool) {
        if self.ended {
            return;
        }
        let were_here = matches!(self.calls, Calls::Here);
        self.text.push_str(piece);
        let mut held = self.calls.take(piece);
        let are_here = matches!(self.calls, Calls::Here);
        if last && !are_here {
            held = 0;
        }
        if !were_here {
            let end = self.text.len().saturating_sub(held);
            let text = self.text.get(self.seen_bytes..end).unwrap_or_default();
            match self.stops.scan(text) {
                Scan::Found { end, bytes } => {
                    self.text
                        .truncate((self.seen_bytes + end).saturating_sub(bytes));
                    self.ended = true;
                }
                Scan::Held(held) => {
                    self.seen_bytes += text.len();
                    self.free_bytes = self.seen_bytes.saturating_sub(held);
                }
            }
        }
        if are_here || last || self.ended {
            self.free_bytes = self.text.len();
        }
    }

    /// Forgets what may be delivered.
    fn delivered(&mut self) {
        self.text.drain(..self.free_bytes);
        self.seen_bytes = self.seen_bytes.saturating_sub(self.free_bytes);
        self.free_bytes = 0;
    }
}

impl Output {
    /// `calls` is what calls of tools begin with, and whether the answer is nothing else.
    pub(super) fn new(
        decoder: StreamDecoder,
        stop: &[String],
        calls: Option<(&Opener, bool)>,
    ) -> Self {
        Self {
            decoder,
            said: Said::new(stop, calls),
            starts: Vec::new(),
            ids: Vec::new(),
            tokens: Vec::new(),
        }
    }

    /// Takes the next token. Says whether its text completed a stop string; the answer then ends before that.
    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        token: Option<TokenLogprob>,
    ) -> bool {
        self.starts.push(self.said.text.len());
        self.ids.push(id);
        self.tokens.extend(token);
        self.said.take(self.decoder.push(tokenizer, id), false);
        self.said.ended
    }

    /// Ends the answer: nothing is held back any more. Says whether the end completed a stop string.
    pub(super) fn finish(&mut self) -> bool {
        self.said.take(self.decoder.finish(), true);
        self.said.ended
    }

    /// What can be delivered now, if anything. `last` also gives the tokens that have no text of
    /// their own at the end, unless a stop string ended the answer.
    ///
    /// [`Output::delivered`] must follow.
    pub(super) fn ready(&self, last: bool) -> Option<Piece<'_>> {
        let count = self.ready_count(last);
        let text = self.said.text.get(..self.said.free_bytes);
        let text = text.unwrap_or_default();
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
            *start = start.saturating_sub(self.said.free_bytes);
        }
        self.said.delivered();
    }

    /// Tokens that begin in the text that can be delivered.
    fn ready_count(&self, last: bool) -> usize {
        if last && !self.said.ended {
            self.starts.len()
        } else {
            self.starts
                .partition_point(|&start| start < self.said.free_bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is delivered of these pieces, and whether a stop string ended it.
    fn delivered(stop: &[&str], opener: &Opener, must: bool, pieces: &[&str]) -> (String, bool) {
        let stop: Vec<String> = stop.iter().map(|&stop| stop.to_owned()).collect();
        let mut said = Said::new(&stop, Some((opener, must)));
        let mut out = String::new();
        for (index, piece) in pieces.iter().chain([&""]).enumerate() {
            said.take(piece, index == pieces.len());
            out.push_str(&said.text[..said.free_bytes]);
            said.delivered();
        }
        (out, said.ended)
    }

    #[test]
    fn stop_strings_see_no_calls() {
        let tag = Opener::Text("<call>".to_owned());
        for (stop, pieces, expected) in [
            (
                "<",
                &["a <ca", "ll", ">b<", "c"][..],
                ("a <call>b<c", false),
            ),
            ("a <call>b", &["a <call>", "b"], ("a <call>b", false)),
            ("call", &["a <", "call", "> call"], ("a <call> call", false)),
            ("<", &["a <ca", "b>"], ("a ", true)),
            ("<", &["a <ca"], ("a ", true)),
            ("all", &["a <call", "<call>"], ("a <c", true)),
            ("a", &["a <call>"], ("", true)),
        ] {
            let (text, ended) = delivered(&[stop], &tag, false, pieces);
            assert_eq!((text.as_str(), ended), expected, "{stop} {pieces:?}");
        }
        let json = Opener::Start("{\"a\"".to_owned());
        for (stop, pieces, expected) in [
            ("\"", &["{", "\"a", "\":\"1\""][..], ("{\"a\":\"1\"", false)),
            ("\"", &["{", "\"b", "\""], ("{", true)),
            ("\"", &["{", "\""], ("{", true)),
            ("1", &["x{\"a\"1"], ("x{\"a\"", true)),
        ] {
            let (text, ended) = delivered(&[stop], &json, false, pieces);
            assert_eq!((text.as_str(), ended), expected, "{stop} {pieces:?}");
        }
        let must = delivered(&["a"], &tag, true, &["a", "<call>a"]);
        assert_eq!(must, ("a<call>a".to_owned(), false));
    }

    proptest! {
        /// Against a search of the text before calls, for every way of cutting the answer into pieces.
        #[test]
        fn agrees_with_searching_the_text_before_calls(
            text in "[a<>é]{0,24}",
            stops in prop::collection::vec("[a<>é]{1,3}", 1..4),
            opener in "[<é][a<>]{1,3}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let before = &text[..text.find(&opener).unwrap_or(text.len())];
            let found = (1..=before.len()).filter(|&end| before.is_char_boundary(end)).find_map(|end| {
                let ending = stops.iter().filter(|stop| before[..end].ends_with(stop.as_str())).map(String::len).max();
                ending.map(|bytes| end - bytes)
            });
            let boundaries: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&boundaries)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let expected = (text[..found.unwrap_or(text.len())].to_owned(), found.is_some());
            prop_assert_eq!(delivered(&stops, &Opener::Text(opener), false, &pieces), expected);
        }
    }
}
