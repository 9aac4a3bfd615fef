//! What a run found, for people as it goes on, and as one file at its end; that is written after each step, too, so that a run
//! that is ended from outside leaves what it had.

use crate::children::{Done, Ended};
use andon_cuda_check::figures;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// The name of the file.
const FILE: &str = "cuda-check.json";

pub(crate) struct Report {
    file: Option<PathBuf>,
    began: Instant,
    device: String,
    seed: u64,
    sections: Vec<Section>,
    /// What all steps measured.
    pub(crate) figures: Vec<Value>,
}

struct Section {
    name: &'static str,
    began: Instant,
    seconds: f64,
    skipped: Option<String>,
    steps: Vec<Value>,
    failed: Vec<String>,
}

impl Report {
    pub(crate) fn new(folder: Option<&Path>, seed: u64) -> Result<Report> {
        if let Some(folder) = folder {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Report {
            file: folder.map(|folder| folder.join(FILE)),
            began: Instant::now(),
            device: String::new(),
            seed,
            sections: Vec::new(),
            figures: Vec::new(),
        })
    }

    pub(crate) fn device(&mut self, device: &str) {
        println!("{device}");
        device.clone_into(&mut self.device);
    }

    pub(crate) fn begin(&mut self, name: &'static str) {
        println!("== {name}");
        self.sections.push(Section {
            name,
            began: Instant::now(),
            seconds: 0.0,
            skipped: None,
            steps: Vec::new(),
            failed: Vec::new(),
        });
    }

    /// The section that is under way has nothing to run, or not all.
    pub(crate) fn skip(&mut self, why: &str) {
        println!("skipped: {why}");
        if let Some(section) = self.sections.last_mut() {
            section.skipped = Some(why.to_owned());
        }
    }

    /// A step of the section that is under way. `fails` unless it was to fail.
    pub(crate) fn step(&mut self, done: &Done, fails: bool) {
        let outcome = match done.ended {
            Ended::With(Some(0)) => "passed",
            Ended::Unfinished => "not finished",
            Ended::With(_) => "failed",
        };
        if done.is_good() {
            print!("{}", done.said);
        } else {
            println!("{}: {outcome}", done.name);
            for line in done.last_lines(12) {
                println!("    {line}");
            }
        }
        let step = json!({
            "name": done.name,
            "seconds": done.seconds,
            "outcome": outcome,
            "said": done.last_lines(40),
        });
        let Some(section) = self.sections.last_mut() else {
            return;
        };
        section.steps.push(step);
        if fails && !done.is_good() {
            section.failed.push(format!("{} {outcome}", done.name));
        }
        self.write();
    }

    /// Takes in what steps noted in a file.
    pub(crate) fn measured(&mut self, file: &Path) {
        self.figures.extend(figures::read(file));
        let _ = fs::remove_file(file);
    }

    pub(crate) fn end(&mut self) {
        if let Some(section) = self.sections.last_mut() {
            section.seconds = section.began.elapsed().as_secs_f64();
            println!("== {} took {:.1} s", section.name, section.seconds);
        }
        self.write();
    }

    /// What failed, by name.
    pub(crate) fn failed(&self) -> Vec<String> {
        let of = |section: &Section| {
            let name = section.name;
            let named = section.failed.iter();
            named
                .map(|failed| format!("{name}: {failed}"))
                .collect::<Vec<_>>()
        };
        self.sections.iter().flat_map(of).collect()
    }

    fn write(&self) {
        let Some(file) = &self.file else { return };
        let at = SystemTime::UNIX_EPOCH.elapsed();
        let sections: Vec<Value> = self
            .sections
            .iter()
            .map(|section| {
                json!({
                    "name": section.name, "seconds": section.seconds, "skipped": section.skipped,
                    "failed": section.failed, "steps": section.steps,
                })
            })
            .collect();
        let all = json!({
            "at": at.map_or(0, |at| at.as_secs()),
            "seconds": self.began.elapsed().as_secs_f64(),
            "device": self.device,
            "seed": self.seed,
            "sections": sections,
            "figures": self.figures,
            "bars": bars(&self.figures),
            "failed": self.failed(),
        });
        // The run goes on without the file, and says what it found.
        let _ = fs::write(file, format!("{all:#}\n"));
    }
}

/// What is aimed at: figures, and the least or most that they should be.
const BARS: [(&str, f64, bool); 5] = [
    ("Q4K layer: share of copy at M=1", 0.60, true),
    ("Q4K layer: T(8)/T(1)", 1.15, false),
    ("Q4K layer: T(16)/T(1)", 1.3, false),
    ("Q4K gate+up: share of dense at M=512", 0.30, true),
    ("rival 8b: decoding, ours to theirs", 1.1, true),
];

/// Which of them were measured, and met.
pub(crate) fn bars(figures: &[Value]) -> Vec<Value> {
    let value = |name: &str| {
        let found = figures.iter().rev().find(|figure| figure["name"] == name);
        found.and_then(|figure| figure["value"].as_f64())
    };
    BARS.iter()
        .map(|&(name, bound, least)| {
            let value = value(name);
            let met = value.map(|value| {
                if least {
                    value >= bound
                } else {
                    value <= bound
                }
            });
            json!({ "name": name, "bound": bound, "at_least": least, "value": value, "met": met })
        })
        .collect()
}

/// The same in words.
pub(crate) fn print_bars(figures: &[Value]) {
    for bar in bars(figures) {
        let relation = if bar["at_least"] == true {
            "at least"
        } else {
            "at most"
        };
        let name = bar["name"].as_str().unwrap_or_default();
        let found = match (bar["value"].as_f64(), bar["met"].as_bool()) {
            (Some(value), Some(true)) => format!("{value:.2}, met"),
            (Some(value), _) => format!("{value:.2}, MISSED"),
            _ => "not measured".to_owned(),
        };
        println!("{name}: {relation} {}: {found}", bar["bound"]);
    }
}

#[cfg(test)]
mod tests {
    use super::bars;
    use serde_json::json;

    #[test]
    fn bars_are_met_from_the_right_side() {
        let figure = |name: &str, value: f64| json!({ "name": name, "value": value });
        let all = [
            figure("Q4K layer: share of copy at M=1", 0.61),
            figure("Q4K layer: T(8)/T(1)", 1.2),
            figure("Q4K layer: T(16)/T(1)", 1.3),
        ];
        let met: Vec<_> = bars(&all).iter().map(|bar| bar["met"].clone()).collect();
        let expected = [
            json!(true),
            json!(false),
            json!(true),
            json!(null),
            json!(null),
        ];
        assert_eq!(met, expected);
    }
}
