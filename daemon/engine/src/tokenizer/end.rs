//! The tokens that end an answer.
//!
//! Files name some of them, often not all: an instruct model made from a base model may still name the
//! base's end of text and end its turns with another token. So those whose text is known count as well.

use super::fim;
use super::vocabulary::{Kind, Vocabulary};

/// Texts by which models in use end a turn, a message or a text. Sorted.
const END_TEXTS: [&str; 20] = [
    "<EOT>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|calls|>",
    "<|call|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|file_sep|>",
    "<|fim_pad|>",
    "<|flush|>",
    "<|im_end|>",
    "<|repo_name|>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
    "[EOT]",
    "_<EOT>",
];

/// The same, but also what people write (the end of HTML's `<s>`): only where the file says that they are control tokens.
const END_TEXTS_OF_FILES: [&str; 6] = [
    "</s>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[EOS]",
    "[e~[",
];

/// Files are seen that call an end token normal text; then a prompt could not end a turn.
pub(super) fn is_control(text: &str, kind: Kind) -> bool {
    kind == Kind::Control || is_end_text(text) || fim::is_gap_text(text)
}

fn is_end_text(text: &str) -> bool {
    // Nearly no token of a vocabulary begins like this.
    text.starts_with(['<', '[', '_']) && END_TEXTS.binary_search(&text).is_ok()
}

/// A few tokens, sorted.
#[derive(Debug)]
pub(super) struct EndTokens(Box<[u32]>);

impl EndTokens {
    /// Those that the file names, and those of known text.
    pub(super) fn new(vocabulary: &Vocabulary, named: &[Option<u32>]) -> Self {
        let control = |text: &str| {
            vocabulary.find(text.as_bytes(), |id| {
                vocabulary.kind(id) == Some(Kind::Control)
            })
        };
        let texts = END_TEXTS.iter().chain(&END_TEXTS_OF_FILES);
        let mut ids: Vec<u32> = texts.filter_map(|text| control(text)).collect();
        // Where answers consist of several messages, the end of one is not the end of all.
        let has = |text| control(text).is_some();
        if has("<|return|>") && has("<|call|>") || has("<|flush|>") && has("<|calls|>") {
            let end = control("<|end|>");
            ids.retain(|&id| Some(id) != end);
        }
        ids.extend(named.iter().flatten());
        ids.sort_unstable();
        ids.dedup();
        Self(ids.into_boxed_slice())
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.0
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.0.binary_search(&id).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_sorted() {
        assert!(END_TEXTS.is_sorted());
        assert!(is_end_text("<|im_end|>") && !is_end_text("<|im_start|>"));
    }
}
