//! What the target answered, on the disk: a log to which one prompt's answers are added at a time.
//!
//! Invariant: a log that is opened has whole entries only. An entry that was written half, because the program was killed or
//! the disk was full, is the last; it is cut off, and written again later. Nothing else is ever cut off: a file that does
//! not begin as a log, or is damaged before its end, is refused and left as it is.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
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
        let (mut records, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let entry = match entry(&bytes[at..]) {
                Found::Whole(entry) => entry,
                _ if at == 0 => bail!(
                    "{} is no log of answers; name another --work folder",
                    place()
                ),
                Found::Damaged => bail!(
                    "{} is damaged at byte {at} of {}, behind {} prompts; remove it, or cut it off there",
                    place(),
                    bytes.len(),
                    records.len()
                ),
                Found::Half => {
                    eprintln!(
                        "{}: the last {} bytes, an entry that was written half, are cut off",
                        place(),
                        bytes.len() - at
                    );
                    break;
                }
            };
            if at == 0 {
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
            at += HEAD_BYTES + entry.len();
        }
        if at < bytes.len() {
            file.set_len(at as u64).with_context(place)?;
        }
        file.seek(SeekFrom::End(0)).with_context(place)?;
        let mut log = Log {
            file,
            path: path.to_owned(),
        };
        if at == 0 {
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

/// What is at the beginning of some bytes.
enum Found<'a> {
    Whole(&'a [u8]),
    /// What may be the beginning of an entry, and nothing behind it.
    Half,
    /// Something else.
    Damaged,
}

fn entry(bytes: &[u8]) -> Found<'_> {
    // What was never written of a file that had grown already.
    if bytes.iter().all(|&byte| byte == 0) {
        return Found::Half;
    }
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Found::Half;
    };
    let [a, b, c, d, checksum @ ..] = *head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > ENTRY_BYTES_MAX {
        return Found::Damaged;
    }
    match rest.get(..length) {
        None => Found::Half,
        Some(entry) if XxHash3_64::oneshot(entry).to_le_bytes() == checksum => Found::Whole(entry),
        Some(entry) if entry.len() == rest.len() => Found::Half,
        Some(_) => Found::Damaged,
    }
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
        // Nor is the last one whole if its bytes are there but not what they were.
        let mut damaged = whole.clone();
        *damaged.last_mut().expect("bytes") ^= 1;
        fs::write(&path, &damaged).expect("written");
        assert_eq!(Log::open(&path, "a", 10).expect("opened").1.len(), 2);
        // Or if they never came.
        fs::write(&path, [&whole[..], &[0; 100]].concat()).expect("written");
        assert_eq!(Log::open(&path, "a", 10).expect("opened").1.len(), 3);
        assert_eq!(fs::read(&path).expect("read"), whole);
    }

    #[test]
    fn what_is_damaged_or_no_log_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("answers");
        let refused = |bytes: &[u8], expected: &str| {
            fs::write(&path, bytes).expect("written");
            let error = Log::open(&path, "a", 10).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(fs::read(&path).expect("read"), bytes);
        };
        refused(b"my own notes", "no log");
        refused(&[b'x'; 1000], "no log");
        refused(&[0; 10], "no log");
        fs::remove_file(&path).expect("removed");
        let (mut log, _) = Log::open(&path, "a", 10).expect("begun");
        for index in 0..3 {
            log.add(&record(index)).expect("added");
        }
        let mut bytes = fs::read(&path).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        refused(&bytes, "damaged at byte");
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
