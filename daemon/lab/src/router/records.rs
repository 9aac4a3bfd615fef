//! What the estimator learns from: JSON lines with a question and whether an answer to it did.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Deserializer};

/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Most records of all files.
const RECORDS_MAX: usize = 1 << 20;

/// One question and how the local answer to it did. Other fields of a line are passed over, so that what `router label`
/// writes is read as it is.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Record {
    /// What is asked, as a client asks it.
    pub(super) prompt: String,
    /// How far the answer did, from 0 to 1; `true` and `false` are 1 and 0.
    #[serde(deserialize_with = "share")]
    pub(super) label: f64,
    /// How much it counts.
    #[serde(default = "one")]
    pub(super) weight: f64,
    /// Whose answer it was.
    #[serde(default = "unnamed")]
    pub(super) model: String,
    /// What it is a part of: figures are told for each.
    #[serde(default)]
    pub(super) set: String,
    /// What kind of question it is, within its set.
    #[serde(default)]
    pub(super) task: String,
    /// How far a stronger model's answer did.
    #[serde(default, deserialize_with = "maybe_share")]
    pub(super) strong: Option<f64>,
}

fn one() -> f64 {
    1.0
}

fn unnamed() -> String {
    "local".to_owned()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Share {
    Whether(bool),
    Part(f64),
}

impl From<Share> for f64 {
    fn from(share: Share) -> f64 {
        match share {
            Share::Whether(whether) => f64::from(u8::from(whether)),
            Share::Part(part) => part,
        }
    }
}

fn share<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Share::deserialize(from).map(f64::from)
}

fn maybe_share<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::<Share>::deserialize(from)?.map(f64::from))
}

impl Record {
    fn check(&self) -> Result<()> {
        ensure!(!self.prompt.trim().is_empty(), "the prompt is empty");
        ensure!(
            (0.0..=1.0).contains(&self.label),
            "the label is {}",
            self.label
        );
        ensure!(
            self.weight > 0.0 && self.weight <= 1e6,
            "the weight is {}",
            self.weight
        );
        ensure!(!self.model.is_empty(), "the model's name is empty");
        if let Some(strong) = self.strong {
            ensure!((0.0..=1.0).contains(&strong), "`strong` is {strong}");
        }
        Ok(())
    }
}

/// The records of all these files, in order. What is wrong in one is told with its line.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for path in paths {
        read_file(path, &mut records)
            .with_context(|| format!("cannot use `{}`", path.display()))?;
    }
    ensure!(!records.is_empty(), "there is no record");
    Ok(records)
}

fn read_file(path: &Path, records: &mut Vec<Record>) -> Result<()> {
    let mut lines = BufReader::new(File::open(path)?);
    let mut line = String::new();
    for number in 1_usize.. {
        line.clear();
        let bytes = (&mut lines).take(LINE_BYTES_MAX).read_line(&mut line)?;
        if bytes == 0 {
            break;
        }
        ensure!(
            line.ends_with('\n') || (bytes as u64) < LINE_BYTES_MAX,
            "line {number} has more than {LINE_BYTES_MAX} bytes"
        );
        if line.trim().is_empty() {
            continue;
        }
        ensure!(
            records.len() < RECORDS_MAX,
            "more than {RECORDS_MAX} records"
        );
        let record: Record =
            serde_json::from_str(&line).with_context(|| format!("line {number}"))?;
        record.check().with_context(|| format!("line {number}"))?;
        records.push(record);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &str) -> Result<Vec<Record>> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), lines)?;
        read(&[file.path().to_owned()])
    }

    #[test]
    fn lines_are_records() {
        let lines = "{\"prompt\":\"a\",\"label\":true}\n\n\
            {\"prompt\":\"b\",\"label\":0.5,\"weight\":2,\"model\":\"m\",\"task\":\"t\",\"strong\":false,\"id\":7}";
        let records = of(lines).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].label, records[0].weight), (1.0, 1.0));
        assert_eq!((records[1].label, records[1].strong), (0.5, Some(0.0)));
        assert_eq!(records[1].model, "m");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (wrong, why) in [
            ("{\"prompt\":\"a\",\"label\":2}", "the label is 2"),
            ("{\"prompt\":\" \",\"label\":1}", "the prompt is empty"),
            (
                "{\"prompt\":\"a\",\"label\":1,\"weight\":0}",
                "the weight is 0",
            ),
            (
                "{\"prompt\":\"a\",\"label\":1,\"strong\":-1}",
                "`strong` is -1",
            ),
            ("{\"prompt\":\"a\"}", "label"),
            ("[]", "line 2"),
        ] {
            let error = of(&format!("{{\"prompt\":\"x\",\"label\":1}}\n{wrong}\n")).unwrap_err();
            let told = format!("{error:#}");
            assert!(told.contains("line 2") && told.contains(why), "{told}");
        }
        assert!(of("").is_err());
    }
}
