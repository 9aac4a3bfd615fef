//! Streaming reads, to measure what memory delivers.

/// Adds up all words, wrapping: a pass over memory that does as little else as it can.
#[inline(always)]
pub(crate) fn sum_words(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    let (chunks, tail) = words.as_chunks::<32>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes
        .iter()
        .chain(tail)
        .fold(0, |sum, word| sum.wrapping_add(*word))
}
