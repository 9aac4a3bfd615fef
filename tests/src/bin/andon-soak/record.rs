//! The state file: a line that says what a part is about, a line for each look, and one if it failed.
//!
//! Invariant: a part of another program or model is never one of the parts.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use andon_tests::vitals::Vitals;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How much has been asked and answered since a part began.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Read to their end over HTTP.
    pub(crate) answered: u64,
    /// Given up by the client, ended by their deadline.
    pub(crate) left: u64,
    /// Refused, as wrong ones are.
    pub(crate) refused: u64,
    /// Connections that broke, answers that had no end.
    pub(crate) failed: u64,
    /// Requests the broker took.
    pub(crate) published: u64,
    /// Last words over the broker.
    pub(crate) ended: u64,
    /// Requests over the broker without a last word.
    pub(crate) open: u64,
}

impl Load {
    fn to_json(self) -> Value {
        json!({
            "answered": self.answered, "left": self.left, "refused": self.refused, "failed": self.failed,
            "published": self.published, "ended": self.ended, "open": self.open,
        })
    }

    fn of(value: &Value) -> Option<Load> {
        let number = |name: &str| value[name].as_u64();
        Some(Load {
            answered: number("answered")?,
            left: number("left")?,
            refused: number("refused")?,
            failed: number("failed")?,
            published: number("published")?,
            ended: number("ended")?,
            open: number("open")?,
        })
    }
}

/// A look at the daemon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Seconds since its part began.
    pub(crate) at: f64,
    pub(crate) vitals: Vitals,
    /// Bytes of the KV cache when it is full.
    pub(crate) kv_cache: u64,
    /// Tokens of prompts computed so far.
    pub(crate) tokens_read: u64,
    pub(crate) load: Load,
}

impl Look {
    fn of(value: &Value) -> Option<Look> {
        let number = |name: &str| value[name].as_u64();
        Some(Look {
            at: value["at"].as_f64()?,
            vitals: Vitals {
                resident: number("resident")?,
                anonymous: number("anonymous")?,
                descriptors: number("descriptors")?,
                threads: number("threads")?,
            },
            kv_cache: number("kv_cache")?,
            tokens_read: number("tokens_read")?,
            load: Load::of(&value["load"])?,
        })
    }
}

/// The looks at one daemon.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) number: usize,
    pub(crate) looks: Vec<Look>,
    /// Why it ended before its time.
    pub(crate) failure: Option<String>,
}

/// The state file.
pub(crate) struct State {
    file: File,
    subject: String,
    /// Parts of whatever subject.
    known: usize,
    parts: Vec<Part>,
}

/// The digests of a program and a model.
pub(crate) fn subject(program: &Path, model: &Path) -> Result<String> {
    let digest = |path: &Path| -> Result<String> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let digest = Sha256::digest(&bytes);
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    };
    Ok(format!("{} {}", digest(program)?, digest(model)?))
}

impl State {
    /// The parts about `subject` of the file at `path`, which is made if there is none.
    pub(crate) fn open(path: &Path, subject: &str) -> Result<State> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(path)?;
        let mut state = State {
            file: file.try_clone()?,
            subject: subject.to_owned(),
            known: 0,
            parts: Vec::new(),
        };
        let mut is_ours = false;
        for line in BufReader::new(file).lines() {
            // The last line of a part may be cut off.
            let Ok(value) = serde_json::from_str::<Value>(&line?) else {
                continue;
            };
            if let Some(subject) = value["subject"].as_str() {
                state.known += 1;
                is_ours = subject == state.subject;
                if is_ours {
                    state.push();
                }
            }
            let Some(part) = state.parts.last_mut().filter(|_| is_ours) else {
                continue;
            };
            if let Some(failure) = value["failure"].as_str() {
                part.failure = Some(failure.to_owned());
            }
            part.looks.extend(Look::of(&value));
        }
        Ok(state)
    }

    fn push(&mut self) {
        self.parts.push(Part {
            number: self.known,
            ..Part::default()
        });
    }

    /// Begins a part and says its number.
    pub(crate) fn begin(&mut self) -> Result<usize> {
        self.known += 1;
        self.push();
        // What was cut off must not run into the next line.
        let line = json!({ "part": self.known, "subject": self.subject });
        writeln!(self.file, "\n{line}")?;
        Ok(self.known)
    }

    /// Adds a look to the part that was begun.
    pub(crate) fn look(&mut self, look: &Look) -> Result<()> {
        let line = json!({
            "at": look.at, "kv_cache": look.kv_cache, "tokens_read": look.tokens_read,
            "resident": look.vitals.resident, "anonymous": look.vitals.anonymous,
            "descriptors": look.vitals.descriptors, "threads": look.vitals.threads,
            "load": look.load.to_json(),
        });
        writeln!(self.file, "{line}")?;
        if let Some(part) = self.parts.last_mut() {
            part.looks.push(*look);
        }
        Ok(())
    }

    /// Notes why the part that was begun has ended.
    pub(crate) fn failed(&mut self, why: &str) -> Result<()> {
        writeln!(self.file, "{}", json!({ "failure": why }))?;
        if let Some(part) = self.parts.last_mut() {
            part.failure = Some(why.to_owned());
        }
        Ok(())
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::{Load, Look, State};
    use andon_tests::vitals::Vitals;

    #[test]
    fn parts_of_other_programs_are_left_out_and_lines_that_are_cut_off_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let look = Look {
            at: 5.0,
            vitals: Vitals {
                resident: 4,
                anonymous: 3,
                descriptors: 2,
                threads: 1,
            },
            kv_cache: 6,
            tokens_read: 8,
            load: Load {
                answered: 7,
                ..Load::default()
            },
        };
        for (subject, looks) in [("one", 2), ("other", 3), ("one", 1)] {
            let mut state = State::open(&path, subject).unwrap();
            state.begin().unwrap();
            for _ in 0..looks {
                state.look(&look).unwrap();
            }
            if looks == 2 {
                state.failed("it ended").unwrap();
            }
            use std::io::Write as _;
            write!(state.file, "{{\"at\":").unwrap();
        }
        let state = State::open(&path, "one").unwrap();
        let found: Vec<_> = state
            .parts()
            .iter()
            .map(|part| (part.number, part.looks.len(), part.failure.as_deref()))
            .collect();
        assert_eq!(found, [(1, 2, Some("it ended")), (3, 1, None)]);
        assert_eq!(state.parts()[0].looks[0].load, look.load);
    }
}
