//! The file of packed weights of a small model, with changes: a byte of flags, then what its header is to begin with,
//! then places and values of changes to its data, three bytes each.
//!
//! Its header is refused by name, or it is that of the model; what was computed with it is the same bytes as without,
//! whatever is in its data, unless somebody went to the trouble of giving that its checksums.

use crate::small::model;
use andon_engine::pack::{Cache, CacheOptions, Key, Pack};
use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model};
use andon_os::heap;
use std::fs;
use std::hash::Hasher as _;
use std::io::Write as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use twox_hash::XxHash3_64;

/// The header gets the checksum of what it says.
pub(crate) const SIGN: u8 = 1;
/// The last two bytes are the length that the file is cut to.
pub(crate) const CUT: u8 = 2;

/// Bytes of the fixed part of a header, which ends with the header's checksum.
const HEAD_BYTES: usize = 128;
const CHECKSUM_AT: usize = HEAD_BYTES - 8;
/// Where the fixed part says how long the whole header is.
const LENGTH_AT: usize = 72;

static SUBJECT: LazyLock<Mutex<Subject>> = LazyLock::new(|| Mutex::new(Subject::new()));

struct Subject {
    model: Arc<Model>,
    executor: Executor,
    key: Key,
    /// The sound file, and how much of it is its header.
    sound: Vec<u8>,
    header_bytes: usize,
    /// What is computed without it.
    logits: Vec<u32>,
}

pub(crate) fn run(data: &[u8]) {
    if let Some((&flags, changes)) = data.split_first() {
        let mut subject = SUBJECT.lock().unwrap_or_else(PoisonError::into_inner);
        subject.check(flags, changes);
    }
}

/// The header of the sound file.
#[allow(dead_code, reason = "what seeds are made of")]
pub(crate) fn header() -> Vec<u8> {
    let subject = SUBJECT.lock().unwrap_or_else(PoisonError::into_inner);
    subject.sound[..subject.header_bytes].to_vec()
}

impl Subject {
    fn new() -> Subject {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        fs::write(&path, model(32)).expect("written");
        let model = Arc::new(Model::load(&path).expect("a sound model"));
        let key = model.pack_key().expect("a key");
        let cache = Cache::new(CacheOptions {
            dir: folder.path().to_owned(),
            bytes_max: u64::MAX,
            free_bytes_min: 0,
        });
        let pack = cache.make(&model, &key, 1, &mut |_, _| true);
        let sound = fs::read(pack.expect("a pack").path()).expect("read");
        let header_bytes = number(&sound, LENGTH_AT).expect("whole") as usize;
        let options = ExecutorOptions {
            threads: Some(1),
            batch_tokens_max: 4,
            kv_tokens_max: 32,
            ..ExecutorOptions::default()
        };
        let mut executor = Executor::new(Arc::clone(&model), &options).expect("an executor");
        let logits = logits(&mut executor);
        Subject {
            model,
            executor,
            key,
            sound,
            header_bytes,
            logits,
        }
    }

    fn check(&mut self, flags: u8, mut changes: &[u8]) {
        let mut bytes = self.sound.clone();
        let mut length = bytes.len();
        if flags & CUT != 0
            && let Some((rest, cut)) = changes.split_last_chunk()
        {
            changes = rest;
            length = usize::from(u16::from_le_bytes(*cut)).min(length);
        }
        let (start, changes) = changes.split_at(changes.len().min(self.header_bytes));
        bytes[..start.len()].copy_from_slice(start);
        let (header, data) = bytes.split_at_mut(self.header_bytes);
        for change in changes.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
            data[at % data.len()] ^= change[2];
        }
        let damaged = *data != self.sound[self.header_bytes..];
        if flags & SIGN != 0 {
            sign(header);
        }
        // Whoever finds the checksums of what is in the data may have other data.
        let forged = damaged && *header != self.sound[..self.header_bytes];
        bytes.truncate(length);

        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&bytes).expect("written");
        // As many places and checksums as its header is long, and the text of an error.
        let limit = 4 * bytes.len() + 4096;
        let (opened, _) = heap::measure(limit, bytes.len() as u64, || {
            Pack::open(file.path(), &self.key)
        });
        let used = opened.and_then(|pack| self.model.attach_pack(pack));
        match used {
            Ok(()) => {
                let logits = logits(&mut self.executor);
                assert!(
                    logits == self.logits || forged,
                    "the model says something else"
                );
                if bytes == self.sound {
                    assert!(self.model.pack().is_some(), "a sound pack is used");
                }
            }
            Err(error) => {
                assert!(bytes != self.sound, "a sound pack is refused: {error}");
                // An operator reads it.
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

/// Gives a header the checksum of what it says.
fn sign(header: &mut [u8]) {
    let length = number(header, LENGTH_AT).unwrap_or_default();
    let length = usize::try_from(length).unwrap_or_default();
    let Some(header) = header.get_mut(..length).filter(|_| length >= HEAD_BYTES) else {
        return;
    };
    let mut hasher = XxHash3_64::new();
    hasher.write(&header[..CHECKSUM_AT]);
    hasher.write(&header[HEAD_BYTES..]);
    header[CHECKSUM_AT..HEAD_BYTES].copy_from_slice(&hasher.finish().to_le_bytes());
}

fn logits(executor: &mut Executor) -> Vec<u32> {
    let mut sequence = executor.sequence();
    let chunk = Chunk {
        sequence: &mut sequence,
        tokens: &[0, 1],
        logits: LogitsFor::Last,
    };
    let logits = executor.forward(&mut [chunk]).expect("logits");
    logits.row(0).iter().map(|value| value.to_bits()).collect()
}
