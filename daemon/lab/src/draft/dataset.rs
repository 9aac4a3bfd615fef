//! What the target answered, on the disk: a log to which one prompt's answers are added at a time.
//!
//! Invariant: a log that is opened has whole entries only. Whatever follows the last of them, because the program was
//! killed or the disk was full, is cut off, and written again later.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

/// Before each entry: its length and checksum.
const HEAD_BYTES: usize = 4 + 8;
/// Longest entry: far beyond a prompt with its answers.
const ENTRY_BYTES_MAX: usize = 1 << 28;

/// Most probable tokens that are kept of each place.
pub(super) const TOP: usize = 20;

/// A prompt and what was answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Which of the prompts it is, from 0.
    pub(super) prompt_index: u32,
    pub(super) prompt: Vec<u32>,
    pub(super) answers: Vec<Answer>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) tokens: Vec<u32>,
    /// The token that ended it, if one did.
    pub(super) end: Option<u32>,
    /// For each of `tokens` the most probable ones at its place, best first, with their probabilities.
    pub(super) likely: Vec<Vec<(u32, f32)>>,
}

impl Record {
    /// Tokens of all answers.
    pub(super) fn answer_tokens(&self) -> usize {
        self.answers.iter().map(|answer| answer.tokens.len()).sum()
    }

    fn check(&self, vocabulary: usize) -> Result<()> {
        let known = |token: &u32| (*token as usize) < vocabulary;
        let answers = self.answers.iter().all(|answer| {
            let likely = answer.likely.iter().flatten();
            answer.tokens.iter().all(known)
                && answer.end.iter().all(known)
                && answer.likely.len() == answer.tokens.len()
                && likely
                    .clone()
                    .all(|(token, share)| known(token) && (0.0..=1.0).contains(share))
        });
        ensure!(
            answers && self.prompt.iter().all(known),
            "an entry of another model"
        );
        Ok(())
    }
}

/// A file of entries.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens a log, or begins one, that belongs to `purpose`: what its entries were made of. Returns its records.
    pub(super) fn open(
        path: &Path,
        purpose: &str,
        vocabulary: usize,
    ) -> Result<(Log, Vec<Record>)> {
        let place = || format!("`{}`", path.display());
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(place)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(place)?;
        let (mut records, mut at, mut first) = (Vec::new(), 0, true);
        while let Some(entry) = entry(&bytes[at..]) {
            if first {
                ensure!(
                    entry == purpose.as_bytes(),
                    "{} was made from another target, other prompts or with other options; remove it, or name another \
                     --work folder",
                    place()
                );
            } else {
                let record: Record = postcard::from_bytes(entry).with_context(place)?;
                record.check(vocabulary).with_context(place)?;
                records.push(record);
            }
            first = false;
            at += HEAD_BYTES + entry.len();
        }
        file.set_len(at as u64).with_context(place)?;
        file.seek(SeekFrom::End(0)).with_context(place)?;
        let mut log = Log {
            file,
            path: path.to_owned(),
        };
        if first {
            log.append(purpose.as_bytes())?;
        }
        Ok((log, records))
    }

    /// Adds a record.
    pub(super) fn add(&mut self, record: &Record) -> Result<()> {
        let entry = postcard::to_stdvec(record)?;
        self.append(&entry)
    }

    fn append(&mut self, entry: &[u8]) -> Result<()> {
        ensure!(
            entry.len() <= ENTRY_BYTES_MAX,
            "an entry of {} bytes",
            entry.len()
        );
        let mut bytes = (entry.len() as u32).to_le_bytes().to_vec();
        bytes.extend(XxHash3_64::oneshot(entry).to_le_bytes());
        bytes.extend(entry);
        let place = || format!("`{}`", self.path.display());
        self.file.write_all(&bytes).with_context(place)
    }
}

/// The entry at the beginning of `bytes`, if it is whole.
fn entry(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (length, checksum) = head.split_at(4);
    let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
    let entry = rest.get(..length.min(ENTRY_BYTES_MAX))?;
    (XxHash3_64::oneshot(entry).to_le_bytes() == checksum).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::{Answer, Log, Record};
    use std::fs;

    fn record(index: u32) -> Record {
        let answer = Answer {
            tokens: vec![7, 8],
            end: Some(2),
            likely: vec![vec![(7, 0.5), (9, 0.25)], vec![(8, 1.0)]],
        };
        Record {
            prompt_index: index,
            prompt: vec![1, 2, 3],
            answers: vec![answer],
        }
    }

    #[test]
    fn what_was_written_half_is_cut_off_and_the_rest_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("answers");
        let (mut log, records) = Log::open(&path, "a", 10).expect("begun");
        assert!(records.is_empty());
        for index in 0..3 {
            log.add(&record(index)).expect("added");
        }
        let whole = fs::read(&path).expect("read");
        let (_, records) = Log::open(&path, "a", 10).expect("opened");
        assert_eq!(records, [record(0), record(1), record(2)]);
        for cut in [1, 5, 20] {
            fs::write(&path, &whole[..whole.len() - cut]).expect("written");
            let (mut log, records) = Log::open(&path, "a", 10).expect("opened");
            assert_eq!(records, [record(0), record(1)], "{cut}");
            log.add(&record(2)).expect("added");
            assert_eq!(fs::read(&path).expect("read"), whole);
        }
        // A bit that changed ends it, too.
        let mut damaged = whole.clone();
        *damaged.last_mut().expect("bytes") ^= 1;
        fs::write(&path, &damaged).expect("written");
        assert_eq!(Log::open(&path, "a", 10).expect("opened").1.len(), 2);
    }

    #[test]
    fn entries_of_something_else_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("answers");
        Log::open(&path, "a", 10)
            .expect("begun")
            .0
            .add(&record(0))
            .expect("added");
        let error = Log::open(&path, "b", 10)
            .expect_err("another purpose")
            .to_string();
        assert!(error.contains("--work"), "{error}");
        let error = format!(
            "{:#}",
            Log::open(&path, "a", 9).expect_err("a small vocabulary")
        );
        assert!(error.contains("another model"), "{error}");
    }
}
