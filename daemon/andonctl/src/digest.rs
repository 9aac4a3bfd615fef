//! SHA-256 of files.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use andon_wire::manifest::Digest;
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::progress::Progress;
use crate::verity::Verity;

/// The name of what stands before the first tensor.
const HEAD: &str = "(head)";
/// Bytes hashed at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// A digest being made.
#[derive(Clone)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// The digest of a file.
pub(crate) fn of_file(path: &Path, progress: &Progress) -> Result<Digest, Failure> {
    let failed = |error| Failure::file("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    of_reader(&mut file, progress).map_err(failed)
}

/// The digests of a file of weights.
pub(crate) struct OfWeights {
    pub(crate) whole: Digest,
    /// What fs-verity measures of it.
    pub(crate) verity: Digest,
    /// Its pieces, from its beginning to its end: how many bytes, what they are called, and their digest.
    pub(crate) pieces: Vec<(u64, String, Digest)>,
}

/// The digests of a file of weights, which is read once. A piece ends where the next of `tensors` begins.
pub(crate) fn of_weights(
    path: &Path,
    tensors: Vec<(u64, String)>,
    progress: &Progress,
) -> Result<OfWeights, Failure> {
    let failed = |error| Failure::file("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut whole, mut verity) = (Hasher::new(), Verity::default());
    let mut pieces = Vec::new();
    let mut next = tensors.into_iter().peekable();
    let mut name = HEAD.to_owned();
    let (mut start, mut end, mut hasher) = (0, 0, Hasher::new());
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = buffer.get(..count).unwrap_or_default();
        whole.update(bytes);
        verity.update(bytes);
        progress.forward(count as u64);
        while let Some((border, following)) = next.next_if(|(at, _)| *at < end + bytes.len() as u64)
        {
            let (now, later) = bytes.split_at(usize::try_from(border - end).unwrap_or_default());
            hasher.update(now);
            let done = std::mem::replace(&mut hasher, Hasher::new());
            pieces.push((
                border - start,
                std::mem::replace(&mut name, following),
                done.finish(),
            ));
            (start, end, bytes) = (border, border, later);
        }
        hasher.update(bytes);
        end += bytes.len() as u64;
    }
    if end > start {
        pieces.push((end - start, name, hasher.finish()));
    }
    Ok(OfWeights {
        whole: whole.finish(),
        verity: verity.finish(),
        pieces,
    })
}

/// The digest of everything that `reader` has.
pub(crate) fn of_reader(reader: &mut impl Read, progress: &Progress) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => {
                hasher.update(piece.get(..count).unwrap_or_default());
                progress.forward(count as u64);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
