//! The prompts that are answered.

use std::sync::Arc;

use andon_engine::Model;
use andon_engine::grammar::{Constraint, Grammar};
use andon_engine::tokenizer::{ChatInput, ChatMessage, Special};
use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Arguments;

/// A line of the file; other fields are of no interest here.
#[derive(Debug, Deserialize)]
struct Record {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    turns: Vec<String>,
    #[serde(alias = "category")]
    task: Option<String>,
    #[serde(default)]
    json_schema: Option<serde_json::Value>,
}

/// One to be answered.
pub(super) struct Prompt {
    pub(super) id: String,
    pub(super) group: String,
    pub(super) tokens: Vec<u32>,
    /// What the answer is held to.
    pub(super) grammar: Option<Arc<Grammar>>,
}

/// The prompts of the file, as the model's chat template has them.
pub(super) fn read(arguments: &Arguments, model: &Model) -> Result<Vec<Prompt>> {
    let text = crate::read_text(&arguments.prompts)?;
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{}:{}", arguments.prompts.display(), number + 1);
        let record: Record = serde_json::from_str(line).with_context(place)?;
        if arguments.constrained && record.json_schema.is_none() {
            continue;
        }
        let group = record.task.unwrap_or_else(|| "all".to_owned());
        if arguments.group.as_ref().is_some_and(|only| *only != group) {
            continue;
        }
        let text = record.prompt.or_else(|| record.turns.into_iter().next());
        let text = text.with_context(|| format!("{}: neither `prompt` nor `turns`", place()))?;
        let tokens = tokens_of(model, &text)?;
        if tokens.len() <= arguments.prompt_tokens_max {
            let free = arguments.unconstrained || arguments.simulate.is_some();
            let schema = record.json_schema.filter(|_| !free);
            let grammar = schema.map(|schema| grammar(arguments, model, schema));
            prompts.push(Prompt {
                id: record.id.unwrap_or_else(|| (number + 1).to_string()),
                group,
                tokens,
                grammar: grammar.transpose().with_context(place)?,
            });
        }
    }
    if let Some(limit) = arguments.limit.filter(|&limit| limit < prompts.len()) {
        let count = prompts.len();
        let mut index = 0;
        prompts.retain(|_| {
            index += 1;
            // Every `count / limit`th, without rounding away.
            index * limit / count > (index - 1) * limit / count
        });
    }
    Ok(prompts)
}

fn grammar(
    arguments: &Arguments,
    model: &Model,
    schema: serde_json::Value,
) -> Result<Arc<Grammar>> {
    let vocabulary = model.grammar_vocabulary()?;
    let constraint = Constraint::JsonSchema(schema);
    let grammar = Grammar::compile(vocabulary, &constraint, arguments.generate)?;
    Ok(Arc::new(grammar))
}

/// A message to the model, as its chat template has it.
pub(crate) fn tokens_of(model: &Model, text: &str) -> Result<Vec<u32>> {
    let tokenizer = model.tokenizer();
    let Some(template) = model.chat_template() else {
        return Ok(tokenizer.encode_prompt(text, Special::Parse));
    };
    let message = ChatMessage::new("user", text);
    let input = ChatInput {
        messages: &[message],
        add_generation_prompt: true,
        ..ChatInput::default()
    };
    Ok(tokenizer.encode(&template.render(&input)?, Special::Parse))
}
