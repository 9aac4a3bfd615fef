//! Brings one file here: resumed after a break, checked against its digest, complete or not there.
//!
//! Bytes are written to `<name>.part`, which gets its name when it is whole, checked and on the disk. A part
//! that was left behind is hashed and continued.
//!
//! Invariant: a file of the final name is what the source says it is. A part whose digest is wrong does not stay: if
//! some of it was left behind by an earlier run, it may be of an older file, and everything is fetched anew once.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use andon_wire::manifest::Digest;

use super::hub::jitter_ms;
use super::select::Entry;
use super::source::{Opened, Source, Trouble};
use crate::digest::Hasher;
use crate::failure::Failure;
use crate::progress::Progress;

/// Bytes moved at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// The first pause before trying again; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Longest random addition to a pause.
const PAUSE_JITTER_MS: u64 = 250;

/// What is downloaded, and how patiently.
pub(crate) struct Download<'a> {
    pub(crate) source: &'a Source,
    pub(crate) repository: &'a str,
    pub(crate) revision: &'a str,
    /// Attempts without any progress after which to give up.
    pub(crate) retries: u32,
}

/// A file that is here, and its digest.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) sha256: Digest,
    /// It was here before.
    pub(crate) present: bool,
}

/// Does `action` until it succeeds, fails for good, or has failed too often.
pub(crate) fn patiently<T>(
    retries: u32,
    mut action: impl FnMut() -> Result<T, Trouble>,
) -> Result<T, Failure> {
    let mut failed = 0;
    loop {
        match action() {
            Ok(value) => return Ok(value),
            Err(Trouble::Final(failure)) => return Err(failure),
            Err(Trouble::Passing { why, after }) => {
                failed += 1;
                if failed > retries {
                    return Err(Failure::Network(why));
                }
                pause(failed, after);
            }
        }
    }
}

fn pause(failed: u32, after: Option<Duration>) {
    let doubled = PAUSE_MIN.saturating_mul(1 << failed.saturating_sub(1).min(16));
    let pause = after.unwrap_or(doubled.min(PAUSE_MAX));
    thread::sleep(pause + Duration::from_millis(jitter_ms(PAUSE_JITTER_MS)));
}

/// The name of a file that is not whole yet.
fn part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

impl Download<'_> {
    /// Brings `file` to `path`.
    pub(crate) fn fetch(&self, file: &Entry, path: &Path) -> Result<Fetched, Failure> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut expected =
            match &file.sha256 {
                Some(text) => Some(text.parse::<Digest>().map_err(|error| {
                    Failure::Hub(format!("the digest of {} {error}", file.path))
                })?),
                None => None,
            };
        if path.exists() {
            return present(path, file, expected, &name);
        }
        let part_path = part(path);
        let mut part = Part::open(&part_path)?;
        // Without a digest nothing would show that the part is of another file.
        if part.bytes > 0 && (expected.is_none() || file.bytes.is_some_and(|all| part.bytes > all))
        {
            part.restart()?;
        }
        let progress = Progress::bytes(&name, file.bytes);
        part.take_in(&progress)?;
        let mut left_behind = part.bytes > 0;
        let sha256 = loop {
            self.fill(&mut part, file, &mut expected, &progress)?;
            let found = part.sync()?;
            match expected {
                Some(expected) if expected != found && left_behind => {
                    progress.say(&format!(
                        "what was left of {name} was of another file; beginning anew"
                    ));
                    left_behind = false;
                    part.restart()?;
                }
                Some(expected) if expected != found => {
                    fs::remove_file(&part_path)
                        .map_err(|error| Failure::file("remove", &part_path, error))?;
                    return Err(Failure::Damaged(format!(
                        "{name} came with the digest {found} where {expected} was announced; it was removed"
                    )));
                }
                _ => break found,
            }
        };
        progress.finish();
        fs::rename(&part_path, path).map_err(|error| Failure::file("name", path, error))?;
        sync_folder(path)?;
        Ok(Fetched {
            path: path.to_owned(),
            bytes: part.bytes,
            sha256,
            present: false,
        })
    }

    /// Fetches what is missing of `part`. `expected` is filled in where only the source of the bytes has a digest.
    fn fill(
        &self,
        part: &mut Part,
        file: &Entry,
        expected: &mut Option<Digest>,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let name = &file.path;
        let mut total = file.bytes;
        let mut failed = 0;
        let mut restarts = 0;
        while total.is_none_or(|total| part.bytes < total) {
            let trouble = match self
                .source
                .open(self.repository, self.revision, file, part.bytes)
            {
                Ok(opened) => {
                    *expected = expected.or(opened.sha256);
                    total = total.or(opened.bytes_total);
                    if let Some(total) = total {
                        progress.length(total);
                    }
                    if opened.start < part.bytes {
                        restarts += 1;
                        if restarts > self.retries {
                            return Err(Failure::Network(format!(
                                "the source of {name} does not continue where a connection broke"
                            )));
                        }
                        part.restart()?;
                        progress.at(0);
                    }
                    let before = part.bytes;
                    let ended = part.append(opened, total, progress)?;
                    if part.bytes > before {
                        failed = 0;
                    }
                    match ended {
                        // Without a length the end of the stream is the end of the file.
                        None if total.is_none() => break,
                        None if total == Some(part.bytes) => break,
                        None => Trouble::passing(format!("the connection ended within {name}")),
                        Some(why) => Trouble::passing(why),
                    }
                }
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Final(failure) => return Err(failure),
                Trouble::Passing { why, after } => {
                    failed += 1;
                    if failed > self.retries {
                        return Err(Failure::Network(format!(
                            "{why}; what has come is kept, the same command continues"
                        )));
                    }
                    progress.say(&format!("{why}; trying again"));
                    pause(failed, after);
                }
            }
        }
        Ok(())
    }
}

/// A file of the final name is there: it is the one, or it is in the way.
fn present(
    path: &Path,
    file: &Entry,
    expected: Option<Digest>,
    name: &str,
) -> Result<Fetched, Failure> {
    let bytes = fs::metadata(path)
        .map_err(|error| Failure::file("read", path, error))?
        .len();
    let progress = Progress::bytes(&format!("{name} (checking)"), Some(bytes));
    let found = crate::digest::of_file(path, &progress)?;
    progress.finish();
    let same = match expected {
        Some(expected) => expected == found,
        None => file.bytes == Some(bytes),
    };
    if same {
        return Ok(Fetched {
            path: path.to_owned(),
            bytes,
            sha256: found,
            present: true,
        });
    }
    Err(Failure::Usage(format!(
        "{} exists and is another file; remove it, or name another place with --out",
        path.display()
    )))
}

/// The file that is being filled.
struct Part {
    path: PathBuf,
    file: File,
    bytes: u64,
    hasher: Hasher,
}

impl Part {
    fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::file("write", path, error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::Usage(format!(
                    "another program is writing {}",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            hasher: Hasher::new(),
        })
    }

    fn failed(&self, error: std::io::Error) -> Failure {
        Failure::file("write", &self.path, error)
    }

    /// Forgets what is there.
    fn restart(&mut self) -> Result<(), Failure> {
        self.file.set_len(0).map_err(|error| self.failed(error))?;
        self.file.rewind().map_err(|error| self.failed(error))?;
        self.bytes = 0;
        self.hasher = Hasher::new();
        Ok(())
    }

    /// Hashes what is there.
    fn take_in(&mut self, progress: &Progress) -> Result<(), Failure> {
        self.file.rewind().map_err(|error| self.failed(error))?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut bytes = 0;
        loop {
            match self.file.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => {
                    self.hasher.update(piece.get(..count).unwrap_or_default());
                    bytes += count as u64;
                    progress.at(bytes);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Appends what comes. Returns why it ended, or nothing if the stream just ended.
    fn append(
        &mut self,
        mut opened: Opened,
        total: Option<u64>,
        progress: &Progress,
    ) -> Result<Option<String>, Failure> {
        self.file
            .seek(SeekFrom::Start(self.bytes))
            .map_err(|error| self.failed(error))?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = match opened.reader.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(error.to_string())),
            };
            let piece = piece.get(..count).unwrap_or_default();
            if total.is_some_and(|total| self.bytes + count as u64 > total) {
                return Err(Failure::Damaged(format!(
                    "more bytes came than {} has; remove it and try again",
                    self.path.display()
                )));
            }
            self.file
                .write_all(piece)
                .map_err(|error| self.failed(error))?;
            self.hasher.update(piece);
            self.bytes += count as u64;
            progress.at(self.bytes);
        }
    }

    /// Brings it to the disk; the digest of what is there.
    fn sync(&self) -> Result<Digest, Failure> {
        self.file.sync_all().map_err(|error| self.failed(error))?;
        Ok(self.hasher.clone().finish())
    }
}

/// Makes the new name of `path` survive a power cut.
pub(crate) fn sync_folder(path: &Path) -> Result<(), Failure> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Failure::file("write", folder, error))
}
