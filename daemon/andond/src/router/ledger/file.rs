//! The file of the ledger: a line of JSON, and a second one with its digest.
//!
//! Invariant: the file of this name is always a whole one, the last that was written or the one before.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Written;

/// Version of the file.
pub(super) const FORMAT: u32 = 1;
const NAME: &str = "spent.json";
const NEW: &str = "spent.json.new";
const LOCK: &str = "lock";
/// Largest file that is read: as many accounts as there can be, with long names.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A line as it stands in the file, with its digest.
pub(super) fn sealed(line: &str) -> String {
    format!("{line}\n{}\n", digest(line))
}

/// The file of what is to be written.
pub(super) fn text(written: &Written) -> Result<String, String> {
    let line = serde_json::to_string(written).map_err(|error| error.to_string())?;
    Ok(sealed(&line))
}

/// What a file says; what is wrong with it is said as a text.
pub(super) fn parse(text: &str) -> Result<Written, String> {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    if rest.trim_end_matches('\n') != digest(line) {
        return Err("does not hold what was written to it".to_owned());
    }
    let written: Written =
        serde_json::from_str(line).map_err(|error| format!("is not understood: {error}"))?;
    if written.format != FORMAT {
        return Err(format!(
            "its format is {}, this daemon reads {FORMAT}",
            written.format
        ));
    }
    Ok(written)
}

/// The ledger's folder, which is this daemon's while the value lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

fn digest(line: &str) -> String {
    let digest = Sha256::digest(line.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Folder {
    /// Makes the folder if need be and takes it.
    pub(super) fn take(path: &Path) -> Result<Folder, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Folder {
                path: path.to_path_buf(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => {
                Err(format!("{}: another daemon has it", path.display()))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// What was written last; `None` if nothing ever was.
    pub(super) fn read(&self) -> Result<Option<Written>, String> {
        let path = self.path.join(NAME);
        let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(&error)),
        };
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|error| wrong(&error))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(wrong(&"is too large to be a ledger"));
        }
        parse(&text).map(Some).map_err(|why| wrong(&why))
    }

    /// Writes it, and has it on the disk.
    pub(super) fn write(&self, written: &Written) -> Result<(), String> {
        let text = text(written)?;
        let new = self.path.join(NEW);
        let outcome = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&new, self.path.join(NAME)))
            .and_then(|()| File::open(&self.path)?.sync_all());
        outcome.map_err(|error| format!("{}: {error}", self.path.display()))
    }
}
