//! Bounds on what a file may ask for. Real files stay an order of magnitude below each of them; what
//! they keep out is a few bytes that claim to be gigabytes.

/// Metadata entries in a file. Real ones have about forty.
pub const METADATA_COUNT_MAX: usize = 1 << 16;
/// Tensors in a file. The largest mixtures of experts, stored one tensor an expert, have some 50,000.
pub const TENSOR_COUNT_MAX: usize = 1 << 17;
/// Bytes in a metadata key, as the format defines it.
pub const KEY_BYTES_MAX: usize = (1 << 16) - 1;
/// Bytes in a string. Files carry whole tokenizer definitions (some 30 MB) as one string.
pub const STRING_BYTES_MAX: usize = 1 << 26;
/// Elements in an array. The longest in use are vocabularies and merge lists of up to half a million.
pub const ARRAY_LENGTH_MAX: usize = 1 << 24;
/// Dimensions of a tensor, as the format defines it.
pub const DIMENSIONS_MAX: usize = 4;
/// Bytes in a tensor name, as the format defines it.
pub const TENSOR_NAME_BYTES_MAX: usize = 64;
/// Alignment of tensor data where the file does not say.
pub const ALIGNMENT_DEFAULT: usize = 32;
/// Smallest alignment of tensor data, as the format defines it.
pub const ALIGNMENT_MIN: usize = 8;
/// Largest alignment of tensor data: that of the largest page in use on the machines served.
pub const ALIGNMENT_MAX: usize = 1 << 16;
/// Files that a model may be split into. The largest models come in some two hundred.
pub const PARTS_MAX: usize = 1024;
