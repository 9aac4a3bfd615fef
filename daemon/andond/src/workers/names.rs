//! Which model answers to which name, where that is another than its own, and what answered before.
//!
//! This outlives the daemon: it is written to the models' folder before it holds, in one rename, so that after a power cut
//! either the former model answers or the new one.

use std::collections::BTreeMap;

use andon_wire::manifest::is_model_name;
use serde::{Deserialize, Serialize};

use crate::request::MODEL_NAME_BYTES_MAX;

/// Version of the file.
const FORMAT: u32 = 1;
/// Most names.
pub(super) const NAMES_MAX: usize = 64;
/// How often the daemon may start with a model on probation without having got through that.
const STARTS_MAX: u32 = 2;

/// A model that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Target {
    /// The file that the configuration names by its path.
    Configured,
    /// One of those that are kept.
    Kept(String),
}

/// What answers to a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Entry {
    /// What does.
    pub(super) target: Target,
    /// What did before.
    pub(super) former: Option<Target>,
    /// While it is on probation, how often the daemon started with it.
    pub(super) probation: Option<u32>,
}

/// The names that are answered by another model than the one of that name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    entries: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    format: u32,
    names: BTreeMap<String, Entry>,
}

impl Names {
    /// Reads them; what is wrong is said as a text.
    pub(super) fn parse(text: &str) -> Result<Names, String> {
        let written: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if written.format != FORMAT {
            return Err(format!(
                "its format is {}, this daemon reads {FORMAT}",
                written.format
            ));
        }
        if written.names.len() > NAMES_MAX {
            return Err(format!("it has more than {NAMES_MAX} names"));
        }
        for (name, entry) in &written.names {
            let targets = entry.former.iter().chain([&entry.target]);
            let wrong = targets.into_iter().any(|target| match target {
                Target::Configured => false,
                Target::Kept(name) => !is_model_name(name),
            });
            if wrong || name.is_empty() || name.len() > MODEL_NAME_BYTES_MAX {
                return Err("it has a name that is none".to_owned());
            }
        }
        Ok(Names {
            entries: written.names,
        })
    }

    /// Writes them.
    pub(super) fn text(&self) -> String {
        let written = Written {
            format: FORMAT,
            names: self.entries.clone(),
        };
        // Texts and numbers are all there is.
        serde_json::to_string_pretty(&written).unwrap_or_default()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// Has there be room for `name`: where there are too many, what answered before is forgotten of names that are answered
    /// by their own model again. Says whether there is.
    pub(super) fn make_room(&mut self, name: &str, own: impl Fn(&str) -> Option<Target>) -> bool {
        if !self.entries.contains_key(name) && self.entries.len() >= NAMES_MAX {
            self.entries.retain(|name, entry| {
                entry.probation.is_some() || own(name).as_ref() != Some(&entry.target)
            });
        }
        self.entries.contains_key(name) || self.entries.len() < NAMES_MAX
    }

    /// Has no model answer to a name any more but its own. What did is handed out.
    pub(super) fn remove(&mut self, name: &str) -> Option<Entry> {
        self.entries.remove(name)
    }

    /// Has `target` answer to a name, to which `own` does of itself.
    pub(super) fn set(&mut self, name: &str, own: Option<&Target>, entry: Entry) {
        if own == Some(&entry.target) && entry.former.is_none() {
            self.entries.remove(name);
        } else {
            self.entries.insert(name.to_owned(), entry);
        }
    }

    /// Forgets models that are not there any more: a name whose model is gone is answered by the one before, else by its own.
    /// `own` is what answers to a name of itself, `there` what a model that is there is called now. Gives the names whose
    /// models are gone.
    pub(super) fn forget_gone(
        &mut self,
        own: impl Fn(&str) -> Option<Target>,
        there: impl Fn(&Target) -> Option<Target>,
    ) -> Vec<String> {
        let mut gone = Vec::new();
        self.entries.retain(|name, entry| {
            entry.former = entry.former.as_ref().and_then(&there);
            let (target, lost) = match there(&entry.target) {
                Some(target) => (Some(target), false),
                None => (entry.former.take(), true),
            };
            if lost {
                gone.push(name.clone());
            }
            if entry.former.is_none() {
                entry.probation = None;
            }
            let Some(target) = target else { return false };
            entry.target = target;
            entry.former.is_some() || own(name).as_ref() != Some(&entry.target)
        });
        gone
    }

    /// Has what answered before do so again, and nothing be remembered. What did is handed out.
    pub(super) fn roll_back(&mut self, name: &str, own: Option<&Target>) -> Option<Target> {
        let entry = self.entries.get(name)?;
        let (target, former) = (entry.target.clone(), entry.former.clone()?);
        let entry = Entry {
            target: former,
            former: None,
            probation: None,
        };
        self.set(name, own, entry);
        Some(target)
    }

    /// A model is through its probation. Says whether it was on it.
    pub(super) fn prove(&mut self, name: &str) -> bool {
        let entry = self.entries.get_mut(name);
        entry.is_some_and(|entry| entry.probation.take().is_some())
    }

    /// The daemon ends in good order: what is on probation may start as often again. Says whether something is.
    pub(super) fn rest(&mut self) -> bool {
        let mut any = false;
        for probation in self
            .entries
            .values_mut()
            .filter_map(|entry| entry.probation.as_mut())
        {
            any |= *probation != 0;
            *probation = 0;
        }
        any
    }

    /// The names whose models on probation have kept the daemon from getting through that too often.
    pub(super) fn unproved(&self) -> Vec<String> {
        let unproved = |entry: &Entry| {
            entry.former.is_some() && entry.probation.is_some_and(|starts| starts >= STARTS_MAX)
        };
        let names = self.iter().filter(|(_, entry)| unproved(entry));
        names.map(|(name, _)| name.to_owned()).collect()
    }

    /// The daemon loads a name's model for the first time since it started. Says whether that is on probation, and so counts.
    pub(super) fn count_start(&mut self, name: &str) -> bool {
        let entry = self.entries.get_mut(name);
        let starts = entry.and_then(|entry| entry.probation.as_mut());
        starts.is_some_and(|starts| {
            *starts = starts.saturating_add(1);
            true
        })
    }
}

/// What a file of names says, written again: for tests that send anything.
///
/// # Errors
/// What is wrong with it.
pub fn rewritten(text: &str) -> Result<String, String> {
    Names::parse(text).map(|names| names.text())
}

impl Entry {
    /// A model that takes the place of `former`.
    pub(super) fn taking(target: Target, former: Option<Target>, probation: bool) -> Entry {
        Entry {
            target,
            former,
            probation: probation.then_some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, NAMES_MAX, Names, STARTS_MAX, Target};

    fn kept(name: &str) -> Target {
        Target::Kept(name.to_owned())
    }

    fn swapped() -> Names {
        let mut names = Names::default();
        let entry = Entry {
            target: kept("new"),
            former: Some(Target::Configured),
            probation: Some(0),
        };
        names.set("ours", Some(&Target::Configured), entry);
        names
    }

    #[test]
    fn what_is_written_is_read_again() {
        let names = swapped();
        assert_eq!(Names::parse(&names.text()), Ok(names));
        let text = Names::default().text();
        assert_eq!(Names::parse(&text), Ok(Names::default()));
    }

    #[test]
    fn what_is_damaged_is_not_believed() {
        let text = swapped().text();
        for damaged in [
            "",
            "{}",
            &text[..text.len() / 2],
            &text.replace("\"format\": 1", "\"format\": 2"),
            &text.replace("\"new\"", "\"../new\""),
            &text.replace("\"ours\"", "\"\""),
            &text.replace("\"former\"", "\"other\""),
        ] {
            assert!(Names::parse(damaged).is_err(), "{damaged}");
        }
    }

    #[test]
    fn rolling_back_forgets_and_a_name_of_its_own_needs_no_entry() {
        let own = Target::Configured;
        let mut names = swapped();
        assert_eq!(names.roll_back("ours", Some(&own)), Some(kept("new")));
        assert_eq!(names, Names::default());
        assert_eq!(names.roll_back("ours", Some(&own)), None);

        let mut names = swapped();
        assert_eq!(names.roll_back("ours", None), Some(kept("new")));
        assert_eq!(
            names.get("ours").map(|entry| &entry.target),
            Some(&Target::Configured)
        );
        assert_eq!(names.roll_back("ours", None), None);
    }

    #[test]
    fn models_that_are_gone_are_forgotten() {
        let entry = |target, former| Entry {
            target,
            former,
            probation: Some(1),
        };
        let mut names = Names::default();
        names.set("ours", None, entry(kept("new"), Some(kept("old"))));
        names.set("spare", None, entry(kept("gone"), Some(kept("new"))));
        names.set("lost", None, entry(kept("gone"), Some(kept("old"))));
        names.set("new", None, entry(kept("gone"), Some(kept("new"))));
        names.set("path", None, entry(kept("new"), Some(Target::Configured)));
        let own = |name: &str| (name == "new").then(|| kept("new"));
        let there = |target: &Target| match target {
            Target::Configured => Some(kept("ours")),
            Target::Kept(name) => ["new", "ours"]
                .contains(&name.as_str())
                .then(|| target.clone()),
        };
        assert_eq!(names.forget_gone(own, there), ["lost", "new", "spare"]);
        let left: Vec<_> = names.iter().collect();
        let proved = Entry {
            target: kept("new"),
            former: None,
            probation: None,
        };
        let back = entry(kept("new"), Some(kept("ours")));
        assert_eq!(
            left,
            [("ours", &proved), ("path", &back), ("spare", &proved)]
        );
        let before = names.clone();
        assert!(names.forget_gone(own, there).is_empty());
        assert_eq!(names, before);
    }

    #[test]
    fn names_are_bounded_and_make_room() {
        let mut names = Names::default();
        let entry = |probation| Entry::taking(kept("new"), Some(kept("old")), probation);
        for number in 0..NAMES_MAX {
            let name = format!("name-{number}");
            assert!(names.make_room(&name, |_| None));
            names.set(&name, None, entry(number == 1));
        }
        assert!(names.make_room("name-7", |_| None) && !names.make_room("more", |_| None));
        // Of these two are answered by their own model, and one of them on probation.
        let own = |name: &str| ["name-1", "name-2"].contains(&name).then(|| kept("new"));
        assert!(names.make_room("more", own));
        assert!(names.get("name-1").is_some() && names.get("name-2").is_none());
        assert_eq!(names.remove("name-3"), Some(entry(false)));
        assert_eq!(names.remove("name-3"), None);
    }

    #[test]
    fn who_does_not_get_through_its_probation_is_found_out() {
        let mut names = swapped();
        for _ in 0..STARTS_MAX {
            assert!(names.unproved().is_empty());
            assert!(names.count_start("ours"));
        }
        assert_eq!(names.unproved(), ["ours"]);
        // One that ends in good order does not count.
        assert!(names.rest() && !names.rest());
        assert!(names.unproved().is_empty());
        assert!(names.prove("ours") && !names.prove("ours"));
        assert!(!names.count_start("ours") && !names.count_start("other"));
    }
}
