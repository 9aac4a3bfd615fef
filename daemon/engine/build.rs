//! Tells the crate which sources its numbers come from, so that what an earlier build kept of them is not taken for its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What decides the bytes of keys and values.
const SOURCES: [&str; 8] = [
    "../../kernels/src",
    "src/backend",
    "src/executor",
    "src/kv",
    "src/layer",
    "src/models",
    "src/pack",
    "src/weights.rs",
];

fn main() -> io::Result<()> {
    let mut files = Vec::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
        gather(Path::new(source), &mut files)?;
    }
    files.sort();
    let mut digest = Digest(0xcbf2_9ce4_8422_2325);
    for file in files {
        digest.update(file.to_string_lossy().as_bytes());
        digest.update(&fs::read(file)?);
    }
    println!("cargo::rustc-env=ANDON_NUMERICS={:016x}", digest.0);
    Ok(())
}

fn gather(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            gather(&entry?.path(), files)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        files.push(path.to_owned());
    }
    Ok(())
}

/// FNV-1a: nobody chooses sources for their digest.
struct Digest(u64);

impl Digest {
    fn update(&mut self, bytes: &[u8]) {
        let length = (bytes.len() as u64).to_le_bytes();
        for &byte in bytes.iter().chain(&length) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
