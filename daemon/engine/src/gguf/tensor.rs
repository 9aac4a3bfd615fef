//! The tensor directory: names, shapes, types, and where the data lies. What comes out is checked: shapes
//! do not overflow, rows are whole blocks, data is aligned, inside the file, and belongs to one tensor.

use core::fmt;
use core::ops::{Deref, Range};

use andon_kernels::Format;

use super::error::GgufError;
use super::limits::{DIMENSIONS_MAX, TENSOR_NAME_BYTES_MAX};
use super::read::Reader;

/// The sizes of a tensor, 1 to 4 of them, none zero; the first is the contiguous one. Derefs to a slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dims {
    count: usize,
    sizes: [usize; DIMENSIONS_MAX],
}

impl Dims {
    /// Elements in a row, which is what quantized formats cut into blocks.
    pub fn row_elements(&self) -> usize {
        self.sizes[0]
    }

    /// Rows: the product of the other dimensions.
    pub fn row_count(&self) -> usize {
        // Did not overflow when the file was parsed.
        self.sizes[1..].iter().product()
    }

    /// All elements.
    pub fn elements(&self) -> usize {
        self.sizes.iter().product()
    }
}

impl Deref for Dims {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        self.sizes.get(..self.count).unwrap_or(&self.sizes)
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// One entry of the tensor directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// The name, unique in the file.
    pub name: &'a str,
    /// The shape.
    pub dims: Dims,
    /// The number the file gives the tensor's type.
    pub ggml_type: u32,
    /// The type, where it is one that the kernels know.
    pub format: Option<Format>,
    /// Which part of a set of files the data lies in, from 0.
    pub part: usize,
    /// Where the data lies in that file. With a known format these are exactly the tensor's bytes. With
    /// an unknown one its size is unknown too: the range goes to the next tensor's data or, for the last
    /// tensor, to the end of the file, so it is only an upper bound.
    pub range: Range<usize>,
}

/// An entry as read, before the start of the data is known.
pub(super) struct Entry<'a> {
    name: &'a str,
    dims: Dims,
    ggml_type: u32,
    format: Option<Format>,
    /// Bytes of data, for a known format.
    bytes: Option<usize>,
    /// Relative to the start of the data.
    start: u64,
    /// Where the entry's data offset is in the file.
    offset: usize,
}

impl<'a> Entry<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, GgufError> {
        const WHAT: &str = "a tensor entry";
        let name = reader.text(
            TENSOR_NAME_BYTES_MAX,
            "a tensor name",
            |offset, bytes, max| GgufError::TensorNameLength { offset, bytes, max },
        )?;
        let offset = reader.position();
        let count = reader.u32(WHAT)?;
        if count == 0 || count as usize > DIMENSIONS_MAX {
            return Err(GgufError::DimensionCount {
                offset,
                name: name.to_owned(),
                count,
                max: DIMENSIONS_MAX,
            });
        }
        let count = count as usize;
        let dims_offset = reader.position();
        let overflow = || GgufError::TensorSize {
            offset: dims_offset,
            name: name.to_owned(),
        };
        let mut sizes = [1; DIMENSIONS_MAX];
        for (dimension, size) in sizes.iter_mut().take(count).enumerate() {
            let offset = reader.position();
            *size = usize::try_from(reader.u64(WHAT)?).map_err(|_| overflow())?;
            if *size == 0 {
                return Err(GgufError::ZeroDimension {
                    offset,
                    name: name.to_owned(),
                    dimension,
                });
            }
        }
        let dims = Dims { count, sizes };
        sizes
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
            .ok_or_else(overflow)?;
        let ggml_type = reader.u32(WHAT)?;
        let format = Format::from_ggml(ggml_type);
        let bytes = match format {
            Some(format) => {
                let row = dims.row_elements();
                if !row.is_multiple_of(format.block_elements()) {
                    return Err(GgufError::RowLength {
                        offset: dims_offset,
                        name: name.to_owned(),
                        row,
                        block: format.block_elements(),
                        format: format.name(),
                    });
                }
                let row_bytes = (row / format.block_elements()).checked_mul(format.block_bytes());
                let bytes = row_bytes.and_then(|bytes| bytes.checked_mul(dims.row_count()));
                Some(bytes.ok_or_else(overflow)?)
            }
            None => None,
        };
        let offset = reader.position();
        let start = reader.u64(WHAT)?;
        Ok(Self {
            name,
            dims,
            ggml_type,
            format,
            bytes,
            start,
            offset,
        })
    }

    pub(super) fn name(&self) -> &'a str {
        self.name
    }
}

/// Turns entries into tensors, given where the data starts and where the file ends.
pub(super) fn place<'a>(
    entries: Vec<Entry<'a>>,
    data_start: usize,
    file_bytes: usize,
    alignment: usize,
) -> Result<Vec<TensorInfo<'a>>, GgufError> {
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        if !entry.start.is_multiple_of(alignment as u64) {
            return Err(GgufError::TensorAlignment {
                offset: entry.offset,
                name: entry.name.to_owned(),
                start: entry.start,
                alignment,
            });
        }
        let bytes = entry.bytes.unwrap_or(0);
        let range = usize::try_from(entry.start)
            .ok()
            .and_then(|start| data_start.checked_add(start))
            .and_then(|start| Some(start..start.checked_add(bytes)?))
            .filter(|range| range.end <= file_bytes)
            .ok_or_else(|| GgufError::TensorBounds {
                offset: entry.offset,
                name: entry.name.to_owned(),
                start: entry.start,
                bytes,
            })?;
        tensors.push(TensorInfo {
            name: entry.name,
            dims: entry.dims,
            ggml_type: entry.ggml_type,
            format: entry.format,
            part: 0,
            range,
        });
    }
    separate(&mut tensors, file_bytes)?;
    Ok(tensors)
}

/// Checks that no two tensors share bytes, and gives those of unknown size what is left up to the next.
fn separate(tensors: &mut [TensorInfo<'_>], file_bytes: usize) -> Result<(), GgufError> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_unstable_by_key(|&index| (tensors[index].range.start, index));
    let mut following: Option<usize> = None;
    for &index in order.iter().rev() {
        let next_start = following.map_or(file_bytes, |next| tensors[next].range.start);
        let shares_start = next_start == tensors[index].range.start && following.is_some();
        if tensors[index].range.end > next_start || shares_start {
            let next = following.unwrap_or(index);
            return Err(GgufError::TensorOverlap {
                offset: tensors[next].range.start,
                name: tensors[next].name.to_owned(),
                other: tensors[index].name.to_owned(),
            });
        }
        if tensors[index].format.is_none() {
            tensors[index].range.end = next_start;
        }
        following = Some(index);
    }
    Ok(())
}
