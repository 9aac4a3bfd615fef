//! A buffer shared out to threads in pieces of one length.
//!
//! Invariant: a [`Pieces`] hands out each piece at most once, so no two live ones share an element. That is what makes
//! writing through them from several threads sound.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering};

/// A mutable buffer cut into pieces of one length, to be taken in any order.
#[derive(Debug)]
pub struct Pieces<'a> {
    base: *mut f32,
    piece_elements: usize,
    taken: &'a [AtomicBool],
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `base` stands for a `&mut [f32]`, and `take` gives each piece of it to one caller only.
unsafe impl Sync for Pieces<'_> {}
// SAFETY: as above; f32 is Send.
unsafe impl Send for Pieces<'_> {}

impl<'a> Pieces<'a> {
    /// Cuts `buffer` into pieces of `piece_elements`; `taken` has a flag for each, in any state.
    ///
    /// # Panics
    /// If there is not exactly one flag for every piece.
    #[must_use]
    pub fn new(
        buffer: &'a mut [f32],
        piece_elements: usize,
        taken: &'a mut [AtomicBool],
    ) -> Pieces<'a> {
        assert_eq!(
            Some(buffer.len()),
            taken.len().checked_mul(piece_elements),
            "pieces cover the buffer"
        );
        for taken in &mut *taken {
            *taken.get_mut() = false;
        }
        Pieces {
            base: buffer.as_mut_ptr(),
            piece_elements,
            taken,
            borrow: PhantomData,
        }
    }

    /// Piece `index`; `None` if it has been taken.
    ///
    /// # Panics
    /// If there is no such piece.
    #[expect(clippy::mut_from_ref, reason = "each piece is given to one caller")]
    #[inline]
    #[must_use]
    pub fn take(&self, index: usize) -> Option<&mut [f32]> {
        // Relaxed: the flag says whose the piece is; it orders no data.
        if self.taken[index].swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: `new` checked that the buffer has `piece_elements` elements for every flag; this one was clear, so
        // nobody else has the piece, and it stays set for as long as `self` borrows the buffer.
        Some(unsafe {
            core::slice::from_raw_parts_mut(
                self.base.add(index * self.piece_elements),
                self.piece_elements,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{AtomicBool, Pieces};
    use std::vec;

    #[test]
    fn every_piece_is_taken_once() {
        let mut buffer = vec![0.0; 5 * 3];
        let mut taken = [const { AtomicBool::new(true) }; 5];
        let pieces = Pieces::new(&mut buffer, 3, &mut taken);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for index in [3, 0, 4, 1, 2] {
                        for value in pieces.take(index).into_iter().flatten() {
                            *value += index as f32;
                        }
                    }
                });
            }
        });
        assert!(pieces.take(2).is_none());
        let expected = (0..15).map(|index| (index / 3) as f32);
        assert!(buffer.iter().copied().eq(expected));
    }
}
