//! The record of a run, which names neither the machine nor a path of it, and the report on the terminal.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::definition::{Definition, folder};
use super::needs_rival;
use super::sides::{ANDON, is_ours};

/// Figures that are good when they are great; of all others little is good.
const AT_LEAST: [&str; 8] = [
    "decode-ratio",
    "prefill-ratio",
    "bandwidth-share",
    "int8-share",
    "depth-ratio",
    "hogs-ratio",
    "parallel-ratio",
    "aggregate-ratio",
];

/// Names in the folder for one day, processor and revision.
const NUMBER_MAX: usize = 1000;

/// To four digits that say something.
pub(super) fn round(value: f64) -> f64 {
    if !value.is_finite() || value == 0.0 {
        return value;
    }
    let unit = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * unit).round() / unit
}

/// Figures of a side in one line.
pub(super) fn short(values: &Value) -> String {
    let fields = values.as_object().into_iter().flatten();
    let parts = fields.filter_map(|(key, value)| Some(format!("{key} {}", round(value.as_f64()?))));
    parts.collect::<Vec<_>>().join(", ")
}

/// Prints what a definition came to, and where it stands to its bars. Whether all of them were reached, but for those that
/// hold it against a rival which was not there.
pub(super) fn print(definition: &Definition, result: &Value) -> bool {
    println!(
        "  {}: {} of {} rounds count",
        definition.name, result["rounds"], result["rounds_tried"]
    );
    for (name, values) in result["sides"].as_object().into_iter().flatten() {
        println!("    {name:<28} {}", short(values));
    }
    let ratios = result["ratios"].as_object().into_iter().flatten();
    for (name, value) in ratios {
        println!("    {name:<28} {value}");
    }
    let mut reached = true;
    let sides = result["sides"].as_object();
    let beside = sides.is_some_and(|sides| sides.keys().any(|name| !is_ours(name)));
    for (name, bar) in &definition.bar {
        let found = result["ratios"][name]
            .as_f64()
            .or_else(|| result["sides"][ANDON][name].as_f64());
        // Times, memory and costs are bounds from above.
        let most = !AT_LEAST.contains(&name.as_str());
        let verdict = match found {
            None if !beside && needs_rival(name) => "not measured, for want of a rival".to_owned(),
            None => {
                reached = false;
                "NOT MEASURED".to_owned()
            }
            Some(found) if result["rounds"] == 0 => format!("{found} while busy, not judged"),
            Some(found) if (found >= *bar) != most || found == *bar => format!("{found}, reached"),
            Some(found) => {
                reached = false;
                format!("{found}, MISSED")
            }
        };
        let sign = if most { '≤' } else { '≥' };
        println!("    bar: {name} {sign} {bar}: {verdict}");
    }
    for note in result["notes"].as_array().into_iter().flatten() {
        println!("    note: {}", note.as_str().unwrap_or_default());
    }
    reached
}

/// Writes a record to a new file of `tests/bench/record`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(record: &Value) -> Result<PathBuf> {
    let folder = folder().join("record");
    fs::create_dir_all(&folder)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let cpu: String = text(&record["machine"]["cpu"])
        .to_lowercase()
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("-");
    let revision: String = text(&record["machine"]["revision"])
        .chars()
        .take(8)
        .collect();
    let stem = format!("{}-{cpu}-{revision}", text(&record["date"]));
    for number in 1..NUMBER_MAX {
        let suffix = if number == 1 {
            String::new()
        } else {
            format!("-{number}")
        };
        let path = folder.join(format!("{stem}{suffix}.json"));
        if !path.exists() {
            let text = format!("{record:#}\n");
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            return Ok(path);
        }
    }
    bail!("{} is full of {stem}", folder.display())
}

#[cfg(test)]
mod tests {
    use super::super::definition::{definitions, models};
    use super::{folder, print, round};
    use serde_json::json;

    #[test]
    fn figures_have_four_digits() {
        assert_eq!(round(123.456), 123.5);
        assert_eq!(round(0.012_345_6), 0.012_35);
        assert_eq!(round(0.0), 0.0);
    }

    #[test]
    fn what_is_missed_or_not_measured_is_not_reached() {
        let models = models().expect("models");
        let mut definition = definitions(&models).expect("definitions").swap_remove(0);
        definition.bar = [("decode-ratio", 2.0), ("load_ms", 5.0)]
            .map(|(name, bar)| (name.to_owned(), bar))
            .into();
        let alone = json!({ "rounds": 3, "sides": { "andon": { "load_ms": 4.0 } }, "ratios": {} });
        assert!(print(&definition, &alone));
        let mut beside = alone.clone();
        beside["sides"]["repacked"] = json!({});
        assert!(!print(&definition, &beside));
        beside["ratios"]["decode-ratio"] = json!(2.0);
        assert!(print(&definition, &beside));
        beside["ratios"]["decode-ratio"] = json!(1.9);
        assert!(!print(&definition, &beside));
        beside["rounds"] = json!(0);
        assert!(print(&definition, &beside));
        let mut slow = alone.clone();
        slow["sides"]["andon"]["load_ms"] = json!(6.0);
        assert!(!print(&definition, &slow));
    }

    #[test]
    fn records_name_no_place() {
        // Before the first record there is no folder.
        let entries = std::fs::read_dir(folder().join("record"));
        for entry in entries.into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("readable");
            assert!(
                !text.contains("\"/") && !text.contains(".gguf"),
                "{}",
                path.display()
            );
        }
    }
}
