//! Names and ids: short validated strings without a heap.
//!
//! Invariant: a value of one of these types is not empty, fits its bound, holds no control
//! character, and, unless it names a model, holds no character with a meaning in an MQTT topic.
//! So it can become a topic level, a log field or a metric label as it is.

use core::fmt;

use heapless::String;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{ID_BYTES_MAX, MODEL_NAME_BYTES_MAX, NAME_BYTES_MAX};

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("it is empty")]
    Empty,
    /// The name has more bytes than its kind may have.
    #[error("it has {bytes} bytes where at most {bytes_max} are allowed")]
    TooLong {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// The name holds a character that its kind may not hold.
    #[error("the character {character:?} at byte {offset} is not allowed in it")]
    Character {
        /// The character.
        character: char,
        /// Its offset in bytes.
        offset: usize,
    },
}

/// Checks a text that is to become one level of an MQTT topic.
pub(crate) fn check_level(text: &str, bytes_max: usize) -> Result<(), NameError> {
    check(text, bytes_max, |c| matches!(c, '/' | '+' | '#'))
}

/// Checks a model's name, which may contain slashes.
fn check_model(text: &str, bytes_max: usize) -> Result<(), NameError> {
    check(text, bytes_max, |_| false)
}

fn check(text: &str, bytes_max: usize, barred: fn(char) -> bool) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > bytes_max {
        return Err(NameError::TooLong {
            bytes: text.len(),
            bytes_max,
        });
    }
    match text
        .char_indices()
        .find(|&(_, c)| c.is_control() || barred(c))
    {
        Some((offset, character)) => Err(NameError::Character { character, offset }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $bytes_max:expr, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String<{ $bytes_max }>);

        impl $name {
            /// Most bytes in such a name.
            pub const BYTES_MAX: usize = $bytes_max;

            /// Takes `text` as a name.
            ///
            /// # Errors
            /// A [`NameError`] that says what is wrong with `text`.
            pub fn new(text: &str) -> Result<Self, NameError> {
                $check(text, $bytes_max)?;
                String::try_from(text).map(Self).map_err(|_| NameError::TooLong {
                    bytes: text.len(),
                    bytes_max: $bytes_max,
                })
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl core::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "a text of 1 to {} bytes", $name::BYTES_MAX)
                    }

                    fn visit_str<E: Error>(self, text: &str) -> Result<$name, E> {
                        $name::new(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

name! {
    /// Id of a request, chosen by the client, unique among that client's requests.
    RequestId, ID_BYTES_MAX, check_level
}
name! {
    /// Name of a client.
    ClientName, NAME_BYTES_MAX, check_level
}
name! {
    /// Name of a task from the configuration.
    TaskName, NAME_BYTES_MAX, check_level
}
name! {
    /// Name of a gateway.
    GatewayName, NAME_BYTES_MAX, check_level
}
name! {
    /// Name of a model; unlike the other names it may hold `/`, as in `owner/model`.
    ModelName, MODEL_NAME_BYTES_MAX, check_model
}

#[cfg(test)]
mod tests {
    use super::{ModelName, NameError, RequestId};

    #[test]
    fn bounds_are_exact() {
        let longest = [b'a'; RequestId::BYTES_MAX];
        let text = core::str::from_utf8(&longest).unwrap();
        assert_eq!(RequestId::new(text).unwrap().as_str(), text);
        let longer = [b'a'; RequestId::BYTES_MAX + 1];
        let text = core::str::from_utf8(&longer).unwrap();
        assert_eq!(
            RequestId::new(text),
            Err(NameError::TooLong {
                bytes: 65,
                bytes_max: 64
            })
        );
        assert_eq!(RequestId::new(""), Err(NameError::Empty));
    }

    #[test]
    fn characters_with_a_meaning_in_topics_are_refused() {
        for barred in ['/', '+', '#', '\0', '\n', '\u{7f}', '\u{85}'] {
            let mut text = heapless::String::<8>::new();
            text.push('é').unwrap();
            text.push(barred).unwrap();
            assert_eq!(
                RequestId::new(&text),
                Err(NameError::Character {
                    character: barred,
                    offset: 2
                })
            );
        }
        assert!(ModelName::new("owner/model+1").is_ok());
        assert!(ModelName::new("a\u{0}").is_err());
    }
}
