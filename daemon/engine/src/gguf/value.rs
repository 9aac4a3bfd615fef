//! Metadata values, borrowed from the file. An [`Array`] only exists after its bytes were checked, so its
//! iterators cannot fail.

use core::fmt;
use core::marker::PhantomData;

use super::error::GgufError;
use super::limits::{ARRAY_LENGTH_MAX, STRING_BYTES_MAX};
use super::read::Reader;

/// The type of a metadata value, as the file numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type of this number, if GGUF defines one.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Str,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// The type's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of one value; `None` where they vary.
    fn size_bytes(self) -> Option<u64> {
        Some(match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Str | Self::Array => return None,
        })
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        let offset = reader.position();
        let id = reader.u32("a metadata type")?;
        Self::from_id(id).ok_or(GgufError::ValueType { offset, id })
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A metadata value.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F32(_) => ValueType::F32,
            Self::F64(_) => ValueType::F64,
            Self::Bool(_) => ValueType::Bool,
            Self::Str(_) => ValueType::Str,
            Self::Array(_) => ValueType::Array,
        }
    }

    /// The value as a wide integer, if it is an integer of any type.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    pub(super) fn read(reader: &mut Reader<'a>, value_type: ValueType) -> Result<Self, GgufError> {
        const WHAT: &str = "a metadata value";
        Ok(match value_type {
            ValueType::U8 => Self::U8(u8::from_le_bytes(reader.array(WHAT)?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(reader.array(WHAT)?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(reader.array(WHAT)?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(reader.array(WHAT)?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(reader.array(WHAT)?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(reader.array(WHAT)?)),
            ValueType::U64 => Self::U64(u64::from_le_bytes(reader.array(WHAT)?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(reader.array(WHAT)?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(reader.array(WHAT)?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(reader.array(WHAT)?)),
            ValueType::Bool => {
                let offset = reader.position();
                let [byte] = reader.array(WHAT)?;
                Self::Bool(bool_of(byte, offset)?)
            }
            ValueType::Str => Self::Str(read_string(reader)?),
            ValueType::Array => Self::Array(Array::read(reader)?),
        })
    }
}

fn bool_of(value: u8, offset: usize) -> Result<bool, GgufError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(GgufError::Bool { offset, value }),
    }
}

fn read_string<'a>(reader: &mut Reader<'a>) -> Result<&'a str, GgufError> {
    reader.text(STRING_BYTES_MAX, "a string", |offset, bytes, max| {
        GgufError::StringLength { offset, bytes, max }
    })
}

/// An array of metadata values of one type, borrowed from the file and checked.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    pub(super) element_type: ValueType,
    pub(super) length: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Array<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, GgufError> {
        const WHAT: &str = "a metadata array";
        let offset = reader.position();
        let element_type = ValueType::read(reader)?;
        if element_type == ValueType::Array {
            return Err(GgufError::NestedArray { offset });
        }
        let offset = reader.position();
        let length = reader.u64(WHAT)?;
        let length = match usize::try_from(length) {
            Ok(short) if short <= ARRAY_LENGTH_MAX => short,
            _ => {
                return Err(GgufError::ArrayLength {
                    offset,
                    length,
                    max: ARRAY_LENGTH_MAX,
                });
            }
        };
        let start = reader.clone();
        let offset = start.position();
        if let Some(size) = element_type.size_bytes() {
            // At most 2^24 elements of 8 bytes.
            let bytes = reader.take(length as u64 * size, WHAT)?;
            if element_type == ValueType::Bool {
                for (index, &byte) in bytes.iter().enumerate() {
                    bool_of(byte, offset.saturating_add(index))?;
                }
            }
            return Ok(Self {
                element_type,
                length,
                bytes,
            });
        }
        for _ in 0..length {
            read_string(reader)?;
        }
        let size = reader.position() - offset;
        let bytes = start.clone().take(size as u64, WHAT)?;
        Ok(Self {
            element_type,
            length,
            bytes,
        })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The type of each element; never an array.
    pub fn element_type(&self) -> ValueType {
        self.element_type
    }

    /// The strings, if it is an array of strings.
    pub fn strs(&self) -> Option<Strs<'a>> {
        (self.element_type == ValueType::Str).then_some(Strs {
            bytes: self.bytes,
            left: self.length,
        })
    }

    /// The numbers, if it is an array of exactly this type.
    pub fn numbers<T: Number>(&self) -> Option<Numbers<'a, T>> {
        (self.element_type == T::TYPE).then_some(Numbers {
            bytes: self.bytes,
            number: PhantomData,
        })
    }

    /// The booleans, if it is an array of booleans.
    pub fn bools(&self) -> Option<impl ExactSizeIterator<Item = bool> + use<'a>> {
        (self.element_type == ValueType::Bool).then(|| self.bytes.iter().map(|&byte| byte != 0))
    }

    /// The elements as wide integers, if it is an array of integers of any type.
    pub fn integers(&self) -> Option<impl Iterator<Item = i128> + use<'a>> {
        let size = match self.element_type {
            ValueType::Bool | ValueType::F32 | ValueType::F64 => return None,
            other => usize::try_from(other.size_bytes()?).ok()?,
        };
        let element_type = self.element_type;
        Some(self.bytes.chunks_exact(size).filter_map(move |chunk| {
            Value::read(&mut Reader::new(chunk), element_type)
                .ok()?
                .as_integer()
        }))
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Vocabularies are long; the contents would drown what surrounds them.
        write!(f, "[{}; {}]", self.element_type, self.length)
    }
}

/// The strings of an array, in order.
#[derive(Debug, Clone)]
pub struct Strs<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strs<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.left == 0 {
            return None;
        }
        let (length, rest) = self.bytes.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (text, rest) = rest.split_at_checked(length)?;
        self.bytes = rest;
        self.left -= 1;
        core::str::from_utf8(text).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strs<'_> {}

/// A number as metadata arrays store it.
pub trait Number: Copy + sealed::Sealed {
    /// The type in the file.
    const TYPE: ValueType;
    #[doc(hidden)]
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! numbers {
    ($($number:ty => $value_type:ident),* $(,)?) => {$(
        impl sealed::Sealed for $number {}
        impl Number for $number {
            const TYPE: ValueType = ValueType::$value_type;
            fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
                let (first, rest) = bytes.split_first_chunk()?;
                Some((Self::from_le_bytes(*first), rest))
            }
        }
    )*};
}

numbers! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64,
}

/// The numbers of an array, in order.
#[derive(Debug, Clone)]
pub struct Numbers<'a, T> {
    bytes: &'a [u8],
    number: PhantomData<T>,
}

impl<T: Number> Iterator for Numbers<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let (number, rest) = T::split(self.bytes)?;
        self.bytes = rest;
        Some(number)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.bytes.len() / size_of::<T>();
        (left, Some(left))
    }
}

impl<T: Number> ExactSizeIterator for Numbers<'_, T> {}
