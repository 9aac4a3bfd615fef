//! Results compared to the bit.

use anyhow::{Result, bail};

/// What outputs are filled with before a launch: a NaN that no arithmetic makes.
pub(crate) const POISON: u32 = 0x7fab_cdef;

/// `len` poisoned elements.
pub(crate) fn poison(len: usize) -> Vec<f32> {
    vec![f32::from_bits(POISON); len]
}

/// Fails unless both are the same bits; every NaN but the poison is the same.
pub(crate) fn same(actual: &[f32], expected: &[f32], what: impl Fn() -> String) -> Result<()> {
    if actual.len() != expected.len() {
        bail!(
            "{}: {} elements for {}",
            what(),
            actual.len(),
            expected.len()
        );
    }
    let differ = |(actual, expected): &(&f32, &f32)| {
        actual.to_bits() == POISON
            || actual.to_bits() != expected.to_bits() && !(actual.is_nan() && expected.is_nan())
    };
    let mut wrong = actual
        .iter()
        .zip(expected)
        .enumerate()
        .filter(|(_, pair)| differ(pair));
    if let Some((index, (actual, expected))) = wrong.next() {
        bail!(
            "{}: element {index} is {actual:e} ({:#010x}), expected {expected:e} ({:#010x}); {} more differ",
            what(),
            actual.to_bits(),
            expected.to_bits(),
            wrong.count()
        );
    }
    Ok(())
}
