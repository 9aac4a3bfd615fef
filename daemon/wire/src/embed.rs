//! Embeddings: a text in, the vector that the model makes of it out, in pieces that fit a server's frames.

use serde::{Deserialize, Serialize};

use crate::ask::{AskError, Priority, check_deadline_ms, check_input_bytes};
use crate::limits;
use crate::name::{ModelName, RequestId};

/// Bytes of one element of a vector: a 32-bit float, little-endian.
pub const ELEMENT_BYTES: usize = 4;

/// Asks for the vector of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Embed<'a> {
    /// Id of the request; unique among this client's open requests.
    pub id: RequestId,
    /// The text.
    pub text: &'a str,
    /// The model; `None` takes the one that is served.
    pub model: Option<ModelName>,
    /// Elements that are wanted, the first ones, scaled to length one; `None` takes all.
    pub dimensions: Option<u32>,
    /// How urgent it is.
    pub priority: Option<Priority>,
    /// Milliseconds from arrival after which the vector is worthless.
    pub deadline_ms: Option<u32>,
}

impl<'a> Embed<'a> {
    /// A request with nothing but an id and a text.
    #[must_use]
    pub fn new(id: RequestId, text: &'a str) -> Self {
        Self {
            id,
            text,
            model: None,
            dimensions: None,
            priority: None,
            deadline_ms: None,
        }
    }

    /// Checks the limits that the types alone do not keep.
    ///
    /// # Errors
    /// The first [`AskError`] found.
    pub fn check(&self) -> Result<(), AskError> {
        if self.text.is_empty() {
            return Err(AskError::Empty);
        }
        check_input_bytes(self.text.len())?;
        if self.dimensions == Some(0) {
            return Err(AskError::Dimensions);
        }
        check_deadline_ms(self.deadline_ms)
    }
}

/// A piece of a vector. The vector is the pieces joined in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorPiece<'a> {
    /// Id of the request.
    pub id: RequestId,
    /// Number of the piece, from 0 without gaps.
    pub sequence: u32,
    /// Elements of the whole vector.
    pub dimensions: u32,
    /// Elements of this piece, [`ELEMENT_BYTES`] each; at most [`limits::VECTOR_PIECE_BYTES_MAX`].
    pub bytes: &'a [u8],
}

impl VectorPiece<'_> {
    /// The elements of this piece. Bytes that are no whole element are left out.
    pub fn elements(&self) -> impl Iterator<Item = f32> + '_ {
        let (whole, _) = self.bytes.as_chunks::<ELEMENT_BYTES>();
        whole.iter().map(|&bytes| f32::from_le_bytes(bytes))
    }
}

const _: () = assert!(limits::VECTOR_PIECE_BYTES_MAX.is_multiple_of(ELEMENT_BYTES));

#[cfg(test)]
mod tests {
    use super::{Embed, VectorPiece};
    use crate::ask::AskError;
    use crate::limits;
    use crate::name::RequestId;

    #[test]
    fn every_bound_is_held() {
        let id = RequestId::new("1").unwrap();
        static LONG: [u8; limits::INPUT_BYTES_MAX + 1] = [b'a'; limits::INPUT_BYTES_MAX + 1];
        let long = core::str::from_utf8(&LONG).unwrap();
        let bytes = limits::INPUT_BYTES_MAX + 1;
        Embed::new(id.clone(), &long[1..]).check().unwrap();
        let check = |text, change: fn(&mut Embed<'_>)| {
            let mut embed = Embed::new(id.clone(), text);
            change(&mut embed);
            embed.check()
        };
        assert_eq!(check("", |_| {}), Err(AskError::Empty));
        assert_eq!(check(long, |_| {}), Err(AskError::InputTooLong { bytes }));
        assert_eq!(
            check("a", |embed| embed.dimensions = Some(0)),
            Err(AskError::Dimensions)
        );
        assert_eq!(
            check("a", |embed| embed.deadline_ms = Some(0)),
            Err(AskError::Deadline)
        );
    }

    #[test]
    fn elements_are_floats_little_endian() {
        let piece = VectorPiece {
            id: RequestId::new("1").unwrap(),
            sequence: 0,
            dimensions: 2,
            bytes: &[0, 0, 128, 63, 0, 0, 0, 191, 7],
        };
        assert!(piece.elements().eq([1.0, -0.5]));
    }
}
