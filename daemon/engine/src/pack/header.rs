//! The header of a pack: everything before the data.
//!
//! It is read as something from outside: every number meets its bound before it is used, and what is left is checked
//! against what the kernels say a matrix of that format and shape takes.

use super::{ALIGNMENT, BLOCK_BYTES, Key, PackError, VERSION};
use crate::weights::Matrix;
use andon_kernels::{Format, pack};
use std::hash::Hasher as _;
use std::ops::Range;
use std::path::Path;
use twox_hash::XxHash3_64;

const MAGIC: [u8; 8] = *b"ANDNPACK";
/// Bytes of the fixed part.
pub(super) const HEAD_BYTES: usize = 128;
/// Bytes of a matrix's place.
const PLACE_BYTES: usize = 48;
/// Bytes of a checksum.
const CHECKSUM_BYTES: usize = 8;
/// Bytes of the layout's name, padded with zeros.
const FAMILY_BYTES: usize = 16;
/// Where the header's own checksum is: the last field of the head.
const CHECKSUM_AT: usize = HEAD_BYTES - CHECKSUM_BYTES;
/// Most matrices: sixteen for each layer of the deepest model.
const PLACES_MAX: u64 = 1 << 14;
/// Most blocks: four terabytes.
const BLOCKS_MAX: u64 = 1 << 24;

const _: () = assert!(pack::FAMILY.len() <= FAMILY_BYTES);

/// A matrix in a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Which file of the model it is in.
    pub(super) part: u32,
    pub(super) format: Format,
    pub(super) row_count: u64,
    pub(super) row_elements: u64,
    /// Where it is in that file.
    pub(super) source: u64,
    /// Where it is in the pack.
    pub(super) range: Range<u64>,
    /// Its first checksum.
    pub(super) first_block: usize,
}

impl Place {
    /// Number of its blocks.
    pub(super) fn block_count(&self) -> usize {
        (self.range.end - self.range.start).div_ceil(BLOCK_BYTES as u64) as usize
    }

    /// Whether this is that matrix.
    pub(super) fn is_of(&self, matrix: &Matrix) -> bool {
        self.part as usize == matrix.part
            && self.source == matrix.range.start as u64
            && self.format == matrix.format
            && self.row_count == matrix.row_count as u64
            && self.row_elements == matrix.row_elements as u64
    }
}

/// What stands before the data of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) key: Key,
    /// In the order of the data.
    pub(super) places: Vec<Place>,
    /// One for each block.
    pub(super) checksums: Vec<u64>,
    /// Bytes of the whole file.
    pub(super) file_bytes: u64,
}

impl Header {
    /// The header of a pack of `matrices`, with checksums yet to be set. Those without a packed layout are left out;
    /// `None` if none is left.
    pub(super) fn of<'m>(key: Key, matrices: impl Iterator<Item = &'m Matrix>) -> Option<Header> {
        let mut places = Vec::new();
        let mut blocks = 0;
        let mut sizes = Vec::new();
        for matrix in matrices {
            let (rows, k) = (matrix.row_count, matrix.row_elements);
            let Some(bytes) = pack::bytes(matrix.format, rows, k).filter(|&bytes| bytes > 0) else {
                continue;
            };
            places.push(Place {
                part: u32::try_from(matrix.part).ok()?,
                format: matrix.format,
                row_count: rows as u64,
                row_elements: k as u64,
                source: matrix.range.start as u64,
                range: 0..0,
                first_block: blocks,
            });
            blocks += bytes.div_ceil(BLOCK_BYTES);
            sizes.push(bytes as u64);
        }
        if places.is_empty() || places.len() as u64 > PLACES_MAX || blocks as u64 > BLOCKS_MAX {
            return None;
        }
        let mut end = header_bytes(places.len(), blocks);
        for (place, bytes) in places.iter_mut().zip(sizes) {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start.checked_add(bytes)?;
            place.range = start..end;
        }
        Some(Header {
            key,
            places,
            checksums: vec![0; blocks],
            file_bytes: end,
        })
    }

    /// The bytes of the header.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let length = header_bytes(self.places.len(), self.checksums.len());
        let mut bytes = Vec::with_capacity(length as usize);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(pack::LAYOUT_VERSION.to_le_bytes());
        bytes.extend(family());
        bytes.extend(self.key.0);
        bytes.extend(self.file_bytes.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend((self.places.len() as u64).to_le_bytes());
        bytes.extend((self.checksums.len() as u64).to_le_bytes());
        bytes.extend((BLOCK_BYTES as u64).to_le_bytes());
        bytes.resize(HEAD_BYTES, 0);
        for place in &self.places {
            bytes.extend(place.part.to_le_bytes());
            bytes.extend(place.format.ggml_id().to_le_bytes());
            for number in [
                place.row_count,
                place.row_elements,
                place.source,
                place.range.start,
                place.range.end - place.range.start,
            ] {
                bytes.extend(number.to_le_bytes());
            }
        }
        for checksum in &self.checksums {
            bytes.extend(checksum.to_le_bytes());
        }
        let checksum = checksum_of(&bytes).to_le_bytes();
        bytes[CHECKSUM_AT..HEAD_BYTES].copy_from_slice(&checksum);
        bytes
    }

    /// Reads the header of the pack in `bytes`, the whole file, which has to be of the model `key`.
    pub(super) fn read(path: &Path, key: &Key, bytes: &[u8]) -> Result<Header, PackError> {
        let path = || path.to_owned();
        let mut fields = Fields { bytes, at: 0 };
        let length = |expected: u64| PackError::Length {
            path: path(),
            actual: bytes.len() as u64,
            expected,
        };
        let short = || length(HEAD_BYTES as u64);
        if fields.array().ok_or_else(short)? != MAGIC {
            return Err(PackError::Magic { path: path() });
        }
        if bytes.len() < HEAD_BYTES {
            return Err(short());
        }
        let version = fields.u32().ok_or_else(short)?;
        if version != VERSION {
            return Err(PackError::Version {
                path: path(),
                version,
            });
        }
        let version = fields.u32().ok_or_else(short)?;
        let name: [u8; FAMILY_BYTES] = fields.array().ok_or_else(short)?;
        if version != pack::LAYOUT_VERSION || name != family() {
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            return Err(PackError::Layout {
                path: path(),
                family: String::from_utf8_lossy(name).into_owned(),
                version,
            });
        }
        let found: [u8; 32] = fields.array().ok_or_else(short)?;
        if found != key.0 {
            return Err(PackError::OtherModel { path: path() });
        }
        let field = |at: usize, field, value| PackError::Field {
            path: path(),
            offset: at,
            field,
            value,
        };
        let file_bytes = fields.u64().ok_or_else(short)?;
        if file_bytes != bytes.len() as u64 {
            return Err(length(file_bytes));
        }
        let (at, said) = (fields.at, fields.u64().ok_or_else(short)?);
        let place_count = fields.u64().ok_or_else(short)?;
        if place_count == 0 || place_count > PLACES_MAX {
            return Err(field(at + 8, "the number of matrices", place_count));
        }
        let block_count = fields.u64().ok_or_else(short)?;
        if block_count > BLOCKS_MAX {
            return Err(field(at + 16, "the number of blocks", block_count));
        }
        let block_bytes = fields.u64().ok_or_else(short)?;
        if block_bytes != BLOCK_BYTES as u64 {
            return Err(field(at + 24, "the size of blocks", block_bytes));
        }
        // Neither overflows: both counts met their bounds.
        let (place_count, block_count) = (place_count as usize, block_count as usize);
        let header_bytes = header_bytes(place_count, block_count);
        if said != header_bytes || header_bytes > file_bytes {
            return Err(field(at, "the size of the header", said));
        }
        let Some(header) = bytes.get(..header_bytes as usize) else {
            return Err(length(header_bytes));
        };
        fields.at = CHECKSUM_AT;
        if fields.u64() != Some(checksum_of(header)) {
            return Err(PackError::HeaderChecksum { path: path() });
        }
        // From here on a wrong value is a writer's mistake, not the disk's. It is looked for all the same.
        let mut places: Vec<Place> = Vec::with_capacity(place_count);
        let (mut end, mut first_block) = (header_bytes, 0);
        for _ in 0..place_count {
            let at = fields.at;
            let mut next = || fields.u64().ok_or_else(short);
            let both = next()?;
            let [row_count, row_elements, source, start, size] =
                [next()?, next()?, next()?, next()?, next()?];
            let (part, id) = (both as u32, (both >> 32) as u32);
            let format = Format::from_ggml(id)
                .ok_or_else(|| field(at + 4, "the format of a matrix", u64::from(id)))?;
            let expected = usize::try_from(row_count)
                .ok()
                .zip(usize::try_from(row_elements).ok())
                .and_then(|(rows, k)| pack::bytes(format, rows, k));
            if size == 0 || expected.map(|bytes| bytes as u64) != Some(size) {
                return Err(field(at + 40, "the size of a matrix", size));
            }
            let stop = start.checked_add(size).filter(|&stop| stop <= file_bytes);
            let Some(stop) = stop.filter(|_| start >= end && start.is_multiple_of(ALIGNMENT))
            else {
                return Err(field(at + 32, "the place of a matrix", start));
            };
            let place = Place {
                part,
                format,
                row_count,
                row_elements,
                source,
                range: start..stop,
                first_block,
            };
            end = stop;
            first_block += place.block_count();
            places.push(place);
        }
        if first_block != block_count {
            return Err(field(at + 16, "the number of blocks", block_count as u64));
        }
        if end != file_bytes {
            return Err(length(end));
        }
        let mut checksums = Vec::with_capacity(block_count);
        for _ in 0..block_count {
            checksums.push(fields.u64().ok_or_else(short)?);
        }
        Ok(Header {
            key: key.clone(),
            places,
            checksums,
            file_bytes,
        })
    }
}

fn header_bytes(places: usize, blocks: usize) -> u64 {
    (HEAD_BYTES + places * PLACE_BYTES + blocks * CHECKSUM_BYTES) as u64
}

fn family() -> [u8; FAMILY_BYTES] {
    let mut name = [0; FAMILY_BYTES];
    name[..pack::FAMILY.len()].copy_from_slice(pack::FAMILY.as_bytes());
    name
}

/// The checksum of a header but for its own field.
fn checksum_of(header: &[u8]) -> u64 {
    let mut hasher = XxHash3_64::new();
    hasher.write(&header[..CHECKSUM_AT]);
    hasher.write(&header[HEAD_BYTES..]);
    hasher.finish()
}

/// Numbers, one after the other; `None` at the end of the bytes.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = *self.bytes.get(self.at..)?.first_chunk()?;
        self.at += N;
        Some(array)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{CHECKSUM_AT, HEAD_BYTES, Header, PLACE_BYTES, checksum_of};
    use crate::pack::{Key, PackError};
    use crate::weights::Matrix;
    use andon_kernels::Format;
    use proptest::prelude::*;
    use std::path::Path;

    fn matrix(format: Format, rows: usize, k: usize, start: usize) -> Matrix {
        Matrix {
            format,
            row_count: rows,
            row_elements: k,
            part: 0,
            range: start..start + rows * format.bytes(k).expect("whole blocks"),
            slot: Some(0),
        }
    }

    fn key() -> Key {
        Key::of_digest([3; 32])
    }

    /// A pack with a header and nothing but zeros behind it.
    fn pack() -> (Header, Vec<u8>) {
        let matrices = [
            matrix(Format::Q4_0, 40, 64, 0),
            matrix(Format::F32, 16, 64, 1 << 20),
            matrix(Format::Q6K, 3000, 256, 2 << 20),
        ];
        let header = Header::of(key(), matrices.iter()).expect("two of them are packed");
        let mut bytes = header.bytes();
        bytes.resize(header.file_bytes as usize, 0);
        (header, bytes)
    }

    fn read(bytes: &[u8]) -> Result<Header, PackError> {
        Header::read(Path::new("p"), &key(), bytes)
    }

    /// Makes the checksum that of what the header says now.
    fn sign(header: &Header, bytes: &mut [u8]) {
        let length = header.bytes().len();
        let checksum = checksum_of(&bytes[..length]).to_le_bytes();
        bytes[CHECKSUM_AT..HEAD_BYTES].copy_from_slice(&checksum);
    }

    #[test]
    fn what_is_written_is_read() {
        let (header, bytes) = pack();
        assert_eq!(header.places.len(), 2);
        assert_eq!(read(&bytes).expect("sound"), header);
        let nothing = matrix(Format::F32, 16, 64, 0);
        assert!(Header::of(key(), [nothing].iter()).is_none());
    }

    #[test]
    fn lies_with_a_right_checksum_are_named() {
        let (header, bytes) = pack();
        let second = HEAD_BYTES + PLACE_BYTES;
        for (at, value) in [
            (72, 0),
            (72, u64::MAX),
            (80, 0),
            (80, u64::MAX),
            (80, 3),
            (88, 0),
            (88, u64::MAX),
            (96, 1),
            // Format, rows, elements of rows, place and size of a matrix.
            (second, 99 << 32),
            (second + 8, 0),
            (second + 8, u64::MAX),
            (second + 16, 100),
            (second + 16, u64::MAX),
            (second + 32, 0),
            (second + 32, header.places[1].range.start + 1),
            (second + 32, u64::MAX - 4095),
            (second + 40, 0),
            (second + 40, u64::MAX),
        ] {
            let mut bytes = bytes.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            sign(&header, &mut bytes);
            let error = read(&bytes).expect_err("a lie");
            assert!(matches!(error, PackError::Field { .. }), "{at}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_says_where_its_matrices_are(
            changes in prop::collection::vec((0usize..300, any::<u8>()), 1..6),
            cut in prop::option::of(0usize..400),
        ) {
            let (header, mut bytes) = pack();
            for (at, value) in changes {
                bytes[at] = value;
            }
            sign(&header, &mut bytes);
            if let Some(cut) = cut {
                bytes.truncate(cut);
            }
            if let Ok(read) = read(&bytes) {
                for place in &read.places {
                    prop_assert!(place.range.end <= bytes.len() as u64);
                    prop_assert!(place.first_block + place.block_count() <= read.checksums.len());
                }
            }
        }
    }
}
