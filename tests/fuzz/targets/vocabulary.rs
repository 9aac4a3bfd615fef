//! A small byte-level vocabulary.

use std::sync::Arc;

use crate::draft::Draft;
use andon_engine::gguf::Gguf;
use andon_engine::tokenizer::Tokenizer;

/// Tokens beside those of single bytes.
const MERGED: [&str; 12] = [
    "{\"", "\":", "\",", "\"}", "tr", "ue", "nu", "ll", "10", "00", "ab", "Ġa",
];
/// Tokens of text: every byte, and some pairs.
pub(crate) const TEXTS: usize = 256 + MERGED.len();

/// The tokens of text, and behind them these control tokens, the first of which ends an answer.
pub(crate) fn tokenizer_with(controls: &[&str]) -> Arc<Tokenizer> {
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    tokens.extend(MERGED.map(str::to_owned));
    tokens.extend(controls.iter().map(|&text| text.to_owned()));
    let kinds: Vec<u8> = (0..tokens.len())
        .flat_map(|id| (if id < TEXTS { 1_i32 } else { 3 }).to_le_bytes())
        .collect();
    let merges: Vec<String> = MERGED
        .iter()
        .map(|word| {
            let mut letters = word.chars();
            let first = letters.next().expect("two letters");
            format!("{first} {}", letters.as_str())
        })
        .collect();
    let mut draft = Draft::default();
    draft.bytes("tokenizer.ggml.model", b"gpt2");
    draft.bytes("tokenizer.ggml.pre", b"gpt-2");
    draft.texts("tokenizer.ggml.tokens", &tokens);
    draft.array("tokenizer.ggml.token_type", 5, tokens.len(), &kinds);
    draft.texts("tokenizer.ggml.merges", &merges);
    let end = TEXTS as u32;
    draft.put("tokenizer.ggml.eos_token_id", 4, &end.to_le_bytes());
    let file = draft.finish();
    let gguf = Gguf::parse(&file).expect("a file");
    Arc::new(Tokenizer::from_gguf(&gguf).expect("a sound vocabulary"))
}

/// The character that stands for a byte in vocabularies of this kind.
fn letter(byte: u8) -> char {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if plain(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !plain(other)).count();
    char::from_u32(256 + before as u32).expect("a character")
}
