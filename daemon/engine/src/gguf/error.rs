//! What can be wrong with a GGUF file, and with a single entry of its metadata.

use super::value::ValueType;

/// Why a file is not accepted. Every variant says at which byte of the file the trouble starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file stops in the middle of a field.
    #[error("byte {offset}: the file ends inside {what}: {needed} more bytes needed, {left} left")]
    Truncated {
        /// Where the field starts.
        offset: usize,
        /// The field.
        what: &'static str,
        /// Bytes the field asks for.
        needed: u64,
        /// Bytes there are.
        left: usize,
    },
    /// The first four bytes are not `GGUF`.
    #[error("byte {offset}: not a GGUF file: it starts with {found:02x?}")]
    Magic {
        /// Always 0.
        offset: usize,
        /// The bytes found.
        found: [u8; 4],
    },
    /// The file was written for a big-endian machine.
    #[error(
        "byte {offset}: a big-endian GGUF file (version {version}); only little-endian files are read"
    )]
    BigEndian {
        /// Where the version field is.
        offset: usize,
        /// The version, read the other way round.
        version: u32,
    },
    /// A version this reader does not know; version 1 is among them.
    #[error("byte {offset}: GGUF version {version}; versions 2 and 3 are read")]
    Version {
        /// Where the version field is.
        offset: usize,
        /// The version.
        version: u32,
    },
    /// More metadata entries than [`METADATA_COUNT_MAX`](super::limits::METADATA_COUNT_MAX).
    #[error("byte {offset}: {count} metadata entries; at most {max} are read")]
    MetadataCount {
        /// Where the count is.
        offset: usize,
        /// The count.
        count: u64,
        /// The limit.
        max: usize,
    },
    /// More tensors than [`TENSOR_COUNT_MAX`](super::limits::TENSOR_COUNT_MAX).
    #[error("byte {offset}: {count} tensors; at most {max} are read")]
    TensorCount {
        /// Where the count is.
        offset: usize,
        /// The count.
        count: u64,
        /// The limit.
        max: usize,
    },
    /// A metadata key longer than [`KEY_BYTES_MAX`](super::limits::KEY_BYTES_MAX).
    #[error("byte {offset}: a metadata key of {bytes} bytes; at most {max} are read")]
    KeyLength {
        /// Where the length is.
        offset: usize,
        /// The length.
        bytes: u64,
        /// The limit.
        max: usize,
    },
    /// A string longer than [`STRING_BYTES_MAX`](super::limits::STRING_BYTES_MAX).
    #[error("byte {offset}: a string of {bytes} bytes; at most {max} are read")]
    StringLength {
        /// Where the length is.
        offset: usize,
        /// The length.
        bytes: u64,
        /// The limit.
        max: usize,
    },
    /// A tensor name longer than [`TENSOR_NAME_BYTES_MAX`](super::limits::TENSOR_NAME_BYTES_MAX).
    #[error("byte {offset}: a tensor name of {bytes} bytes; at most {max} are read")]
    TensorNameLength {
        /// Where the length is.
        offset: usize,
        /// The length.
        bytes: u64,
        /// The limit.
        max: usize,
    },
    /// Text that is not UTF-8.
    #[error("byte {offset}: {what} is not UTF-8")]
    NotUtf8 {
        /// The first byte that does not fit.
        offset: usize,
        /// The field.
        what: &'static str,
    },
    /// A metadata type number that GGUF does not define.
    #[error("byte {offset}: metadata type {id} does not exist")]
    ValueType {
        /// Where the type number is.
        offset: usize,
        /// The number.
        id: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("byte {offset}: a boolean of value {value}")]
    Bool {
        /// Where the byte is.
        offset: usize,
        /// The byte.
        value: u8,
    },
    /// An array longer than [`ARRAY_LENGTH_MAX`](super::limits::ARRAY_LENGTH_MAX).
    #[error("byte {offset}: an array of {length} elements; at most {max} are read")]
    ArrayLength {
        /// Where the length is.
        offset: usize,
        /// The length.
        length: u64,
        /// The limit.
        max: usize,
    },
    /// An array of arrays; no model in use has one.
    #[error("byte {offset}: an array of arrays; arrays are read one level deep")]
    NestedArray {
        /// Where the element type is.
        offset: usize,
    },
    /// The same metadata key twice.
    #[error("byte {offset}: the metadata key {key:?} is there twice")]
    DuplicateKey {
        /// Where the second one starts.
        offset: usize,
        /// The key.
        key: String,
    },
    /// `general.alignment` is not of type u32.
    #[error("byte {offset}: general.alignment is of type {found}, not u32")]
    AlignmentType {
        /// Where the value is.
        offset: usize,
        /// The type found.
        found: ValueType,
    },
    /// `general.alignment` is not a power of two in range.
    #[error(
        "byte {offset}: general.alignment is {alignment}; a power of two from {min} to {max} is needed"
    )]
    Alignment {
        /// Where the value is.
        offset: usize,
        /// The alignment.
        alignment: u32,
        /// The smallest one accepted.
        min: usize,
        /// The largest one accepted.
        max: usize,
    },
    /// A tensor with no dimension, or more than [`DIMENSIONS_MAX`](super::limits::DIMENSIONS_MAX).
    #[error("byte {offset}: tensor {name:?} has {count} dimensions; 1 to {max} are read")]
    DimensionCount {
        /// Where the count is.
        offset: usize,
        /// The tensor.
        name: String,
        /// The count.
        count: u32,
        /// The limit.
        max: usize,
    },
    /// A dimension of size zero.
    #[error("byte {offset}: dimension {dimension} of tensor {name:?} is 0")]
    ZeroDimension {
        /// Where the size is.
        offset: usize,
        /// The tensor.
        name: String,
        /// Which dimension, from 0.
        dimension: usize,
    },
    /// More elements or bytes than the machine can count.
    #[error("byte {offset}: the size of tensor {name:?} overflows")]
    TensorSize {
        /// Where the dimensions are.
        offset: usize,
        /// The tensor.
        name: String,
    },
    /// Rows that do not consist of whole blocks.
    #[error(
        "byte {offset}: tensor {name:?} has rows of {row} elements, not a multiple of the {block} of its type {format}"
    )]
    RowLength {
        /// Where the dimensions are.
        offset: usize,
        /// The tensor.
        name: String,
        /// Elements in a row.
        row: usize,
        /// Elements in a block.
        block: usize,
        /// Name of the type.
        format: &'static str,
    },
    /// The same tensor name twice.
    #[error("byte {offset}: the tensor {name:?} is there twice")]
    DuplicateTensor {
        /// Where the second one starts.
        offset: usize,
        /// The tensor.
        name: String,
    },
    /// Tensor data that does not start at a multiple of the file's alignment.
    #[error(
        "byte {offset}: the data of tensor {name:?} starts at {start}, not a multiple of {alignment}"
    )]
    TensorAlignment {
        /// Where the tensor's offset field is.
        offset: usize,
        /// The tensor.
        name: String,
        /// The offset field: relative to the start of the data.
        start: u64,
        /// The file's alignment.
        alignment: usize,
    },
    /// Tensor data that goes past the end of the file.
    #[error(
        "byte {offset}: the data of tensor {name:?} ({bytes} bytes from data offset {start}) goes past the end of the file"
    )]
    TensorBounds {
        /// Where the tensor's offset field is.
        offset: usize,
        /// The tensor.
        name: String,
        /// The offset field: relative to the start of the data.
        start: u64,
        /// Bytes of data.
        bytes: usize,
    },
    /// Two tensors that share bytes.
    #[error("byte {offset}: the data of tensor {name:?} overlaps that of {other:?}")]
    TensorOverlap {
        /// First byte of the later tensor's data.
        offset: usize,
        /// The later tensor.
        name: String,
        /// The earlier one.
        other: String,
    },
}

/// Why a metadata entry cannot be used as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The file has no such key.
    #[error("metadata key {key:?} is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// The value is of another type.
    #[error("metadata key {key:?} is of type {found}, not {wanted}")]
    WrongType {
        /// The key.
        key: String,
        /// What was asked for.
        wanted: &'static str,
        /// What the file has.
        found: ValueType,
    },
    /// The value does not fit the type asked for.
    #[error("metadata key {key:?} is {value}, which does not fit {wanted}")]
    OutOfRange {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What was asked for.
        wanted: &'static str,
    },
}

/// Why a file does not belong to the set of files that its name puts it in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// A key that every part has is missing or no number.
    #[error("it is no part of a set of files: {0}")]
    Key(#[from] MetaError),
    /// The part says that there are another number of parts than its name says; one is said where the name has no
    /// numbers.
    #[error("it is a part of a set of {key} files, and there are {files} by its name")]
    Count {
        /// What `split.count` says.
        key: u64,
        /// What the file's name says.
        files: usize,
    },
    /// More parts than [`PARTS_MAX`](super::limits::PARTS_MAX).
    #[error("it is a part of a set of {count} files; sets of at most {max} are read")]
    TooManyParts {
        /// Parts.
        count: u64,
        /// The limit.
        max: usize,
    },
    /// The part is another one than its name says: a copy, or misnamed.
    #[error("it is part {} of its set, and part {} by its name", key.saturating_add(1), place + 1)]
    Number {
        /// What `split.no` says, from 0.
        key: u64,
        /// What the file's name says, from 0.
        place: usize,
    },
    /// The parts together have another number of tensors than the first one says.
    #[error("its set is to have {claimed} tensors, and has {found}")]
    TensorCount {
        /// What `split.tensors.count` says.
        claimed: u64,
        /// What there are.
        found: usize,
    },
    /// The parts together have more tensors than [`TENSOR_COUNT_MAX`](super::limits::TENSOR_COUNT_MAX).
    #[error("its set has more than {max} tensors")]
    TooManyTensors {
        /// The limit.
        max: usize,
    },
    /// A tensor that an earlier part has, too.
    #[error("byte {offset}: the tensor {name:?} is in part {} of its set, too", first + 1)]
    DuplicateTensor {
        /// Where the tensor's data is in this part.
        offset: usize,
        /// The tensor.
        name: String,
        /// The part that has it already, from 0.
        first: usize,
    },
    /// The part contradicts the first one.
    #[error("its metadata key {key:?} has another value than in the first part of its set")]
    Metadata {
        /// The key.
        key: String,
    },
}
