//! Text from tokens as they come.
//!
//! A character may be spread over several tokens, so its first bytes wait here until the rest arrives or
//! cannot arrive any more. The pieces, joined, are what decoding all tokens at once gives.

use super::Tokenizer;

/// Turns tokens into text one at a time, in whole UTF-8 characters. Bytes that cannot be part of a
/// character become U+FFFD.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    skip_control: bool,
    /// Nothing was said yet: a space that encoding would have put there is left out.
    first: bool,
    /// The start of a character, at most three bytes between calls.
    pending: Vec<u8>,
    text: String,
}

impl StreamDecoder {
    /// A decoder at the start of a text. `skip_control` leaves control tokens out of it.
    pub fn new(skip_control: bool) -> Self {
        Self {
            skip_control,
            first: true,
            pending: Vec::new(),
            text: String::new(),
        }
    }

    /// A decoder of what comes after a prompt, so that the prompt's text and this, joined, are the whole text.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32], skip_control: bool) -> Self {
        Self {
            first: prompt.last().is_none_or(|&id| {
                // What fills a gap goes on in the middle of a text.
                tokenizer.is_special(id) && tokenizer.fim().middle != Some(id)
            }),
            ..Self::new(skip_control)
        }
    }

    /// Whether a space at the start of the next token is left out of the text.
    pub(crate) fn drops_space(&self, tokenizer: &Tokenizer) -> bool {
        self.first && tokenizer.reads_space
    }

    /// Takes a token and returns the characters it completes, possibly none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        if self.skip_control && tokenizer.is_control(id) {
            self.text.clear();
            return &self.text;
        }
        if core::mem::take(&mut self.first) {
            return self.push_bytes(tokenizer.first_bytes(id));
        }
        self.push_bytes(tokenizer.token_bytes(id))
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> &str {
        self.text.clear();
        self.pending.extend_from_slice(bytes);
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            self.text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            let rest = self.pending.len() - used;
            if invalid.is_empty() || invalid.len() == rest && is_unfinished(invalid) {
                break;
            }
            self.text.push(char::REPLACEMENT_CHARACTER);
            used += invalid.len();
        }
        self.pending.drain(..used);
        &self.text
    }

    /// Ends the text and returns what an unfinished character leaves: U+FFFD or nothing. The decoder is
    /// then at the start of a text again.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        self.first = true;
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }
}

/// Whether bytes at the end of a text that are no character may become one with more bytes.
fn is_unfinished(bytes: &[u8]) -> bool {
    core::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_whole(pieces in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..4),
                any::<char>().prop_map(|c| c.to_string().into_bytes()),
                (any::<char>(), 0usize..4).prop_map(|(c, cut)| {
                    let mut bytes = c.to_string().into_bytes();
                    bytes.truncate(cut);
                    bytes
                }),
                (any::<char>(), 0usize..4).prop_map(|(c, cut)| {
                    let bytes = c.to_string().into_bytes();
                    bytes[cut.min(bytes.len())..].to_vec()
                }),
            ], 0..20)) {
            let mut decoder = StreamDecoder::new(false);
            let mut text = String::new();
            for piece in &pieces {
                text.push_str(decoder.push_bytes(piece));
                prop_assert!(decoder.pending.len() <= 3);
            }
            text.push_str(decoder.finish());
            let whole = pieces.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }
    }
}
