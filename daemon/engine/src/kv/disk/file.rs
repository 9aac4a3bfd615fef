//! The file of one page.
//!
//! ```text
//! magic                8 bytes, the last a number for each change of the format
//! name of the empty text, of the page before this one, of this one    16 bytes each
//! number of the page in its text, from 0                              u32
//! number of tokens                                                    u32
//! bytes of the content                                                u64
//! tokens                                                              u32 each
//! checksum (XXH3, 128 bits) of all before it and of the content       16 bytes
//! content: [layer][KV head][keys, values], first all levels, then all f16 elements
//! ```
//!
//! Numbers are little-endian. Names are checked as well as the checksum: a page's follows from the one before it and the
//! tokens, so a sound file is of the text that is looked for.

use super::StoreError;
use crate::kv::PAGE;
use crate::kv::name::{NAME_BYTES, PageName};
use std::fs::File;
use std::io::{self, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_128;

const MAGIC: [u8; 8] = *b"andonk\0\x01";

const TOKENS_AT: usize = 8 + 3 * NAME_BYTES + 4 + 4 + 8;
const CHECKSUM_AT: usize = TOKENS_AT + 4 * PAGE;
const CHECKSUM_BYTES: usize = 16;
pub(super) const HEADER_BYTES: usize = CHECKSUM_AT + CHECKSUM_BYTES;

/// What is read of a file at once.
const READ_BYTES: usize = 1 << 17;

/// Which page of which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// The name of the page before it, or of the empty text.
    pub(super) parent: PageName,
    pub(super) name: PageName,
    /// Its number in the text, from 0.
    pub(super) depth: u32,
}

/// What stands before the content, without the checksum.
fn header(root: PageName, place: &Place, tokens: &[u32], content_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&MAGIC);
    for name in [root, place.parent, place.name] {
        bytes.extend_from_slice(&name.0);
    }
    bytes.extend_from_slice(&place.depth.to_le_bytes());
    bytes.extend_from_slice(&(tokens.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&content_bytes.to_le_bytes());
    for token in tokens {
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    bytes
}

/// Writes a page.
pub(super) fn write(
    to: &mut impl Write,
    root: PageName,
    place: &Place,
    tokens: &[u32],
    content: &[u8],
) -> io::Result<()> {
    let header = header(root, place, tokens, content.len() as u64);
    let mut hasher = XxHash3_128::new();
    hasher.write(&header);
    hasher.write(content);
    to.write_all(&header)?;
    to.write_all(&hasher.finish_128().to_le_bytes())?;
    to.write_all(content)
}

/// What the file of a page says of itself. The names are consistent; the checksum is not known to be.
pub(super) struct Header {
    pub(super) place: Place,
    pub(super) tokens: Vec<u32>,
}

/// Reads the header of the file at `path`, which is to be of `name` below `root` and have `content_bytes` bytes of content.
pub(super) fn open(
    path: &Path,
    root: PageName,
    name: PageName,
    content_bytes: u64,
) -> Result<(Header, PageReader), StoreError> {
    let damaged = |what| StoreError::Damaged {
        path: path.to_owned(),
        what,
    };
    let file = File::open(path).map_err(StoreError::io(path, "open"))?;
    let length = file.metadata().map_err(StoreError::io(path, "read"))?.len();
    if length != HEADER_BYTES as u64 + content_bytes {
        return Err(damaged("its length is another"));
    }
    // Not more of it: hundreds of headers are read in a row.
    let mut bytes = [0; HEADER_BYTES];
    (&file)
        .read_exact(&mut bytes)
        .map_err(StoreError::io(path, "read"))?;
    let [parent, found] = [24, 40].map(|at| {
        let mut name = [0; NAME_BYTES];
        name.copy_from_slice(&bytes[at..at + NAME_BYTES]);
        PageName(name)
    });
    let mut depth = [0; 4];
    depth.copy_from_slice(&bytes[56..60]);
    let (tokens, _) = bytes[TOKENS_AT..CHECKSUM_AT].as_chunks::<4>();
    let tokens: Vec<u32> = tokens
        .iter()
        .map(|token| u32::from_le_bytes(*token))
        .collect();
    let place = Place {
        parent,
        name: found,
        depth: u32::from_le_bytes(depth),
    };
    if bytes[..CHECKSUM_AT] != *header(root, &place, &tokens, content_bytes) {
        return Err(damaged("it is of another model, or of another format"));
    }
    if found != name || parent.below(&tokens) != name || (place.depth == 0) != (parent == root) {
        return Err(damaged("it is of another text"));
    }
    let mut hasher = XxHash3_128::new();
    hasher.write(&bytes[..CHECKSUM_AT]);
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&bytes[CHECKSUM_AT..]);
    let header = Header { place, tokens };
    let reader = PageReader {
        path: path.to_owned(),
        file: BufReader::with_capacity(READ_BYTES, file),
        hasher,
        checksum,
    };
    Ok((header, reader))
}

/// The content of a page's file, piece by piece. What was read is known to be right only once [`PageReader::finish`] says so.
pub(crate) struct PageReader {
    path: PathBuf,
    file: BufReader<File>,
    hasher: XxHash3_128,
    checksum: [u8; CHECKSUM_BYTES],
}

impl PageReader {
    /// Fills `piece` with what comes next.
    pub(crate) fn fill(&mut self, piece: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact(piece)
            .map_err(StoreError::io(&self.path, "read"))?;
        self.hasher.write(piece);
        Ok(())
    }

    /// Whether what was read, which must be all, is what was written.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        if self.hasher.finish_128().to_le_bytes() == self.checksum {
            Ok(())
        } else {
            Err(StoreError::Damaged {
                path: self.path,
                what: "its checksum is another",
            })
        }
    }
}
