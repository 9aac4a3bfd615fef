//! Numbers that a run measures, for people and for the file of results.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Numbers by name, in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Figures {
    file: Option<PathBuf>,
    all: RefCell<Vec<(String, f64, &'static str)>>,
}

impl Figures {
    /// Those that are appended to a file, too: a line each.
    #[must_use]
    pub fn to_file(file: Option<&Path>) -> Figures {
        Figures {
            file: file.map(Path::to_path_buf),
            all: RefCell::default(),
        }
    }

    /// Notes a number.
    pub fn note(&self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        if let Some(file) = &self.file {
            let line = json!({ "name": name, "value": value, "unit": unit });
            // What cannot be written is printed all the same.
            let _ = append(file, &line);
        }
        self.all.borrow_mut().push((name, value, unit));
    }

    /// The number called `name`, of several the last.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        let all = self.all.borrow();
        let found = all.iter().rev().find(|(known, ..)| known == name);
        found.map(|&(_, value, _)| value)
    }
}

fn append(file: &Path, line: &Value) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(file, "{line}")
}

/// What a file of them has.
#[must_use]
pub fn read(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// The middle one.
///
/// # Panics
/// If there are none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
