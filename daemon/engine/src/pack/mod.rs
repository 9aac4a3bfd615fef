//! Packed weights: a file of our own with a model's matrices as kernels like them best ([`andon_kernels::pack`]), made
//! once and mapped at every start.
//!
//! ```text
//! head       128 bytes: magic, versions, layout, the model's key, sizes, checksum of all before the data
//! places     48 bytes each: where a matrix lies in the model's files, its format and shape, where it lies here
//! checksums  8 bytes each: XXH3 of every block of every matrix
//! data       the matrices, each from a page on
//! ```
//!
//! All numbers are little-endian; `header.rs` has every field. Vectors, embeddings and formats without a packed layout
//! are not in it: they stay in the model's files, which are needed beside it.
//!
//! A pack is never needed. It gives the same products as the model's files, so wherever it is missing, of another
//! layout, short or damaged, the model goes on without it. Opening one reads its header; a matrix is compared with its
//! checksums before it is used for the first time. Checksums are for accidents: whoever trusts the model's files and not
//! the folder of packs has [`Pack::compare`] find out whether a pack is made of them.
//!
//! Invariant: nothing leaves the engine that was computed from bytes which, when their matrix was first used, differed
//! from those that were written, or from a file that had become shorter. Like a model's file, a pack is replaced by
//! renaming, never edited in place.

mod cache;
mod error;
mod header;
mod key;
mod open;
mod write;

pub use cache::{Cache, CacheOptions};
pub use error::PackError;
pub use key::Key;
pub use open::Pack;
pub use write::Progress;

use crate::Model;

/// How many bytes more a model's matrices take in a pack than in its own files.
#[must_use]
pub fn growth(model: &Model) -> usize {
    let more = model.matrices().iter().map(|matrix| {
        let packed =
            andon_kernels::pack::bytes(matrix.format, matrix.row_count, matrix.row_elements);
        packed.unwrap_or(0).saturating_sub(matrix.range.len())
    });
    more.fold(0, usize::saturating_add)
}

/// Version of the file's format, the layout of matrices aside.
pub const VERSION: u32 = 1;

/// Bytes that have a checksum of their own: few enough that threads share the first look at a small matrix, many
/// enough that the checksums of a large model are a few hundred kilobytes.
const BLOCK_BYTES: usize = 256 << 10;

/// Matrices begin at multiples of this: whole pages, whatever vectors kernels load.
const ALIGNMENT: u64 = 4096;
