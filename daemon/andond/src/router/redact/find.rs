//! Where in a text something stands that must not leave.
//!
//! Every expression, every value of a named field and every text that looks like a placeholder is looked for in the text as it
//! came and in its [views](super::view), none in what another has left. What touches or overlaps is one place, so that no
//! part of a secret stays because another one has taken the rest.
//!
//! Invariant: a place is whole characters of the text and not empty, places are in order and no two touch; and the search ends
//! within its [`Effort`], or says that it does not. Whatever is done for each place or byte of a text is taken from that, also
//! where the places are put to use.

use std::ops::Range;
use std::time::Duration;

use aho_corasick::AhoCorasick;
use nix::time::{ClockId, clock_gettime};
use regex::Regex;

use super::Unredactable;
use super::view::{self, View};

/// What the search in one request may cost, in bytes that are looked at, each look counted as [`LOOK`] more: a tenth of a second
/// or two.
const EFFORT_MAX: usize = 64 << 20;
/// What a look costs beside the bytes.
pub(super) const LOOK: usize = 64;
/// How long this thread may compute whatever it costs: an expression may have to look far ahead of what it fits. All front ends
/// wait for that long, since they have one thread.
pub(super) const TIME_MAX: Duration = Duration::from_millis(100);
/// After so much effort it is seen how long it took.
const UNSEEN_MAX: usize = 8 * LOOK;
/// Most places that are found in a text before they are merged.
pub(super) const PLACES_MAX: usize = 1 << 16;

/// What is left of the effort that is made for one request.
#[derive(Debug)]
pub(super) struct Effort {
    pub(super) left: usize,
    /// Spent since it was seen how long it took.
    unseen: usize,
    /// On the clock of this thread, unless it has none.
    pub(super) until: Option<Duration>,
}

/// How long this thread has computed.
fn computed() -> Option<Duration> {
    let clock = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    clock.ok().map(Duration::from)
}

impl Effort {
    pub(super) fn new() -> Effort {
        Effort {
            left: EFFORT_MAX,
            unseen: 0,
            until: computed().map(|computed| computed + TIME_MAX),
        }
    }

    /// Takes from it for so many bytes that were looked at.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Unredactable> {
        let cost = bytes.saturating_add(LOOK);
        let left = self.left.checked_sub(cost);
        self.left = left.ok_or(Unredactable::TooHard)?;
        self.unseen = self.unseen.saturating_add(cost);
        if self.unseen >= UNSEEN_MAX {
            self.unseen = 0;
            if self.until.is_some() && computed() > self.until {
                return Err(Unredactable::TooHard);
            }
        }
        Ok(())
    }
}

/// A place of a text, and the kind of what stands there: the number of its rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bytes: Range<usize>,
    pub(super) rule: usize,
}

/// Looks at how many places there are.
pub(super) fn bounded(places: &[Place]) -> Result<(), Unredactable> {
    if places.len() > PLACES_MAX {
        return Err(Unredactable::TooHard);
    }
    Ok(())
}

/// Adds a place behind others, and is one with the last of them where it can be.
pub(super) fn push(places: &mut Vec<Place>, place: Place) {
    match places.last_mut() {
        Some(last) if (last.bytes.start..=last.bytes.end).contains(&place.bytes.start) => {
            last.bytes.end = last.bytes.end.max(place.bytes.end);
        }
        _ => places.push(place),
    }
}

/// Makes one of places that touch or overlap. Its kind is that of the one which begins first, then of the longest, then of the
/// first rule.
pub(super) fn merged(mut places: Vec<Place>) -> Vec<Place> {
    let order = |place: &Place| {
        let bytes = &place.bytes;
        (bytes.start, std::cmp::Reverse(bytes.end), place.rule)
    };
    places.sort_unstable_by_key(order);
    let mut merged = Vec::with_capacity(places.len());
    places
        .into_iter()
        .for_each(|place| push(&mut merged, place));
    merged
}

/// Looks for an expression in a text: for what it fits from each character on, since one match may hide others that begin in it.
pub(super) fn expression(
    pattern: &Regex,
    rule: usize,
    text: &str,
    effort: &mut Effort,
) -> Result<Vec<Place>, Unredactable> {
    let has_group = pattern.captures_len() > 1;
    let mut places = Vec::new();
    let mut from = 0;
    while from <= text.len() {
        let (whole, secret) = if has_group {
            let found = pattern.captures_at(text, from);
            let whole = found.as_ref().and_then(|found| found.get(0));
            (whole, found.as_ref().and_then(|found| found.get(1)))
        } else {
            (pattern.find_at(text, from), None)
        };
        let Some(whole) = whole else {
            effort.spend(text.len() - from)?;
            break;
        };
        effort.spend(whole.end() - from)?;
        let bytes = secret.unwrap_or(whole).range();
        if !bytes.is_empty() {
            // By the matches' beginnings they are in order, by those of their groups perhaps not.
            push(&mut places, Place { bytes, rule });
            bounded(&places)?;
        }
        let first = text[whole.start()..].chars().next();
        from = whole.start() + first.map_or(1, char::len_utf8);
    }
    Ok(places)
}

/// Values that are looked for wherever they stand.
#[derive(Debug)]
pub(super) struct Values {
    search: AhoCorasick,
    /// The rule of each, and whether it counts only where it is a word of its own.
    kinds: Vec<(usize, bool)>,
}

/// A value that is shorter than this, in bytes, counts only where no letter or digit touches it: it would be everywhere.
const INNER_BYTES_MIN: usize = 4;
/// One that is shorter than this is not looked for.
const VALUE_BYTES_MIN: usize = 2;
/// Most bytes of all values: what looks for them is some dozen times as large.
const VALUES_BYTES_MAX: usize = 64 << 10;

impl Values {
    /// These, each with its rule; `None` if there are none.
    pub(super) fn new<'v>(
        values: impl Iterator<Item = (usize, &'v str)>,
    ) -> Result<Option<Values>, Unredactable> {
        let mut kinds = Vec::new();
        let mut texts = Vec::new();
        for (rule, value) in values {
            let text = view::folded(value.trim());
            if text.len() >= VALUE_BYTES_MIN {
                kinds.push((rule, text.len() < INNER_BYTES_MIN));
                texts.push(text);
            }
        }
        if texts.is_empty() {
            return Ok(None);
        }
        let bytes = texts.iter().map(String::len);
        if bytes.fold(0, usize::saturating_add) > VALUES_BYTES_MAX {
            return Err(Unredactable::TooHard);
        }
        let search = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(texts)
            .map_err(|_| Unredactable::TooHard)?;
        Ok(Some(Values { search, kinds }))
    }

    fn find(&self, text: &str, effort: &mut Effort) -> Result<Vec<Place>, Unredactable> {
        let mut places = Vec::new();
        effort.spend(text.len())?;
        for found in self.search.find_overlapping_iter(text) {
            effort.spend(0)?;
            let Some(&(rule, is_word)) = self.kinds.get(found.pattern().as_usize()) else {
                continue;
            };
            let bytes = found.range();
            let before = text[..bytes.start].chars().next_back();
            let behind = text[bytes.end..].chars().next();
            let touches = |char: Option<char>| char.is_some_and(char::is_alphanumeric);
            if !is_word || !(touches(before) || touches(behind)) {
                places.push(Place { bytes, rule });
                bounded(&places)?;
            }
        }
        Ok(merged(places))
    }
}

/// What is looked for.
pub(super) struct Sought<'s> {
    /// Expressions, each with its rule.
    pub(super) expressions: &'s [(usize, Regex)],
    /// Values of named fields.
    pub(super) values: Option<&'s Values>,
}

impl Sought<'_> {
    /// Looks for all of it, in a text and its views. The places are not merged.
    pub(super) fn find(
        &self,
        text: &str,
        effort: &mut Effort,
        places: &mut Vec<Place>,
    ) -> Result<(), Unredactable> {
        self.find_in(text, None, effort, places)?;
        view::each(text, |view| {
            // It was made of it.
            effort.spend(view.text().len())?;
            self.find_in(view.text(), Some(view), effort, places)
        })
    }

    fn find_in(
        &self,
        text: &str,
        of: Option<&View>,
        effort: &mut Effort,
        places: &mut Vec<Place>,
    ) -> Result<(), Unredactable> {
        let origin = |place: Place| Place {
            bytes: match of {
                Some(view) => view.origin(place.bytes),
                None => place.bytes,
            },
            ..place
        };
        for (rule, pattern) in self.expressions {
            let found = expression(pattern, *rule, text, effort)?;
            places.extend(found.into_iter().map(origin));
            bounded(places)?;
        }
        let Some(values) = self.values else {
            return Ok(());
        };
        match view::small(text) {
            None => places.extend(values.find(text, effort)?.into_iter().map(origin)),
            Some(small) => {
                let found = values.find(small.text(), effort)?.into_iter();
                let here = found.map(|place| Place {
                    bytes: small.origin(place.bytes),
                    ..place
                });
                places.extend(here.map(origin));
            }
        }
        bounded(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(bytes: Range<usize>, rule: usize) -> Place {
        Place { bytes, rule }
    }

    #[test]
    fn what_touches_or_overlaps_is_one() {
        let places = vec![
            place(8..10, 2),
            place(0..3, 1),
            place(0..5, 2),
            place(5..6, 0),
            place(1..2, 0),
            place(7..9, 3),
        ];
        assert_eq!(merged(places), [place(0..6, 2), place(7..10, 3)]);
    }

    #[test]
    fn matches_within_matches_are_found() {
        let found = |pattern: &str, text: &str| {
            let pattern = Regex::new(pattern).expect("an expression");
            let places = expression(&pattern, 0, text, &mut Effort::new()).expect("easy");
            let places = merged(places).into_iter();
            let texts: Vec<&str> = places.map(|place| &text[place.bytes]).collect();
            texts.join("|")
        };
        assert_eq!(found(r"\d{4}", "a 12345 b 678 9012"), "12345|9012");
        assert_eq!(found(r"[a-z]+@[a-z]+", "a@b@c d@e"), "a@b@c|d@e");
        assert_eq!(found("aba", "xababax"), "ababa");
        assert_eq!(found(r"by (\w+)", "by by Ada by"), "by|Ada");
        assert_eq!(found("é(x*)é", "ééxé"), "x");
        assert_eq!(found(r"(\d+) of|of (\d+)", "1 of 2"), "1|of 2");
    }

    #[test]
    fn a_search_that_costs_too_much_is_given_up() {
        let pattern = Regex::new("[A-Z]{8,}").expect("an expression");
        let dense = "A".repeat(1 << 20);
        let found = expression(&pattern, 0, &dense, &mut Effort::new());
        assert_eq!(found, Err(Unredactable::TooHard));
        let values = (0..64)
            .map(|count| "a".repeat(4 + count))
            .collect::<Vec<_>>();
        let values = Values::new(values.iter().map(|value| (0, value.as_str())));
        let values = values.expect("few").expect("some");
        let found = values.find(&dense, &mut Effort::new());
        assert_eq!(found, Err(Unredactable::TooHard));
        // There are too many places, or too much to look for.
        let pattern = Regex::new("a").expect("an expression");
        let many = "a ".repeat(PLACES_MAX + 1);
        let found = expression(&pattern, 0, &many, &mut Effort::new());
        assert_eq!(found, Err(Unredactable::TooHard));
        let long = "a".repeat(VALUES_BYTES_MAX + 1);
        let values = Values::new([(0, long.as_str())].into_iter());
        assert_eq!(values.err(), Some(Unredactable::TooHard));
        // It looks as far as the end of the line for each of its matches.
        let pattern = Regex::new("a.*b|a").expect("an expression");
        let far = "a".repeat(1 << 20);
        let found = expression(&pattern, 0, &far, &mut Effort::new());
        assert_eq!(found, Err(Unredactable::TooHard));
    }

    #[test]
    fn short_values_are_words_and_letters_may_be_large_or_small() {
        let values = [(0, "Ada"), (1, "Press Seven"), (2, "7"), (3, "MÜLLER")];
        let values = Values::new(values.into_iter()).expect("few");
        let sought = Sought {
            expressions: &[],
            values: values.as_ref(),
        };
        let found = |text: &str| {
            let mut places = Vec::new();
            let found = sought.find(text, &mut Effort::new(), &mut places);
            assert_eq!(found, Ok(()));
            let places = merged(places).into_iter();
            let texts: Vec<&str> = places.map(|place| &text[place.bytes]).collect();
            texts.join("|")
        };
        assert_eq!(found("Canada, ada: Ada7 (ADA)"), "ada|ADA");
        assert_eq!(found("At press seventeen, 7."), "press seven");
        assert_eq!(found("Mu\u{308}ller und müller"), "Mu\u{308}ller|müller");
        assert_eq!(found(r"M\u00fcller"), r"M\u00fcller");
        assert_eq!(found("İ ﬁ PRESS SEVEN"), "PRESS SEVEN");
    }
}
