//! The prompts that are answered.

use std::path::Path;
use std::sync::Arc;

use andon_engine::Model;
use andon_engine::grammar::{Constraint, Grammar};
use andon_engine::tokenizer::Special;
use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Arguments;
use crate::answer::question;

/// A line of the file; other fields are of no interest here.
#[derive(Debug, Deserialize)]
pub(crate) struct Line {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    turns: Vec<String>,
    #[cfg(feature = "draft")]
    #[serde(default)]
    pub(crate) template: Option<String>,
    #[serde(alias = "category")]
    pub(crate) task: Option<String>,
    #[serde(default)]
    json_schema: Option<serde_json::Value>,
}

impl Line {
    /// The lines of a file that are not empty, each with its number, its place for errors, and its text.
    pub(crate) fn all<'a>(
        path: &'a Path,
        text: &'a str,
    ) -> impl Iterator<Item = Result<(usize, String, &'a str, Line)>> {
        let lines = (1..).zip(text.lines());
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        lines.map(move |(number, line)| {
            let place = format!("{}:{number}", path.display());
            let read = serde_json::from_str(line).with_context(|| place.clone())?;
            Ok((number, place, line, read))
        })
    }

    /// What is asked.
    pub(crate) fn question(&self) -> Result<&str> {
        let question = self.prompt.as_ref().or_else(|| self.turns.first());
        Ok(question.context("neither `prompt` nor `turns`")?)
    }
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
    for line in Line::all(&arguments.prompts, &text) {
        let (number, place, _, record) = line?;
        let place = || place.clone();
        if arguments.constrained && record.json_schema.is_none() {
            continue;
        }
        let group = record.task.clone().unwrap_or_else(|| "all".to_owned());
        if arguments.group.as_ref().is_some_and(|only| *only != group) {
            continue;
        }
        let tokens = tokens_of(model, record.question().with_context(place)?)?;
        if tokens.len() <= arguments.prompt_tokens_max {
            let free = arguments.unconstrained || arguments.simulate.is_some();
            let schema = record.json_schema.filter(|_| !free);
            let grammar = schema.map(|schema| grammar(arguments, model, schema));
            prompts.push(Prompt {
                id: record.id.unwrap_or_else(|| number.to_string()),
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

/// The prompt of a question, as the model's chat template has it if there is one.
pub(crate) fn tokens_of(model: &Model, text: &str) -> Result<Vec<u32>> {
    let plain = || model.tokenizer().encode_prompt(text, Special::Parse);
    Ok(question(model, text)?.unwrap_or_else(plain))
}
