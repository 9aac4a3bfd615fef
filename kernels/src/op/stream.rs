//! Streaming reads, to measure what memory delivers.

/// Bytes that are added up in lanes of their own.
const ROUND: usize = 256;

/// Adds up all words of eight bytes (the lowest first) and the bytes after the last, wrapping: a pass over memory that
/// does as little else as it can.
#[inline(always)]
pub(crate) fn sum_words(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; ROUND / 8];
    let (rounds, tail) = bytes.as_chunks::<ROUND>();
    for round in rounds {
        for (lane, word) in lanes.iter_mut().zip(round.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    let sum = |words: &[u64]| {
        words
            .iter()
            .fold(0, |sum: u64, &word| sum.wrapping_add(word))
    };
    sum(&lanes).wrapping_add(sum_tail(tail))
}

/// [`sum_words`] of a few bytes.
pub(crate) fn sum_tail(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let tail = tail.iter().map(|&byte| u64::from(byte));
    words.chain(tail).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use crate::Table;
    use std::vec::Vec;

    #[test]
    fn every_table_reads_all_bytes() {
        let bytes: Vec<u8> = (0..3000u32).map(|index| (index * 7 % 251) as u8).collect();
        for table in Table::runnable() {
            for (start, end) in [(0, 0), (1, 8), (3, 2051), (0, 1024), (5, 3000)] {
                let bytes = &bytes[start..end];
                let sum = super::sum_tail(bytes);
                assert_eq!(
                    table.sum_words(bytes),
                    sum,
                    "{:?} {start}..{end}",
                    table.isa()
                );
            }
            assert!(table.multiply_adds(3) >= 3 * 64, "{:?}", table.isa());
        }
    }
}
