//! The key-value pairs of a file, and the typed ways to ask for one.

use std::collections::HashMap;

use super::Gguf;
use super::error::{GgufError, MetaError};
use super::limits::{ALIGNMENT_DEFAULT, ALIGNMENT_MAX, ALIGNMENT_MIN, KEY_BYTES_MAX};
use super::read::Reader;
use super::value::{Array, Value, ValueType};

const ALIGNMENT_KEY: &str = "general.alignment";

#[derive(Debug, Clone)]
struct Pair<'a> {
    key: &'a str,
    value: Value<'a>,
    /// Where the value is in the file.
    offset: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Metadata<'a> {
    pairs: Vec<Pair<'a>>,
    index: HashMap<&'a str, usize>,
}

impl<'a> Metadata<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, count: usize) -> Result<Self, GgufError> {
        // A count is only a claim until its entries were read.
        let pair_bytes_min = 8 + 4 + 1;
        let plausible = count.min(reader.left() / pair_bytes_min);
        let mut pairs = Vec::with_capacity(plausible);
        let mut index = HashMap::with_capacity(plausible);
        for number in 0..count {
            let offset = reader.position();
            let key = reader.text(KEY_BYTES_MAX, "a metadata key", |offset, bytes, max| {
                GgufError::KeyLength { offset, bytes, max }
            })?;
            if index.insert(key, number).is_some() {
                return Err(GgufError::DuplicateKey {
                    offset,
                    key: key.to_owned(),
                });
            }
            let value_type = ValueType::read(reader)?;
            let offset = reader.position();
            let value = Value::read(reader, value_type)?;
            pairs.push(Pair { key, value, offset });
        }
        Ok(Self { pairs, index })
    }

    fn pair(&self, key: &str) -> Option<&Pair<'a>> {
        self.pairs.get(*self.index.get(key)?)
    }

    pub(super) fn alignment(&self) -> Result<usize, GgufError> {
        let Some(pair) = self.pair(ALIGNMENT_KEY) else {
            return Ok(ALIGNMENT_DEFAULT);
        };
        let Value::U32(alignment) = pair.value else {
            return Err(GgufError::AlignmentType {
                offset: pair.offset,
                found: pair.value.value_type(),
            });
        };
        usize::try_from(alignment)
            .ok()
            .filter(|wide| wide.is_power_of_two() && (ALIGNMENT_MIN..=ALIGNMENT_MAX).contains(wide))
            .ok_or(GgufError::Alignment {
                offset: pair.offset,
                alignment,
                min: ALIGNMENT_MIN,
                max: ALIGNMENT_MAX,
            })
    }
}

/// Metadata. The typed accessors take an integer of any width and sign, and either width of float: files
/// differ in what they write for the same key, and a value that does not fit is an error.
impl<'a> Gguf<'a> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.metadata.pair(key).map(|pair| pair.value)
    }

    /// The keys, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.metadata.pairs.iter().map(|pair| pair.key)
    }

    fn required(&self, key: &str) -> Result<Value<'a>, MetaError> {
        self.get(key).ok_or_else(|| MetaError::Missing {
            key: key.to_owned(),
        })
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, wanted: &'static str) -> Result<T, MetaError> {
        let value = self.required(key)?;
        let wide = value
            .as_integer()
            .ok_or_else(|| wrong_type(key, wanted, &value))?;
        T::try_from(wide).map_err(|_| MetaError::OutOfRange {
            key: key.to_owned(),
            value: wide.to_string(),
            wanted,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// [`MetaError`] if the key is missing or no string.
    pub fn str(&self, key: &str) -> Result<&'a str, MetaError> {
        match self.required(key)? {
            Value::Str(text) => Ok(text),
            other => Err(wrong_type(key, "a string", &other)),
        }
    }

    /// An integer that fits a `u32`.
    ///
    /// # Errors
    /// [`MetaError`] if the key is missing, no integer, or out of range.
    pub fn u32(&self, key: &str) -> Result<u32, MetaError> {
        self.integer(key, "u32")
    }

    /// An integer that fits a `u64`.
    ///
    /// # Errors
    /// [`MetaError`] if the key is missing, no integer, or out of range.
    pub fn u64(&self, key: &str) -> Result<u64, MetaError> {
        self.integer(key, "u64")
    }

    /// A finite floating-point number.
    ///
    /// # Errors
    /// [`MetaError`] if the key is missing, no float, infinite or not a number.
    pub fn f32(&self, key: &str) -> Result<f32, MetaError> {
        let value = self.required(key)?;
        let number = match value {
            Value::F32(number) => number,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "an infinite result is refused below"
            )]
            Value::F64(number) => number as f32,
            other => return Err(wrong_type(key, "f32", &other)),
        };
        if number.is_finite() {
            Ok(number)
        } else {
            Err(MetaError::OutOfRange {
                key: key.to_owned(),
                value: number.to_string(),
                wanted: "a finite f32",
            })
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`MetaError`] if the key is missing or no boolean.
    pub fn bool(&self, key: &str) -> Result<bool, MetaError> {
        match self.required(key)? {
            Value::Bool(value) => Ok(value),
            other => Err(wrong_type(key, "bool", &other)),
        }
    }

    /// An array.
    ///
    /// # Errors
    /// [`MetaError`] if the key is missing or no array.
    pub fn array(&self, key: &str) -> Result<Array<'a>, MetaError> {
        match self.required(key)? {
            Value::Array(array) => Ok(array),
            other => Err(wrong_type(key, "an array", &other)),
        }
    }

    /// [`Gguf::str`], or a default if the key is missing.
    ///
    /// # Errors
    /// [`MetaError`] as there, never `Missing`.
    pub fn str_or<'b>(&self, key: &str, default: &'b str) -> Result<&'b str, MetaError>
    where
        'a: 'b,
    {
        or(self.str(key), default)
    }

    /// [`Gguf::u32`], or a default if the key is missing.
    ///
    /// # Errors
    /// [`MetaError`] as there, never `Missing`.
    pub fn u32_or(&self, key: &str, default: u32) -> Result<u32, MetaError> {
        or(self.u32(key), default)
    }

    /// [`Gguf::u64`], or a default if the key is missing.
    ///
    /// # Errors
    /// [`MetaError`] as there, never `Missing`.
    pub fn u64_or(&self, key: &str, default: u64) -> Result<u64, MetaError> {
        or(self.u64(key), default)
    }

    /// [`Gguf::f32`], or a default if the key is missing.
    ///
    /// # Errors
    /// [`MetaError`] as there, never `Missing`.
    pub fn f32_or(&self, key: &str, default: f32) -> Result<f32, MetaError> {
        or(self.f32(key), default)
    }

    /// [`Gguf::bool`], or a default if the key is missing.
    ///
    /// # Errors
    /// [`MetaError`] as there, never `Missing`.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, MetaError> {
        or(self.bool(key), default)
    }
}

fn or<T>(result: Result<T, MetaError>, default: T) -> Result<T, MetaError> {
    match result {
        Err(MetaError::Missing { .. }) => Ok(default),
        other => other,
    }
}

fn wrong_type(key: &str, wanted: &'static str, found: &Value<'_>) -> MetaError {
    MetaError::WrongType {
        key: key.to_owned(),
        wanted,
        found: found.value_type(),
    }
}
