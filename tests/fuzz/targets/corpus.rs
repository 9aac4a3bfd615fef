//! The file of a corpus of earlier answers: a byte of flags, then the file, or what stands in it between the key and the
//! checksum.
//!
//! It is refused, or has tokens of the vocabulary only and is the same after writing and reading; who has it removed finds
//! nothing left.

use andon_engine::speculate::store::{self, CorpusKey, Label};
use andon_os::heap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;
use twox_hash::XxHash3_64;

/// The magic number, the key and the checksum are put around what there is.
pub(crate) const SIGN: u8 = 1;

const MAGIC: &[u8] = b"andonc\0\x02";
const KEY: CorpusKey = CorpusKey([7; 32]);
/// Tokens of the vocabulary.
const VOCABULARY: usize = 50;
/// Most tokens that are remembered of a file.
const TOKENS_MAX: usize = 1000;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

pub(crate) fn run(data: &[u8]) {
    let [flags, data @ ..] = data else {
        return;
    };
    let mut file = data.to_vec();
    if flags & SIGN != 0 {
        file = [MAGIC, &KEY.0, data].concat();
        file.extend(XxHash3_64::oneshot(&file).to_le_bytes());
    }
    let folder = FOLDER.path();
    let path = path();
    fs::write(&path, &file).expect("written");

    // The file, its tokens, and an index of those that are remembered.
    let limit = (1 << 20) + 8 * file.len();
    let label = data.len() as u64;
    let (read, _) = heap::measure(limit, label, || {
        store::read(folder, &KEY, VOCABULARY, TOKENS_MAX)
    });
    let (listed, _) = heap::measure(limit, label, || store::list(folder));
    let listed = listed.expect("a folder");
    assert!(listed.iter().all(|listed| listed.key == KEY));
    match read {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(corpus) => {
            assert!(corpus.token_count() <= TOKENS_MAX);
            for text in [&[1_u32, 2, 3][..], &[], &[u32::MAX; 3]] {
                let next = corpus.continuation(text, 9);
                assert!(next.iter().all(|&token| (token as usize) < VOCABULARY));
                assert!(next.len() <= 9);
            }
            let label = Label::default();
            store::write(folder, &KEY, VOCABULARY, &label, &corpus).expect("written");
            let again = store::read(folder, &KEY, VOCABULARY, TOKENS_MAX).expect("read");
            assert_eq!(again.token_count(), corpus.token_count());
            let first = fs::read(&path).expect("a file");
            store::write(folder, &KEY, VOCABULARY, &label, &again).expect("written");
            assert!(fs::read(&path).expect("a file") == first);
            // Of another vocabulary it is of no use.
            assert!(store::read(folder, &KEY, VOCABULARY + 1, TOKENS_MAX).is_err());
        }
    }
    assert_eq!(store::remove(folder, |_| true).expect("removed"), 1);
    assert!(!path.exists());
}

fn path() -> PathBuf {
    let name: String = KEY.0.iter().map(|byte| format!("{byte:02x}")).collect();
    FOLDER.path().join(format!("{name}.corpus"))
}
