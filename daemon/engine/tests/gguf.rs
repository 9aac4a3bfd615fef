//! GGUF files, whole and broken, as a reader from outside sees them.

mod support;

use andon_engine::gguf::{Gguf, GgufError, MetaError, Value, ValueType, limits};
use proptest::prelude::*;
use support::{ARRAY, BOOL, I32, STRING, U32, Writer, array, string};

const F32: u32 = 0;
const Q4_0: u32 = 2;
/// A tensor type of GGUF that there are no kernels for.
const UNKNOWN: u32 = 30_000;
/// Magic, version and two counts.
const HEADER_BYTES: usize = 24;

/// A small file with every kind of value.
fn sample() -> Writer {
    let mut writer = Writer::new();
    writer
        .str("general.architecture", "llama")
        .u32("count", 7)
        .bool("flag", true)
        .raw(b"negative", I32, &(-3i32).to_le_bytes())
        .raw(b"u8", 0, &[200])
        .raw(b"i8", 1, &(-5i8).to_le_bytes())
        .raw(b"u16", 2, &60_000u16.to_le_bytes())
        .raw(b"i16", 3, &(-300i16).to_le_bytes())
        .raw(b"f32", 6, &1.5f32.to_le_bytes())
        .raw(b"u64", 10, &u64::MAX.to_le_bytes())
        .raw(b"i64", 11, &i64::MIN.to_le_bytes())
        .raw(b"f64", 12, &2.5f64.to_le_bytes())
        .strs("words", &["", "a", "ü€😀"])
        .i32s("numbers", &[1, -2, 3])
        .raw(b"flags", ARRAY, &array(BOOL, 2, &[0, 1]))
        .tensor("first", &[4, 2], F32, &[1; 32])
        .tensor("second", &[32], Q4_0, &[2; 18]);
    writer
}

fn error(bytes: &[u8]) -> GgufError {
    match Gguf::parse(bytes) {
        Err(error) => error,
        Ok(gguf) => panic!("{} bytes are accepted: {gguf:?}", bytes.len()),
    }
}

/// A file whose only metadata entry is this one, and where its value starts.
fn with_value(value_type: u32, value: &[u8]) -> (Vec<u8>, usize) {
    let bytes = Writer::new().raw(b"key", value_type, value).finish();
    (bytes, HEADER_BYTES + 8 + 3 + 4)
}

#[test]
fn what_is_written_is_read() {
    for version in [2, 3] {
        let mut writer = sample();
        writer.version = version;
        let bytes = writer.finish();
        let gguf = Gguf::parse(&bytes).expect("a file");
        assert_eq!(gguf.version(), version);
        assert_eq!(gguf.alignment(), 32);
        assert_eq!(gguf.keys().count(), 15);
        assert_eq!(gguf.keys().next(), Some("general.architecture"));
        assert_eq!(gguf.str("general.architecture"), Ok("llama"));
        assert_eq!(gguf.get("u8"), Some(Value::U8(200)));
        assert_eq!(gguf.get("i8"), Some(Value::I8(-5)));
        assert_eq!(gguf.get("u16"), Some(Value::U16(60_000)));
        assert_eq!(gguf.get("i16"), Some(Value::I16(-300)));
        assert_eq!(gguf.get("count"), Some(Value::U32(7)));
        assert_eq!(gguf.get("negative"), Some(Value::I32(-3)));
        assert_eq!(gguf.get("u64"), Some(Value::U64(u64::MAX)));
        assert_eq!(gguf.get("i64"), Some(Value::I64(i64::MIN)));
        assert_eq!(gguf.get("f32"), Some(Value::F32(1.5)));
        assert_eq!(gguf.get("f64"), Some(Value::F64(2.5)));
        assert_eq!(gguf.get("flag"), Some(Value::Bool(true)));
        assert_eq!(gguf.get("nothing"), None);

        let words = gguf.array("words").expect("an array");
        assert_eq!((words.len(), words.is_empty()), (3, false));
        assert_eq!(words.element_type(), ValueType::Str);
        let strs: Vec<_> = words.strs().expect("strings").collect();
        assert_eq!(strs, ["", "a", "ü€😀"]);
        assert!(words.numbers::<i32>().is_none() && words.integers().is_none());
        let numbers = gguf.array("numbers").expect("an array");
        assert!(numbers.numbers::<i32>().expect("numbers").eq([1, -2, 3]));
        assert!(numbers.integers().expect("numbers").eq([1, -2, 3]));
        assert!(numbers.numbers::<u32>().is_none() && numbers.strs().is_none());
        let flags = gguf.array("flags").expect("an array");
        assert!(flags.bools().expect("booleans").eq([false, true]));

        let names: Vec<_> = gguf.tensors().iter().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["first", "second"]);
        let first = gguf.tensor("first").expect("a tensor");
        assert_eq!(&first.dims[..], [4, 2]);
        assert_eq!(
            (
                first.dims.row_elements(),
                first.dims.row_count(),
                first.dims.elements()
            ),
            (4, 2, 8)
        );
        assert_eq!(gguf.data(first), [1; 32]);
        assert_eq!(gguf.data(gguf.tensor("second").expect("a tensor")), [2; 18]);
        assert!(gguf.data_start().is_multiple_of(32));
        assert!(gguf.tensor("third").is_none());
    }
}

#[test]
fn typed_access_says_what_is_wrong() {
    let bytes = sample().finish();
    let gguf = Gguf::parse(&bytes).expect("a file");
    assert_eq!(gguf.u32("u8"), Ok(200));
    assert_eq!(gguf.u64("count"), Ok(7));
    assert_eq!(gguf.f32("f64"), Ok(2.5));
    assert_eq!(gguf.bool("flag"), Ok(true));
    let missing = MetaError::Missing {
        key: "nothing".to_owned(),
    };
    assert_eq!(gguf.u32("nothing"), Err(missing));
    for key in ["negative", "u64"] {
        assert!(
            matches!(gguf.u32(key), Err(MetaError::OutOfRange { .. })),
            "{key}"
        );
    }
    for key in ["general.architecture", "flag", "f32", "words"] {
        assert!(
            matches!(gguf.u32(key), Err(MetaError::WrongType { .. })),
            "{key}"
        );
    }
    assert!(matches!(
        gguf.str("count"),
        Err(MetaError::WrongType {
            found: ValueType::U32,
            ..
        })
    ));
    assert!(matches!(
        gguf.f32("count"),
        Err(MetaError::WrongType { .. })
    ));
    assert!(matches!(
        gguf.bool("count"),
        Err(MetaError::WrongType { .. })
    ));
    assert!(matches!(
        gguf.array("count"),
        Err(MetaError::WrongType { .. })
    ));
    assert_eq!(gguf.u32_or("nothing", 3), Ok(3));
    assert_eq!(gguf.u64_or("count", 3), Ok(7));
    assert_eq!(gguf.f32_or("nothing", 0.5), Ok(0.5));
    assert_eq!(gguf.bool_or("nothing", true), Ok(true));
    assert_eq!(gguf.str_or("nothing", "none"), Ok("none"));
    assert!(gguf.u32_or("flag", 3).is_err());
    for value in [f32::NAN, f32::INFINITY] {
        let (bytes, _) = with_value(6, &value.to_le_bytes());
        let gguf = Gguf::parse(&bytes).expect("a file");
        assert!(matches!(gguf.f32("key"), Err(MetaError::OutOfRange { .. })));
    }
    let (bytes, _) = with_value(12, &1e300f64.to_le_bytes());
    assert!(Gguf::parse(&bytes).expect("a file").f32("key").is_err());
}

#[test]
fn metadata_alone_is_a_file() {
    let bytes = Writer::new().u32("a", 1).finish();
    let gguf = Gguf::parse(&bytes).expect("a file");
    assert!(gguf.tensors().is_empty());
    assert_eq!(gguf.data_start(), bytes.len());
}

#[test]
fn other_files_and_versions_are_refused_by_name() {
    assert!(
        matches!(error(b"GGML1234"), GgufError::Magic { offset: 0, found } if &found == b"GGML")
    );
    for version in [0u32, 1, 4, 65_537] {
        let mut writer = Writer::new();
        writer.version = version;
        let found = error(&writer.finish());
        assert_eq!(found, GgufError::Version { offset: 4, version });
    }
    let mut bytes = Writer::new().finish();
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert_eq!(
        error(&bytes),
        GgufError::BigEndian {
            offset: 4,
            version: 3
        }
    );
}

#[test]
fn counts_are_bounded() {
    let mut bytes = Writer::new().finish();
    bytes[8..16].copy_from_slice(&(limits::TENSOR_COUNT_MAX as u64 + 1).to_le_bytes());
    assert!(matches!(
        error(&bytes),
        GgufError::TensorCount {
            offset: 8,
            count: 131_073,
            ..
        }
    ));
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(
        error(&bytes),
        GgufError::TensorCount { offset: 8, .. }
    ));
    bytes[8..16].copy_from_slice(&(limits::TENSOR_COUNT_MAX as u64).to_le_bytes());
    assert!(matches!(
        error(&bytes),
        GgufError::Truncated { offset: 24, .. }
    ));
    let mut bytes = Writer::new().finish();
    bytes[16..24].copy_from_slice(&(limits::METADATA_COUNT_MAX as u64 + 1).to_le_bytes());
    assert!(matches!(
        error(&bytes),
        GgufError::MetadataCount {
            offset: 16,
            count: 65_537,
            ..
        }
    ));
    bytes[16..24].copy_from_slice(&(limits::METADATA_COUNT_MAX as u64).to_le_bytes());
    assert!(matches!(
        error(&bytes),
        GgufError::Truncated { offset: 24, .. }
    ));
}

#[test]
fn lengths_are_bounded() {
    let long = vec![b'k'; limits::KEY_BYTES_MAX + 1];
    let bytes = Writer::new().raw(&long, BOOL, &[1]).finish();
    assert!(matches!(
        error(&bytes),
        GgufError::KeyLength {
            offset: 24,
            bytes: 65_536,
            ..
        }
    ));
    let bytes = Writer::new().raw(&long[1..], BOOL, &[1]).finish();
    assert!(Gguf::parse(&bytes).is_ok());

    let length = limits::STRING_BYTES_MAX as u64 + 1;
    let (bytes, offset) = with_value(STRING, &length.to_le_bytes());
    let found = error(&bytes);
    assert!(
        matches!(found, GgufError::StringLength { offset: o, bytes, .. } if o == offset && bytes == length)
    );
    let (bytes, offset) = with_value(STRING, &100u64.to_le_bytes());
    assert_eq!(
        error(&bytes),
        GgufError::Truncated {
            offset: offset + 8,
            what: "a string",
            needed: 100,
            left: 0
        }
    );

    let length = limits::ARRAY_LENGTH_MAX as u64 + 1;
    let (bytes, offset) = with_value(ARRAY, &array(U32, length, &[]));
    let found = error(&bytes);
    assert!(
        matches!(found, GgufError::ArrayLength { offset: o, length: l, .. } if o == offset + 4 && l == length)
    );
    let (bytes, offset) = with_value(ARRAY, &array(10, length - 1, &[]));
    assert!(matches!(error(&bytes), GgufError::Truncated { offset: o, .. } if o == offset + 12));

    let bytes = Writer::new().entry(&[b'n'; 65], &[1], F32, 0).finish();
    assert!(matches!(
        error(&bytes),
        GgufError::TensorNameLength {
            offset: 24,
            bytes: 65,
            ..
        }
    ));
}

#[test]
fn text_is_utf8() {
    let bytes = Writer::new().raw(b"ke\xffy", BOOL, &[1]).finish();
    assert_eq!(
        error(&bytes),
        GgufError::NotUtf8 {
            offset: 24 + 8 + 2,
            what: "a metadata key"
        }
    );
    let (bytes, offset) = with_value(STRING, &string(b"a\xc3"));
    assert_eq!(
        error(&bytes),
        GgufError::NotUtf8 {
            offset: offset + 9,
            what: "a string"
        }
    );
    let elements = [string(b"fine"), string(b"\x80")].concat();
    let (bytes, offset) = with_value(ARRAY, &array(STRING, 2, &elements));
    assert_eq!(
        error(&bytes),
        GgufError::NotUtf8 {
            offset: offset + 12 + 12 + 8,
            what: "a string"
        }
    );
    let bytes = Writer::new().entry(b"n\xed\xa0\x80", &[1], F32, 0).finish();
    assert_eq!(
        error(&bytes),
        GgufError::NotUtf8 {
            offset: 24 + 8 + 1,
            what: "a tensor name"
        }
    );
}

#[test]
fn values_are_checked() {
    let (bytes, offset) = with_value(13, &[0; 8]);
    assert_eq!(
        error(&bytes),
        GgufError::ValueType {
            offset: offset - 4,
            id: 13
        }
    );
    let (bytes, offset) = with_value(BOOL, &[2]);
    assert_eq!(error(&bytes), GgufError::Bool { offset, value: 2 });
    let (bytes, offset) = with_value(ARRAY, &array(BOOL, 3, &[0, 1, 9]));
    assert_eq!(
        error(&bytes),
        GgufError::Bool {
            offset: offset + 14,
            value: 9
        }
    );
    let (bytes, offset) = with_value(ARRAY, &array(ARRAY, 1, &array(U32, 0, &[])));
    assert_eq!(error(&bytes), GgufError::NestedArray { offset });
    let (bytes, offset) = with_value(ARRAY, &array(99, 0, &[]));
    assert_eq!(error(&bytes), GgufError::ValueType { offset, id: 99 });
    let bytes = Writer::new().u32("key", 1).u32("key", 2).finish();
    assert_eq!(
        error(&bytes),
        GgufError::DuplicateKey {
            offset: 24 + 8 + 3 + 4 + 4,
            key: "key".to_owned()
        }
    );
}

#[test]
fn the_alignment_is_a_power_of_two_in_range() {
    for alignment in [8, 16, 64, 4096, 65_536] {
        let mut writer = Writer::new();
        writer.alignment = alignment;
        writer
            .u32(
                "general.alignment",
                u32::try_from(alignment).expect("small"),
            )
            .tensor("a", &[1], F32, &[1; 4])
            .tensor("b", &[1], F32, &[2; 4]);
        let bytes = writer.finish();
        let gguf = Gguf::parse(&bytes).expect("a file");
        assert_eq!(gguf.alignment(), alignment);
        assert_eq!(gguf.data(gguf.tensor("b").expect("a tensor")), [2; 4]);
    }
    let offset = 24 + 8 + 17 + 4;
    for alignment in [0, 1, 4, 24, 33, 131_072, u32::MAX] {
        let bytes = Writer::new().u32("general.alignment", alignment).finish();
        let found = error(&bytes);
        assert!(
            matches!(found, GgufError::Alignment { offset: o, alignment: a, .. } if o == offset && a == alignment),
            "{found}"
        );
    }
    let bytes = Writer::new().bool("general.alignment", true).finish();
    assert_eq!(
        error(&bytes),
        GgufError::AlignmentType {
            offset,
            found: ValueType::Bool
        }
    );
}

#[test]
fn shapes_are_checked() {
    let dims_at = 24 + 8 + 1 + 4;
    for count in [0, 5] {
        let bytes = Writer::new()
            .entry(b"t", &vec![1; count], F32, 0)
            .data(64)
            .finish();
        let found = error(&bytes);
        assert!(
            matches!(found, GgufError::DimensionCount { offset: o, .. } if o == dims_at - 4),
            "{found}"
        );
    }
    let bytes = Writer::new().entry(b"t", &[3, 0], F32, 0).data(64).finish();
    assert_eq!(
        error(&bytes),
        GgufError::ZeroDimension {
            offset: dims_at + 8,
            name: "t".to_owned(),
            dimension: 1
        }
    );
    for dims in [
        &[u64::MAX, 2][..],
        &[1 << 32, 1 << 32],
        &[1 << 62],
        &[1 << 30, 1 << 30, 1, 8],
    ] {
        let bytes = Writer::new().entry(b"t", dims, F32, 0).data(64).finish();
        let found = error(&bytes);
        assert!(
            matches!(found, GgufError::TensorSize { offset: o, .. } if o == dims_at),
            "{found}"
        );
    }
    let bytes = Writer::new()
        .entry(b"t", &[33, 2], Q4_0, 0)
        .data(64)
        .finish();
    assert_eq!(
        error(&bytes),
        GgufError::RowLength {
            offset: dims_at,
            name: "t".to_owned(),
            row: 33,
            block: 32,
            format: "Q4_0"
        }
    );
    // The product is a multiple of the block, the row is not.
    let bytes = Writer::new()
        .entry(b"t", &[16, 2], Q4_0, 0)
        .data(64)
        .finish();
    assert!(matches!(error(&bytes), GgufError::RowLength { .. }));
}

#[test]
fn data_is_aligned_inside_the_file_and_apart() {
    let offset_at = 24 + 8 + 1 + 4 + 8 + 4;
    let bytes = Writer::new().entry(b"t", &[1], F32, 4).data(64).finish();
    assert_eq!(
        error(&bytes),
        GgufError::TensorAlignment {
            offset: offset_at,
            name: "t".to_owned(),
            start: 4,
            alignment: 32
        }
    );
    for (dims, start) in [(17, 0), (1, 64), (9, 32), (1, u64::MAX - 31), (1, 1 << 63)] {
        let bytes = Writer::new()
            .entry(b"t", &[dims], F32, start)
            .data(64)
            .finish();
        let found = error(&bytes);
        assert!(
            matches!(found, GgufError::TensorBounds { offset: o, start: s, .. } if o == offset_at && s == start),
            "{found}"
        );
    }
    let mut exact = Writer::new();
    let bytes = exact.entry(b"t", &[8], F32, 32).data(64).finish();
    assert!(Gguf::parse(&bytes).is_ok());

    let overlap = |a: (u64, u64), b: (u64, u64)| {
        let mut writer = Writer::new();
        writer
            .entry(b"a", &[a.1], F32, a.0)
            .entry(b"b", &[b.1], F32, b.0);
        Gguf::parse(&writer.data(128).finish()).map(drop)
    };
    assert!(
        matches!(overlap((0, 9), (32, 1)), Err(GgufError::TensorOverlap { ref name, .. }) if name == "b")
    );
    assert!(
        matches!(overlap((32, 1), (0, 9)), Err(GgufError::TensorOverlap { ref name, .. }) if name == "a")
    );
    assert!(matches!(
        overlap((32, 1), (32, 1)),
        Err(GgufError::TensorOverlap { .. })
    ));
    assert!(matches!(
        overlap((0, 32), (64, 1)),
        Err(GgufError::TensorOverlap { .. })
    ));
    assert_eq!(overlap((32, 8), (0, 8)), Ok(()));

    let bytes = Writer::new()
        .tensor("a", &[1], F32, &[0; 4])
        .tensor("a", &[1], F32, &[0; 4])
        .finish();
    let second = 24 + 8 + 1 + 4 + 8 + 4 + 8;
    assert_eq!(
        error(&bytes),
        GgufError::DuplicateTensor {
            offset: second,
            name: "a".to_owned()
        }
    );

    // The directory is whole, but the file ends before the data could start.
    let bytes = Writer::new().entry(b"t", &[1], F32, 0).finish();
    assert!(matches!(
        error(&bytes),
        GgufError::Truncated {
            what: "the padding before tensor data",
            ..
        }
    ));
}

#[test]
fn tensors_of_unknown_types_reach_to_the_next() {
    let mut writer = Writer::new();
    writer
        .entry(b"last", &[5], UNKNOWN, 96)
        .entry(b"first", &[5, 3], UNKNOWN, 0)
        .entry(b"known", &[1], F32, 64);
    let bytes = writer.data(120).finish();
    let gguf = Gguf::parse(&bytes).expect("a file");
    let length = |name: &str| gguf.data(gguf.tensor(name).expect("a tensor")).len();
    assert_eq!(
        (length("first"), length("known"), length("last")),
        (64, 4, 24)
    );
    let first = gguf.tensor("first").expect("a tensor");
    assert_eq!((first.ggml_type, first.format), (UNKNOWN, None));
    let mut writer = Writer::new();
    writer
        .entry(b"a", &[5], UNKNOWN, 0)
        .entry(b"b", &[5], UNKNOWN, 0);
    assert!(matches!(
        error(&writer.data(64).finish()),
        GgufError::TensorOverlap { .. }
    ));
}

#[test]
fn errors_name_the_byte() {
    let bytes = sample().finish();
    assert!(
        error(&bytes[..30])
            .to_string()
            .starts_with("byte 24: the file ends inside")
    );
}

#[test]
fn every_shorter_file_is_an_error() {
    let bytes = sample().finish();
    assert!(Gguf::parse(&bytes).is_ok());
    for length in 0..bytes.len() {
        let found = error(&bytes[..length]);
        assert!(
            matches!(
                found,
                GgufError::Truncated { .. } | GgufError::TensorBounds { .. }
            ),
            "{length}: {found}"
        );
    }
}

/// Whatever a parsed file says holds: this uses all of it.
fn use_everything(gguf: &Gguf<'_>) {
    for key in gguf.keys() {
        if let Some(Value::Array(array)) = gguf.get(key) {
            let count = match array.element_type() {
                ValueType::Str => array.strs().map(Iterator::count),
                ValueType::Bool => array.bools().map(Iterator::count),
                ValueType::F32 => array.numbers::<f32>().map(Iterator::count),
                ValueType::F64 => array.numbers::<f64>().map(Iterator::count),
                _ => array.integers().map(Iterator::count),
            };
            assert_eq!(count, Some(array.len()));
        }
        assert!(gguf.get(key).is_some());
    }
    let mut ranges: Vec<_> = gguf
        .tensors()
        .iter()
        .map(|tensor| tensor.range.clone())
        .collect();
    ranges.sort_by_key(|range| range.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start);
    }
    for tensor in gguf.tensors() {
        assert!(tensor.range.start.is_multiple_of(gguf.alignment()) || gguf.data_start() == 0);
        assert_eq!(gguf.data(tensor).len(), tensor.range.len());
        assert_eq!(gguf.tensor(tensor.name), Some(tensor));
        if let Some(format) = tensor.format {
            let blocks = tensor.dims.elements() / format.block_elements();
            assert_eq!(tensor.range.len(), blocks * format.block_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn changed_files_are_errors_or_hold(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sample().finish();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(gguf) = Gguf::parse(&bytes) {
            use_everything(&gguf);
        }
    }

    #[test]
    fn replaced_numbers_are_errors_or_hold(
        at in any::<prop::sample::Index>(),
        number in prop_oneof![Just(u64::MAX), Just(1u64 << 63), Just(u64::from(u32::MAX)), 0u64..70_000, any::<u64>()],
        wide in any::<bool>(),
    ) {
        let mut bytes = sample().finish();
        let number = number.to_le_bytes();
        let number = if wide { &number[..] } else { &number[..4] };
        let at = at.index(bytes.len() - number.len());
        bytes[at..at + number.len()].copy_from_slice(number);
        if let Ok(gguf) = Gguf::parse(&bytes) {
            use_everything(&gguf);
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tail);
        if let Ok(gguf) = Gguf::parse(&bytes) {
            use_everything(&gguf);
        }
    }
}
