//! What fs-verity measures of a file, computed here: so that a manifest can say it, and whoever trusts the manifest can
//! trust the kernel with the file.
//!
//! The file is cut into blocks of 4096 bytes, the last filled up with zeros; the digests of blocks, one after the other,
//! are cut and digested the same way, until one is left. That, and the file's size, are in a descriptor, whose digest is
//! what the kernel says. It is what `fsverity digest` prints.

use heapless::Vec;

use crate::manifest::Digest;

const BLOCK_BYTES: usize = 4096;
const DIGEST_BYTES: usize = 32;
const DESCRIPTOR_BYTES: usize = 256;
/// Levels of digests that 2^64 bytes have: 2^52 blocks, of whose digests a block holds 2^7.
const LEVELS: usize = 9;

type Block = Vec<u8, BLOCK_BYTES>;

/// A measurement being made; some 40 kB.
#[derive(Debug, Clone)]
pub struct Measurement {
    sha256: fn(&[u8]) -> [u8; DIGEST_BYTES],
    /// The block of the file that is not full yet.
    block: Block,
    levels: [Level; LEVELS],
    bytes: u64,
}

/// A level of digests.
#[derive(Debug, Clone, Default)]
struct Level {
    /// The block that is not full yet.
    block: Block,
    /// How many digests there were before it.
    before: u64,
}

impl Measurement {
    /// Of a file whose bytes are to come. SHA-256 is the caller's.
    #[must_use]
    pub fn new(sha256: fn(&[u8]) -> [u8; DIGEST_BYTES]) -> Self {
        Self {
            sha256,
            block: Block::new(),
            levels: Default::default(),
            bytes: 0,
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let count = bytes.len().min(BLOCK_BYTES - self.block.len());
            let (now, later) = bytes.split_at(count);
            bytes = later;
            if now.len() == BLOCK_BYTES {
                self.add(0, (self.sha256)(now));
                continue;
            }
            // There is room: `count` is what there is room for.
            let _ = self.block.extend_from_slice(now);
            if self.block.is_full() {
                let digest = (self.sha256)(&self.block);
                self.block.clear();
                self.add(0, digest);
            }
        }
    }

    /// Adds a digest to a level, and the digest of a block that became full to the next.
    fn add(&mut self, level: usize, mut digest: [u8; DIGEST_BYTES]) {
        for level in self.levels.iter_mut().skip(level) {
            // A block is a whole number of digests, and never left full.
            let _ = level.block.extend_from_slice(&digest);
            if !level.block.is_full() {
                return;
            }
            level.before += (BLOCK_BYTES / DIGEST_BYTES) as u64;
            digest = (self.sha256)(&level.block);
            level.block.clear();
        }
    }

    /// What the kernel says of the file once it has all of it.
    #[must_use]
    pub fn finish(mut self) -> Digest {
        let whole = |block: &mut Block| {
            // To the length that it may have.
            let _ = block.resize_default(BLOCK_BYTES);
        };
        if !self.block.is_empty() {
            whole(&mut self.block);
            let digest = (self.sha256)(&self.block);
            self.add(0, digest);
        }
        // Of an empty file the root is all zeros.
        let mut root = [0; DIGEST_BYTES];
        for index in 0..LEVELS {
            let Some(level) = self.levels.get_mut(index) else {
                break;
            };
            if level.before == 0 && level.block.len() == DIGEST_BYTES {
                root.copy_from_slice(&level.block);
                break;
            }
            if !level.block.is_empty() {
                whole(&mut level.block);
                let digest = (self.sha256)(&level.block);
                level.block.clear();
                level.before += 1;
                self.add(index + 1, digest);
            }
        }
        // Version 1, SHA-256, blocks of 2^12 bytes, no salt; the rest is zeros.
        let mut descriptor = [0; DESCRIPTOR_BYTES];
        descriptor[..4].copy_from_slice(&[1, 1, 12, 0]);
        descriptor[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        descriptor[16..16 + DIGEST_BYTES].copy_from_slice(&root);
        Digest((self.sha256)(&descriptor))
    }
}
