//! For a draft that cuts text into other tokens than the model: texts are told to it in its own tokens, and what it says is
//! cut into the model's.
//!
//! Invariant: what is lost on the way costs guesses and nothing else. A token is only guessed where a word ends behind it, so
//! that what follows makes no other token of it; the model decides all the same.

use std::sync::Arc;

use crate::tokenizer::{Special, Tokenizer};

/// Tokens of the model that are at least between two places from which a text is cut anew.
const MARK_TOKENS: usize = 12;

/// Bytes behind such a place from which on the next character is one, too, be it within a word: a text is cut from the last of
/// them at each pass, and some have no words.
const MARK_BYTES_MAX: usize = 256;

/// Tokens of the model before its end that a text is looked back over for such a place.
const BACK_TOKENS: usize = 16;

/// Between the tokens of a model and those of a draft.
#[derive(Debug)]
pub(super) struct Translator {
    target: Arc<Tokenizer>,
    draft: Arc<Tokenizer>,
    /// What the draft's texts begin with.
    start: Option<u32>,
}

/// A text, as far as it was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The model's tokens.
    heard: Vec<u32>,
    /// The draft's.
    ids: Vec<u32>,
    /// Places at which the text was cut: how many of `heard` and of `ids` are before each.
    marks: Vec<(usize, usize)>,
    /// Bytes at the end that are no whole character, and not told.
    rest: Vec<u8>,
}

impl Told {
    /// The draft's tokens.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How many tokens of `text` were not told.
    pub(super) fn unheard(&self, text: &[u32]) -> usize {
        text.len() - common(&self.heard, text)
    }
}

fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// Whether a token of these bytes begins a word.
fn begins_word(bytes: &[u8]) -> bool {
    bytes.len() > 1 && bytes[0] == b' ' && bytes[1] != b' '
}

/// Whether a text is cut between `bytes`, which are since the last place where it was, and `token`, wherever a word begins.
fn is_far(bytes: &[u8], token: &[u8]) -> bool {
    let within = cut_off(bytes) > 0 && token.first().is_some_and(|&byte| is_continuation(byte));
    // Bytes that never end a character are no text.
    bytes.len() >= MARK_BYTES_MAX && !within || bytes.len() >= 2 * MARK_BYTES_MAX
}

/// The beginning of `bytes` that is whole characters.
fn whole(bytes: &[u8]) -> &str {
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// How many bytes at the end of `bytes` may be the beginning of a character.
fn cut_off(bytes: &[u8]) -> usize {
    // No character has more than four.
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let begins = tail.iter().rposition(|byte| !is_continuation(*byte));
    let end = begins.map_or(&[][..], |begins| &tail[begins..]);
    match core::str::from_utf8(end) {
        Err(error) if error.error_len().is_none() => end.len(),
        _ => 0,
    }
}

/// Whether a character has this byte behind its first.
fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

impl Translator {
    pub(super) fn new(target: Arc<Tokenizer>, draft: Arc<Tokenizer>) -> Translator {
        let start = draft.encode_prompt("", Special::Plain);
        Translator {
            start: start.first().copied(),
            target,
            draft,
        }
    }

    /// Tells the rest of `text`, of which `told` may have had another beginning. Returns how many bytes were cut into tokens
    /// for that.
    pub(super) fn tell(&self, told: &mut Told, text: &[u32]) -> usize {
        let same = common(&told.heard, text);
        if same == text.len() && same == told.heard.len() {
            return 0;
        }
        // What follows a place may be why it is one.
        while told.marks.last().is_some_and(|&(heard, _)| heard >= same) {
            told.marks.pop();
        }
        let (heard, ids) = told.marks.last().copied().unwrap_or_default();
        told.heard.truncate(heard);
        told.ids.truncate(ids);
        if told.heard.is_empty() {
            told.ids.clear();
            told.ids.extend(self.start);
        }
        let (target, draft) = (&*self.target, &*self.draft);
        let (mut bytes, mut cut) = (Vec::new(), 0);
        let mut first = told.heard.last().is_none_or(|&id| !target.is_text(id));
        for (index, &id) in text.iter().enumerate().skip(heard) {
            if target.is_text(id) {
                let token = target.token_bytes(id);
                let since = index - told.marks.last().map_or(0, |&(heard, _)| heard);
                if since >= MARK_TOKENS && begins_word(token) || is_far(&bytes, token) {
                    cut += say(draft, &mut bytes, &mut first, &mut told.ids);
                    bytes.clear();
                    told.marks.push((index, told.ids.len()));
                }
                bytes.extend_from_slice(token);
                continue;
            }
            cut += say(draft, &mut bytes, &mut first, &mut told.ids);
            bytes.clear();
            match self.to_draft(id) {
                // It is there already.
                _ if index == 0 && Some(id) == target.bos() => {}
                Some(id) => told.ids.push(id),
                None => {
                    let shown = String::from_utf8_lossy(target.token_bytes(id)).into_owned();
                    cut += shown.len();
                    told.ids.extend(draft.encode_on(&shown));
                }
            }
            first = true;
            told.marks.push((index + 1, told.ids.len()));
        }
        cut += say(draft, &mut bytes, &mut first, &mut told.ids);
        told.rest = bytes;
        told.heard.extend_from_slice(&text[heard..]);
        cut
    }

    /// The draft's token of the same meaning as one of the model's that is no text.
    fn to_draft(&self, id: u32) -> Option<u32> {
        control_of(&self.target, id, &self.draft)
    }

    /// What the draft has `said` behind what it was `told`, in tokens of the model, at most `most`.
    pub(super) fn heard(&self, told: &Told, said: &[u32], most: usize) -> Vec<u32> {
        let (target, draft) = (&*self.target, &*self.draft);
        let text = said.iter().take_while(|&&id| draft.is_text(id)).count();
        let mut bytes: Vec<u8> = said[..text]
            .iter()
            .flat_map(|&id| draft.token_bytes(id))
            .copied()
            .collect();
        // The character that the text ends within is to be the one that the draft begins with.
        if !bytes.starts_with(&told.rest) {
            return Vec::new();
        }
        bytes.drain(..told.rest.len());
        let end = said.get(text).and_then(|&id| control_of(draft, id, target));
        let mut guesses = self.cut(told, &bytes, end.is_some());
        let cut: usize = guesses.iter().map(|&id| target.token_bytes(id).len()).sum();
        if cut == bytes.len() {
            guesses.extend(end);
        }
        guesses.truncate(most);
        guesses
    }

    /// Cuts `bytes`, which follow what was told, into tokens of the model: all of them if that `is_all`, else those that what
    /// follows will not change.
    fn cut(&self, told: &Told, bytes: &[u8], is_all: bool) -> Vec<u32> {
        let (target, text) = (&*self.target, &told.heard[..]);
        // From where a word begins, what is known is cut as it was before.
        let mut from = text.len();
        while let Some(&id) = from.checked_sub(1).and_then(|before| text.get(before)) {
            if text.len() - from >= BACK_TOKENS || !target.is_text(id) {
                break;
            }
            from -= 1;
            if target.token_bytes(id).starts_with(b" ") {
                break;
            }
        }
        let mut all: Vec<u8> = text[from..]
            .iter()
            .flat_map(|&id| target.token_bytes(id))
            .copied()
            .collect();
        all.extend_from_slice(bytes);
        let (known, valid) = (all.len() - bytes.len(), whole(&all));
        if valid.len() >= known {
            let tokens = complete(target, valid, is_all);
            if let Some(guesses) = tokens.strip_prefix(&text[from..]) {
                return guesses.to_vec();
            }
            if text[from..].starts_with(&tokens) {
                return Vec::new();
            }
        }
        // The model has cut what is before in another way, or it is no text.
        if told.rest.is_empty() {
            complete(target, whole(bytes), is_all)
        } else {
            Vec::new()
        }
    }
}

/// The tokens of a text that goes on behind another: all, or those before its last word, which may become a longer one.
fn complete(tokenizer: &Tokenizer, text: &str, is_all: bool) -> Vec<u32> {
    let mut tokens = tokenizer.encode_on(text);
    if is_all {
        return tokens;
    }
    let end = last_word(text);
    let mut length = 0;
    let whole = tokens.iter().take_while(|&&id| {
        length += tokenizer.token_bytes(id).len();
        length <= end
    });
    let count = whole.count();
    tokens.truncate(count);
    tokens
}

/// Where the last word of a text begins, with the spaces before it: nothing that follows joins what is before.
fn last_word(text: &str) -> usize {
    #[derive(PartialEq)]
    enum Kind {
        Space,
        Line,
        Letter,
        Digit,
        Other,
    }
    let kind = |character: char| match character {
        '\n' => Kind::Line,
        _ if character.is_whitespace() => Kind::Space,
        _ if character.is_alphabetic() => Kind::Letter,
        _ if character.is_numeric() => Kind::Digit,
        _ => Kind::Other,
    };
    let mut begins = 0;
    let mut before = None;
    for (at, character) in text.char_indices() {
        let this = kind(character);
        let joins = match (&before, &this) {
            // Spaces and signs may belong to the word behind them, and lines to what is before them.
            (None | Some(Kind::Space), _)
            | (Some(Kind::Other), Kind::Letter)
            | (Some(Kind::Line), Kind::Space)
            | (_, Kind::Line) => true,
            (Some(before), this) => before == this,
        };
        if !joins {
            begins = at;
        }
        before = Some(this);
    }
    begins
}

/// Adds the draft's tokens of what is whole of `bytes`, and says how many bytes that is. What may become a character at the end
/// is left there, what none has is left out.
fn say(draft: &Tokenizer, bytes: &mut Vec<u8>, first: &mut bool, ids: &mut Vec<u32>) -> usize {
    let end = bytes.len() - cut_off(bytes);
    let mut said = 0;
    for text in bytes[..end].utf8_chunks().map(|chunk| chunk.valid()) {
        if text.is_empty() {
            continue;
        }
        ids.extend(if *first {
            draft.encode(text, Special::Plain)
        } else {
            draft.encode_on(text)
        });
        *first = false;
        said += text.len();
    }
    bytes.drain(..end);
    said
}

/// The token of `to` that means what `id`, which is no text, does in `from`.
fn control_of(from: &Tokenizer, id: u32, to: &Tokenizer) -> Option<u32> {
    let name = core::str::from_utf8(from.token_bytes(id)).ok();
    let same = name
        .and_then(|name| to.id_of(name))
        .filter(|&id| to.is_control(id));
    let meaning = || match id {
        _ if from.is_end_of_generation(id) => to.eos(),
        _ if Some(id) == from.bos() => to.bos(),
        _ => None,
    };
    same.or_else(meaning)
}

#[cfg(test)]
mod tests {
    use super::{MARK_BYTES_MAX, Told, Translator};
    use crate::gguf::Gguf;
    use crate::support;
    use crate::tokenizer::{Special, Tokenizer};
    use proptest::prelude::*;
    use std::sync::{Arc, LazyLock};

    const MODEL: [&str; 12] = [
        "Ġ t", "h e", "i n", "r e", "Ġt he", "e r", "Ġ a", "Ġ s", "o u", "in g", "a n", "Ġa n",
    ];
    const DRAFT: [&str; 6] = ["h e", "t he", "Ġ the", "o n", "a t", "Ġ Ġ"];

    /// Three control tokens, the bytes, and what merges make of them.
    fn tokenizer(merges: &[&str]) -> Arc<Tokenizer> {
        let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let mut moved = (256..).map(|code| char::from_u32(code).expect("a character"));
        let bytes = (0..=u8::MAX).map(|byte| {
            let own = visible(byte).then_some(byte as char);
            own.unwrap_or_else(|| moved.next().expect("another"))
                .to_string()
        });
        let control = ["<s>", "</s>", "<turn>"].map(str::to_owned);
        let merged = merges.iter().map(|merge| merge.replace(' ', ""));
        let tokens: Vec<String> = control.into_iter().chain(bytes).chain(merged).collect();
        let kinds: Vec<i32> = (0..tokens.len())
            .map(|id| if id < 3 { 3 } else { 1 })
            .collect();
        let mut writer = support::Writer::new();
        writer
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "gpt-2")
            .strs("tokenizer.ggml.tokens", &tokens)
            .strs("tokenizer.ggml.merges", merges)
            .i32s("tokenizer.ggml.token_type", &kinds)
            .u32("tokenizer.ggml.bos_token_id", 0)
            .u32("tokenizer.ggml.eos_token_id", 1);
        let bytes = writer.finish();
        let gguf = Gguf::parse(&bytes).expect("a sound file");
        Arc::new(Tokenizer::from_gguf(&gguf).expect("a vocabulary"))
    }

    static TRANSLATOR: LazyLock<Translator> =
        LazyLock::new(|| Translator::new(tokenizer(&MODEL), tokenizer(&DRAFT)));

    /// The token of one byte.
    fn byte_token(tokenizer: &Tokenizer, byte: u8) -> u32 {
        let ids = 0..u32::try_from(tokenizer.vocabulary_count()).expect("few");
        let mut of = ids.filter(|&id| tokenizer.token_bytes(id) == [byte]);
        of.next().expect("one of each byte")
    }

    /// Words with something behind some of them.
    fn texts() -> impl Strategy<Value = String> {
        let words = prop_oneof![
            Just(" the"),
            Just(" an"),
            Just(" 🙂"),
            Just(" re\u{301}"),
            Just(" on at"),
            Just("  12"),
            Just("\n"),
        ];
        let more = prop_oneof![Just(""), Just("ing"), Just("é"), Just("."), Just("the12")];
        let word = (words, more).prop_map(|(word, more)| format!("{word}{more}"));
        prop::collection::vec(word, 0..30).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn what_is_heard_is_what_the_model_would_make_of_it(
            text in texts(),
            at in any::<prop::sample::Index>(),
            most in 1_usize..30,
            ends in any::<bool>(),
        ) {
            let translator = &*TRANSLATOR;
            let (target, draft) = (&translator.target, &translator.draft);
            let mut ids = target.encode_on(&text);
            let at = at.index(ids.len() + 1);
            let behind: usize = ids[at..].iter().map(|&id| target.token_bytes(id).len()).sum();
            let mut told = Told::default();
            translator.tell(&mut told, &ids[..at]);
            // Within a character, the draft begins with all of it.
            let from = text.len() - behind - told.rest.len();
            let mut said = draft.encode_on(&text[from..]);
            if ends {
                said.push(1);
                ids.push(1);
            }
            let heard = translator.heard(&told, &said, most);
            prop_assert!(heard.len() <= most);
            prop_assert_eq!(&heard[..], &ids[at..at + heard.len()]);
            if ends {
                prop_assert_eq!(heard.len(), most.min(ids.len() - at), "all of it is there");
            }
        }

        #[test]
        fn a_text_is_told_the_same_however_it_came_about(
            first in texts(),
            second in texts(),
            // With places that no word begins at.
            long in "[a在2🙂]{0,300}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            turns in any::<bool>(),
        ) {
            let translator = &*TRANSLATOR;
            let (target, draft) = (&translator.target, &translator.draft);
            let mut told = Told::default();
            for text in [&format!("{long}{first}"), &format!("{long}{second}")] {
                let mut ids = target.encode_on(text);
                if turns {
                    ids.insert(ids.len() / 2, 2);
                }
                for cut in &cuts {
                    let ids = &ids[..cut.index(ids.len() + 1)];
                    translator.tell(&mut told, ids);
                    let mut fresh = Told::default();
                    translator.tell(&mut fresh, ids);
                    prop_assert_eq!(told.ids(), fresh.ids());
                    prop_assert_eq!(told.unheard(ids), 0);
                    // What is no whole character is not told.
                    let text = target.decode(ids).replace('\u{fffd}', "");
                    let said = draft.decode(&told.ids()[usize::from(translator.start.is_some())..]);
                    prop_assert_eq!(text, said);
                }
            }
        }
    }

    #[test]
    fn the_work_for_a_token_does_not_grow_with_the_text_before_it() {
        let translator = &*TRANSLATOR;
        let (target, draft) = (&translator.target, &translator.draft);
        let long = |text: &str| text.repeat(2400 / text.len());
        let no_text: Vec<u32> = [0xe4, 0x80, 0xff]
            .map(|byte| byte_token(target, byte))
            .into();
        let texts = [
            long(" the an"),
            long("在线监测机床振动"),
            long("aGVhdDE2bWlu"),
            long("é"),
            long(" "),
            long("\n"),
        ];
        let spelled = texts.iter().map(|text| target.encode_on(text));
        for ids in spelled.chain([no_text.repeat(800), no_text[..2].repeat(1200)]) {
            let mut told = Told::default();
            let mut work = 0;
            for end in 1..=ids.len() {
                let cut = translator.tell(&mut told, &ids[..end]);
                assert!(cut <= 2 * MARK_BYTES_MAX + 64, "{cut} bytes at token {end}");
                work += cut;
            }
            assert!(work <= ids.len() * 2 * MARK_BYTES_MAX);
            let bytes: Vec<u8> = ids
                .iter()
                .flat_map(|&id| target.token_bytes(id))
                .copied()
                .collect();
            let valid: String = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
            let said = draft.decode(&told.ids()[usize::from(translator.start.is_some())..]);
            assert_eq!(said, valid);
            let mut fresh = Told::default();
            let once = translator.tell(&mut fresh, &ids);
            assert_eq!((fresh.ids(), once), (told.ids(), valid.len()));
        }
    }

    #[test]
    fn turns_and_ends_are_told_by_their_meaning() {
        let translator = &*TRANSLATOR;
        let mut told = Told::default();
        translator.tell(&mut told, &[0, 2]);
        assert_eq!(told.ids().last(), Some(&2));
        assert_eq!(translator.heard(&told, &[1], 5), [1]);
        assert!(translator.heard(&told, &[0xffff], 5).is_empty());
        // A word that may go on is none yet.
        for (text, whole) in [
            (" the an", " the"),
            (" an", ""),
            ("12 the ", "12 the"),
            (" an.\n", " an"),
        ] {
            let said = translator.draft.encode(text, Special::Plain);
            let heard = translator.heard(&told, &said, 9);
            assert_eq!(translator.target.decode(&heard), whole, "{text:?}");
        }
    }
}
