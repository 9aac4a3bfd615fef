//! Rotary position embedding.

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Elements `2 i` and `2 i + 1` (GGUF files of the llama architecture).
    Adjacent,
    /// Elements `i` and `i + n / 2` of the rotated `n` (GPT-NeoX and most later architectures).
    Halves,
}

/// Rotates the first `2 * table.len()` elements of `head` in pairs: with `(cos, sin) = table[i]`,
/// `(x, y)` becomes `(x cos - y sin, x sin + y cos)`, each product and sum rounded.
///
/// # Panics
/// If the head is shorter than that.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], table: &[[f32; 2]], pairing: Pairing) {
    let pairs = table.len();
    let head = &mut head[..2 * pairs];
    match pairing {
        Pairing::Adjacent => {
            let (adjacent, _) = head.as_chunks_mut::<2>();
            for (pair, &[cos, sin]) in adjacent.iter_mut().zip(table) {
                let [x, y] = *pair;
                *pair = [x * cos - y * sin, x * sin + y * cos];
            }
        }
        Pairing::Halves => {
            let (first, second) = head.split_at_mut(pairs);
            for ((x, y), &[cos, sin]) in first.iter_mut().zip(second).zip(table) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}
