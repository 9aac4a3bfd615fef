//! A small byte-level vocabulary: every byte, and tokens that JSON is cut into.

use std::sync::{Arc, OnceLock};

use andon_engine::gguf::Gguf;
use andon_engine::grammar::Vocabulary;
use andon_engine::tokenizer::Tokenizer;

use crate::support::Writer;

/// Tokens beside those of single bytes, each the sum of two before it.
const MERGES: [(&str, &str); 30] = [
    ("{", "\""),
    ("\"", ":"),
    ("\":", "\""),
    ("\"", ","),
    ("\",", "\""),
    (",", "\""),
    ("\"", "}"),
    ("n", "a"),
    ("na", "m"),
    ("nam", "e"),
    ("t", "r"),
    ("tr", "u"),
    ("tru", "e"),
    ("f", "a"),
    ("fa", "l"),
    ("fal", "s"),
    ("fals", "e"),
    ("n", "u"),
    ("nu", "l"),
    ("nul", "l"),
    ("s", "e"),
    ("v", "e"),
    ("se", "ve"),
    ("r", "i"),
    ("ri", "t"),
    ("rit", "y"),
    ("seve", "rity"),
    ("l", "o"),
    ("lo", "w"),
    ("Ġ", "lo"),
];

/// The end of an answer.
pub(crate) const END: u32 = 256 + MERGES.len() as u32;
/// All tokens: bytes, merges, the end, and the text of the same as an ordinary control token.
pub(crate) const COUNT: usize = 256 + MERGES.len() + 2;

/// The character that stands for a byte in vocabularies of this kind.
fn letter(byte: u8) -> char {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if plain(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !plain(other)).count();
    char::from_u32(256 + before as u32).expect("a character")
}

pub(crate) fn tokenizer() -> &'static Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| with(&[]))
}

/// One in which the tags of calls are control tokens: those, and the end of an answer.
pub(crate) fn with_tags() -> ([u32; 3], &'static Arc<Tokenizer>) {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| with(&["<tool_call>", "</tool_call>"]));
    ([END + 2, END + 3, END], tokenizer)
}

/// The tokens above, and these control tokens.
fn with(controls: &[&str]) -> Arc<Tokenizer> {
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    tokens.extend(MERGES.iter().map(|(one, other)| format!("{one}{other}")));
    let mut kinds = vec![1; tokens.len()];
    tokens.extend(["<|end|>".to_owned(), "<|start|>".to_owned()]);
    tokens.extend(controls.iter().map(|&text| text.to_owned()));
    kinds.resize(tokens.len(), 3);
    let merges = MERGES.map(|(one, other)| format!("{one} {other}"));
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strs("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strs("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.eos_token_id", END);
    let bytes = writer.finish();
    let gguf = Gguf::parse(&bytes).expect("a file");
    Arc::new(Tokenizer::from_gguf(&gguf).expect("a tokenizer"))
}

pub(crate) fn shared() -> &'static Arc<Vocabulary> {
    static VOCABULARY: OnceLock<Arc<Vocabulary>> = OnceLock::new();
    VOCABULARY.get_or_init(|| Arc::new(Vocabulary::new(tokenizer()).expect("a vocabulary")))
}

/// The bytes of a token of text; none of a control token.
pub(crate) fn bytes(id: u32) -> &'static [u8] {
    if id >= END {
        return &[];
    }
    tokenizer().token_bytes(id)
}
