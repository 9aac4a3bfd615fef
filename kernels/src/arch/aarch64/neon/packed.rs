//! Products of packed weights, see [`crate::pack`] and [`crate::op::matmul`].
//!
//! A vector holds four elements of each of four rows, a quarter of a tile's, so a dot product with four activations in
//! every lane adds to four rows in lane order, and no sum has to be turned. Integer sums start at minus the levels'
//! offset times the sum of the activations; levels of 8 bits get their sign back instead.
//!
//! Arrays are filled by index: `core::array::from_fn` and `map` may call their closures out of line.

use super::matmul::{Multiply, Plain, column_span};
use crate::Format;
use crate::activation::{Columns, GROUP, Group};
use crate::arch::aarch64::vector::{
    vandq_u8, vcreate_u8, vcvt_f32_f16, vcvtq_f32_s32, vcvtq_f32_u32, vdupq_n_f32, vdupq_n_s8,
    vdupq_n_s32, vdupq_n_u8, veorq_u8, vfmaq_f32, vfmaq_n_f32, vfmsq_n_f32, vget_low_s16,
    vget_low_u16, vmlaq_s32, vmovl_s8, vmovl_s16, vmovl_u8, vmovl_u16, vmulq_f32, vmulq_n_f32,
    vmulq_s32, vorrq_u8, vreinterpret_f16_u16, vreinterpret_s8_u8, vreinterpretq_s8_u8, vshlq_u8,
    vshrq_n_u8,
};
use crate::block::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::op::matmul::{PackedKernel, PackedProduct};
use crate::pack::{BLOCK_GROUPS, GroupScales, Layout, Packed, ROWS};
use core::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x8_t, uint8x16_t, vld1_u16, vld1q_s8, vld1q_u8,
    vst1q_f32,
};
use core::marker::PhantomData;
use core::ops::Range;

/// Columns computed together where there are many: their accumulators, and half a group of each, fit the 32 registers.
const COLUMNS: usize = 8;

/// A tile multiplied with some columns, compiled for an instruction set.
pub(in super::super) trait TileProducts {
    /// Whether few columns are worth kernels of their own, rather than be taken one by one.
    const FEW_COLUMNS: bool;

    /// Computes and stores columns `columns` of a tile's rows `first..`; there are at most `M`, which is at most
    /// [`COLUMNS`].
    ///
    /// # Safety
    /// See [`PackedKernel`]; the tile must be that of row `first`, and the columns must exist and be at least one.
    unsafe fn some_columns<F: Packed, const M: usize>(
        product: &PackedProduct<'_>,
        tile: *const u8,
        first: usize,
        columns: Range<usize>,
    );
}

impl TileProducts for Plain {
    const FEW_COLUMNS: bool = false;

    #[inline(never)]
    unsafe fn some_columns<F: Packed, const M: usize>(
        product: &PackedProduct<'_>,
        tile: *const u8,
        first: usize,
        columns: Range<usize>,
    ) {
        // SAFETY: passed on.
        unsafe { by_lanes::<Plain, F, M>(product, tile, first, columns) }
    }
}

/// The kernel of a format for these instructions; `None` if it has no packed layout.
pub(in super::super) const fn kernel<T: TileProducts>(format: Format) -> Option<PackedKernel> {
    Some(match format {
        Format::Q4_0 => product::<T, Q4_0>,
        Format::Q4_1 => product::<T, Q4_1>,
        Format::Q5_0 => product::<T, Q5_0>,
        Format::Q5_1 => product::<T, Q5_1>,
        Format::Q8_0 => product::<T, Q8_0>,
        Format::Q4K => product::<T, Q4K>,
        Format::Q5K => product::<T, Q5K>,
        Format::Q6K => product::<T, Q6K>,
        _ => return None,
    })
}

/// [`kernel`] for the instructions that all processors have.
pub(crate) const fn plain(format: Format) -> Option<PackedKernel> {
    kernel::<Plain>(format)
}

/// [`PackedKernel`] of a format.
///
/// # Safety
/// See that type.
unsafe fn product<T: TileProducts, F: Packed>(product: PackedProduct<'_>) {
    let tile_bytes = Layout::<F>::tile_bytes(product.columns.k);
    let span = column_span(product.columns.k, COLUMNS);
    for start in (0..product.columns.count).step_by(span) {
        let end = product.columns.count.min(start + span);
        for first in (0..product.row_count).step_by(ROWS) {
            let tile = product.tiles.wrapping_add(first / ROWS * tile_bytes);
            let mut column = start;
            while column < end {
                // SAFETY: the caller owes the tile, the columns and their output.
                column += unsafe { next_columns::<T, F>(&product, tile, first, column..end) };
            }
        }
    }
}

/// Computes and stores the first of these columns of a tile's rows `first..`, and returns how many they were.
///
/// # Safety
/// See [`TileProducts::some_columns`].
unsafe fn next_columns<T: TileProducts, F: Packed>(
    product: &PackedProduct<'_>,
    tile: *const u8,
    first: usize,
    columns: Range<usize>,
) -> usize {
    let count = columns.len().min(COLUMNS);
    let next = columns.start..columns.start + count;
    // SAFETY: passed on.
    unsafe {
        if count == COLUMNS {
            T::some_columns::<F, COLUMNS>(product, tile, first, next);
        } else if !T::FEW_COLUMNS {
            T::some_columns::<F, 1>(product, tile, first, next.start..next.start + 1);
            return 1;
        } else {
            match count {
                7 => T::some_columns::<F, COLUMNS>(product, tile, first, next),
                5 | 6 => T::some_columns::<F, 6>(product, tile, first, next),
                4 => T::some_columns::<F, 4>(product, tile, first, next),
                3 => T::some_columns::<F, 3>(product, tile, first, next),
                2 => T::some_columns::<F, 2>(product, tile, first, next),
                _ => T::some_columns::<F, 1>(product, tile, first, next),
            }
        }
    }
    count
}

/// [`TileProducts::some_columns`] by [`Multiply::dot_lane`].
///
/// # Safety
/// See that method; the instruction set of `D` must be supported.
#[inline(always)]
pub(in super::super) unsafe fn by_lanes<D: Multiply, F: Packed, const M: usize>(
    product: &PackedProduct<'_>,
    tile: *const u8,
    first: usize,
    columns: Range<usize>,
) {
    // SAFETY: passed on. As many quarters at once as accumulators of them leave room for a group.
    unsafe {
        match M {
            1 | 2 => quarters::<D, F, M, 4>(product, tile, first, columns),
            3 | 4 => quarters::<D, F, M, 2>(product, tile, first, columns),
            _ => quarters::<D, F, M, 1>(product, tile, first, columns),
        }
    }
}

/// [`by_lanes`], `Q` quarters of the tile's rows at a time: block after block, so that the block stays in the cache.
///
/// # Safety
/// See [`by_lanes`].
#[inline(always)]
unsafe fn quarters<D: Multiply, F: Packed, const M: usize, const Q: usize>(
    product: &PackedProduct<'_>,
    tile: *const u8,
    first: usize,
    columns: Range<usize>,
) {
    let mut all = [[vdupq_n_f32(0.0); M]; 4];
    // SAFETY: the columns exist.
    let mut x = unsafe { X::<M>::new(&product.columns, columns.start, columns.len()) };
    let mut block = Block::<F>::first(tile, product.columns.k);
    while block.count > 0 {
        for (part, all) in all.as_chunks_mut::<Q>().0.iter_mut().enumerate() {
            // SAFETY: the tile has this block, and the columns its groups.
            unsafe { add_block::<D, F, M, Q>(all, &block, part * Q, &x) };
        }
        x = x.after(block.count);
        block = block.next();
    }
    for (quarter, sums) in all.iter().enumerate() {
        for (index, &sum) in sums.iter().enumerate().take(columns.len()) {
            // SAFETY: the caller owes the output.
            unsafe { store(product, first + 4 * quarter, columns.start + index, sum) };
        }
    }
}

/// Adds a block to the sums of quarters `quarter .. quarter + Q` of its rows.
///
/// # Safety
/// The instruction set of `D` must be supported, the block readable, and the columns must have its groups.
#[inline(always)]
unsafe fn add_block<D: Multiply, F: Packed, const M: usize, const Q: usize>(
    all: &mut [[float32x4_t; M]; Q],
    block: &Block<F>,
    quarter: usize,
    x: &X<M>,
) {
    let mut sums = *all;
    // SAFETY: the caller owes the block and the columns.
    unsafe {
        let mut factors = [Factors::none(); Q];
        for (part, factors) in factors.iter_mut().enumerate() {
            *factors = block.factors(quarter + part);
        }
        for group in 0..block.count {
            for part in 0..Q {
                let scales = Scales::load(block, group, quarter + part, factors[part]);
                let levels = block.levels(group, quarter + part);
                let mut low = [vdupq_n_s32(0); M];
                let weights = unpack::<F>(levels, 0);
                for (index, low) in low.iter_mut().enumerate() {
                    let start = vdupq_n_s32(start::<F>(x.group(index, group), 0));
                    *low = dot::<D>(start, &weights, x.levels(index, group, 0));
                }
                let weights = unpack::<F>(levels, 1);
                for (index, &low) in low.iter().enumerate() {
                    let common = x.group(index, group);
                    let carried = if F::GROUP_SCALES == GroupScales::Two {
                        vdupq_n_s32(start::<F>(common, 1))
                    } else {
                        low
                    };
                    let high = dot::<D>(carried, &weights, x.levels(index, group, 1));
                    scales.add::<F>(&mut sums[part][index], common, [low, high]);
                }
            }
        }
    }
    *all = sums;
}

/// Adds the products of half a group: four elements of each row at a time.
///
/// # Safety
/// The instruction set of `D` must be supported.
#[inline(always)]
unsafe fn dot<D: Multiply>(sums: int32x4_t, weights: &[int8x16_t; 4], x: int8x16_t) -> int32x4_t {
    // SAFETY: passed on.
    unsafe {
        let sums = D::dot_lane::<0>(sums, weights[0], x);
        let sums = D::dot_lane::<1>(sums, weights[1], x);
        let sums = D::dot_lane::<2>(sums, weights[2], x);
        D::dot_lane::<3>(sums, weights[3], x)
    }
}

/// Stores the sums of rows `first .. first + 4`, as many as exist, of a column.
///
/// # Safety
/// See [`PackedKernel`]; the column must be the product's.
#[inline(always)]
pub(in super::super) unsafe fn store(
    product: &PackedProduct<'_>,
    first: usize,
    column: usize,
    sums: float32x4_t,
) {
    let row_count = product.row_count.saturating_sub(first).min(4);
    // SAFETY: the caller owes the output of these rows and the column; the array takes a whole vector.
    unsafe {
        let output = product.output.wrapping_add(column * product.stride + first);
        if row_count == 4 {
            vst1q_f32(output, sums);
        } else {
            let mut lanes = [0.0f32; 4];
            vst1q_f32(lanes.as_mut_ptr(), sums);
            core::ptr::copy_nonoverlapping(lanes.as_ptr(), output, row_count);
        }
    }
}

/// Where a group of each of several columns is.
#[derive(Clone, Copy)]
pub(in super::super) struct X<const M: usize> {
    levels: [*const i8; M],
    groups: [*const Group; M],
}

impl<const M: usize> X<M> {
    /// The first group of the columns from `column`, of which there are `count`; what is left of `M` repeats the last.
    ///
    /// # Safety
    /// They must exist, and be at least one.
    #[inline(always)]
    pub(in super::super) unsafe fn new(columns: &Columns<'_>, column: usize, count: usize) -> X<M> {
        let (quantized, groups) = (&columns.quantized, columns.k / GROUP);
        let mut x = X {
            levels: [core::ptr::null(); M],
            groups: [core::ptr::null(); M],
        };
        for index in 0..M {
            let column = column + index.min(count - 1);
            // SAFETY: the caller owes the columns.
            unsafe {
                x.levels[index] = quantized.levels.as_ptr().add(column * columns.k);
                x.groups[index] = quantized.groups.as_ptr().add(column * groups);
            }
        }
        x
    }

    /// `groups` groups further.
    #[inline(always)]
    pub(in super::super) fn after(mut self, groups: usize) -> X<M> {
        for index in 0..M {
            self.levels[index] = self.levels[index].wrapping_add(groups * GROUP);
            self.groups[index] = self.groups[index].wrapping_add(groups);
        }
        self
    }

    /// Sixteen levels: half `half` of the group that is `group` further in column `index`.
    ///
    /// # Safety
    /// The column must have it.
    #[inline(always)]
    pub(in super::super) unsafe fn levels(
        &self,
        index: usize,
        group: usize,
        half: usize,
    ) -> int8x16_t {
        // SAFETY: the caller owes the group.
        unsafe { vld1q_s8(self.levels[index].add(group * GROUP + 16 * half)) }
    }

    /// What the group that is `group` further in column `index` has in common.
    ///
    /// # Safety
    /// The column must have it.
    #[inline(always)]
    pub(in super::super) unsafe fn group<'a>(&self, index: usize, group: usize) -> &'a Group {
        // SAFETY: the caller owes the group, and columns outlive a kernel.
        unsafe { &*self.groups[index].add(group) }
    }
}

/// A block of a packed tile.
pub(in super::super) struct Block<F> {
    from: *const u8,
    /// Groups in it; none after the last block.
    pub(in super::super) count: usize,
    /// Groups in it and after it.
    left: usize,
    format: PhantomData<F>,
}

impl<F: Packed> Block<F> {
    /// The first block of a tile of rows of `k` elements.
    #[inline(always)]
    pub(in super::super) fn first(tile: *const u8, k: usize) -> Block<F> {
        Block {
            from: tile,
            count: BLOCK_GROUPS.min(k / GROUP),
            left: k / GROUP,
            format: PhantomData,
        }
    }

    /// The block after this one.
    #[inline(always)]
    pub(in super::super) fn next(&self) -> Block<F> {
        let left = self.left - self.count;
        Block {
            from: self.from.wrapping_add(Layout::<F>::block_bytes(self.count)),
            count: BLOCK_GROUPS.min(left),
            left,
            format: PhantomData,
        }
    }

    /// Where the levels of a group of quarter `quarter` of the rows start.
    #[inline(always)]
    pub(in super::super) fn levels(&self, group: usize, quarter: usize) -> *const u8 {
        let at = Layout::<F>::head_bytes(self.count) + group * Layout::<F>::LEVEL_BYTES;
        self.from.wrapping_add(at + 16 * quarter)
    }

    /// The f16 factors of four rows that all groups of a block share; anything where each has its own.
    ///
    /// # Safety
    /// The block must be readable.
    #[inline(always)]
    pub(in super::super) unsafe fn factors(&self, quarter: usize) -> Factors {
        if F::GROUP_SCALES == GroupScales::None {
            return Factors::none();
        }
        // SAFETY: the caller owes the block.
        unsafe { Factors::load::<F>(self.from, quarter) }
    }
}

/// The f16 factors of four rows, as floats.
#[derive(Clone, Copy)]
pub(in super::super) struct Factors {
    scale: float32x4_t,
    minimum: float32x4_t,
}

impl Factors {
    #[inline(always)]
    fn none() -> Factors {
        Factors {
            scale: vdupq_n_f32(0.0),
            minimum: vdupq_n_f32(0.0),
        }
    }

    /// # Safety
    /// The factors of sixteen rows must be readable at `from`.
    #[inline(always)]
    unsafe fn load<F: Packed>(from: *const u8, quarter: usize) -> Factors {
        let halves = |from: *const u8| {
            // SAFETY: the caller owes sixteen halves, and as many again if there are minimums.
            let halves = unsafe { vld1_u16(from.add(8 * quarter).cast()) };
            vcvt_f32_f16(vreinterpret_f16_u16(halves))
        };
        Factors {
            scale: halves(from),
            minimum: if F::MINIMUM {
                halves(from.wrapping_add(2 * ROWS))
            } else {
                vdupq_n_f32(0.0)
            },
        }
    }
}

/// What the integer sums of one group of four rows, and the sums of activations, are multiplied with.
pub(in super::super) struct Scales {
    factors: Factors,
    /// The scales of the halves, where they have their own.
    halves: [int32x4_t; 2],
}

impl Scales {
    /// Of group `group` of a block and its `factors`.
    ///
    /// # Safety
    /// The block must be readable.
    #[inline(always)]
    pub(in super::super) unsafe fn load<F: Packed>(
        block: &Block<F>,
        group: usize,
        quarter: usize,
        factors: Factors,
    ) -> Scales {
        let halves = [vdupq_n_s32(0); 2];
        let own = block
            .from
            .wrapping_add(Layout::<F>::group_scales_at(group) + 4 * quarter);
        // SAFETY: the caller owes the head of the block.
        unsafe {
            match F::GROUP_SCALES {
                GroupScales::None => Scales {
                    factors: Factors::load::<F>(
                        block.from.add(Layout::<F>::factors_at(group)),
                        quarter,
                    ),
                    halves,
                },
                GroupScales::One => Scales {
                    factors: Factors {
                        scale: vmulq_f32(factors.scale, unsigned(four_bytes(own))),
                        minimum: if F::MINIMUM {
                            vmulq_f32(factors.minimum, unsigned(four_bytes(own.add(ROWS))))
                        } else {
                            factors.minimum
                        },
                    },
                    halves,
                },
                GroupScales::Two => Scales {
                    factors,
                    halves: [signed(four_bytes(own)), signed(four_bytes(own.add(ROWS)))],
                },
            }
        }
    }

    /// Adds a group of one column to the sums of four rows. `products` are those of the first half and of the second
    /// where halves have scales of their own; else the second of them are those of the group.
    #[inline(always)]
    pub(in super::super) fn add<F: Packed>(
        &self,
        sums: &mut float32x4_t,
        x: &Group,
        products: [int32x4_t; 2],
    ) {
        let scale = vmulq_n_f32(self.factors.scale, x.scale);
        let products = if F::GROUP_SCALES == GroupScales::Two {
            vmlaq_s32(
                vmulq_s32(self.halves[0], products[0]),
                self.halves[1],
                products[1],
            )
        } else {
            products[1]
        };
        *sums = vfmaq_f32(*sums, scale, vcvtq_f32_s32(products));
        if F::MINIMUM {
            *sums = if F::GROUP_SCALES == GroupScales::None {
                vfmaq_n_f32(*sums, self.factors.minimum, x.scaled_sum)
            } else {
                vfmsq_n_f32(*sums, self.factors.minimum, x.scaled_sum)
            };
        }
    }
}

/// Four bytes, in the low half of a vector.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn four_bytes(from: *const u8) -> uint8x8_t {
    // SAFETY: the caller owes the bytes.
    vcreate_u8(u64::from(unsafe { from.cast::<u32>().read_unaligned() }))
}

/// The first four bytes, without signs, as floats.
#[inline(always)]
fn unsigned(bytes: uint8x8_t) -> float32x4_t {
    vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
}

/// The first four bytes, with signs, as integers.
#[inline(always)]
fn signed(bytes: uint8x8_t) -> int32x4_t {
    vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(bytes))))
}

/// Where the integer sum of a group, or of its half `half` where halves have scales of their own, starts.
#[inline(always)]
pub(in super::super) fn start<F: Packed>(x: &Group, half: usize) -> i32 {
    match (F::BITS, F::GROUP_SCALES) {
        // These levels are unpacked with their sign.
        (8, _) => 0,
        (_, GroupScales::Two) => F::OFFSET as i32 * i32::from(x.negated_half_sums[half]),
        _ => F::OFFSET as i32 * x.negated_sum,
    }
}

/// Half `half` of a group's levels of four rows, four elements of each in a vector. `from` is [`Block::levels`].
///
/// # Safety
/// The levels must be readable.
#[inline(always)]
pub(in super::super) unsafe fn unpack<F: Packed>(from: *const u8, half: usize) -> [int8x16_t; 4] {
    // SAFETY: passed on.
    unsafe {
        [
            unpack_step::<F>(from, half, 0),
            unpack_step::<F>(from, half, 1),
            unpack_step::<F>(from, half, 2),
            unpack_step::<F>(from, half, 3),
        ]
    }
}

/// Vector `index` of [`unpack`].
///
/// # Safety
/// See that function.
#[inline(always)]
unsafe fn unpack_step<F: Packed>(from: *const u8, half: usize, index: usize) -> int8x16_t {
    // SAFETY: the caller owes the levels: as many vectors of sixteen rows as levels have bits.
    let vector = |index: usize| unsafe { vld1q_u8(from.add(index * 4 * ROWS)) };
    if F::BITS == 8 {
        let levels = vector(4 * half + index);
        return vreinterpretq_s8_u8(veorq_u8(levels, vdupq_n_u8(0x80)));
    }
    let low = if half == 0 {
        vandq_u8(vector(index), vdupq_n_u8(15))
    } else {
        vshrq_n_u8::<4>(vector(index))
    };
    // Brings the further bits of this step to bit 4; a negative shift goes to the right.
    let high = |vector: uint8x16_t, at: usize, mask: u8| {
        let shifted = vshlq_u8(vector, vdupq_n_s8(4 - at as i8));
        vandq_u8(shifted, vdupq_n_u8(mask))
    };
    vreinterpretq_s8_u8(match F::BITS {
        5 => vorrq_u8(low, high(vector(4), 4 * half + index, 0x10)),
        6 => vorrq_u8(low, high(vector(4 + half), 2 * index, 0x30)),
        _ => low,
    })
}
