//! Closing answers of JSON before their limit of tokens cuts them.
//!
//! While there is room an answer says what the model wants. Before each token that could use up the room which closing
//! needs, the way to the end behind it is tried out: its length in tokens is known then, not reckoned. A token behind
//! which there is no such way within the limit is not taken; instead the answer closes on the way that there is before it,
//! step by step. What a closing answer chooses is the shortest at hand: no more items, properties or characters
//! than it must have.
//!
//! Where calls of tools stand behind text, only they are closed: text may end anywhere ([`Lead`]). A call that could no longer
//! close does not begin: text goes on instead, and calls end ([`Between`]).
//!
//! The way is found by choosing the likely best token each time ([`Closers`]), so there are schemas with patterns for which
//! none is found; their answers may be cut.

use std::sync::{Arc, OnceLock};

use llguidance::Matcher;
use llguidance::toktrie::{SimpleVob, TokTrie};

use super::limits;

/// Room beyond what closing is reckoned to need, in tokens: more than a listed value or a word of a pattern takes.
const MARGIN_TOKENS: usize = 32;

/// Bytes that lead to the end where a value, a separator or a bracket is due, the best first.
const OUTSIDE: &[u8] = b"}],:0123456789\"-ntf[{";
/// The same within a string.
const INSIDE: &[u8] = b"\"0123456789aeinorst-";

/// Where a byte of an answer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    inside: bool,
    escaped: bool,
    /// Brackets that are open.
    levels: u32,
    /// In text before JSON, the bytes of what leads over to it that were just said.
    free: Option<usize>,
    /// Bytes that the last character of that text still lacks.
    rest: u8,
}

/// What leads from text to JSON.
#[derive(Clone, Debug)]
pub(super) struct Lead {
    bytes: Arc<[u8]>,
    /// It counts only where the answer begins with it.
    anchored: bool,
    /// What may follow text that does not end with a part of it: always the same, so it is found once.
    mask: Arc<OnceLock<SimpleVob>>,
}

impl Lead {
    pub(super) fn new(bytes: &[u8], anchored: bool) -> Self {
        Self {
            bytes: bytes.into(),
            anchored,
            mask: Arc::default(),
        }
    }

    /// What may follow any text, if that is all there is where an answer stands that has begun.
    pub(super) fn text_mask(&self, context: Context) -> Option<&OnceLock<SimpleVob>> {
        let plain = if self.anchored { usize::MAX } else { 0 };
        (context.free == Some(plain) && context.rest == 0).then_some(&*self.mask)
    }

    /// How much of it was said, with one byte more.
    fn advance(&self, mut said: usize, byte: u8) -> usize {
        // An anchored one that went wrong has no next byte.
        while self.bytes.get(said) != Some(&byte) {
            if self.anchored {
                return usize::MAX;
            }
            let Some(shorter) = said.checked_sub(1) else {
                return 0;
            };
            let ends = |length: &usize| self.bytes[..said].ends_with(&self.bytes[..*length]);
            said = (0..=shorter).rev().find(ends).unwrap_or(0);
        }
        said + 1
    }

    /// What of a text stands behind it.
    pub(super) fn behind<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        if self.anchored {
            return text;
        }
        let length = self.bytes.len();
        let mut places = text.windows(length.max(1));
        let place = places.position(|window| window == &*self.bytes);
        place.map_or(&[], |at| &text[at + length..])
    }
}

impl Context {
    /// The context at the start of an answer.
    pub(super) fn start(lead: Option<&Lead>) -> Self {
        Self {
            free: lead.map(|_| 0),
            ..Self::default()
        }
    }

    /// Whether what is said is no JSON yet.
    pub(super) fn is_free(self) -> bool {
        self.free.is_some()
    }

    /// Brackets that are open.
    pub(super) fn levels(self) -> u32 {
        self.levels
    }

    /// Whether it is where another call of a tool may begin: outside of the arguments and the name of one.
    fn is_between(self, between: Between) -> bool {
        !self.is_free() && !self.inside && self.levels <= between.levels
    }

    /// Whether what is said next may begin a call of a tool.
    pub(super) fn may_call(self, reserve: Option<Reserve>) -> bool {
        let between = reserve.and_then(|reserve| reserve.between);
        self.is_free() || between.is_some_and(|between| self.is_between(between))
    }

    /// The context behind some bytes.
    pub(super) fn after(mut self, bytes: &[u8], lead: Option<&Lead>) -> Self {
        for &byte in bytes {
            if let (Some(said), Some(lead)) = (self.free, lead) {
                let said = lead.advance(said, byte);
                self.free = Some(said);
                self.rest = match byte {
                    0xC0..=0xDF => 1,
                    0xE0..=0xEF => 2,
                    0xF0..=0xF7 => 3,
                    0x80..=0xBF => self.rest.saturating_sub(1),
                    _ => 0,
                };
                if said == lead.bytes.len() {
                    self = Self::default().after(&lead.bytes, None);
                }
                continue;
            }
            self = match (self.inside, self.escaped, byte) {
                (true, true, _) => Self {
                    escaped: false,
                    ..self
                },
                (true, false, b'\\') => Self {
                    escaped: true,
                    ..self
                },
                (_, false, b'"') => Self {
                    inside: !self.inside,
                    ..self
                },
                (false, _, b'{' | b'[') => Self {
                    levels: self.levels.saturating_add(1),
                    ..self
                },
                (false, _, b'}' | b']') => Self {
                    levels: self.levels.saturating_sub(1),
                    ..self
                },
                _ => self,
            };
        }
        self
    }
}

/// What closing an answer may need at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserve {
    /// Tokens for each object or array that is open; all of them together, if none can be in itself.
    pub(super) tokens: usize,
    /// Whether values may nest without end.
    pub(super) nests: bool,
    /// Whether there may be names that the schema does not list, and values of any kind.
    pub(super) open: bool,
    /// Between calls of tools, where an answer may have several.
    pub(super) between: Option<Between>,
}

/// What stands between calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Between {
    /// Brackets that are open there, at most.
    pub(super) levels: u32,
    /// What is said there to end instead of to call again; `None` is nothing at all.
    pub(super) exit: Option<Exit>,
}

/// The first of what ends calls that another call does not begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// A byte.
    Byte(u8),
    /// A control token.
    Token(u32),
}

/// The closing of one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    reserve: Reserve,
    limit: usize,
    /// At least what closing needs where the answer stands.
    need: usize,
}

impl Closing {
    pub(super) fn new(reserve: Reserve, limit: usize) -> Self {
        Self {
            reserve,
            limit,
            need: reserve.tokens,
        }
    }

    /// The tokens there is room for behind the first `position`.
    pub(super) fn room(&self, position: usize) -> usize {
        self.limit.saturating_sub(position)
    }

    /// Whether the way to the end must be tried before a token with these bytes is taken. `calls` says that it may begin a
    /// call of a tool.
    pub(super) fn is_near(&mut self, position: usize, bytes: &[u8], calls: bool) -> bool {
        // Only these begin something that must be ended.
        let begins =
            bytes.iter().filter(|byte| b"{[,\"".contains(byte)).count() + usize::from(calls);
        let more = begins.saturating_mul(self.reserve.tokens);
        if self.reserve.nests {
            self.need = self.need.saturating_add(more);
        } else if begins > 0 {
            self.need = self.reserve.tokens;
        }
        self.need.saturating_add(MARGIN_TOKENS) >= self.room(position)
    }

    /// Takes note of what closing needs.
    pub(super) fn needs(&mut self, tokens: usize) {
        self.need = tokens;
    }
}

/// Tokens of single bytes, by which answers close.
#[derive(Debug)]
pub(super) struct Closers {
    outside: Box<[u32]>,
    inside: Box<[u32]>,
}

/// What a way to the end is looked for by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Where the answer stands.
    pub(super) context: Context,
    pub(super) lead: Option<&'a Lead>,
    pub(super) between: Option<Between>,
}

impl Place<'_> {
    /// The token that ends calls here.
    fn exit(&self, trie: &TokTrie) -> Option<u32> {
        let between = self
            .between
            .filter(|between| self.context.is_between(*between))?;
        match between.exit? {
            Exit::Byte(byte) => trie.token_id(&[byte]),
            Exit::Token(id) => Some(id),
        }
    }
}

impl Closers {
    pub(super) fn new(trie: &TokTrie) -> Self {
        let of = |bytes: &[u8]| {
            let ids = bytes.iter().filter_map(|&byte| trie.token_id(&[byte]));
            ids.collect()
        };
        Self {
            outside: of(OUTSIDE),
            inside: of(INSIDE),
        }
    }

    fn likely(&self, place: &Place<'_>, trie: &TokTrie) -> impl Iterator<Item = u32> {
        let likely = match place.context.inside {
            true => &self.inside,
            false => &self.outside,
        };
        place.exit(trie).into_iter().chain(likely.iter().copied())
    }

    /// The end if it may come, else a token that leads to it.
    fn choose(&self, place: &Place<'_>, trie: &TokTrie, mask: &SimpleVob) -> Option<u32> {
        let ends = trie.eos_tokens().iter().copied();
        let mut likely = ends.chain(self.likely(place, trie));
        likely.find(|&id| mask.is_allowed(id)).or_else(|| {
            let first = mask.first_bit_set()?;
            u32::try_from(first).ok()
        })
    }

    /// What [`Closers::choose`] chooses, without the mask of all tokens. `None` where that does not tell.
    fn choose_one(&self, place: &Place<'_>, trie: &TokTrie, matcher: &mut Matcher) -> Option<u32> {
        if matcher.is_accepting().ok()? {
            return trie.eos_tokens().first().copied();
        }
        let mut likely = self.likely(place, trie);
        likely.find(|&id| matcher.validate_tokens(&[id]).is_ok_and(|count| count == 1))
    }

    /// The tokens that close an answer, if they are found and at most `most`. `matcher` is used up by it; `unmasked` tokens
    /// were looked at since it had a mask.
    pub(super) fn way(
        &self,
        mut matcher: Matcher,
        trie: &TokTrie,
        mut place: Place<'_>,
        (most, unmasked): (usize, usize),
    ) -> Option<Vec<u32>> {
        let (mut way, mut steps) = (Vec::new(), unmasked);
        while !matcher.is_stopped() {
            let mut next = matcher.compute_ff_tokens();
            if next.is_empty() {
                steps += 1;
                // Only a mask renews what the library takes for its work.
                let one = (steps % limits::UNMASKED_TOKENS_MAX != 0)
                    .then(|| self.choose_one(&place, trie, &mut matcher));
                let id = match one.flatten() {
                    Some(id) => id,
                    None => self.choose(&place, trie, &matcher.compute_mask().ok()?)?,
                };
                if trie.eos_tokens().contains(&id) {
                    way.push(id);
                    break;
                }
                next.push(id);
            }
            if way.len() + next.len() > most {
                return None;
            }
            for &id in &next {
                place.context = place.context.after(trie.token(id), place.lead);
            }
            matcher.consume_tokens(&next).ok()?;
            way.extend(next);
        }
        (!matcher.is_error() && way.len() <= most).then_some(way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_escapes_tell_where_a_string_ends() {
        let inside = |text: &str| Context::default().after(text.as_bytes(), None).inside;
        assert!(!inside("{") && inside("{\"") && inside("{\"a\\\"b") && !inside("{\"a\\\"b\""));
        assert!(!inside("\"\\\\\"") && inside("\"\\\\\\\""));
    }

    #[test]
    fn what_leads_to_json_is_found_across_tokens() {
        let lead = Lead::new(b"<<x>", false);
        let free = |text: &str| {
            let halves = text.as_bytes().split_at(text.len() / 2);
            let start = Context::start(Some(&lead));
            let context = start
                .after(halves.0, Some(&lead))
                .after(halves.1, Some(&lead));
            assert_eq!(context, start.after(text.as_bytes(), Some(&lead)), "{text}");
            context.is_free()
        };
        assert!(free("") && free("a\"<<x") && free("<x>") && !free("<<<x>") && !free("a <<x>{"));
        let inside = |text: &[u8]| Context::start(Some(&lead)).after(text, Some(&lead)).inside;
        assert!(!inside(b"a\"b") && inside(b"a\"b<<x>{\"c") && !inside(b"<<x>{\"c\""));
        assert_eq!(lead.behind(b"a<<x>b"), b"b");
        assert!(lead.behind(b"<<x").is_empty());
        let has_mask = |lead: &Lead, text: &[u8]| {
            let context = Context::start(Some(lead)).after(text, Some(lead));
            lead.text_mask(context).is_some()
        };
        assert!(has_mask(&lead, b"a") && has_mask(&lead, "<\u{20ac}".as_bytes()));
        assert!(
            !has_mask(&lead, b"a<") && !has_mask(&lead, b"a\xe2\x82") && !has_mask(&lead, b"<<x>a")
        );
        let lead = Lead::new(b"{\"a\"", true);
        assert!(has_mask(&lead, b"a") && has_mask(&lead, b"{a") && !has_mask(&lead, b"{\""));
        let context = |text: &[u8]| Context::start(Some(&lead)).after(text, Some(&lead));
        assert!(!context(b"{\"a\": \"").is_free() && context(b"{\"a\": \"").inside);
        assert!(context(b" {\"a\"").is_free() && context(b"{{\"a\"").is_free());
    }

    #[test]
    fn the_reserve_grows_with_what_is_open() {
        let reserve = |nests| Reserve {
            tokens: 30,
            nests,
            open: false,
            between: None,
        };
        let mut closing = Closing::new(reserve(false), 200);
        assert!(!closing.is_near(137, b"[[[[", false));
        assert!(closing.is_near(138, b"a", false));
        closing.needs(5);
        assert!(!closing.is_near(138, b"a", false) && closing.is_near(138, b"\"", false));
        closing.needs(5);
        assert!(closing.is_near(138, b"a", true));
        let mut closing = Closing::new(reserve(true), 200);
        assert!(!closing.is_near(50, b"a", false) && closing.is_near(50, b"{[[[", false));
        closing.needs(3);
        assert!(!closing.is_near(50, b"{", false));
    }

    #[test]
    fn calls_begin_in_text_and_between_calls() {
        let lead = Lead::new(b"CALLS", false);
        let reserve = |levels| {
            let between = Some(Between { levels, exit: None });
            Some(Reserve {
                tokens: 30,
                nests: false,
                open: false,
                between,
            })
        };
        let after = |text: &str| Context::start(Some(&lead)).after(text.as_bytes(), Some(&lead));
        for (text, levels, may) in [
            ("a {", 0, true),
            ("CALLS", 0, true),
            ("CALLS{\"name", 0, false),
            ("CALLS[{\"arguments\": {\"a", 2, false),
            ("CALLS[{\"arguments\": {\"a\": [\"}}]\"", 2, false),
            ("CALLS[{\"arguments\": {\"a\": 1}", 2, true),
            ("CALLS[{\"arguments\": {\"a\": 1}}", 2, true),
        ] {
            assert_eq!(after(text).may_call(reserve(levels)), may, "{text}");
        }
        assert!(!after("CALLS").may_call(None) && after("CALL").may_call(None));
    }
}
