//! What a user writes to name a model of the hub.
//!
//! Invariant: a repository, file or revision that leaves here can stand in a URL's path and in a
//! path of a mirror as it is: no empty, `.` or `..` component, no character that means something there.

use std::str::FromStr;

/// Most characters in one component of a name.
const COMPONENT_CHARS_MAX: usize = 128;
/// Most components in the path of a file inside a repository.
const COMPONENTS_MAX: usize = 8;

/// A repository and which of its models is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `owner/name`, or a bare name.
    pub(crate) repository: String,
    pub(crate) choice: Choice,
}

/// Which model of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The one that is best for most.
    Usual,
    /// The one stored in this way, such as `Q4_K_M`.
    Quantization(String),
    /// This file, or the split model it is a part of.
    File(String),
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = ["https://huggingface.co/", "https://hf.co/", "hf.co/"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        let (path, quantization) = match bare.split_once(':') {
            Some((path, quantization)) => (path, Some(quantization)),
            None => (bare, None),
        };
        if !is_path(path) {
            return Err(format!(
                "{text:?} names no model; write owner/name, owner/name:Q4_K_M or owner/name/file.gguf"
            ));
        }
        let mut components = path.splitn(3, '/');
        let owner = components.next().unwrap_or_default();
        let (repository, file) = match (components.next(), components.next()) {
            (None, _) => (owner.to_owned(), None),
            (Some(name), file) => (format!("{owner}/{name}"), file),
        };
        let choice = match (file, quantization) {
            (Some(_), Some(_)) => {
                return Err(format!(
                    "{text:?} names a file and a quantization; give one"
                ));
            }
            (Some(file), None) if is_gguf(file) => Choice::File(file.to_owned()),
            (Some(file), None) => return Err(format!("{file:?} is not a GGUF file")),
            (None, Some(word)) if is_component(word) => Choice::Quantization(word.to_owned()),
            (None, Some(word)) => {
                return Err(format!("{word:?} is not a quantization such as Q4_K_M"));
            }
            (None, None) => Choice::Usual,
        };
        Ok(Self { repository, choice })
    }
}

/// A revision: a branch, a tag or a commit.
pub(crate) fn revision(text: &str) -> Result<String, String> {
    if is_path(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a branch, a tag or a commit"))
    }
}

/// Whether `path` is a relative path of plain names.
pub(crate) fn is_path(path: &str) -> bool {
    path.split('/').count() <= COMPONENTS_MAX && path.split('/').all(is_component)
}

pub(crate) fn is_gguf(path: &str) -> bool {
    path.get(path.len().saturating_sub(5)..)
        .is_some_and(|ending| ending.eq_ignore_ascii_case(".gguf"))
}

fn is_component(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= COMPONENT_CHARS_MAX
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'+'))
}

#[cfg(test)]
mod tests {
    use super::{Choice, Reference, revision};

    fn read(text: &str) -> Result<Reference, String> {
        text.parse()
    }

    #[test]
    fn what_users_write_is_understood() {
        for (text, repository, choice) in [
            ("org/model-GGUF", "org/model-GGUF", Choice::Usual),
            ("gpt2", "gpt2", Choice::Usual),
            (
                "org/m:q4_k_m",
                "org/m",
                Choice::Quantization("q4_k_m".to_owned()),
            ),
            (
                "org/m/sub/m-Q8_0.gguf",
                "org/m",
                Choice::File("sub/m-Q8_0.gguf".to_owned()),
            ),
            (
                "https://huggingface.co/org/m:Q4_0",
                "org/m",
                Choice::Quantization("Q4_0".to_owned()),
            ),
        ] {
            let expected = Reference {
                repository: repository.to_owned(),
                choice,
            };
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for text in [
            "",
            "/",
            "/etc/passwd",
            "../m",
            "org/..",
            "org/m/../../x.gguf",
            "org//m",
            "org/m:",
            "org/m:Q4/0",
            "org/m:Q4_0:x",
            "org/m/a.gguf:Q4_0",
            "org/m/README.md",
            "org/m?x=1",
            "org/m#x",
            "org/m%2e%2e",
            "org/m\n",
            "org/é",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(revision("refs/pr/1").is_ok());
        assert!(revision("main?x").is_err());
    }
}
