//! What a file says under one key.

use super::Metadata;

/// The value of a key, where a test wants another than [`super::TinyModel`] writes by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Key {
    /// The file does not have the key.
    Missing,
    /// A whole number.
    Count(u32),
    /// A number.
    Factor(f32),
    /// A truth value.
    Flag(bool),
    /// A text.
    Text(&'static str),
    /// Whole numbers, one for each layer.
    Counts(&'static [u32]),
    /// Truth values, one for each layer.
    Flags(&'static [bool]),
}

impl Key {
    pub(super) fn write(self, key: &str, meta: &mut Metadata) {
        match self {
            Key::Missing => {}
            Key::Count(value) => meta.u32(key, value),
            Key::Factor(value) => meta.f32(key, value),
            Key::Flag(value) => meta.bool(key, value),
            Key::Text(value) => meta.str(key, value),
            Key::Counts(values) => meta.u32s(key, values),
            Key::Flags(values) => {
                let bytes: Vec<u8> = values.iter().map(|&value| u8::from(value)).collect();
                meta.list(key, 7, values.len(), &bytes);
            }
        }
    }
}
