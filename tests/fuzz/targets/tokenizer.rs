//! A vocabulary and a text: `KIND FLAGS TOKENS MERGES TEXT`, the last three lists, ended by a 0xff each, of entries that
//! end with a 0xfe.
//!
//! Whatever the vocabulary, tokens are of it, and the same text gives the same tokens. With a token for every byte, a
//! byte-level vocabulary gives the text back, whole and in pieces.

use crate::draft::Draft;
use andon_engine::gguf::Gguf;
use andon_engine::tokenizer::{Special, StreamDecoder, Tokenizer};
use andon_os::heap;

const KINDS: [&str; 6] = ["gpt2", "llama", "bert", "t5", "rwkv", "plamo2"];
const PRE: [&str; 8] = [
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "smollm",
    "deepseek-llm",
    "tekken",
    "gpt-4o",
    "default",
];
/// Of a small input; special tokens and tables take most of it.
const HEAP_BYTES_MAX: usize = 64 << 20;

pub(crate) fn run(data: &[u8]) {
    heap::measure(HEAP_BYTES_MAX, data.len() as u64, || check(data));
}

fn check(data: &[u8]) {
    let [kind, flags, rest @ ..] = data else {
        return;
    };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let mut parts = rest.splitn(3, |&byte| byte == 0xff);
    let mut list = || -> Vec<Vec<u8>> {
        let part = parts.next().unwrap_or_default();
        part.split(|&byte| byte == 0xfe)
            .map(<[u8]>::to_vec)
            .collect()
    };
    let (mut tokens, merges, text) = (list(), list(), list().concat());
    let Ok(text) = std::str::from_utf8(&text) else {
        return;
    };
    let every_byte = flags & 1 != 0;
    if every_byte {
        tokens.extend((0..=u8::MAX).map(|byte| spelled(kind, byte)));
        // A token that was there is not added again.
        let mut seen = std::collections::HashSet::new();
        tokens.retain(|token| seen.insert(token.clone()));
    }
    let mut draft = Draft::default();
    draft.bytes("tokenizer.ggml.model", kind.as_bytes());
    draft.bytes(
        "tokenizer.ggml.pre",
        PRE[usize::from(flags >> 5)].as_bytes(),
    );
    draft.texts("tokenizer.ggml.tokens", &tokens);
    if flags & 2 != 0 {
        // The first tokens are special, one of each kind.
        let kinds: Vec<u8> = (0..tokens.len())
            .flat_map(|index| [3_i32, 4, 2, 1, 6][index.min(4)].to_le_bytes())
            .collect();
        draft.array("tokenizer.ggml.token_type", 5, tokens.len(), &kinds);
    }
    let scores: Vec<u8> = (0..tokens.len())
        .flat_map(|index| (index as f32 * 0.37).sin().to_le_bytes())
        .collect();
    draft.array("tokenizer.ggml.scores", 6, tokens.len(), &scores);
    let merges = if merges == [b""] { Vec::new() } else { merges };
    draft.texts("tokenizer.ggml.merges", &merges);
    draft.put("tokenizer.ggml.bos_token_id", 4, &0_u32.to_le_bytes());
    draft.put("tokenizer.ggml.eos_token_id", 4, &1_u32.to_le_bytes());
    draft.put("tokenizer.ggml.unknown_token_id", 4, &2_u32.to_le_bytes());
    draft.put("tokenizer.ggml.add_space_prefix", 7, &[flags >> 2 & 1]);
    let file = draft.finish();
    // The token of a byte that is special stands for its spelling and not for the byte.
    let complete = every_byte
        && (flags & 2 == 0
            || !(0..=u8::MAX).any(|byte| {
                tokens
                    .iter()
                    .take(3)
                    .any(|token| *token == spelled(kind, byte))
            }));
    let Ok(gguf) = Gguf::parse(&file) else {
        return;
    };
    let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) else {
        return;
    };
    for special in [Special::Parse, Special::Plain] {
        let ids = tokenizer.encode(text, special);
        assert_eq!(ids, tokenizer.encode(text, special));
        assert!(
            ids.iter()
                .all(|&id| (id as usize) < tokenizer.vocabulary_count())
        );
        tokenizer.encode_prompt(text, special);
        tokenizer.decode(&ids);
        if kind == "gpt2" && complete {
            let bytes: Vec<u8> = ids
                .iter()
                .flat_map(|&id| tokenizer.token_bytes(id))
                .copied()
                .collect();
            assert_eq!(
                bytes,
                text.as_bytes(),
                "a byte-level vocabulary loses nothing"
            );
            let mut decoder = StreamDecoder::new(false);
            let mut pieces: String = ids
                .iter()
                .map(|&id| decoder.push(&tokenizer, id).to_owned())
                .collect();
            pieces.push_str(decoder.finish());
            assert_eq!(pieces, text, "nor does it in pieces");
        }
    }
}

/// How a vocabulary of this kind writes the token of a byte.
fn spelled(kind: &str, byte: u8) -> Vec<u8> {
    match kind {
        "llama" | "t5" => format!("<0x{byte:02X}>").into_bytes(),
        "rwkv" => format!("\\x{byte:02x}").into_bytes(),
        _ => {
            let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let moved = (0..byte).filter(|&before| !visible(before)).count() as u32;
            let shown = if visible(byte) {
                u32::from(byte)
            } else {
                256 + moved
            };
            char::from_u32(shown)
                .unwrap_or_default()
                .to_string()
                .into_bytes()
        }
    }
}
