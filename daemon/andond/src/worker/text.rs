//! What front ends ask of the model without computing: text to tokens and back, and the prompt of a conversation.
//!
//! These calls take time that grows with the text; they are for threads that may block.

use std::sync::Arc;
use std::time::Duration;

use andon_engine::Model;
use andon_engine::tokenizer::Special;
use serde_json::{Map, Value};

use super::{WorkerHandle, tools};
use crate::fault::{Fault, FaultCode};
use crate::request::Message;

/// Longest text made of tokens, in bytes: of a few bytes in a body, a token may have any number.
const TEXT_BYTES_MAX: usize = 16 << 20;

impl WorkerHandle {
    /// The served model.
    ///
    /// # Errors
    /// While it is being loaded.
    pub fn model(&self) -> Result<Arc<Model>, Fault> {
        self.shared.model.get().cloned().ok_or_else(|| {
            Fault::new(FaultCode::ModelUnavailable, "the model is being loaded")
                .retry_after(Duration::from_secs(1))
        })
    }
}

/// The tokens of a text: with `add_special` those of a whole prompt, with `parse_special` taking the names of control
/// tokens in it for those tokens.
pub fn tokenize(model: &Model, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
    let special = if parse_special {
        Special::Parse
    } else {
        Special::Plain
    };
    if add_special {
        model.tokenizer().encode_prompt(text, special)
    } else {
        model.tokenizer().encode(text, special)
    }
}

/// The text of tokens.
///
/// # Errors
/// If one is not in the vocabulary, or the text is too long.
pub fn detokenize(model: &Model, tokens: &[u32]) -> Result<String, Fault> {
    let count = model.info().vocabulary_count;
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= count) {
        let message = format!("token {id} is not in the vocabulary of {count}");
        return Err(Fault::invalid("tokens", message));
    }
    let lengths = tokens
        .iter()
        .map(|&id| model.tokenizer().token_bytes(id).len());
    if lengths.fold(0, usize::saturating_add) > TEXT_BYTES_MAX {
        let message = format!("the text of these tokens has more than {TEXT_BYTES_MAX} bytes");
        return Err(Fault {
            param: Some("tokens"),
            ..Fault::new(FaultCode::TooLarge, message)
        });
    }
    Ok(model.tokenizer().decode(tokens))
}

/// The prompt that the model's chat template makes of a conversation, whose answer may call `tools` if there are any.
///
/// # Errors
/// If the model has no template, or it refuses the conversation.
pub fn apply_template(
    model: &Model,
    messages: Vec<Message>,
    tools: &[Value],
    variables: &Map<String, Value>,
) -> Result<String, Fault> {
    tools::render(model, messages, tools, !tools.is_empty(), variables)
}
