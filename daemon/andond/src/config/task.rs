//! `[task.<name>]`: a question asked so often that only its fields are sent.

use andon_engine::grammar::{Constraint, parse_json};
use andon_policy::route::Policy;
use serde::{Deserialize, Serialize};

use super::Problems;
use super::gateway::is_name;
use crate::request::{AnswerFormat, Egress, Priority};
use crate::task::Task;

/// Longest instructions or system text, in bytes.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// `[task.<name>]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct TaskConfig {
    /// What the model is asked: a template over the input's fields.
    pub instructions: String,
    /// What the model is told about its part, before the instructions.
    pub system: Option<String>,
    /// JSON Schema of the answer.
    pub schema: Option<String>,
    /// The model that answers; unset, the one that is served.
    pub model: Option<String>,
    /// Priority class, unless the request says another.
    pub priority: Option<Priority>,
    /// Time to the answer, unless the request says another.
    pub deadline_ms: Option<u64>,
    /// How far a request may travel: `local` keeps all here, `any` those that do not say `local` themselves; unset, as they say.
    pub egress: Option<Egress>,
    /// Who answers, unless the request says so itself; unset, as the caller's rule or `[router]` says.
    pub policy: Option<Policy>,
    /// Whether a request may wait until upstream can be had, unless it says so itself; unset, as `[router]` says.
    pub wait: Option<bool>,
    /// Most tokens of the answer, unless the request says fewer or more.
    pub tokens_max: Option<usize>,
    /// Sampling temperature, unless the request says another; 0 is greedy.
    pub temperature: Option<f32>,
    /// Largest input, in bytes of JSON.
    pub input_bytes_max: usize,
}

impl Default for TaskConfig {
    fn default() -> Self {
        TaskConfig {
            instructions: String::new(),
            system: None,
            schema: None,
            model: None,
            priority: None,
            deadline_ms: None,
            egress: None,
            policy: None,
            wait: None,
            tokens_max: None,
            temperature: None,
            input_bytes_max: 16 * 1024,
        }
    }
}

impl TaskConfig {
    /// What answers are held to.
    ///
    /// # Errors
    /// What is wrong with the schema, and where in it.
    pub(crate) fn format(&self) -> Result<Option<AnswerFormat>, String> {
        let Some(text) = &self.schema else {
            return Ok(None);
        };
        let schema =
            parse_json(text.as_bytes()).map_err(|error| format!("is not JSON: {error}"))?;
        let constraint = Constraint::JsonSchema(schema);
        // Which bounds a schema gets changes nothing about whether it is taken.
        constraint.check(1024).map_err(|error| error.to_string())?;
        let param = "task";
        Ok(Some(AnswerFormat { constraint, param }))
    }

    pub(crate) fn check(&self, name: &str, problems: &mut Problems) {
        let key = |field: &str| format!("task.{name}.{field}");
        if !is_name(name) {
            problems.add(
                format!("task.{name}"),
                "is not a name: a task is one level of a topic",
                "use 1 to 64 letters, digits, '.', '-' or '_'",
            );
        }
        problems.require(
            !self.instructions.trim().is_empty(),
            &key("instructions"),
            "is not set",
            "write what the model is to do",
        );
        for (field, text) in [
            ("instructions", Some(&self.instructions)),
            ("system", self.system.as_ref()),
        ] {
            let Some(text) = text else { continue };
            if text.len() > TEXT_BYTES_MAX {
                let fix = format!("keep it to {TEXT_BYTES_MAX} bytes");
                problems.add(key(field), format!("has {} bytes", text.len()), fix);
            } else if let Err(error) = Task::check_template(text) {
                problems.add(key(field), error.to_string(), "mend the template");
            }
        }
        if let Err(error) = self.format() {
            problems.add(key("schema"), error, "mend the schema");
        }
        if let Some(model) = &self.model
            && (model.is_empty()
                || model.len() > crate::request::MODEL_NAME_BYTES_MAX
                || model.chars().any(char::is_control))
        {
            problems.add(
                key("model"),
                format!("{model:?} is no model's name"),
                "leave it out, or name that of [model] or one of `andonctl model ls`",
            );
        }
        if let Some(deadline) = self.deadline_ms {
            problems.within(&key("deadline-ms"), deadline, 1..=86_400_000);
        }
        if let Some(tokens) = self.tokens_max {
            problems.within(&key("tokens-max"), tokens, 1..=16_777_216);
        }
        if let Some(temperature) = self.temperature {
            problems.within(&key("temperature"), temperature, 0.0..=2.0);
        }
        problems.within(
            &key("input-bytes-max"),
            self.input_bytes_max,
            2..=1024 * 1024,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &TaskConfig) -> Vec<String> {
        let mut problems = Problems::default();
        config.check("explain", &mut problems);
        problems.iter().map(|problem| problem.key.clone()).collect()
    }

    #[test]
    fn a_task_needs_only_instructions() {
        let config = TaskConfig {
            instructions: "Explain {{ code }}.".to_owned(),
            model: Some("tiny".to_owned()),
            ..TaskConfig::default()
        };
        assert!(problems(&config).is_empty());
    }

    #[test]
    fn what_could_not_be_kept_is_refused() {
        let config = TaskConfig {
            instructions: "{{ code ".to_owned(),
            system: Some("{% if %}".to_owned()),
            schema: Some(r#"{"not": {}}"#.to_owned()),
            model: Some("no\nname".to_owned()),
            deadline_ms: Some(0),
            temperature: Some(9.0),
            ..TaskConfig::default()
        };
        let keys = [
            "instructions",
            "system",
            "schema",
            "model",
            "deadline-ms",
            "temperature",
        ];
        let keys: Vec<String> = keys
            .iter()
            .map(|key| format!("task.explain.{key}"))
            .collect();
        assert_eq!(problems(&config), keys);
    }
}
