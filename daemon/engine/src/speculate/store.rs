//! A corpus on the disk, from one start to the next: a small file for each.
//!
//! What is read is trusted no more than any input: its size is bounded, it names the key and the vocabulary it was made
//! for, it has a checksum, and every token is one of the vocabulary. A file that is not so is an error and none of it is
//! used. A wrong guess costs time and changes no answer, so no more than this is at stake.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use twox_hash::XxHash3_64;

use super::Corpus;
use super::lookup::SEPARATOR;
use crate::temporary::{self, Temporary};

/// What a file begins with; the last byte is a number for each change of the format.
const MAGIC: [u8; 8] = *b"andonc\0\x02";

/// Magic, key, vocabulary, number of tokens, bytes of the label.
const HEADER_BYTES: usize = 8 + 32 + 4 + 4 + 4;

/// Most bytes of a label: a byte for whether the client is local, two for the length of the task's name, both names.
const LABEL_BYTES_MAX: usize = 1024;

const CHECKSUM_BYTES: usize = 8;

const ENDING: &str = ".corpus";

/// What a corpus on the disk is known by: a digest of the model, of what is asked and of whose answers are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CorpusKey(pub [u8; 32]);

impl CorpusKey {
    fn path(&self, folder: &Path) -> PathBuf {
        let name: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        folder.join(format!("{name}{ENDING}"))
    }
}

/// Whose answers a corpus has, for people to read.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// The task.
    pub task: String,
    /// The client; empty for all together.
    pub client: String,
    /// Whether the client is a user of this machine.
    pub local: bool,
}

impl Label {
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let task = u16::try_from(self.task.len()).map_err(io::Error::other)?;
        let mut bytes = vec![u8::from(self.local)];
        bytes.extend_from_slice(&task.to_le_bytes());
        bytes.extend_from_slice(self.task.as_bytes());
        bytes.extend_from_slice(self.client.as_bytes());
        if bytes.len() > LABEL_BYTES_MAX {
            return Err(io::Error::other(
                "the names of task and client are too long",
            ));
        }
        Ok(bytes)
    }

    fn of(bytes: &[u8]) -> Option<Label> {
        let ([local, low, high], names) = bytes.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (task, client) = names.split_at_checked(length)?;
        let text = |bytes: &[u8]| core::str::from_utf8(bytes).ok().map(str::to_owned);
        Some(Label {
            task: text(task)?,
            client: text(client)?,
            local: *local == 1,
        })
    }
}

/// What lies in the folder under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key.
    pub key: CorpusKey,
    /// Whose it says that it is.
    pub label: Label,
    /// How many tokens it says that it has.
    pub tokens: usize,
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Makes the folder, for nobody else to look into, and clears away what a killed program left half written in it.
///
/// # Errors
/// If it cannot be made.
pub fn prepare(folder: &Path) -> io::Result<()> {
    // What it lies in is for others to look into.
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let names = fs::read_dir(folder)?.filter_map(Result::ok);
    let left = names.filter(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(temporary::is_temporary)
    });
    temporary::clear_away(left.map(|entry| entry.path()));
    Ok(())
}

/// The corpus that is kept under `key` for a model of `vocabulary` tokens; of one that is longer than `tokens_max`, the
/// latest answers.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if there is none, else why it is of no use.
pub fn read(
    folder: &Path,
    key: &CorpusKey,
    vocabulary: usize,
    tokens_max: usize,
) -> io::Result<Corpus> {
    let mut bytes = Vec::new();
    let most = HEADER_BYTES + LABEL_BYTES_MAX + 4 * Corpus::TOKENS_MAX + CHECKSUM_BYTES;
    File::open(key.path(folder))?
        .take(most as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(damaged("it is larger than any"));
    }
    let (body, checksum) = bytes
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or_else(|| damaged("it is cut off"))?;
    let (header, rest) = body
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(|| damaged("it is cut off"))?;
    if header[..8] != MAGIC {
        return Err(damaged("it has another format"));
    }
    if XxHash3_64::oneshot(body).to_le_bytes() != *checksum {
        return Err(damaged("its checksum is another"));
    }
    let number = |at: usize| number(header, at);
    let (_, tokens) = rest
        .split_at_checked(number(48))
        .ok_or_else(|| damaged("its length is another"))?;
    if header[8..40] != key.0 || number(40) != vocabulary {
        return Err(damaged("it is of another model or another client"));
    }
    let (tokens, rest) = tokens.as_chunks::<4>();
    if !rest.is_empty() || tokens.len() != number(44) {
        return Err(damaged("its length is another"));
    }
    let tokens: Vec<u32> = tokens
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .collect();
    let known = |token: u32| token == SEPARATOR || (token as usize) < vocabulary;
    if !tokens.iter().all(|&token| known(token)) {
        return Err(damaged("it has tokens that the vocabulary lacks"));
    }
    Ok(Corpus::of_texts(tokens_max, &tokens))
}

fn number(header: &[u8], at: usize) -> usize {
    let bytes = header.get(at..).and_then(<[u8]>::first_chunk::<4>);
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

/// What lies in the folder, as far as it can be read.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for path in files(folder)? {
        let mut bytes = Vec::new();
        let most = (HEADER_BYTES + LABEL_BYTES_MAX) as u64;
        let opened = File::open(&path);
        if opened
            .and_then(|file| file.take(most).read_to_end(&mut bytes))
            .is_err()
        {
            continue;
        }
        let read = || {
            let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
            let key = header[8..40].first_chunk::<32>()?;
            let label = Label::of(rest.get(..number(header, 48))?)?;
            let tokens = number(header, 44);
            (header[..8] == MAGIC).then_some(Listed {
                key: CorpusKey(*key),
                label,
                tokens,
            })
        };
        // One that lies under another name is read by nobody.
        listed.extend(read().filter(|listed| listed.key.path(folder) == path));
    }
    Ok(listed)
}

/// Removes what `is_meant`, and what cannot be read, since nobody knows whose that is; says how many files that were. They
/// are gone for good when this returns.
///
/// # Errors
/// If the folder cannot be read, or a file cannot be removed; others may have been.
pub fn remove(folder: &Path, is_meant: impl Fn(&Label) -> bool) -> io::Result<usize> {
    let listed = list(folder)?;
    let stays = |path: &PathBuf| {
        let mut stays = listed.iter().filter(|listed| !is_meant(&listed.label));
        stays.any(|listed| listed.key.path(folder) == *path)
    };
    let files = files(folder)?;
    let mut removed = 0;
    for path in files.iter().filter(|path| !stays(path)) {
        fs::remove_file(path)?;
        removed += 1;
    }
    if removed > 0 {
        // Else a file could be back after the power has failed.
        File::open(folder)?.sync_all()?;
    }
    Ok(removed)
}

/// The files of corpora; none where there is no folder.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.ends_with(ENDING)) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Keeps `corpus` under `key`; a reader sees the old file or the new one, never a part.
///
/// # Errors
/// If the file cannot be written.
pub fn write(
    folder: &Path,
    key: &CorpusKey,
    vocabulary: usize,
    label: &Label,
    corpus: &Corpus,
) -> io::Result<()> {
    let number = |number: usize| {
        u32::try_from(number)
            .map(u32::to_le_bytes)
            .map_err(io::Error::other)
    };
    let tokens = corpus.texts();
    let label = label.bytes()?;
    let mut bytes =
        Vec::with_capacity(HEADER_BYTES + label.len() + 4 * tokens.len() + CHECKSUM_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&key.0);
    bytes.extend_from_slice(&number(vocabulary)?);
    bytes.extend_from_slice(&number(tokens.len())?);
    bytes.extend_from_slice(&number(label.len())?);
    bytes.extend_from_slice(&label);
    for token in tokens {
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    let checksum = XxHash3_64::oneshot(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    let mut file = Temporary::new(folder)?;
    file.file().write_all(&bytes)?;
    file.keep(&key.path(folder))
}

/// Removes the files that were written longest ago until at most `files_max` are left.
///
/// # Errors
/// If the folder cannot be read or a file cannot be removed.
pub fn thin_out(folder: &Path, files_max: usize) -> io::Result<()> {
    let changed = |path: PathBuf| {
        let changed = fs::metadata(&path).and_then(|metadata| metadata.modified());
        Some((changed.ok()?, path))
    };
    let mut files: Vec<(SystemTime, PathBuf)> =
        files(folder)?.into_iter().filter_map(changed).collect();
    files.sort_unstable();
    let surplus = files.len().saturating_sub(files_max);
    for (_, path) in files.drain(..surplus) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CorpusKey, Label, Listed, list, prepare, read, remove, thin_out, write};
    use crate::speculate::Corpus;
    use std::fs;
    use std::io::ErrorKind;

    const KEY: CorpusKey = CorpusKey([7; 32]);

    fn label() -> Label {
        Label {
            task: "explain".to_owned(),
            client: "plc1".to_owned(),
            local: false,
        }
    }

    fn corpus() -> Corpus {
        let corpus = Corpus::new(1000);
        corpus.add(&[1, 2, 3], &[10, 11, 12, 13]);
        corpus.add(&[1, 2, 3], &[10, 20, 21]);
        corpus
    }

    #[test]
    fn what_is_written_is_read_under_its_key_and_for_its_vocabulary_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("corpora");
        prepare(&folder).expect("made");
        let kind = |key: &CorpusKey, vocabulary| {
            read(&folder, key, vocabulary, 1000)
                .expect_err("none")
                .kind()
        };
        assert_eq!(kind(&KEY, 50), ErrorKind::NotFound);
        write(&folder, &KEY, 50, &label(), &corpus()).expect("written");
        let again = read(&folder, &KEY, 50, 1000).expect("read");
        assert_eq!(again.texts(), corpus().texts());
        assert_eq!(again.continuation(&[5, 11, 12], 9), [13]);
        assert_eq!(kind(&KEY, 51), ErrorKind::InvalidData);
        let other = CorpusKey([8; 32]);
        assert_eq!(kind(&other, 50), ErrorKind::NotFound);
        fs::copy(KEY.path(&folder), other.path(&folder)).expect("copied");
        assert_eq!(kind(&other, 50), ErrorKind::InvalidData);
        // Of a shorter one, the latest answers are left.
        let short = read(&folder, &KEY, 50, 8).expect("read");
        assert_eq!(short.token_count(), 7);
        assert!(short.continuation(&[5, 11, 12], 9).is_empty());
    }

    #[test]
    fn no_damaged_file_is_used() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), &KEY, 50, &label(), &corpus()).expect("written");
        let path = KEY.path(folder.path());
        let good = fs::read(&path).expect("readable");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&path, &bad).expect("written");
            assert!(read(folder.path(), &KEY, 50, 1000).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).expect("written");
            assert!(read(folder.path(), &KEY, 50, 1000).is_err(), "{at} bytes");
        }
        // With a checksum that is right, but tokens that are not.
        write(folder.path(), &KEY, 50, &label(), &corpus()).expect("written");
        let wide = Corpus::new(100);
        wide.add(&[], &[49, 50]);
        write(folder.path(), &KEY, 50, &label(), &wide).expect("written");
        assert!(read(folder.path(), &KEY, 50, 1000).is_err());
    }

    #[test]
    fn what_is_there_is_listed_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let other = CorpusKey([9; 32]);
        write(folder, &KEY, 50, &label(), &corpus()).expect("written");
        write(folder, &other, 50, &Label::default(), &corpus()).expect("written");
        fs::write(folder.join("broken.corpus"), "broken").expect("written");
        fs::copy(KEY.path(folder), folder.join("copy.corpus")).expect("copied");
        let mut listed = list(folder).expect("listed");
        listed.sort_by_key(|listed| listed.key.0);
        let tokens = corpus().token_count();
        let of = |key: CorpusKey, label: Label| Listed { key, label, tokens };
        assert_eq!(listed, [of(KEY, label()), of(other, Label::default())]);
        let is_meant = |of: &Label| *of == label();
        assert_eq!(remove(folder, is_meant).expect("removed"), 3);
        assert_eq!(remove(folder, is_meant).expect("nothing there"), 0);
        assert_eq!(list(folder).expect("listed").len(), 1);
        assert_eq!(remove(folder, |_| true).expect("removed"), 1);
        let none = folder.join("none");
        assert_eq!(remove(&none, |_| true).expect("no folder"), 0);
        assert_eq!(fs::read_dir(folder).expect("a folder").count(), 0);
        let long = Label {
            task: "x".repeat(2000),
            ..label()
        };
        assert!(write(folder, &KEY, 50, &long, &corpus()).is_err());
    }

    #[test]
    fn the_number_of_files_stays_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("other"), "").expect("written");
        for number in 0..5 {
            write(
                folder.path(),
                &CorpusKey([number; 32]),
                50,
                &label(),
                &corpus(),
            )
            .expect("written");
        }
        thin_out(folder.path(), 3).expect("thinned out");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 4);
        assert!(read(folder.path(), &CorpusKey([4; 32]), 50, 100).is_ok());
    }
}
