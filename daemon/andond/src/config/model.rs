//! `[model]`: the file that answers, and the room it gets.

use std::path::PathBuf;

use serde::Deserialize;

use super::Problems;

/// `[model]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelConfig {
    /// The GGUF file.
    pub path: PathBuf,
    /// The name clients ask for; unset, the file's name without `.gguf`.
    pub name: Option<String>,
    /// Longest prompt and answer together, in tokens; unset, what the model was made for.
    pub context_tokens_max: Option<usize>,
    /// Room of the KV cache over all requests, in tokens.
    pub kv_tokens_max: usize,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            path: PathBuf::new(),
            name: None,
            context_tokens_max: None,
            kv_tokens_max: 16_384,
        }
    }
}

impl ModelConfig {
    /// The name clients see.
    pub fn name(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => self.path.file_stem().map_or_else(
                || "model".to_owned(),
                |stem| stem.to_string_lossy().into_owned(),
            ),
        }
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            !self.path.as_os_str().is_empty(),
            "model.path",
            "is not set",
            "give the path of a GGUF file",
        );
        let name = self.name();
        problems.require(
            !name.is_empty()
                && name.len() <= crate::request::NAME_BYTES_MAX
                && !name.chars().any(char::is_control),
            "model.name",
            "is not a name",
            "use 1 to 128 printable bytes",
        );
        if let Some(tokens) = self.context_tokens_max {
            problems.within("model.context-tokens-max", tokens, 16..=16_777_216);
        }
        problems.within("model.kv-tokens-max", self.kv_tokens_max, 16..=16_777_216);
    }
}
