//! Packing of levels shared by several formats.

/// Two 4-bit levels to a byte: the first half of the block low, the second half high. Fifth bits are left out.
pub(super) fn nibbles(levels: &[u8; 32], output: &mut [u8]) {
    let (low, high) = levels.split_at(16);
    for ((byte, low), high) in output.iter_mut().zip(low).zip(high) {
        *byte = low & 15 | high << 4;
    }
}

/// The fifth bit of each level, the first lowest.
pub(super) fn fifth_bits(levels: &[u8; 32]) -> [u8; 4] {
    let bits = levels.iter().enumerate().fold(0, |bits, (index, level)| {
        bits | u32::from(level >> 4 & 1) << index
    });
    bits.to_le_bytes()
}
