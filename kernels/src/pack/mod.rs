//! Packed weights: a matrix rearranged once, so that every kernel reads it as one stream of whole vectors.
//!
//! One layout serves every instruction set. A tile is [`ROWS`] rows of the matrix, contiguous in memory; the last tile
//! is filled up with rows of zeros. Along the row a tile is cut into blocks of up to eight groups of 32 elements. A
//! block starts with what its groups have in common for all rows, row by row, and goes on with their levels:
//!
//! | part | formats of 32 elements | formats of 256 elements |
//! |---|---|---|
//! | scales | for each group: f16 scales, then f16 minimums | f16 scales, then f16 minimum scales; for each group: its scales of a byte (`Q6_K`: two, one for each half), then minimums of a byte |
//! | levels | for each group: `64 * BITS` bytes | the same |
//!
//! Levels are unsigned: those with signs are shifted up by the format's offset. Element `4 s + b` of a group, row `r`,
//! is at byte `4 r + b` of step `s` (0..8): four elements of sixteen rows side by side, what one `vpdpbusd` of 64 bytes,
//! two of 32 or four `sdot` of 16 multiply with the same four activations. Of levels of fewer than 8 bits, the low four
//! of steps `s` and `s + 4` share vector `s` (0..4) as its low and high halves of bytes. A fifth bit follows in one more
//! vector, bit `s` of a byte for step `s`; a fifth and sixth in two more, bits `2 (s % 4)` and up of a byte of vector
//! `s / 4`.
//!
//! Invariant: a packed matrix gives the same products as the rows that it was packed from, to the bit: levels, scales and
//! their order are the same, and both are multiplied as [`crate::op::matmul`] states.

mod formats;
mod levels;

pub(crate) use formats::{GroupScales, Packed};
pub(crate) use levels::unpack_levels;

use crate::Format;
use crate::activation::GROUP;
use crate::block::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

/// Rows of a tile.
pub const ROWS: usize = 16;

/// What the bytes of a packed matrix mean; another number for each change of that.
pub const LAYOUT_VERSION: u32 = 1;

/// The name of this layout, beside which there may be others.
pub const FAMILY: &str = "r16k4";

/// Groups of a whole block.
pub(crate) const BLOCK_GROUPS: usize = 8;

/// Steps of a group: four elements each.
pub(crate) const STEPS: usize = 8;

/// Where the parts of a block of `F` are.
pub(crate) struct Layout<F>(core::marker::PhantomData<F>);

impl<F: Packed> Layout<F> {
    /// Bytes of the f16 factors of sixteen rows: scales, and minimums where there are any.
    pub(crate) const FACTOR_BYTES: usize = 2 * ROWS * (1 + F::MINIMUM as usize);
    /// Bytes of a group's own scales and minimums of sixteen rows.
    pub(crate) const GROUP_SCALE_BYTES: usize = match F::GROUP_SCALES {
        GroupScales::None => 0,
        GroupScales::One => ROWS * (1 + F::MINIMUM as usize),
        GroupScales::Two => 2 * ROWS,
    };
    /// Bytes of a group's levels.
    pub(crate) const LEVEL_BYTES: usize = 64 * F::BITS;

    /// Bytes before the levels of a block of `groups` groups.
    #[inline(always)]
    pub(crate) const fn head_bytes(groups: usize) -> usize {
        match F::GROUP_SCALES {
            GroupScales::None => groups * Self::FACTOR_BYTES,
            _ => Self::FACTOR_BYTES + groups * Self::GROUP_SCALE_BYTES,
        }
    }

    /// Offset of a group's f16 factors in its block.
    #[inline(always)]
    pub(crate) const fn factors_at(group: usize) -> usize {
        match F::GROUP_SCALES {
            GroupScales::None => group * Self::FACTOR_BYTES,
            _ => 0,
        }
    }

    /// Offset of a group's own scales in its block.
    #[inline(always)]
    pub(crate) const fn group_scales_at(group: usize) -> usize {
        Self::FACTOR_BYTES + group * Self::GROUP_SCALE_BYTES
    }

    /// Bytes of a block of `groups` groups.
    #[inline(always)]
    pub(crate) const fn block_bytes(groups: usize) -> usize {
        Self::head_bytes(groups) + groups * Self::LEVEL_BYTES
    }

    /// Bytes of a tile of rows of `k` elements.
    #[inline(always)]
    pub(crate) const fn tile_bytes(k: usize) -> usize {
        let groups = k / GROUP;
        let rest = groups % BLOCK_GROUPS;
        let whole = groups / BLOCK_GROUPS * Self::block_bytes(BLOCK_GROUPS);
        whole
            + if rest == 0 {
                0
            } else {
                Self::block_bytes(rest)
            }
    }
}

/// Calls `$call::<F>` for the block type of a format that has a packed layout; `$else` for others.
macro_rules! for_packed {
    ($format:expr, $call:ident ( $($argument:expr),* ), $else:expr) => {
        match $format {
            Format::Q4_0 => $call::<Q4_0>($($argument),*),
            Format::Q4_1 => $call::<Q4_1>($($argument),*),
            Format::Q5_0 => $call::<Q5_0>($($argument),*),
            Format::Q5_1 => $call::<Q5_1>($($argument),*),
            Format::Q8_0 => $call::<Q8_0>($($argument),*),
            Format::Q4K => $call::<Q4K>($($argument),*),
            Format::Q5K => $call::<Q5K>($($argument),*),
            Format::Q6K => $call::<Q6K>($($argument),*),
            Format::F32
            | Format::F16
            | Format::BF16
            | Format::Q2K
            | Format::Q3K
            | Format::IQ4NL
            | Format::IQ4XS
            | Format::MXFP4 => $else,
        }
    };
}

/// Bytes of a tile of [`ROWS`] packed rows of `k` elements; `None` if the format has no packed layout, the rows are not
/// whole blocks, or the size overflows.
#[must_use]
pub const fn tile_bytes(format: Format, k: usize) -> Option<usize> {
    const fn of<F: Packed>(k: usize) -> Option<usize> {
        Some(Layout::<F>::tile_bytes(k))
    }
    // A packed element takes less than two bytes.
    if format.bytes(k).is_none() || k.checked_mul(2 * ROWS).is_none() {
        return None;
    }
    for_packed!(format, of(k), None)
}

/// Bytes of `rows` packed rows of `k` elements; `None` as for [`tile_bytes`].
#[must_use]
pub const fn bytes(format: Format, rows: usize, k: usize) -> Option<usize> {
    match tile_bytes(format, k) {
        Some(tile) => tile.checked_mul(rows.div_ceil(ROWS)),
        None => None,
    }
}

/// Packs `rows` rows of `k` elements of `format` from the bytes of a file.
///
/// Rows that start at a multiple of [`ROWS`] are packed independently, so a large matrix may be packed piece by piece.
///
/// # Panics
/// If the format has no packed layout, the rows are not whole blocks, `raw` is not exactly the rows, or `output` not
/// exactly [`bytes`] long.
pub fn pack(format: Format, raw: &[u8], rows: usize, k: usize, output: &mut [u8]) {
    assert_eq!(
        format.bytes(k).and_then(|row| row.checked_mul(rows)),
        Some(raw.len()),
        "the bytes are the rows"
    );
    assert_eq!(
        bytes(format, rows, k),
        Some(output.len()),
        "the output takes the packed rows"
    );
    if !raw.is_empty() {
        for_packed!(format, pack_rows(raw, k, output), unreachable!("no size"));
    }
}

fn pack_rows<F: Packed>(raw: &[u8], k: usize, output: &mut [u8]) {
    let blocks = F::cast(raw).expect("rows are whole blocks");
    let row_blocks = k / F::ELEMENTS;
    let tiles = blocks.chunks(ROWS * row_blocks);
    for (rows, tile) in tiles.zip(output.chunks_exact_mut(Layout::<F>::tile_bytes(k))) {
        pack_tile::<F>(rows, row_blocks, tile);
    }
}

/// Packs one tile of up to [`ROWS`] rows of `row_blocks` blocks each.
fn pack_tile<F: Packed>(rows: &[F], row_blocks: usize, tile: &mut [u8]) {
    tile.fill(0);
    let block_groups = F::ELEMENTS / GROUP;
    let groups = row_blocks * block_groups;
    let mut rest = tile;
    for first in (0..groups).step_by(BLOCK_GROUPS) {
        let count = BLOCK_GROUPS.min(groups - first);
        let (block, after) = rest.split_at_mut(Layout::<F>::block_bytes(count));
        rest = after;
        let (head, levels) = block.split_at_mut(Layout::<F>::head_bytes(count));
        for (group, levels) in levels
            .chunks_exact_mut(Layout::<F>::LEVEL_BYTES)
            .enumerate()
        {
            let mut unpacked = [[0; GROUP]; ROWS];
            for ((row, blocks), unpacked) in
                rows.chunks_exact(row_blocks).enumerate().zip(&mut unpacked)
            {
                let source = &blocks[(first + group) / block_groups];
                let group_of_source = (first + group) % block_groups;
                *unpacked = source.unsigned_levels(group_of_source);
                put_scales(source, group_of_source, row, group, head);
            }
            levels::pack_levels(F::BITS, &unpacked, levels);
        }
    }
}

/// Writes what row `row` has in the head of a block for group `group`, which is group `of_source` of `source`.
fn put_scales<F: Packed>(source: &F, of_source: usize, row: usize, group: usize, head: &mut [u8]) {
    let mut half = |at: usize, value: [u8; 2]| head[at..at + 2].copy_from_slice(&value);
    let factors = Layout::<F>::factors_at(group) + 2 * row;
    half(factors, source.scale());
    if F::MINIMUM {
        half(factors + 2 * ROWS, source.minimum());
    }
    if F::GROUP_SCALES == GroupScales::None {
        return;
    }
    let at = Layout::<F>::group_scales_at(group) + row;
    let [scale, second] = source.group_scales(of_source);
    head[at] = scale;
    if F::GROUP_SCALES == GroupScales::Two || F::MINIMUM {
        head[at + ROWS] = second;
    }
}
