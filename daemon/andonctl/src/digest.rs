//! SHA-256 of files.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use andon_wire::manifest::Digest;
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::progress::Progress;

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
