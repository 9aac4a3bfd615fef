//! `[model]`: the file that answers, and the room it gets.

use std::path::PathBuf;

use andon_engine::LoadOptions;
use andon_engine::kv::KvType;
use andon_engine::tokenizer::{TemplateChoice, pre_tokenizers};
use andon_wire::limits;
use andon_wire::manifest::is_model_name;
use serde::{Deserialize, Serialize};

use super::Problems;

/// `[model]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelConfig {
    /// The GGUF file; unset, the model that is kept under `name`.
    pub path: PathBuf,
    /// The name clients ask for; unset, the file's name without `.gguf`. Without `path`, which of the models that
    /// are kept is served.
    pub name: Option<String>,
    /// How text is cut before its tokens are made, by name; unset, as the file says.
    pub pre_tokenizer: Option<String>,
    /// How conversations become prompts: a template known by name, or the path of one; unset, as the file says.
    pub chat_template: Option<String>,
    /// Longest prompt and answer together, in tokens; unset, what the model was made for.
    pub context_tokens_max: Option<usize>,
    /// Room of the KV cache over all requests, in tokens.
    pub kv_tokens_max: usize,
    /// How the KV cache keeps keys and values.
    pub kv_type: KvTypeName,
    /// Used where a request and its task do not say: 0 is greedy.
    pub temperature: f32,
    /// The same: tokens kept, 0 is all.
    pub top_k: u32,
    /// The same: probability mass kept.
    pub top_p: f32,
    /// The same: least probability relative to the most probable token.
    pub min_p: f32,
    /// The same: penalty of tokens seen lately, 1 is none.
    pub repeat_penalty: f32,
}

/// `kv-type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvTypeName {
    /// In f16.
    F16,
    /// In 8 bits.
    Q8,
}

impl From<KvTypeName> for KvType {
    fn from(name: KvTypeName) -> KvType {
        match name {
            KvTypeName::F16 => KvType::F16,
            KvTypeName::Q8 => KvType::Q8,
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            path: PathBuf::new(),
            name: None,
            pre_tokenizer: None,
            chat_template: None,
            context_tokens_max: None,
            kv_tokens_max: 16_384,
            kv_type: KvTypeName::F16,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
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

    /// Whether one of the models that the daemon keeps is served, rather than a file by its path.
    pub fn is_kept(&self) -> bool {
        self.path.as_os_str().is_empty()
    }

    /// The chat template to use. One that does not parse is a problem, which [`Self::check`] reports.
    pub fn template_choice(&self) -> Option<TemplateChoice> {
        let text = self.chat_template.as_deref()?;
        TemplateChoice::parse(text).ok()
    }

    /// What the engine is told beyond the file.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions::default()
            .with_pre_tokenizer(self.pre_tokenizer.clone())
            .with_chat_template(self.template_choice())
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        match &self.name {
            None => problems.require(
                !self.is_kept(),
                "model.path",
                "is not set",
                "give the path of a GGUF file, or a name of `andonctl model ls`",
            ),
            Some(name) => problems.require(
                !self.is_kept() || is_model_name(name),
                "model.name",
                "is not the name of a model that is kept",
                "use a name of `andonctl model ls`, or give a path",
            ),
        }
        let name = self.name();
        problems.require(
            !name.is_empty()
                && name.len() <= crate::request::MODEL_NAME_BYTES_MAX
                && !name.chars().any(char::is_control),
            "model.name",
            "is not a name",
            "use 1 to 96 bytes without control characters",
        );
        if let Some(name) = &self.pre_tokenizer {
            let known = pre_tokenizers();
            if !known.contains(&name.as_str()) {
                problems.add(
                    "model.pre-tokenizer",
                    format!("there is no pre-tokenizer {name:?}"),
                    format!("leave it out, or name one of {}", known.join(", ")),
                );
            }
        }
        if let Some(Err(error)) = self.chat_template.as_deref().map(TemplateChoice::parse) {
            problems.add(
                "model.chat-template",
                error.to_string(),
                "leave it out to take the one of the model's file",
            );
        }
        if let Some(tokens) = self.context_tokens_max {
            problems.within("model.context-tokens-max", tokens, 16..=16_777_216);
        }
        problems.within("model.kv-tokens-max", self.kv_tokens_max, 16..=16_777_216);
        problems.within(
            "model.temperature",
            self.temperature,
            0.0..=limits::TEMPERATURE_MAX,
        );
        problems.within("model.top-k", self.top_k, 0..=limits::TOP_K_MAX);
        problems.within("model.top-p", self.top_p, 0.0..=1.0);
        problems.within("model.min-p", self.min_p, 0.0..=1.0);
        problems.within(
            "model.repeat-penalty",
            self.repeat_penalty,
            0.01..=limits::REPEAT_PENALTY_MAX,
        );
    }
}
