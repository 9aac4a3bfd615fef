//! Files that are there whole or not at all, whenever the machine stops.
//!
//! One is written beside its place, under a name that nobody else has; then it is brought to the disk and renamed. What
//! has its own name is therefore whole. Whoever writes holds a lock, so a file without one is left over from a program
//! that was killed, and goes when somebody clears away.

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const ENDING: &str = ".tmp";
/// Digits of the number in a name.
const NUMBER_DIGITS: usize = 16;

/// Whether a file of this name was being written.
pub(crate) fn is_temporary(name: &str) -> bool {
    let number = name.strip_prefix('.');
    number
        .and_then(|name| name.strip_suffix(ENDING))
        .is_some_and(|number| {
            number.len() == NUMBER_DIGITS && number.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

/// Removes those of `paths`, which all were being written, that nobody writes any more.
pub(crate) fn clear_away(paths: impl IntoIterator<Item = PathBuf>) {
    for path in paths {
        // Whoever is writing it holds its lock.
        let left = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if left && fs::remove_file(&path).is_ok() {
            tracing::info!("removed {}, which was left half written", path.display());
        }
    }
}

/// A file that has no name of its own yet. It is removed unless it gets one.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    file: File,
    named: bool,
}

impl Temporary {
    /// An empty one in a folder.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn new(folder: &Path) -> io::Result<Temporary> {
        // A name that nobody else has, also not in another container; if somebody has it all the same, it fails.
        let number = RandomState::new().hash_one(std::process::id());
        let path = folder.join(format!(".{number:016x}{ENDING}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&path)?;
        let temporary = Temporary {
            path,
            file,
            named: false,
        };
        match temporary.file.try_lock() {
            Ok(()) => {}
            // Where there are no locks, nobody takes it for left over by having one.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => return Err(error.into()),
        }
        // Somebody who clears away may have been between the two.
        if temporary.file.metadata()?.nlink() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(temporary)
    }

    /// Where it is for now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is written.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Brings it to the disk and gives it a name in the same folder, in place of what has that name.
    ///
    /// # Errors
    /// If the disk does not take it; then whatever had the name has it still, or it is uncertain what is there after
    /// the power fails, the one or the other.
    pub(crate) fn keep(mut self, name: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, name)?;
        self.named = true;
        name.parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.named {
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Temporary, clear_away, is_temporary};
    use std::fs;
    use std::io::Write as _;

    fn names(folder: &std::path::Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.into_string().expect("text"))
            .collect()
    }

    #[test]
    fn it_has_its_name_or_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let name = folder.path().join("a");
        for text in ["old", "new"] {
            let mut file = Temporary::new(folder.path()).expect("made");
            file.file().write_all(text.as_bytes()).expect("written");
            file.keep(&name).expect("kept");
            assert_eq!(fs::read_to_string(&name).expect("there"), text);
        }
        let given_up = Temporary::new(folder.path()).expect("made");
        assert_eq!(names(folder.path()).len(), 2);
        drop(given_up);
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn only_what_nobody_writes_is_cleared_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let left = folder.path().join(".0123456789abcdef.tmp");
        fs::write(&left, "half").expect("written");
        let written = Temporary::new(folder.path()).expect("made");
        let all = names(folder.path());
        assert!(all.iter().all(|name| is_temporary(name)), "{all:?}");
        clear_away(all.iter().map(|name| folder.path().join(name)));
        assert!(!left.exists());
        assert!(written.path().exists());
        for other in [
            "a.tmp",
            ".tmp",
            "0123456789abcdef.tmp",
            ".0123456789abcdeg.tmp",
        ] {
            assert!(!is_temporary(other), "{other}");
        }
    }
}
