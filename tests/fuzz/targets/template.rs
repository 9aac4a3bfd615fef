//! A chat template and a conversation: the source, a 0, then messages, each a role and a content that end with a 0.
//!
//! Rendering ends, in bounded time and memory, with a prompt of bounded size or an error.

use crate::draft::Draft;
use andon_engine::gguf::Gguf;
use andon_engine::tokenizer::{ChatInput, ChatMessage, ChatTemplate, Tokenizer};
use andon_os::heap;

/// Largest prompt, as the engine states it.
const PROMPT_BYTES_MAX: usize = 1 << 24;
/// A template may build a few texts of that size before it is stopped.
const HEAP_BYTES_MAX: usize = 1 << 30;

pub(crate) fn run(data: &[u8]) {
    heap::measure(HEAP_BYTES_MAX, data.len() as u64, || check(data));
}

fn check(data: &[u8]) {
    let mut parts = data.split(|&byte| byte == 0);
    let source = parts.next().unwrap_or_default();
    let mut draft = Draft::default();
    draft.bytes("tokenizer.ggml.model", b"gpt2");
    draft.bytes("tokenizer.ggml.pre", b"gpt-2");
    draft.texts("tokenizer.ggml.tokens", &["a", "b"]);
    draft.texts::<&str>("tokenizer.ggml.merges", &[]);
    draft.put("tokenizer.ggml.bos_token_id", 4, &0_u32.to_le_bytes());
    draft.bytes("tokenizer.chat_template", source);
    let file = draft.finish();
    let Ok(gguf) = Gguf::parse(&file) else {
        return;
    };
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a sound vocabulary");
    let Ok(Some(template)) = ChatTemplate::from_gguf(&gguf, &tokenizer) else {
        return;
    };
    let texts: Vec<String> = parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    let messages: Vec<ChatMessage> = texts
        .chunks(2)
        .take(16)
        .map(|pair| {
            let content = pair.get(1).cloned().unwrap_or_default();
            ChatMessage::new(pair[0].as_str(), content)
        })
        .collect();
    for generate in [true, false] {
        match template.render(&ChatInput {
            messages: &messages,
            add_generation_prompt: generate,
            ..ChatInput::default()
        }) {
            Ok(prompt) => assert!(prompt.len() <= PROMPT_BYTES_MAX),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
