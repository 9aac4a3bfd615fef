//! What a stronger model would have got right.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// How likely a stronger model is right, as far as it was measured.
pub(super) struct Strong {
    by_prompt: HashMap<String, bool>,
    /// Right answers and all, by subject.
    by_subject: HashMap<String, (usize, usize)>,
    mean: f64,
}

/// Of how many questions it was known how well.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Matched {
    pub(super) by_prompt: usize,
    pub(super) by_subject: usize,
    pub(super) by_mean: usize,
}

#[derive(Deserialize)]
struct Line {
    prompt: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    origin: Option<String>,
    strong_correct: bool,
}

impl Strong {
    /// One that is right this often, whatever is asked.
    pub(super) fn of_share(mean: f64) -> Strong {
        Strong {
            by_prompt: HashMap::new(),
            by_subject: HashMap::new(),
            mean,
        }
    }

    pub(super) fn read(path: &Path) -> Result<Strong> {
        let mut strong = Strong::of_share(0.0);
        let (mut right, mut all) = (0, 0);
        for (number, line) in (1..).zip(crate::read_text(path)?.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let place = || format!("{}:{number}", path.display());
            let line: Line = serde_json::from_str(line).with_context(place)?;
            let one = usize::from(line.strong_correct);
            for subject in line.subject.into_iter().chain(line.origin) {
                let count = strong.by_subject.entry(subject).or_default();
                *count = (count.0 + one, count.1 + 1);
            }
            (right, all) = (right + one, all + 1);
            let asked = asked(&line.prompt).to_owned();
            strong.by_prompt.insert(asked, line.strong_correct);
        }
        ensure!(all > 0, "`{}` has no lines", path.display());
        strong.mean = f64::from(right as u32) / f64::from(all as u32);
        Ok(strong)
    }

    /// How likely it is right; `task` is a subject or a set.
    pub(super) fn of(&self, prompt: &str, task: &str, matched: &mut Matched) -> f64 {
        if let Some(&right) = self.by_prompt.get(asked(prompt)) {
            matched.by_prompt += 1;
            f64::from(u8::from(right))
        } else if let Some(&(right, all)) = self.by_subject.get(task) {
            matched.by_subject += 1;
            right as f64 / all as f64
        } else {
            matched.by_mean += 1;
            self.mean
        }
    }
}

/// A prompt without the form that its answer is to have, which differs from one collection to the next.
fn asked(prompt: &str) -> &str {
    let last = prompt.trim_end().rsplit_once('\n');
    let is_form = |line: &str| line.starts_with("Answer") || line.starts_with("Write the answer");
    let prompt = match last {
        Some((before, line)) if is_form(line) => before,
        _ => prompt,
    };
    prompt.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_that_was_measured_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("strong.jsonl");
        let lines = [
            r#"{"prompt": "1 + 1?\nA. 2\nB. 3\nAnswer:", "subject": "sums", "strong_correct": true}"#,
            r#"{"prompt": "2 + 2?", "subject": "sums", "strong_correct": false}"#,
            r#"{"prompt": "Why?", "subject": "logic", "strong_correct": false}"#,
        ];
        std::fs::write(&path, lines.join("\n")).expect("written");
        let strong = Strong::read(&path).expect("sound");
        let mut matched = Matched::default();
        let prompt = "1 + 1?\nA. 2\nB. 3\nAnswer with the letter of the right choice.";
        assert_eq!(strong.of(prompt, "other", &mut matched), 1.0);
        assert_eq!(strong.of("3 + 3?", "sums", &mut matched), 0.5);
        let mean = strong.of("3 + 3?", "other", &mut matched);
        assert!((mean - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(
            (matched.by_prompt, matched.by_subject, matched.by_mean),
            (1, 1, 1)
        );
    }
}
