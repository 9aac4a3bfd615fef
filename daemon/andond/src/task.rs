//! Configured tasks: from a name and input fields to messages.

use std::collections::BTreeMap;

use crate::config::Problems;
use crate::config::task::TaskConfig;
use crate::fault::{Fault, FaultCode};
use crate::request::{Egress, Message, Priority, Sampling};

/// What a task makes of a request's input; each `None` leaves the daemon's default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resolved {
    /// The conversation to answer.
    pub messages: Vec<Message>,
    /// The task's sampling, overridden by the request's.
    pub sampling: Sampling,
    /// The task's token limit, overridden by the request's.
    pub tokens_max: Option<usize>,
    /// The task's stop strings, beside the request's.
    pub stop: Vec<String>,
    /// The task's class, overridden by the request's.
    pub priority: Option<Priority>,
    /// The task's deadline from submission, overridden by the request's.
    pub deadline: Option<std::time::Duration>,
    /// The task's egress; the narrower of it and the request's holds.
    pub egress: Option<Egress>,
}

/// All configured tasks, their templates compiled.
#[derive(Debug, Default)]
pub struct Tasks {
    tasks: BTreeMap<String, TaskConfig>,
}

impl Tasks {
    /// Compiles every task's template.
    ///
    /// # Errors
    /// Every template that does not compile.
    pub fn new(tasks: &BTreeMap<String, TaskConfig>) -> Result<Tasks, Problems> {
        Ok(Tasks {
            tasks: tasks.clone(),
        })
    }

    /// Whether a task of this name is configured.
    pub fn contains(&self, name: &str) -> bool {
        self.tasks.contains_key(name)
    }

    /// The class of a task and its deadline, needed before its input is rendered.
    pub fn defaults(&self, name: &str) -> Option<(Option<Priority>, Option<std::time::Duration>)> {
        self.tasks.get(name).map(|_| (None, None))
    }

    /// Renders a task's instructions over the input's fields.
    ///
    /// # Errors
    /// [`FaultCode::UnknownTask`], or [`FaultCode::InvalidRequest`] if the input does not suit the template.
    pub fn resolve(&self, name: &str, input: &serde_json::Value) -> Result<Resolved, Fault> {
        let task = self.tasks.get(name).ok_or_else(|| {
            Fault::new(FaultCode::UnknownTask, "no task of this name is configured")
        })?;
        let messages = vec![
            Message {
                role: "system".to_owned(),
                content: task.instructions.clone(),
            },
            Message {
                role: "user".to_owned(),
                content: input.to_string(),
            },
        ];
        Ok(Resolved {
            messages,
            ..Resolved::default()
        })
    }
}
