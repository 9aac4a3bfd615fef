//! What fs-verity measures of a file, computed here: so that a manifest can say it, and whoever trusts the manifest can
//! trust the kernel with the file.
//!
//! The file is cut into blocks of 4096 bytes, the last filled up with zeros; the digests of blocks, one after the other,
//! are cut and digested the same way, until one is left. That, and the file's size, are in a descriptor, whose digest is
//! what the kernel says. It is what `fsverity digest` prints.

use andon_wire::manifest::Digest;
use sha2::{Digest as _, Sha256};

const BLOCK_BYTES: usize = 4096;
const DESCRIPTOR_BYTES: usize = 256;

/// A measurement being made.
#[derive(Default)]
pub(crate) struct Verity {
    /// The block of the file that is not full yet.
    block: Vec<u8>,
    /// For each level of digests, the block that is not full yet, and how many digests there were before it.
    levels: Vec<(Vec<u8>, u64)>,
    bytes: u64,
}

impl Verity {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let count = bytes.len().min(BLOCK_BYTES - self.block.len());
            let (now, later) = bytes.split_at(count);
            bytes = later;
            if now.len() == BLOCK_BYTES {
                self.add(0, Sha256::digest(now).into());
                continue;
            }
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK_BYTES {
                let digest = Sha256::digest(&self.block).into();
                self.block.clear();
                self.add(0, digest);
            }
        }
    }

    /// Adds a digest to a level, and the digest of a block that became full to the next.
    fn add(&mut self, mut level: usize, mut digest: [u8; 32]) {
        loop {
            if self.levels.len() <= level {
                self.levels.push((Vec::with_capacity(BLOCK_BYTES), 0));
            }
            let Some((block, before)) = self.levels.get_mut(level) else {
                return;
            };
            block.extend_from_slice(&digest);
            if block.len() < BLOCK_BYTES {
                return;
            }
            *before += (BLOCK_BYTES / digest.len()) as u64;
            digest = Sha256::digest(&*block).into();
            block.clear();
            level += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Digest {
        if !self.block.is_empty() {
            self.block.resize(BLOCK_BYTES, 0);
            let digest = Sha256::digest(&self.block).into();
            self.add(0, digest);
        }
        // Of an empty file the root is all zeros.
        let mut root = [0; 32];
        let mut level = 0;
        while let Some((block, before)) = self.levels.get_mut(level) {
            if *before == 0 && block.len() == root.len() {
                root.copy_from_slice(block);
                break;
            }
            if !block.is_empty() {
                block.resize(BLOCK_BYTES, 0);
                let digest = Sha256::digest(&*block).into();
                block.clear();
                *before += 1;
                self.add(level + 1, digest);
            }
            level += 1;
        }
        // Version 1, SHA-256, blocks of 2^12 bytes, no salt; the rest is zeros.
        let mut descriptor = [0; DESCRIPTOR_BYTES];
        descriptor[..4].copy_from_slice(&[1, 1, 12, 0]);
        descriptor[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        descriptor[16..16 + root.len()].copy_from_slice(&root);
        Digest(Sha256::digest(descriptor).into())
    }
}

#[cfg(test)]
mod tests {
    use super::Verity;

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
                let mut verity = Verity::default();
                bytes.chunks(piece).for_each(|piece| verity.update(piece));
                let found = verity.finish().to_string();
                assert_eq!(found, digest, "{} bytes in pieces of {piece}", bytes.len());
            }
        }
    }
}
