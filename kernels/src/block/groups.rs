//! The 6-bit scales and minimums that Q4_K and Q5_K share.

/// The unpacked scales and minimums of the eight groups of a [`super::Q4K`] or [`super::Q5K`], each in 0..64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Group scales.
    pub scales: [u8; 8],
    /// Group minimums.
    pub minimums: [u8; 8],
}

impl Groups {
    /// Unpacks scales and minimums. Bytes 0..4 hold the scales and bytes 4..8 the minimums of groups 0..4 in their
    /// low six bits; groups 4..8 have their low four bits in bytes 8..12 (scale in the low half, minimum in the high
    /// half) and their high two bits in the top of bytes 0..4 and 4..8.
    #[inline]
    #[must_use]
    pub fn unpack(packed: &[u8; 12]) -> Groups {
        let word = |at: usize| {
            u32::from_le_bytes([packed[at], packed[at + 1], packed[at + 2], packed[at + 3]])
        };
        let (scales, minimums, low) = (word(0), word(4), word(8));
        let join =
            |first: u32, second: u32| (u64::from(first) | u64::from(second) << 32).to_le_bytes();
        Groups {
            scales: join(
                scales & 0x3f3f_3f3f,
                (low & 0x0f0f_0f0f) | (scales >> 2 & 0x3030_3030),
            ),
            minimums: join(
                minimums & 0x3f3f_3f3f,
                (low >> 4 & 0x0f0f_0f0f) | (minimums >> 2 & 0x3030_3030),
            ),
        }
    }
}
