//! The file of a spool with a few records, with changes: a byte of flags, then changes of four bytes each: which of the blocks
//! that have something in them, where in it, what is done to that byte, and with what.
//!
//! It is refused by name, or what it holds is what was written: no byte of it is taken at its word.

use andon_os::heap;
use andond::spool::Kept;
use andond::spool::cipher::Secret;
use andond::spool::image;
use andond::spool::record::Header;
use std::io::Write as _;
use std::sync::LazyLock;

/// The file is sealed.
pub(crate) const SEALED: u8 = 1;
/// The last two bytes say how many blocks of it are left.
pub(crate) const CUT: u8 = 2;

/// Bytes of a block; those that have nothing in them are passed over.
const BLOCK_BYTES: usize = 64;

/// What redb has in memory of a file of this size: its cache, what it knows of free pages, and what is read.
const HEAP_BYTES_MAX: usize = 96 << 20;

static SUBJECT: LazyLock<Subject> = LazyLock::new(Subject::new);

struct Subject {
    secret: Secret,
    records: Vec<(u64, Kept)>,
    /// In the clear, and sealed.
    files: [File; 2],
}

struct File {
    bytes: Vec<u8>,
    /// Where the blocks begin that have something in them.
    blocks: Vec<usize>,
}

pub(crate) fn run(data: &[u8]) {
    if let Some((&flags, changes)) = data.split_first() {
        check(flags, changes);
    }
}

/// How many blocks of the file have something in them.
#[allow(dead_code, reason = "what seeds are made of")]
pub(crate) fn blocks(flags: u8) -> usize {
    SUBJECT.files[usize::from(flags & SEALED)].blocks.len()
}

impl Subject {
    fn new() -> Subject {
        let mut key = tempfile::NamedTempFile::new().expect("a file");
        key.write_all(&[7; 32]).expect("written");
        let secret = Secret::read(key.path()).expect("a key");
        let records: Vec<Kept> = (1..=4_u8).map(record).collect();
        let file = |secret| {
            let bytes = image::write(&records, secret).expect("a spool");
            let blocks = (0..bytes.len()).step_by(BLOCK_BYTES).filter(|&at| {
                let block = &bytes[at..bytes.len().min(at + BLOCK_BYTES)];
                block.iter().any(|&byte| byte != 0)
            });
            File {
                blocks: blocks.collect(),
                bytes,
            }
        };
        Subject {
            files: [file(None), file(Some(&secret))],
            secret,
            records: (1..).zip(records).collect(),
        }
    }
}

/// A record of this number: as long as it may be answered, in each state.
fn record(number: u8) -> Kept {
    // Door, client, id, task, priority, fingerprint, state, attempt, seed, arrived, due, answered, delivered, fault, sizes, crashes.
    let header = [
        &[number % 2, 3][..],
        b"plc",
        &[1, b'0' + number, 0, number % 3],
        &[number; 16],
        &[number - 1, 1, 9],
        &[1, 5, 0],
        &[1, 70, 1, 5, 0],
        &[0, 0, 0, 9, 3, 0],
    ]
    .concat();
    Kept {
        header: image::header(3, &header, &[]).expect("a header"),
        request: vec![number; 700].into(),
        answer: (number > 2).then(|| vec![b'a' + number; 3000].into()),
    }
}

fn check(flags: u8, mut changes: &[u8]) {
    let subject = &*SUBJECT;
    let File { bytes, blocks } = &subject.files[usize::from(flags & SEALED)];
    let mut file = bytes.clone();
    let mut length = file.len();
    if flags & CUT != 0
        && let Some((rest, cut)) = changes.split_last_chunk()
    {
        changes = rest;
        length = length.min(usize::from(u16::from_le_bytes(*cut)) * BLOCK_BYTES);
    }
    for change in changes.chunks_exact(4) {
        let block = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let (place, how) = (change[2] % 64, change[2] / 64);
        let at = blocks[block % blocks.len()] + usize::from(place);
        let Some(byte) = file.get_mut(at) else {
            continue;
        };
        match how {
            0 => *byte ^= change[3],
            1 => *byte = change[3],
            2 => *byte = byte.wrapping_add(change[3]),
            _ => *byte = 0,
        }
    }
    file.truncate(length);
    let is_sound = file == *bytes;
    let secret = (flags & SEALED != 0).then_some(&subject.secret);
    let (read, _) = heap::measure(HEAP_BYTES_MAX, changes.len() as u64, || {
        image::read(file, secret)
    });
    match read {
        Ok(found) if length == 0 => assert!(found.is_empty(), "an empty file is a new spool"),
        Ok(found) => {
            assert!(found.len() == subject.records.len(), "a record is missing");
            for ((number, kept), (expected, written)) in found.iter().zip(&subject.records) {
                assert_eq!(number, expected);
                assert!(is_same(kept, written), "record {number} is another");
            }
        }
        Err(error) => {
            assert!(!is_sound, "a sound spool is refused: {error}");
            // An operator reads it.
            assert!(!error.to_string().is_empty());
        }
    }
}

fn is_same(found: &Kept, written: &Kept) -> bool {
    let header = |kept: &Kept| -> Header { kept.header.clone() };
    header(found) == header(written)
        && found.request == written.request
        && found.answer == written.answer
}
