//! Templates for models whose files have none.
//!
//! Each writes the layout that a family of models was tuned with; which one, the special tokens of the vocabulary say.

use super::super::Tokenizer;

/// A layout of prompts that is known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NamedTemplate {
    /// `<|im_start|>role`, a line end, the content, `<|im_end|>`.
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|>`, an empty line, the content, `<|eot_id|>`.
    Llama3,
    /// `<start_of_turn>user` or `model`, a line end, the content, `<end_of_turn>`. What the system says begins the first
    /// turn if that is the user's, and is a turn of the user else.
    Gemma,
    /// `[INST] content[/INST]`. What the system says begins the first instruction, or is one if none comes first.
    Mistral,
    /// `<|role|>`, a line end, the content, `<|end|>`.
    Phi3,
    /// `User: content`, a line for each message: for models that were never tuned for conversations.
    Plain,
}

/// Tells text from a list of parts.
const TEXT: &str = "{%- macro text(content) -%}\
    {%- if content is string -%}{{ content }}\
    {%- elif content is not none -%}\
    {%- for part in content -%}{%- if part.text is defined -%}{{ part.text }}{%- endif -%}{%- endfor -%}\
    {%- endif -%}\
    {%- endmacro -%}";

/// What comes first from the system, for layouts without a turn of its own; `turns` are the other messages.
const SYSTEM: &str = "{%- set turns = messages -%}{%- set system = '' -%}\
    {%- if messages and messages[0].role in ['system', 'developer'] -%}\
    {%- set turns = messages[1:] -%}{%- set system = text(messages[0].content) | trim ~ '\n\n' -%}\
    {%- endif -%}";

impl NamedTemplate {
    /// Every one, the most telling tokens first.
    pub const ALL: [NamedTemplate; 6] = [
        NamedTemplate::ChatMl,
        NamedTemplate::Llama3,
        NamedTemplate::Gemma,
        NamedTemplate::Phi3,
        NamedTemplate::Mistral,
        NamedTemplate::Plain,
    ];

    /// Its name in configurations and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            NamedTemplate::ChatMl => "chatml",
            NamedTemplate::Llama3 => "llama3",
            NamedTemplate::Gemma => "gemma",
            NamedTemplate::Mistral => "mistral",
            NamedTemplate::Phi3 => "phi3",
            NamedTemplate::Plain => "plain",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<NamedTemplate> {
        NamedTemplate::ALL
            .into_iter()
            .find(|template| template.name() == name)
    }

    /// The one whose special tokens a vocabulary has; plain if it has none of them.
    #[must_use]
    pub fn of_vocabulary(tokenizer: &Tokenizer) -> NamedTemplate {
        let has = |text: &&str| tokenizer.id_of(text).is_some();
        NamedTemplate::ALL
            .into_iter()
            .find(|template| template.tokens().iter().all(has))
            .unwrap_or(NamedTemplate::Plain)
    }

    const fn tokens(self) -> &'static [&'static str] {
        match self {
            NamedTemplate::ChatMl => &["<|im_start|>", "<|im_end|>"],
            NamedTemplate::Llama3 => &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            NamedTemplate::Gemma => &["<start_of_turn>", "<end_of_turn>"],
            NamedTemplate::Mistral => &["[INST]", "[/INST]"],
            NamedTemplate::Phi3 => &["<|user|>", "<|assistant|>", "<|end|>"],
            NamedTemplate::Plain => &[],
        }
    }

    pub(super) fn source(self) -> String {
        let turns = match self {
            NamedTemplate::ChatMl => {
                "{{- bos_token -}}{%- for message in messages -%}\
                {{- '<|im_start|>' + message.role + '\n' + text(message.content) + '<|im_end|>\n' -}}\
                {%- endfor -%}\
                {%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
            }
            NamedTemplate::Llama3 => {
                "{{- bos_token -}}{%- for message in messages -%}\
                {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' \
                + text(message.content) | trim + '<|eot_id|>' -}}\
                {%- endfor -%}\
                {%- if add_generation_prompt -%}\
                {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
            }
            NamedTemplate::Gemma => {
                "{{- bos_token -}}\
                {%- if system | trim and (not turns or turns[0].role != 'user') -%}\
                {{- '<start_of_turn>user\n' + system | trim + '<end_of_turn>\n' -}}{%- set system = '' -%}\
                {%- endif -%}\
                {%- for message in turns -%}\
                {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' \
                + (system if loop.first else '') + text(message.content) | trim + '<end_of_turn>\n' -}}\
                {%- endfor -%}\
                {%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
            }
            NamedTemplate::Mistral => {
                "{{- bos_token -}}\
                {%- if system | trim and (not turns or turns[0].role != 'user') -%}\
                {{- '[INST] ' + system | trim + '[/INST]' -}}{%- set system = '' -%}\
                {%- endif -%}\
                {%- for message in turns -%}\
                {%- if message.role == 'assistant' -%}{{- ' ' + text(message.content) | trim + eos_token -}}\
                {%- else -%}\
                {{- '[INST] ' + (system if loop.first else '') + text(message.content) | trim + '[/INST]' -}}\
                {%- endif -%}\
                {%- endfor -%}"
            }
            NamedTemplate::Phi3 => {
                "{{- bos_token -}}{%- for message in messages -%}\
                {{- '<|' + message.role + '|>\n' + text(message.content) + '<|end|>\n' -}}\
                {%- endfor -%}\
                {%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
            }
            NamedTemplate::Plain => {
                "{{- bos_token -}}{{- system -}}{%- for message in turns -%}\
                {{- message.role | capitalize + ': ' + text(message.content) | trim + '\n' -}}\
                {%- endfor -%}\
                {%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
            }
        };
        [TEXT, SYSTEM, turns].concat()
    }
}
