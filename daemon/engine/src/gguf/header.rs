//! The fixed fields at the start of a file: magic, version, and how much follows.

use super::error::GgufError;
use super::limits::{METADATA_COUNT_MAX, TENSOR_COUNT_MAX};
use super::read::Reader;

const MAGIC: [u8; 4] = *b"GGUF";

pub(super) struct Header {
    pub(super) version: u32,
    pub(super) tensor_count: usize,
    pub(super) metadata_count: usize,
}

impl Header {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        let offset = reader.position();
        let found = reader.array::<4>("the magic number")?;
        if found != MAGIC {
            return Err(GgufError::Magic { offset, found });
        }
        let offset = reader.position();
        let version = reader.u32("the version")?;
        match version {
            2 | 3 => {}
            // A small number in the high byte is a small number written the other way round.
            _ if version & 0xffff == 0 && version != 0 => {
                return Err(GgufError::BigEndian {
                    offset,
                    version: version.swap_bytes(),
                });
            }
            _ => return Err(GgufError::Version { offset, version }),
        }
        let offset = reader.position();
        let count = reader.u64("the tensor count")?;
        let tensor_count = bounded(count, TENSOR_COUNT_MAX).ok_or(GgufError::TensorCount {
            offset,
            count,
            max: TENSOR_COUNT_MAX,
        })?;
        let offset = reader.position();
        let count = reader.u64("the metadata count")?;
        let metadata_count =
            bounded(count, METADATA_COUNT_MAX).ok_or(GgufError::MetadataCount {
                offset,
                count,
                max: METADATA_COUNT_MAX,
            })?;
        Ok(Self {
            version,
            tensor_count,
            metadata_count,
        })
    }
}

fn bounded(count: u64, max: usize) -> Option<usize> {
    usize::try_from(count).ok().filter(|&count| count <= max)
}
