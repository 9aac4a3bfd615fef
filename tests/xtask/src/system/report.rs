//! What the checks left, shown and counted.

use std::fmt;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Checks by how they ended.
#[derive(Default)]
pub(crate) struct Counts {
    passed: u32,
    /// Also those that were planned and never made.
    pub(crate) failed: u32,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} checks passed, {} failed", self.passed, self.failed)
    }
}

impl Counts {
    /// Shows and counts what a phase left in this folder.
    ///
    /// The last check of a phase in which the power is cut leaves no line: that it was cut is its result.
    pub(crate) fn take(&mut self, results: &Path, phase: &str) {
        let text = fs::read_to_string(results.join(format!("{phase}.jsonl"))).unwrap_or_default();
        self.count(&text, results.join("cut").exists());
    }

    fn count(&mut self, text: &str, cut: bool) {
        let lines: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let planned = lines.iter().find_map(|line| line["planned"].as_array());
        let Some(planned) = planned.filter(|planned| !planned.is_empty()) else {
            println!("  FAILED  no check was planned: the boot did not come so far");
            self.failed += 1;
            return;
        };
        for (index, name) in planned.iter().enumerate() {
            let found = lines.iter().find(|line| line["check"] == *name);
            let name = name.as_str().unwrap_or("?");
            let note = |line: &Value| line["note"].as_str().unwrap_or_default().to_owned();
            let (passed, seconds, note) = match found {
                Some(line) => (
                    line["passed"] == true,
                    line["seconds"].as_f64().unwrap_or(0.0),
                    note(line),
                ),
                None if cut && index + 1 == planned.len() => {
                    (true, 0.0, "the power was cut".to_owned())
                }
                None => (false, 0.0, "never made, or never ended".to_owned()),
            };
            let mark = if passed { "passed" } else { "FAILED" };
            println!("  {mark}  {name:<20} {seconds:>6.2} s  {note}");
            if passed {
                self.passed += 1;
            } else {
                self.failed += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    fn count(text: &str, cut: bool) -> (u32, u32) {
        let mut counts = Counts::default();
        counts.count(text, cut);
        (counts.passed, counts.failed)
    }

    #[test]
    fn a_check_without_a_result_has_failed() {
        let plan = "{\"planned\":[\"a\",\"b\"]}\n";
        let a = "{\"check\":\"a\",\"passed\":true,\"seconds\":0.1,\"note\":\"\"}\n";
        let b = "{\"check\":\"b\",\"passed\":false,\"seconds\":0.1,\"note\":\"no\"}\n";
        assert_eq!(count("", false), (0, 1));
        assert_eq!(count("{\"planned\":[]}\n", true), (0, 1));
        assert_eq!(count(plan, false), (0, 2));
        assert_eq!(count(&format!("{plan}{a}"), false), (1, 1));
        assert_eq!(count(&format!("{plan}{a}"), true), (2, 0));
        assert_eq!(count(plan, true), (1, 1));
        assert_eq!(count(&format!("{plan}{a}{b}"), true), (1, 1));
    }
}
