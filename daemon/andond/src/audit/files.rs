//! The files of the stream: numbered, of one day each, and no more of them than are to be kept.
//!
//! Their order is that of their numbers, so that a clock that is set changes nothing about it; the day in a name is when the file was
//! begun.
//!
//! A file's age is the sum of the steps from its day to that of the next file, and so on, to today. A step back, or of more than
//! [`STEP_DAYS_MAX`], counts as none: the clock was set, or the daemon was off for long. So a clock that was wrong has nothing
//! removed before its time, neither then nor once it is right. While the daemon runs, a file is begun at least that often.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::date::Day;
use super::key::{self, Mac};
use super::{AuditError, RECORD_BYTES_MAX};
use crate::config::audit::AuditConfig;

/// Most days between two files, or the last and today, that are believed to have passed.
const STEP_DAYS_MAX: u64 = 7;

/// Largest number of a file: no stream gets there.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// A folder of records, taken for this process.
#[derive(Debug)]
pub(super) struct Files {
    config: AuditConfig,
    /// What is written to; `None` before the first record.
    current: Option<Current>,
    next: u64,
    /// Locked as long as this is here.
    _lock: File,
}

/// The file that is written to.
#[derive(Debug)]
struct Current {
    file: File,
    path: PathBuf,
    day: Day,
    /// Bytes of whole lines.
    bytes: u64,
    unsynced: bool,
}

/// A file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    number: u64,
    day: Day,
    path: PathBuf,
    bytes: u64,
}

fn name_of(number: u64, day: Day) -> String {
    format!("audit-{number:08}-{}.jsonl", day.digits())
}

fn parse(name: &str) -> Option<(u64, Day)> {
    let (number, day) = name
        .strip_prefix("audit-")?
        .strip_suffix(".jsonl")?
        .split_once('-')?;
    let (number, day) = (number.parse().ok()?, Day::parse(day)?);
    // There is one way to write it, and there are numbers after it.
    (number <= NUMBER_MAX && name_of(number, day) == name).then_some((number, day))
}

/// The files of a folder, the oldest first.
fn found(folder: &Path) -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((number, day)) = name.to_str().and_then(parse) else {
            continue;
        };
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            all.push(Found {
                number,
                day,
                path: entry.path(),
                bytes: metadata.len(),
            });
        }
    }
    // The daemon gives no number twice, but who copies files about may.
    all.sort_by_key(|file| (file.number, file.day));
    Ok(all)
}

/// Days from one to another; more than any two are apart where it goes back.
fn days(from: Day, to: Day) -> u64 {
    to.0.checked_sub(from.0).unwrap_or(u64::MAX)
}

/// The files with the days that each is old, in the same order.
fn aged(all: Vec<Found>, today: Day) -> Vec<(Found, u64)> {
    let (mut later, mut age) = (today, 0);
    let mut aged: Vec<_> = all
        .into_iter()
        .rev()
        .map(|file| {
            let step = days(file.day, later);
            age += if step > STEP_DAYS_MAX { 0 } else { step };
            later = file.day;
            (file, age)
        })
        .collect();
    aged.reverse();
    aged
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
    options
}

impl Files {
    /// Opens a folder, making it if need be, with the key in it. A last line that was torn is removed.
    pub(super) fn open(config: &AuditConfig) -> Result<(Files, Mac), AuditError> {
        let folder = &config.dir;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(AuditError::io(folder, "make"))?;
        let (mac, lock) = key::read(folder)?;
        let all = found(folder).map_err(AuditError::io(folder, "read"))?;
        let current = match all.last() {
            None => None,
            Some(last) => Some(Current::open(last).map_err(AuditError::io(&last.path, "open"))?),
        };
        let next = all.last().map_or(1, |last| last.number.saturating_add(1));
        let files = Files {
            config: config.clone(),
            current,
            next,
            _lock: lock,
        };
        Ok((files, mac))
    }

    /// Writes a line. It is on its way to the disk then, and safe after [`Files::sync`].
    pub(super) fn append(&mut self, line: &str, now: SystemTime) -> Result<(), AuditError> {
        let today = Day::of(now);
        let is_over = |current: &Current| {
            current.day != today
                || current.bytes.saturating_add(line.len() as u64) > self.config.file_bytes_max
        };
        if self.current.as_ref().is_none_or(is_over) {
            self.begin(today)?;
        }
        // It has just been made sure that there is one.
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let written = current.file.write_all(line.as_bytes());
        if let Err(error) = written {
            // Half a line is none. Should this fail as well, it is removed when the file is opened again.
            drop(current.file.set_len(current.bytes));
            return Err(AuditError::io(&current.path, "write to")(error));
        }
        current.bytes += line.len() as u64;
        current.unsynced = true;
        Ok(())
    }

    /// Removes what has become too old. To be done at the start and at least once a day.
    pub(super) fn look(&mut self, now: SystemTime) -> Result<(), AuditError> {
        let today = Day::of(now);
        match &self.current {
            // From here on days are counted again, also where nobody asks anything.
            Some(current) if !(0..STEP_DAYS_MAX).contains(&days(current.day, today)) => {
                self.begin(today)
            }
            _ => self.retain(today),
        }
    }

    /// Begins a new file, and removes those that are too many or too old.
    fn begin(&mut self, today: Day) -> Result<(), AuditError> {
        self.sync()?;
        self.current = None;
        let folder = &self.config.dir;
        let path = folder.join(name_of(self.next, today));
        let file = options().append(true).create_new(true).open(&path);
        let file = file.map_err(AuditError::io(&path, "make"))?;
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(AuditError::io(folder, "sync"))?;
        self.current = Some(Current {
            file,
            path,
            day: today,
            bytes: 0,
            unsynced: false,
        });
        self.next = self.next.saturating_add(1);
        self.retain(today)
    }

    /// Removes what is too much: the oldest first, and never what is written to.
    fn retain(&self, today: Day) -> Result<(), AuditError> {
        let folder = &self.config.dir;
        let all = found(folder).map_err(AuditError::io(folder, "read"))?;
        let mut all = aged(all, today);
        let current = self.current.as_ref().map(|current| &current.path);
        all.retain(|(file, _)| Some(&file.path) != current);
        // The file that is written to counts with all that it may become.
        let mut bytes = all.iter().map(|(file, _)| file.bytes).sum::<u64>();
        bytes = bytes.saturating_add(self.config.file_bytes_max);
        let mut left = all.len() + 1;
        for (file, age) in all {
            let too_many = left > self.config.files_max || bytes > self.config.bytes_max;
            if !too_many && age <= u64::from(self.config.days_max) {
                continue;
            }
            match fs::remove_file(&file.path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(AuditError::io(&file.path, "remove")(error)),
            }
            left -= 1;
            bytes = bytes.saturating_sub(file.bytes);
        }
        Ok(())
    }

    /// Brings to the disk what was written. If somebody has removed the file meanwhile, the next record begins another.
    pub(super) fn sync(&mut self) -> Result<(), AuditError> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        if std::mem::take(&mut current.unsynced) {
            let synced = current.file.sync_data();
            synced.map_err(AuditError::io(&current.path, "sync"))?;
            let metadata = current.file.metadata();
            let metadata = metadata.map_err(AuditError::io(&current.path, "look at"))?;
            if metadata.nlink() == 0 {
                let path = self.current.take().map(|current| current.path);
                let gone = io::Error::from(io::ErrorKind::NotFound);
                return Err(AuditError::io(&path.unwrap_or_default(), "find")(gone));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Files {
    /// Has records written to `file` instead.
    pub(super) fn divert(&mut self, file: File) {
        let current = self.current.as_mut().expect("a file");
        current.file = file;
    }
}

impl Current {
    /// Opens a file and removes a torn last line.
    fn open(found: &Found) -> io::Result<Current> {
        let mut file = options().read(true).append(true).open(&found.path)?;
        let bytes = whole_lines(&mut file)?;
        if bytes < file.metadata()?.len() {
            file.set_len(bytes)?;
            file.sync_all()?;
            tracing::warn!(path = %found.path.display(), "a torn last line of the audit stream is removed");
        }
        Ok(Current {
            file,
            path: found.path.clone(),
            day: found.day,
            bytes,
            unsynced: false,
        })
    }
}

/// Bytes of a file up to the end of its last whole line.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = [0; RECORD_BYTES_MAX];
    while end > 0 {
        let start = end.saturating_sub(RECORD_BYTES_MAX as u64);
        let bytes = usize::try_from(end - start).unwrap_or(RECORD_BYTES_MAX);
        let piece = &mut piece[..bytes];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(piece)?;
        if let Some(at) = piece.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
