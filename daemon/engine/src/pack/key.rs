//! What tells models apart.

use super::PackError;
use crate::files::Files;
use crate::gguf::Gguf;
use std::fmt;
use twox_hash::XxHash3_128;

/// Bytes looked at in a sample of a tensor.
const SAMPLE_BYTES: usize = 4096;

/// Which model a pack is of. The name of its file begins with it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) [u8; 32]);

impl Key {
    /// The key of a model whose digest is known.
    #[must_use]
    pub fn of_digest(digest: [u8; 32]) -> Key {
        Key(digest)
    }

    /// The key of files of which nobody knows the digest, and which are not to be read whole for it at every start:
    /// their sizes, times of change and inodes, their metadata and tensor directories, and of every tensor its first
    /// page, its last, and one in the middle.
    ///
    /// The first three find a file that was edited or replaced, unless somebody sets the times; in images of a disk that
    /// are made reproducibly they may all be the same for two models, and there the samples tell them apart: training
    /// changes every page of the tensors that it changes.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub(crate) fn of_files(files: &Files, gguf: &Gguf<'_>) -> Result<Key, PackError> {
        let mut hasher = XxHash3_128::new();
        for (part, (map, path)) in files.maps().iter().zip(files.paths()).enumerate() {
            let io = |source| PackError::Io {
                path: path.clone(),
                action: "read",
                source,
            };
            let identity = map.identity().map_err(io)?;
            hasher.write(format!("{identity:?}").as_bytes());
            let tensors = || gguf.tensors().iter().filter(|tensor| tensor.part == part);
            let data = tensors().map(|tensor| tensor.range.start).min();
            hasher.write(&map[..data.unwrap_or(map.len())]);
            let mut sample = [0; SAMPLE_BYTES];
            for tensor in tensors() {
                let range = &tensor.range;
                let last = range.end - range.len().min(SAMPLE_BYTES);
                let middle = range.start + (last - range.start) / 2;
                for start in [range.start, middle, last] {
                    let sample = &mut sample[..SAMPLE_BYTES.min(range.end - start)];
                    map.read_at(start, sample).map_err(io)?;
                    hasher.write(sample);
                }
            }
        }
        let mut key = [0; 32];
        key[..16].copy_from_slice(b"andon: by sample");
        key[16..].copy_from_slice(&hasher.finish_128().to_le_bytes());
        Ok(Key(key))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}
