//! Finding stop strings in a text that comes in pieces.
//!
//! Each string has its own Knuth-Morris-Pratt automaton, so the time is linear in the text whatever
//! it is made of, and where the pieces' borders lie changes nothing. A match is decided at its last
//! byte; of strings that end at the same byte the longest counts.

/// What is known after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// No stop string so far; this many last bytes of the text may be the beginning of one.
    Held(usize),
    /// A stop string of `bytes` bytes ended at `end`, counted from the start of the piece. It may have
    /// begun in an earlier piece.
    Found { end: usize, bytes: usize },
}

#[derive(Clone, Debug)]
struct Stop {
    bytes: Box<[u8]>,
    /// `fallback[n]`: length of the longest proper prefix that ends the first `n + 1` bytes.
    fallback: Box<[u16]>,
    matched: usize,
}

impl Stop {
    fn new(text: &str) -> Self {
        let bytes: Box<[u8]> = text.as_bytes().into();
        let mut fallback = vec![0_u16; bytes.len()].into_boxed_slice();
        let mut matched = 0;
        for at in 1..bytes.len() {
            matched = advance(&bytes, &fallback, matched, bytes[at]);
            fallback[at] = u16::try_from(matched).unwrap_or(u16::MAX);
        }
        Self {
            bytes,
            fallback,
            matched: 0,
        }
    }
}

/// The number of bytes matched after one more, from `matched`, which is less than all.
fn advance(bytes: &[u8], fallback: &[u16], mut matched: usize, byte: u8) -> usize {
    loop {
        if bytes[matched] == byte {
            return matched + 1;
        }
        if matched == 0 {
            return 0;
        }
        matched = usize::from(fallback[matched - 1]);
    }
}

/// The stop strings of one generation.
#[derive(Clone, Debug, Default)]
pub(super) struct StopMatcher {
    stops: Vec<Stop>,
}

impl StopMatcher {
    /// A matcher of non-empty strings no longer than [`super::STOP_BYTES_MAX`].
    pub(super) fn new(stops: &[String]) -> Self {
        Self {
            stops: stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .map(|stop| Stop::new(stop))
                .collect(),
        }
    }

    /// Takes the next piece. After [`Scan::Found`] the matcher has no further use.
    pub(super) fn scan(&mut self, piece: &str) -> Scan {
        if self.stops.is_empty() {
            return Scan::Held(0);
        }
        for (at, &byte) in piece.as_bytes().iter().enumerate() {
            let mut longest = 0;
            for stop in &mut self.stops {
                stop.matched = advance(&stop.bytes, &stop.fallback, stop.matched, byte);
                if stop.matched == stop.bytes.len() {
                    longest = longest.max(stop.matched);
                    stop.matched = 0;
                }
            }
            if longest > 0 {
                return Scan::Found {
                    end: at + 1,
                    bytes: longest,
                };
            }
        }
        Scan::Held(
            self.stops
                .iter()
                .map(|stop| stop.matched)
                .max()
                .unwrap_or(0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(
            &stops
                .iter()
                .map(|&stop| stop.to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn a_match_may_span_pieces() {
        let mut matcher = matcher(&["END"]);
        assert_eq!(matcher.scan("the E"), Scan::Held(1));
        assert_eq!(matcher.scan("N"), Scan::Held(2));
        assert_eq!(matcher.scan("DS"), Scan::Found { end: 1, bytes: 3 });
    }

    #[test]
    fn a_false_start_is_let_go_and_a_nested_one_kept() {
        let mut matcher = matcher(&["aab"]);
        assert_eq!(matcher.scan("aa"), Scan::Held(2));
        assert_eq!(matcher.scan("a"), Scan::Held(2));
        assert_eq!(matcher.scan("c"), Scan::Held(0));
        assert_eq!(matcher.scan("aaab"), Scan::Found { end: 4, bytes: 3 });
    }

    #[test]
    fn of_strings_ending_together_the_longest_counts() {
        assert_eq!(
            matcher(&["d", "cd", "abcd"]).scan("xabcd"),
            Scan::Found { end: 5, bytes: 4 }
        );
    }

    #[test]
    fn the_first_to_end_counts() {
        assert_eq!(
            matcher(&["abcd", "bc"]).scan("abcd"),
            Scan::Found { end: 3, bytes: 2 }
        );
    }

    #[test]
    fn no_stop_strings_hold_nothing() {
        assert_eq!(matcher(&[]).scan("anything"), Scan::Held(0));
    }

    proptest! {
        /// Against a search of the whole text, for every way of cutting it into pieces.
        #[test]
        fn agrees_with_searching_the_whole_text(
            text in "[abé]{0,40}",
            stops in prop::collection::vec("[abé]{1,5}", 1..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let expected = (1..=text.len()).filter(|&end| text.is_char_boundary(end)).find_map(|end| {
                let ending = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
                ending.map(|bytes| (end, bytes))
            });
            let boundaries: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&boundaries)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut matcher = StopMatcher::new(&stops);
            let mut found = None;
            for pair in cuts.windows(2) {
                match matcher.scan(&text[pair[0]..pair[1]]) {
                    Scan::Found { end, bytes } => {
                        found = Some((pair[0] + end, bytes));
                        break;
                    }
                    Scan::Held(held) => {
                        let seen = &text[..pair[1]];
                        let longest = stops.iter().flat_map(|stop| (1..stop.len()).map(move |n| (stop, n)))
                            .filter(|&(stop, n)| seen.as_bytes().ends_with(&stop.as_bytes()[..n]))
                            .map(|(_, n)| n).max().unwrap_or(0);
                        prop_assert_eq!(held, longest);
                    }
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
