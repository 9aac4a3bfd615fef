//! The files of two pages of keys and values, which follow each other, with changes: a byte of flags, then what the header of
//! one of them is to begin with, then places and values of changes to its content, three bytes each.
//!
//! It is removed, or it is the page that was written: what is computed from it is the same bytes as without, unless somebody
//! went to the trouble of giving other content its checksum.

use crate::small::model;
use andon_engine::kv::PAGE;
use andon_engine::kv::disk::{PageStore, PageStoreOptions};
use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model, Sequence};
use andon_os::heap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use twox_hash::XxHash3_128;

/// The file gets the checksum of what it says.
pub(crate) const SIGN: u8 = 1;
/// The last two bytes are the length that the file is cut to.
pub(crate) const CUT: u8 = 2;
/// It is the second page, not the first.
pub(crate) const SECOND: u8 = 4;

const CHECKSUM_BYTES: usize = 16;
/// What stands before the content: magic number, three names, two numbers, a length, tokens, checksum.
pub(crate) const HEADER_BYTES: usize = 8 + 3 * 16 + 4 + 4 + 8 + 4 * PAGE + CHECKSUM_BYTES;

/// Two pages, and a token whose logits are computed.
const TOKENS: usize = 2 * PAGE + 1;

static SUBJECT: LazyLock<Mutex<Subject>> = LazyLock::new(|| Mutex::new(Subject::new()));

struct Subject {
    executor: Executor,
    options: PageStoreOptions,
    root: andon_engine::kv::PageName,
    /// The folder of the sound files, and these.
    _folder: tempfile::TempDir,
    pages: [(PathBuf, Vec<u8>); 2],
    text: Vec<u32>,
    /// What is computed without them.
    logits: Vec<u32>,
}

pub(crate) fn run(data: &[u8]) {
    if let Some((&flags, changes)) = data.split_first() {
        let mut subject = SUBJECT.lock().unwrap_or_else(PoisonError::into_inner);
        subject.check(flags, changes);
    }
}

/// The header of a sound file.
#[allow(dead_code, reason = "what seeds are made of")]
pub(crate) fn header(flags: u8) -> Vec<u8> {
    let subject = SUBJECT.lock().unwrap_or_else(PoisonError::into_inner);
    subject.pages[usize::from(flags & SECOND != 0)].1[..HEADER_BYTES].to_vec()
}

impl Subject {
    fn new() -> Subject {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        fs::write(&path, model(TOKENS as u32 + 1)).expect("written");
        let model = Arc::new(Model::load(&path).expect("a sound model"));
        let key = model.pack_key().expect("a key");
        let executor = ExecutorOptions {
            threads: Some(1),
            batch_tokens_max: TOKENS,
            kv_tokens_max: 4 * PAGE,
            prefix_cache: true,
            ..ExecutorOptions::default()
        };
        let mut executor = Executor::new(Arc::clone(&model), &executor).expect("an executor");
        let root = executor.page_root(&key).expect("a name");
        let options = PageStoreOptions {
            dir: folder.path().join("pages"),
            bytes_max: u64::MAX,
            free_bytes_min: 0,
        };
        let store = PageStore::open(options.clone(), root, executor.page_bytes());
        let store = Arc::new(store.expect("a folder"));
        executor.keep_pages_in(Arc::clone(&store));
        let text: Vec<u32> = (0..TOKENS).map(|at| u32::from(at % 3 == 1)).collect();
        // Twice, so that it is worth keeping.
        let logits = [(); 2].map(|()| {
            let mut sequence = executor.sequence_of(&text);
            logits(&mut executor, &mut sequence, &text)
        });
        assert_eq!(logits[0], logits[1]);
        while let Some(page) = executor.page_to_keep() {
            assert!(store.write(&page).expect("room"), "a page is kept");
        }
        let mut pages: Vec<PathBuf> = fs::read_dir(&options.dir)
            .expect("a folder")
            .map(|entry| entry.expect("a file").path())
            .collect();
        // Their numbers in the text stand in their names, behind the same.
        pages.sort();
        let pages = pages.try_into().expect("two pages");
        let [logits, _] = logits;
        Subject {
            executor,
            options,
            root,
            _folder: folder,
            pages: <[PathBuf; 2]>::map(pages, |path| {
                let bytes = fs::read(&path).expect("a page");
                (path, bytes)
            }),
            text,
            logits,
        }
    }

    fn check(&mut self, flags: u8, mut changes: &[u8]) {
        let changed = usize::from(flags & SECOND != 0);
        let sound = &self.pages[changed].1;
        let mut bytes = sound.clone();
        let mut length = bytes.len();
        if flags & CUT != 0
            && let Some((rest, cut)) = changes.split_last_chunk()
        {
            changes = rest;
            length = usize::from(u16::from_le_bytes(*cut)).min(length);
        }
        let (start, changes) = changes.split_at(changes.len().min(HEADER_BYTES));
        bytes[..start.len()].copy_from_slice(start);
        let content = &mut bytes[HEADER_BYTES..];
        for change in changes.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
            content[at % sound[HEADER_BYTES..].len()] ^= change[2];
        }
        let forged = flags & SIGN != 0 && content != &sound[HEADER_BYTES..];
        if flags & SIGN != 0 {
            sign(&mut bytes);
        }
        bytes.truncate(length);
        let is_sound = bytes == *sound;
        for (number, (path, sound)) in self.pages.iter().enumerate() {
            let bytes = if number == changed { &bytes } else { sound };
            fs::write(path, bytes).expect("written");
        }

        let store = PageStore::open(self.options.clone(), self.root, self.executor.page_bytes());
        let store = Arc::new(store.expect("a folder"));
        self.executor.shed();
        self.executor.keep_pages_in(Arc::clone(&store));
        // Headers and tokens of two pages, and the index; then what is read at once.
        let limit = (1 << 18) + 8 * HEADER_BYTES;
        let ((texts, sequence), _) = heap::measure(limit, bytes.len() as u64, || {
            let texts: Vec<Vec<u32>> = store.chains(16).collect();
            let mut sequence = self.executor.sequence_of(&self.text);
            while self.executor.restore(&mut sequence, &self.text) {}
            (texts, sequence)
        });
        let mut sequence = sequence;
        let found = sequence.len();
        assert!(found % PAGE == 0 && found <= 2 * PAGE);
        // Only what was written is of this text, whatever a header says of itself.
        for text in &texts {
            assert!(!text.is_empty() && self.text.starts_with(text));
        }
        if is_sound {
            assert_eq!(found, 2 * PAGE, "a sound page is used");
            assert_eq!(texts.len(), 1, "two pages of one text");
        }
        let logits = logits(&mut self.executor, &mut sequence, &self.text);
        assert!(
            logits == self.logits || forged,
            "the model says something else"
        );
        let counts = store.counts();
        assert!(counts.restored as usize * PAGE == found);
        assert!(is_there(&self.pages[changed].0) || !is_sound);
    }
}

fn is_there(path: &Path) -> bool {
    path.exists()
}

/// Gives a file the checksum of what it says.
fn sign(bytes: &mut [u8]) {
    let (header, content) = bytes.split_at_mut(HEADER_BYTES);
    let (header, checksum) = header.split_at_mut(HEADER_BYTES - CHECKSUM_BYTES);
    let mut hasher = XxHash3_128::new();
    hasher.write(header);
    hasher.write(content);
    checksum.copy_from_slice(&hasher.finish_128().to_le_bytes());
}

/// The logits behind a text that a sequence has the beginning of, bit by bit.
fn logits(executor: &mut Executor, sequence: &mut Sequence, text: &[u32]) -> Vec<u32> {
    let tokens = &text[sequence.len()..];
    let chunk = Chunk {
        sequence,
        tokens,
        logits: LogitsFor::Last,
    };
    let logits = executor.forward(&mut [chunk]).expect("logits");
    logits.row(0).iter().map(|value| value.to_bits()).collect()
}
