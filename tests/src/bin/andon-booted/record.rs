//! What was found, a line of JSON each, on the disk before the next check begins: the machine may lose its power.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The results of one phase.
pub(crate) struct Record {
    file: File,
}

impl Record {
    /// Begins the file of a phase.
    pub(crate) fn open(folder: &Path, phase: &str) -> Result<Record> {
        let path = folder.join(format!("{phase}.jsonl"));
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Record { file })
    }

    /// Says which checks will be made.
    pub(crate) fn plan(&mut self, names: impl Iterator<Item = &'static str>) -> Result<()> {
        let names: Vec<&str> = names.collect();
        self.line(&json!({ "planned": names }))
    }

    /// Says how a check ended.
    pub(crate) fn outcome(
        &mut self,
        name: &str,
        took: Duration,
        outcome: &Result<String>,
    ) -> Result<()> {
        let (passed, note) = match outcome {
            Ok(note) => (true, note.clone()),
            Err(error) => (false, format!("{error:#}")),
        };
        let seconds = took.as_secs_f64();
        self.line(&json!({ "check": name, "passed": passed, "seconds": seconds, "note": note }))
    }

    fn line(&mut self, value: &Value) -> Result<()> {
        writeln!(self.file, "{value}")?;
        self.file.sync_all()?;
        Ok(())
    }
}
