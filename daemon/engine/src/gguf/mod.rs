//! Reading GGUF files, versions 2 and 3, little-endian; writing them, version 3, for tools.
//!
//! Everything is borrowed from the bytes of the file, usually a read-only map; nothing is copied but
//! the directory. What this leaves out: the meaning of the metadata and of the tensors' contents.
//!
//! The invariant: [`Gguf::parse`] looks at every count, length, offset, type and string of the file
//! before it returns, so whoever holds a [`Gguf`] can rely on it, and slicing the file by a tensor's
//! range cannot fail.

mod error;
mod header;
pub mod limits;
mod metadata;
mod read;
mod split;
mod tensor;
mod value;
mod write;

use std::collections::HashMap;

pub use error::{GgufError, MetaError, SplitError};
pub use split::{BadPart, PartName};
pub use tensor::{Dims, TensorInfo};
pub use value::{Array, Number, Numbers, Strs, Value, ValueType};
pub use write::Writer;

use header::Header;
use metadata::Metadata;
use read::Reader;

/// A parsed file, or a set of files that were joined, borrowing the bytes.
#[derive(Debug, Clone)]
pub struct Gguf<'a> {
    /// The bytes of each file; at least one.
    parts: Vec<&'a [u8]>,
    version: u32,
    alignment: usize,
    data_start: usize,
    metadata: Metadata<'a>,
    tensors: Vec<TensorInfo<'a>>,
    tensor_index: HashMap<&'a str, usize>,
}

impl<'a> Gguf<'a> {
    /// Parses and checks a whole file except the contents of its tensors.
    ///
    /// Takes time linear in the size of the metadata and the tensor directory, and memory linear in
    /// the number of their entries; tensor data is not touched.
    ///
    /// # Errors
    /// A [`GgufError`] for the first thing found wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, GgufError> {
        let mut reader = Reader::new(bytes);
        let header = Header::read(&mut reader)?;
        let metadata = Metadata::read(&mut reader, header.metadata_count)?;
        let alignment = metadata.alignment()?;

        // A count is only a claim until its entries were read: reserve no more than the bytes left could hold.
        let entry_bytes_min = 8 + 4 + 8 + 4 + 8;
        let plausible = header.tensor_count.min(reader.left() / entry_bytes_min);
        let mut entries = Vec::with_capacity(plausible);
        let mut tensor_index = HashMap::with_capacity(plausible);
        for index in 0..header.tensor_count {
            let offset = reader.position();
            let entry = tensor::Entry::read(&mut reader)?;
            if tensor_index.insert(entry.name(), index).is_some() {
                return Err(GgufError::DuplicateTensor {
                    offset,
                    name: entry.name().to_owned(),
                });
            }
            entries.push(entry);
        }
        let offset = reader.position();
        // The position is at most the length of a slice, so adding the alignment does not overflow.
        let mut data_start = offset.next_multiple_of(alignment);
        if entries.is_empty() {
            // A file of metadata alone may end without padding.
            data_start = data_start.min(bytes.len());
        } else if data_start > bytes.len() {
            return Err(GgufError::Truncated {
                offset,
                what: "the padding before tensor data",
                needed: (data_start - offset) as u64,
                left: reader.left(),
            });
        }
        let tensors = tensor::place(entries, data_start, bytes.len(), alignment)?;
        Ok(Self {
            parts: vec![bytes],
            version: header.version,
            alignment,
            data_start,
            metadata,
            tensors,
            tensor_index,
        })
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensor data in the file, a power of two, in bytes.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// Where tensor data starts in the file, in bytes.
    pub fn data_start(&self) -> usize {
        self.data_start
    }

    /// The bytes of the whole file; of a set, of its first part.
    pub fn bytes(&self) -> &'a [u8] {
        self.parts.first().copied().unwrap_or_default()
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo<'a>] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.tensors.get(*self.tensor_index.get(name)?)
    }

    /// The data of a tensor of this file.
    ///
    /// Empty if the tensor is another file's and does not fit this one.
    pub fn data(&self, tensor: &TensorInfo<'_>) -> &'a [u8] {
        let part = self.parts.get(tensor.part).copied().unwrap_or_default();
        part.get(tensor.range.clone()).unwrap_or_default()
    }
}
