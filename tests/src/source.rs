//! The repository's own files as text, for the checks of `tests/layout.rs`.
//!
//! A [`Tree`] is a value: it is read from a checkout or made up by a test, so that every check can
//! be shown a violation. [`code_only`] blanks comments and literals out of Rust source, so that a
//! word in a sentence is never taken for a keyword; it keeps every line where it was.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file above this many bytes is held as an empty text with its size; no source file is that long.
pub const TEXT_BYTES_MAX: u64 = 4 << 20;

/// One file of a [`Tree`].
#[derive(Clone, Debug, Default)]
pub struct File {
    /// Its text; empty where the file is not UTF-8 or is longer than [`TEXT_BYTES_MAX`].
    pub text: String,
    /// Its length on disk.
    pub bytes: u64,
}

/// Files by their path from the repository root, separated by `/`.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    files: BTreeMap<String, File>,
}

impl Tree {
    /// Reads the checkout at `root`: what git tracks and what it does not ignore.
    ///
    /// # Errors
    /// When git does not run there, or a file cannot be read.
    pub fn read(root: &Path) -> io::Result<Tree> {
        let listing = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root)
            .output()?;
        if !listing.status.success() {
            return Err(io::Error::other(format!(
                "git ls-files in {}: {}",
                root.display(),
                String::from_utf8_lossy(&listing.stderr).trim()
            )));
        }
        let mut files = BTreeMap::new();
        for name in String::from_utf8_lossy(&listing.stdout).split_terminator('\0') {
            let path = root.join(name);
            // A file deleted but not yet committed is still listed.
            let Ok(meta) = path.symlink_metadata() else {
                continue;
            };
            if !meta.is_file() {
                continue;
            }
            let text = if meta.len() <= TEXT_BYTES_MAX {
                String::from_utf8(std::fs::read(&path)?).unwrap_or_default()
            } else {
                String::new()
            };
            files.insert(
                name.to_owned(),
                File {
                    text,
                    bytes: meta.len(),
                },
            );
        }
        Ok(Tree { files })
    }

    /// A tree made up of paths and texts.
    #[must_use]
    pub fn of<const N: usize>(files: [(&str, &str); N]) -> Tree {
        let files = files.into_iter().map(|(path, text)| {
            (
                path.to_owned(),
                File {
                    text: text.to_owned(),
                    bytes: text.len() as u64,
                },
            )
        });
        Tree {
            files: files.collect(),
        }
    }

    /// Every file with its path, in order of path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// Every file whose name ends in `.extension`.
    pub fn with_extension(&self, extension: &str) -> impl Iterator<Item = (&str, &File)> {
        let ending = format!(".{extension}");
        self.files()
            .filter(move |(path, _)| path.ends_with(&ending))
    }

    /// The text at `path`, if there is such a file.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(|file| file.text.as_str())
    }

    /// Whether `path` is a file or a folder with a file in it.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        self.files.contains_key(path)
            || self
                .files
                .range(folder.clone()..)
                .next()
                .is_some_and(|(next, _)| next.starts_with(&folder))
    }
}

/// The root of the checkout this crate was built from.
#[must_use]
pub fn repository_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// `source` with every comment, string and character literal replaced by spaces; line breaks stay.
#[must_use]
pub fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            // Outside literals only ASCII matters to the checks.
            code.push(if bytes[at].is_ascii() {
                bytes[at] as char
            } else {
                ' '
            });
            at += 1;
        } else {
            code.extend(
                bytes[at..end]
                    .iter()
                    .map(|&b| if b == b'\n' { '\n' } else { ' ' }),
            );
            at = end;
        }
    }
    code
}

/// Where the comment or literal that starts at `at` ends; `at` itself if none starts there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + block_comment_bytes(rest),
        [b'"', ..] => at + quoted_bytes(rest, b'"'),
        [b'r', next, ..] if matches!(next, b'"' | b'#') && !continues_word(bytes, at) => {
            at + raw_string_bytes(rest)
        }
        [b'b', b'r', ..] if !continues_word(bytes, at) && raw_string_bytes(&rest[1..]) > 0 => {
            at + 1 + raw_string_bytes(&rest[1..])
        }
        // 'x' and '\n' are characters; 'static is a lifetime.
        [b'\'', b'\\', ..] => at + quoted_bytes(rest, b'\''),
        [b'\'', ..] => {
            let character = rest[1..].iter().take(5).position(|&b| b == b'\'');
            let one = core::str::from_utf8(&rest[1..=character.unwrap_or(0)])
                .is_ok_and(|text| text.chars().count() == 1);
            if character.is_some() && one {
                at + character.unwrap_or(0) + 2
            } else {
                at
            }
        }
        _ => at,
    }
}

fn continues_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn block_comment_bytes(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted_bytes(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of the raw string that starts with `r`; 0 if it is a raw identifier or nothing of the kind.
fn raw_string_bytes(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let mut closing = vec![b'"'];
    closing.resize(1 + hashes, b'#');
    let body = 2 + hashes;
    rest[body..]
        .windows(closing.len())
        .position(|window| window == closing)
        .map_or(rest.len(), |found| body + found + closing.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_only_keeps_code_and_lines() {
        let source = concat!(
            "let a = \"unsafe \\\" still\"; // unsafe\n",
            "/* unsafe /* nested */ unsafe */ fn f<'a>(x: &'a str) {}\n",
            "let r = r#\"unsafe \" here\"#; let b = br\"unsafe\"; let c = b\"x\";\n",
            "let q = ['\"', '\\'', 'é']; unsafe { g() }\n",
            "let r#type = 1; let bar = for_r\"x\";\n",
        );
        let code = code_only(source);
        assert_eq!(code.lines().count(), source.lines().count());
        let found: Vec<usize> = code
            .lines()
            .enumerate()
            .filter(|(_, l)| l.contains("unsafe"))
            .map(|(n, _)| n)
            .collect();
        assert_eq!(found, [3], "{code}");
        assert!(code.contains("fn f<'a>(x: &'a str) {}"), "{code}");
        assert!(code.contains("let r#type = 1;"), "{code}");
    }

    #[test]
    fn code_only_survives_what_never_ends() {
        for source in [
            "\"abc", "r#\"abc", "/* abc", "'", "'\\", "\"\\", "b", "br", "r#", "r",
        ] {
            assert_eq!(code_only(source).len(), source.len(), "{source}");
        }
    }

    #[test]
    fn has_knows_folders() {
        let tree = Tree::of([("a/b/c.rs", ""), ("a/bc.rs", "")]);
        assert!(tree.has("a/b") && tree.has("a") && tree.has("a/bc.rs"));
        assert!(!tree.has("a/bc") && !tree.has("b"));
    }
}
