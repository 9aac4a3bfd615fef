//! SHA-256 of files.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use andon_wire::manifest::Digest;
use andon_wire::verity::Measurement;
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::progress::Progress;

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

/// A measurement of fs-verity, being made.
fn measurement() -> Measurement {
    Measurement::new(|bytes| Sha256::digest(bytes).into())
}

/// The digests of a file of weights, which is read once. A piece ends where the next of `tensors` begins.
pub(crate) fn of_weights(
    reader: &mut impl Read,
    tensors: Vec<(u64, String)>,
    progress: &Progress,
) -> std::io::Result<OfWeights> {
    let (mut whole, mut verity) = (Hasher::new(), measurement());
    let mut pieces = Vec::new();
    let mut next = tensors.into_iter().peekable();
    let mut name = HEAD.to_owned();
    let (mut start, mut end, mut hasher) = (0, 0, Hasher::new());
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
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

#[cfg(test)]
mod tests {
    use super::measurement;

    /// The digests are those that fsverity-utils 1.5 prints for these files.
    #[test]
    fn files_measure_as_the_kernel_says() {
        let made = |count: usize| -> Vec<u8> {
            (0..count)
                .map(|i| ((i * 7 + i / 251) % 256) as u8)
                .collect()
        };
        for (bytes, digest) in [
            (
                b"weights".to_vec(),
                "cb104018d78102bb1ca22ff6d0f81a403e38edaaf0967dcabaf86c091266d0fb",
            ),
            (
                Vec::new(),
                "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
            ),
            (
                vec![0; 4096],
                "babc284ee4ffe7f449377fbf6692715b43aec7bc39c094a95878904d34bac97e",
            ),
            (
                made(4097),
                "2492558cab5973a8b471d3a517cf3fc8ae04bffa6083e7d443e7839b65d94651",
            ),
            (
                made(4096 * 130 + 5),
                "6cfcb23d407f13d0e268e3229b45d1cc8b8bf5dd5ed3e25700d9311e2777ce2a",
            ),
            (
                made(4096 * 128),
                "6feaceaea1f345a5da49693b409602e6b1878a9484241670db45aef27aaec575",
            ),
            (
                made(4096 * 128 * 128 + 1),
                "3a7b6b2467edb6f2205d9fb5286730e1244b704f917c049c0968306571f042fd",
            ),
        ] {
            for piece in [1000, 4096, 1 << 20] {
                if piece < bytes.len() >> 14 {
                    continue;
                }
                let mut verity = measurement();
                bytes.chunks(piece).for_each(|piece| verity.update(piece));
                let found = verity.finish().to_string();
                assert_eq!(found, digest, "{} bytes in pieces of {piece}", bytes.len());
            }
        }
    }
}
