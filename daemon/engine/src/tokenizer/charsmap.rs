//! SentencePiece's precompiled normalization: which pieces of a text are replaced by what.
//!
//! The file holds a trie as a double array: a node's children are at its base, xor their byte. It is followed by the
//! replacements, each ended by a zero byte. Nothing of it is trusted: a node outside the array ends a search, and the
//! lengths of searches and replacements are bounded.

use super::error::TokenizerError;
use crate::gguf::{Gguf, MetaError};

const KEY: &str = "tokenizer.ggml.precompiled_charsmap";
/// Bytes that are replaced as one. The longest in use are some characters long.
const MATCH_BYTES_MAX: usize = 128;
/// Bytes of a replacement. The longest in use has 33.
const REPLACEMENT_BYTES_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Charsmap {
    nodes: Box<[u32]>,
    replacements: Box<str>,
}

impl Charsmap {
    /// The file's normalization, if it has one.
    pub(super) fn from_gguf(gguf: &Gguf<'_>) -> Result<Option<Self>, TokenizerError> {
        let array = match gguf.array(KEY) {
            Ok(array) => array,
            Err(MetaError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let wrong_type = || MetaError::WrongType {
            key: KEY.to_owned(),
            wanted: "an array of bytes",
            found: array.element_type(),
        };
        let bytes: Vec<u8> = if let Some(bytes) = array.numbers::<u8>() {
            bytes.collect()
        } else {
            let bytes = array.numbers::<i8>().ok_or_else(wrong_type)?;
            bytes.map(i8::cast_unsigned).collect()
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        Self::new(&bytes).map(Some)
    }

    fn new(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let broken = |what| TokenizerError::Charsmap { what };
        let (length, rest) = bytes
            .split_first_chunk()
            .ok_or_else(|| broken("has no length"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (nodes, replacements) = rest
            .split_at_checked(length)
            .ok_or_else(|| broken("is shorter than its trie"))?;
        let (nodes, odd) = nodes.as_chunks::<4>();
        if !odd.is_empty() {
            return Err(broken("has a trie that does not end with a node"));
        }
        if replacements.last().is_some_and(|&last| last != 0) {
            return Err(broken("does not end with a zero byte"));
        }
        let replacements =
            core::str::from_utf8(replacements).map_err(|_| broken("has text that is not UTF-8"))?;
        let longest = replacements.split('\0').map(str::len).max();
        if longest.is_some_and(|bytes| bytes > REPLACEMENT_BYTES_MAX) {
            return Err(broken("replaces something by more than 256 bytes"));
        }
        Ok(Self {
            nodes: nodes.iter().map(|node| u32::from_le_bytes(*node)).collect(),
            replacements: replacements.into(),
        })
    }

    /// What the beginning of a text is replaced by, and how long it is: the longest such beginning. `None` if it stays.
    pub(super) fn replace(&self, text: &str) -> Option<(&str, usize)> {
        let mut found = None;
        let mut index = base(*self.nodes.first()?);
        for (at, &byte) in text.as_bytes().iter().enumerate().take(MATCH_BYTES_MAX) {
            index ^= u32::from(byte);
            let Some(&node) = self.nodes.get(index as usize) else {
                break;
            };
            // A leaf's number has the highest bit, which no byte has.
            if byte == 0 || node & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            index ^= base(node);
            if node >> 8 & 1 == 1 {
                let value = self.nodes.get(index as usize);
                found = value.map(|value| (value & !(1 << 31), at + 1)).or(found);
            }
        }
        let (start, bytes) = found?;
        // A match of half a character, or a replacement that starts in one, is of a broken file.
        text.get(bytes..)?;
        let replacement = self.replacements.get(start as usize..)?;
        let end = replacement.find('\0')?;
        Some((replacement.get(..end)?, bytes))
    }
}

fn base(node: u32) -> u32 {
    (node >> 10) << ((node & 1 << 9) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(nodes: &[u32], replacements: &[u8]) -> Vec<u8> {
        let mut bytes = (nodes.len() as u32 * 4).to_le_bytes().to_vec();
        bytes.extend(nodes.iter().flat_map(|node| node.to_le_bytes()));
        bytes.extend_from_slice(replacements);
        bytes
    }

    #[test]
    fn a_byte_is_replaced() {
        // The root's base is 1; 'a' is at 1 ^ 0x61 = 0x60, a leaf whose base 2 makes 0x62 its value.
        let mut nodes = [0; 0x80];
        nodes[0] = 1 << 10;
        nodes[0x60] = 0x61 | 1 << 8 | 2 << 10;
        nodes[0x62] = 1 << 31 | 2;
        let map = Charsmap::new(&file(&nodes, b"x\0yz\0")).expect("a map");
        assert_eq!(map.replace("abc"), Some(("yz", 1)));
        assert_eq!(map.replace("b"), None);
        assert_eq!(map.replace(""), None);
        assert_eq!(map.replace("\0"), None);
    }

    #[test]
    fn broken_maps_are_errors_or_replace_nothing() {
        for bytes in [
            &[1, 2][..],
            &[4, 0, 0, 0, 1],
            &[2, 0, 0, 0, 1, 1],
            &file(&[0], b"x"),
            &file(&[0], b"\xff\0"),
            &file(&[0], &[b'x'; 300]),
        ] {
            assert!(Charsmap::new(bytes).is_err(), "{bytes:?}");
        }
        // Every node points outside, or to itself.
        for node in [u32::MAX, 0, 0x61, 0x161, 1 << 9 | 0x161] {
            let map = Charsmap::new(&file(&[node; 0x62], b"x\0")).expect("a map");
            for text in ["a", "aaaa", "é", "\u{10ffff}"] {
                let _ = map.replace(text);
            }
        }
    }
}
