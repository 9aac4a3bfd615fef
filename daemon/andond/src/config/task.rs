//! `[task.<name>]`: a question asked so often that only its fields are sent.

use serde::Deserialize;

use super::Problems;

/// `[task.<name>]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct TaskConfig {
    /// Template over the input's fields.
    pub instructions: String,
}

impl TaskConfig {
    pub(super) fn check(&self, name: &str, problems: &mut Problems) {
        problems.require(
            !self.instructions.is_empty(),
            &format!("task.{name}.instructions"),
            "is not set",
            "write what the model is to do",
        );
    }
}
