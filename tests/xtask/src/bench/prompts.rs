//! What is asked: prompts of a file, or made here from a few words in the lengths that gateways see.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::shell;

/// Prompts that may lie beside the checkout: JSON lines, each with a `prompt`.
const BESIDE: &str = "../shared/data/factory_prompts.jsonl";

/// How many are made where there is no file, and of how many words: most short, some long.
const MADE: usize = 200;
const WORDS: [usize; 20] = [
    12, 16, 20, 24, 28, 32, 34, 36, 38, 40, 44, 48, 52, 56, 64, 72, 80, 160, 480, 840,
];

/// What a maintenance note is made of.
const NOTE: [&str; 24] = [
    "belt",
    "pressure",
    "drive",
    "alarm",
    "sensor",
    "valve",
    "station",
    "pump",
    "the",
    "of",
    "reports",
    "is",
    "above",
    "below",
    "limit",
    "since",
    "shift",
    "reset",
    "after",
    "hydraulic",
    "temperature",
    "and",
    "stops",
    "again",
];

/// The prompts, and where they are from, in words that name no place.
///
/// # Errors
/// When a file was named that has none.
pub(super) fn read(named: Option<&Path>) -> Result<(Vec<String>, String)> {
    let beside = shell::root().join(BESIDE);
    let path: Option<PathBuf> = match named {
        Some(path) => Some(path.to_path_buf()),
        None => beside.is_file().then_some(beside),
    };
    let Some(path) = path else {
        return Ok((made(), format!("{MADE} prompts made of a few words")));
    };
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let prompts: Vec<String> = text
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<Value>(line).ok()?["prompt"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    ensure!(!prompts.is_empty(), "{} has no prompts", path.display());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let from = format!("{} prompts of {name}", prompts.len());
    Ok((prompts, from))
}

fn made() -> Vec<String> {
    let one = |number: usize| {
        let count = WORDS[number * 7 % WORDS.len()];
        let words =
            (0..count).map(|index| NOTE[(number * 31 + index * 7 + index * index) % NOTE.len()]);
        let note: Vec<&str> = words.collect();
        format!("Note {number}: what does this mean? {}", note.join(" "))
    };
    (0..MADE).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::made;
    use std::collections::BTreeSet;

    #[test]
    fn made_prompts_are_all_different() {
        let prompts: BTreeSet<String> = made().into_iter().collect();
        assert_eq!(prompts.len(), super::MADE);
        assert!(prompts.iter().any(|prompt| prompt.len() > 4000));
    }
}
