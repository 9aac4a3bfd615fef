//! Dispatch as a value: the kernels of one instruction set, behind safe methods.
//!
//! Invariant: a [`Table`] exists only for a supported instruction set, and its methods check every length that the
//! kernels rely on, so calling them is safe.

use crate::activation::{Columns, QuantizedMut};
#[cfg(target_arch = "aarch64")]
use crate::arch::aarch64::{dotprod, i8mm, neon};
use crate::arch::scalar;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::avx2::packed::Pairs;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{avx2, avx512vnni, avxvnni};
#[cfg(target_arch = "x86_64")]
use crate::cpu;
use crate::op::attention::{
    self, CHUNK, PAGE, QuantizedKeys, QuantizedQueries, QuantizedValues, Queries, TILE, key_groups,
    key_levels,
};
use crate::op::matmul::{Kernel, PackedKernel, PackedProduct, Product};
use crate::op::rope::Pairing;
use crate::{Format, Isa, Tile, op, pack};
use core::ops::Range;

type LayerNorm = unsafe fn(&[f32], &[f32], Option<&[f32]>, f32, &mut [f32]);

/// The kernels of one instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    isa: Isa,
    matmul: fn(Format) -> Kernel,
    matmul_packed: fn(Format) -> Option<PackedKernel>,
    attention: attention::Kernels,
    quantize: unsafe fn(&[f32], &mut QuantizedMut<'_>),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    layer_norm: LayerNorm,
    swiglu: unsafe fn(&mut [f32], &[f32]),
    gelu_erf: unsafe fn(&mut [f32]),
    geglu_erf: unsafe fn(&mut [f32], &[f32]),
    geglu_tanh: unsafe fn(&mut [f32], &[f32]),
    soft_cap: unsafe fn(&mut [f32], f32),
    largest_finite: unsafe fn(&[f32]) -> Option<f32>,
    sum_weights: unsafe fn(&[f32], f32, f32, &mut [u64]),
    weights: unsafe fn(&[f32], f32, f32, &mut [f32]),
    rotate: unsafe fn(&mut [f32], &[[f32; 2]], Pairing),
    to_half: unsafe fn(&[f32], &mut [u16]),
    sum_words: unsafe fn(&[u8]) -> u64,
    multiply_adds: unsafe fn(usize) -> u64,
}

const SCALAR: Table = Table {
    isa: Isa::Scalar,
    matmul: scalar::matmul::kernel,
    matmul_packed: scalar::packed::kernel,
    attention: scalar::attention::KERNELS,
    quantize: op::quantize::quantize,
    rms_norm: op::norm::rms_norm,
    layer_norm: op::norm::layer_norm,
    swiglu: op::glu::swiglu,
    gelu_erf: op::gelu_erf::gelu_erf_all,
    geglu_erf: op::gelu_erf::geglu_erf,
    geglu_tanh: op::glu::geglu_tanh,
    soft_cap: op::tanh::soft_cap,
    largest_finite: op::softmax::largest_finite,
    sum_weights: op::softmax::sum_weights,
    weights: op::softmax::weights,
    rotate: op::rope::rotate,
    to_half: scalar::half::to_half,
    sum_words: op::stream::sum_words,
    multiply_adds: op::peak::multiply_adds,
};

#[cfg(target_arch = "x86_64")]
const AVX2: Table = Table {
    isa: Isa::Avx2,
    matmul: avx2::matmul::kernel::<Pairs>,
    matmul_packed: avx2::packed::kernel::<Pairs>,
    quantize: avx2::quantize::quantize,
    attention: avx2::attention::KERNELS,
    rms_norm: avx2::elementwise::rms_norm,
    layer_norm: avx2::elementwise::layer_norm,
    swiglu: avx2::elementwise::swiglu,
    gelu_erf: avx2::elementwise::gelu_erf,
    geglu_erf: avx2::elementwise::geglu_erf,
    geglu_tanh: avx2::elementwise::geglu_tanh,
    soft_cap: avx2::elementwise::soft_cap,
    largest_finite: avx2::elementwise::largest_finite,
    sum_weights: avx2::elementwise::sum_weights,
    weights: avx2::elementwise::weights,
    rotate: avx2::elementwise::rotate,
    to_half: avx2::half::to_half,
    sum_words: avx2::elementwise::sum_words,
    multiply_adds: avx2::peak::multiply_adds,
};

#[cfg(target_arch = "x86_64")]
const AVX_VNNI: Table = Table {
    isa: Isa::AvxVnni,
    matmul: avxvnni::matmul::vex,
    matmul_packed: avxvnni::packed::vex,
    multiply_adds: avxvnni::peak::vex,
    ..AVX2
};

/// [`AVX_VNNI`] where only AVX-512 has the instruction.
#[cfg(target_arch = "x86_64")]
const AVX_VNNI_EVEX: Table = Table {
    matmul: avxvnni::matmul::evex,
    matmul_packed: avxvnni::packed::evex,
    multiply_adds: avxvnni::peak::evex,
    ..AVX_VNNI
};

#[cfg(target_arch = "x86_64")]
const AVX512_VNNI: Table = Table {
    isa: Isa::Avx512Vnni,
    matmul: avx512vnni::matmul::kernel,
    matmul_packed: avx512vnni::packed::kernel,
    attention: avx512vnni::attention::KERNELS,
    swiglu: avx512vnni::elementwise::swiglu,
    gelu_erf: avx512vnni::elementwise::gelu_erf,
    geglu_erf: avx512vnni::elementwise::geglu_erf,
    geglu_tanh: avx512vnni::elementwise::geglu_tanh,
    soft_cap: avx512vnni::elementwise::soft_cap,
    largest_finite: avx512vnni::elementwise::largest_finite,
    sum_weights: avx512vnni::elementwise::sum_weights,
    weights: avx512vnni::elementwise::weights,
    sum_words: avx512vnni::stream::sum_words,
    multiply_adds: avx512vnni::peak::multiply_adds,
    ..AVX2
};

#[cfg(target_arch = "aarch64")]
const NEON: Table = Table {
    isa: Isa::Neon,
    matmul: neon::matmul::plain,
    matmul_packed: neon::packed::plain,
    attention: neon::attention::KERNELS,
    to_half: neon::half::to_half,
    multiply_adds: neon::peak::plain,
    ..SCALAR
};

#[cfg(target_arch = "aarch64")]
const NEON_DOTPROD: Table = Table {
    isa: Isa::NeonDotprod,
    matmul: dotprod::matmul::kernel,
    matmul_packed: dotprod::packed::kernel,
    attention: dotprod::attention::KERNELS,
    multiply_adds: dotprod::peak::multiply_adds,
    ..NEON
};

#[cfg(target_arch = "aarch64")]
const NEON_I8MM: Table = Table {
    isa: Isa::NeonI8mm,
    matmul_packed: i8mm::packed::kernel,
    multiply_adds: i8mm::peak::multiply_adds,
    ..NEON_DOTPROD
};

impl Table {
    /// The kernels of `isa`; `None` if this machine cannot run them.
    #[must_use]
    pub fn new(isa: Isa) -> Option<Table> {
        if !isa.is_supported() {
            return None;
        }
        match isa {
            Isa::Scalar => Some(SCALAR),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(AVX2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(if cpu::has_avx_vnni() {
                AVX_VNNI
            } else {
                AVX_VNNI_EVEX
            }),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Some(AVX512_VNNI),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => None,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(NEON),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Some(NEON_DOTPROD),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Some(NEON_I8MM),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => None,
        }
    }

    /// The kernels of every instruction set this machine can run, slowest first.
    pub fn runnable() -> impl Iterator<Item = Table> {
        Isa::ALL.into_iter().filter_map(Table::new)
    }

    /// The instruction set of these kernels.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Multiplies rows of a weight matrix with columns, see [`op::matmul`].
    ///
    /// `weights` are the bytes of the whole matrix, in rows of `columns.k` elements of `format`; the rows computed and
    /// where they go are `tile`'s.
    ///
    /// # Panics
    /// If the rows are not whole blocks, the matrix has fewer rows than the tile, the columns are fewer than the
    /// tile's, or their buffers are too short.
    #[inline]
    pub fn matmul(
        &self,
        format: Format,
        weights: &[u8],
        columns: Columns<'_>,
        tile: &mut Tile<'_>,
    ) {
        let row_bytes = format.bytes(columns.k).expect("rows are whole blocks");
        let Range { start, end } = tile.rows();
        let bytes = end.checked_mul(row_bytes).expect("matrix sizes overflow");
        assert!(bytes <= weights.len(), "the matrix has the tile's rows");
        assert_eq!(
            columns.count,
            tile.column_count(),
            "the tile has the columns"
        );
        columns.assert_readable(format.is_quantized());
        let (output, stride) = tile.raw();
        let product = Product {
            weights: weights[start * row_bytes..].as_ptr(),
            row_bytes,
            row_count: end - start,
            columns,
            output,
            stride,
        };
        // SAFETY: the table's instruction set is supported; rows, columns and output were checked above, and the
        // tile has its output to itself.
        unsafe { (self.matmul)(format)(product) }
    }

    /// [`Table::matmul`] of a packed matrix, see [`pack`]. The results are the same bytes.
    ///
    /// `packed` are the bytes of the whole matrix, packed rows of `columns.k` elements of `format`; the tile must start at
    /// a multiple of [`pack::ROWS`] rows.
    ///
    /// # Panics
    /// If the format has no packed layout, the rows are not whole blocks, the tile starts elsewhere, the matrix has fewer
    /// rows than the tile, the columns are fewer than the tile's, or their buffers are too short.
    #[inline]
    pub fn matmul_packed(
        &self,
        format: Format,
        packed: &[u8],
        columns: Columns<'_>,
        tile: &mut Tile<'_>,
    ) {
        let tile_bytes = pack::tile_bytes(format, columns.k).expect("the format is packed");
        let kernel = (self.matmul_packed)(format).expect("the format is packed");
        let Range { start, end } = tile.rows();
        assert!(start.is_multiple_of(pack::ROWS), "packed rows start a tile");
        let bytes = end.div_ceil(pack::ROWS).checked_mul(tile_bytes);
        assert!(
            bytes.is_some_and(|bytes| bytes <= packed.len()),
            "the matrix has the tile's rows"
        );
        assert_eq!(
            columns.count,
            tile.column_count(),
            "the tile has the columns"
        );
        columns.assert_readable(true);
        let (output, stride) = tile.raw();
        let product = PackedProduct {
            tiles: packed[start / pack::ROWS * tile_bytes..].as_ptr(),
            row_count: end - start,
            columns,
            output,
            stride,
        };
        // SAFETY: the table's instruction set is supported; tiles, columns and output were checked above, and the tile
        // has its output to itself.
        unsafe { kernel(product) }
    }

    /// Scores of rows at the positions of `tiles` tiles of a page of f16 keys, see [`op::attention`]: those of row `r`
    /// from `scores[r * CHUNK]` on.
    ///
    /// # Panics
    /// If the page is shorter than that, or `scores`.
    #[inline]
    pub(crate) fn scores(
        &self,
        queries: &Queries<'_>,
        keys: &[u16],
        tiles: usize,
        scale: f32,
        scores: &mut [f32],
    ) {
        assert!(tiles <= PAGE / TILE && holds(keys.len(), tiles * TILE, queries.head_dim));
        let Some(last) = queries.rows().checked_sub(1) else {
            return;
        };
        assert!(queries.tokens == 1 || queries.token_stride >= queries.group * queries.head_dim);
        // The last row's elements end last.
        assert_eq!(queries.row(last).len(), queries.head_dim);
        check_rows(scores, last, tiles * TILE);
        // SAFETY: the instruction set is supported, and the lengths were checked.
        unsafe { (self.attention.scores)(*queries, keys, tiles, scale, scores) }
    }

    /// [`Table::scores`] of `(rows, head_dim)` with 8-bit keys: levels, scales, and how many tiles of them.
    ///
    /// # Panics
    /// If any of it is too short.
    #[inline]
    pub(crate) fn quantized_scores(
        &self,
        queries: QuantizedQueries<'_>,
        (rows, head_dim): (usize, usize),
        (levels, scales, tiles): (&[i8], &[u16], usize),
        scale: f32,
        scores: &mut [f32],
    ) {
        let (row_levels, groups) = (key_levels(head_dim), key_groups(head_dim));
        assert!(tiles <= PAGE / TILE && holds(levels.len(), tiles * TILE, row_levels));
        assert!(holds(scales.len(), tiles * TILE, groups));
        let Some(last) = rows.checked_sub(1) else {
            return;
        };
        assert!(holds(queries.levels.len(), rows, row_levels));
        assert!(holds(queries.scales.len(), rows, groups));
        assert!(holds(queries.offsets.len(), rows, groups));
        check_rows(scores, last, tiles * TILE);
        let keys = QuantizedKeys {
            levels,
            scales,
            tiles,
            head_dim,
        };
        // SAFETY: the instruction set is supported, and the lengths were checked.
        unsafe { (self.attention.quantized_scores)(queries, rows, keys, scale, scores) }
    }

    /// Adds the weighted f16 values of `positions` positions of a page to `output`, `[row][head_dim]`, see
    /// [`op::attention`]: the weights of row `r` are those from `weights[r * CHUNK]` on.
    ///
    /// # Panics
    /// If the page or `weights` is shorter than that, or `output` is not whole rows.
    #[inline]
    pub(crate) fn weighted_sum(
        &self,
        weights: &[f32],
        values: &[u16],
        positions: usize,
        head_dim: usize,
        output: &mut [f32],
    ) {
        assert!(holds(values.len(), positions, head_dim));
        check_weights(weights, positions, head_dim, output);
        // SAFETY: the instruction set is supported, and the lengths were checked.
        unsafe { (self.attention.weighted_sum)(weights, values, positions, head_dim, output) }
    }

    /// [`Table::weighted_sum`] of 8-bit values: levels and scales.
    ///
    /// # Panics
    /// As that does.
    #[inline]
    pub(crate) fn quantized_weighted_sum(
        &self,
        weights: &[f32],
        (levels, scales): (&[i8], &[u16]),
        positions: usize,
        head_dim: usize,
        output: &mut [f32],
    ) {
        assert!(holds(levels.len(), positions, head_dim) && scales.len() >= positions);
        check_weights(weights, positions, head_dim, output);
        let values = QuantizedValues { levels, scales };
        let kernel = self.attention.quantized_weighted_sum;
        // SAFETY: the instruction set is supported, and the lengths were checked.
        unsafe { kernel(weights, values, positions, head_dim, output) }
    }

    /// Adds up the scores of the two parts of 8-bit queries: see [`op::attention`], step 1.
    #[inline]
    pub(crate) fn add_parts(&self, scores: &mut [f32], rows: usize, positions: Range<usize>) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.attention.add_parts)(scores, rows, positions) }
    }

    /// See [`op::attention`], step 2.
    #[inline]
    pub(crate) fn weigh(&self, scores: &mut [f32], first: usize, end: usize) -> [f32; 2] {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.attention.weigh)(scores, first, end) }
    }

    /// Merges a partial result, see [`op::attention`].
    #[inline]
    pub(crate) fn merge(
        &self,
        total: &mut [f32; 2],
        output: &mut [f32],
        partial: [f32; 2],
        partial_output: &[f32],
    ) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.attention.merge)(total, output, partial, partial_output) }
    }

    /// Quantizes elements with one scale, as values are: see [`op::quantize_heads`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn quantize_head(&self, x: &[f32], levels: &mut [i8]) -> u16 {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.attention.quantize_head)(x, levels) }
    }

    /// Quantizes the key of a head: see [`op::quantize_heads`].
    ///
    /// # Panics
    /// If there are not [`key_levels`] levels and [`key_groups`] scales.
    #[inline]
    pub fn quantize_key(&self, x: &[f32], levels: &mut [i8], scales: &mut [u16]) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.attention.quantize_key)(x, levels, scales) }
    }

    /// Quantizes the query of a head, in two parts: see [`op::quantize_heads`].
    #[inline]
    pub(crate) fn quantize_query(
        &self,
        x: &[f32],
        levels: &mut [i8],
        scales: &mut [f32],
        offsets: &mut [i32],
    ) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.attention.quantize_query)(x, levels, scales, offsets) }
    }

    /// Quantizes activations, see [`op::quantize`].
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    #[inline]
    pub fn quantize(&self, x: &[f32], output: &mut QuantizedMut<'_>) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.quantize)(x, output) }
    }

    /// Root mean square norm, see [`op::norm`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], epsilon: f32, output: &mut [f32]) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.rms_norm)(x, weight, epsilon, output) }
    }

    /// SwiGLU's elementwise part, in place on `gate`, see [`op::glu`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.swiglu)(gate, up) }
    }

    /// Layer norm, see [`op::norm`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn layer_norm(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        epsilon: f32,
        output: &mut [f32],
    ) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.layer_norm)(x, weight, bias, epsilon, output) }
    }

    /// The exact Gaussian error linear unit in place, see [`op::gelu_erf`].
    #[inline]
    pub fn gelu_erf(&self, x: &mut [f32]) {
        // SAFETY: the instruction set is supported.
        unsafe { (self.gelu_erf)(x) }
    }

    /// GEGLU's elementwise part with the exact unit, in place on `gate`, see [`op::gelu_erf`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn geglu_erf(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.geglu_erf)(gate, up) }
    }

    /// GEGLU's elementwise part with the unit's tanh form, in place on `gate`, see [`op::glu`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn geglu_tanh(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.geglu_tanh)(gate, up) }
    }

    /// Keeps values within `cap` by a tanh, in place, see [`op::tanh`].
    #[inline]
    pub fn soft_cap(&self, x: &mut [f32], cap: f32) {
        // SAFETY: the instruction set is supported.
        unsafe { (self.soft_cap)(x, cap) }
    }

    /// The largest logit; `None` if there is none or any is not finite.
    #[inline]
    #[must_use]
    pub fn largest_finite(&self, logits: &[f32]) -> Option<f32> {
        // SAFETY: the instruction set is supported.
        unsafe { (self.largest_finite)(logits) }
    }

    /// Rounded weights of tokens, added up in blocks of [`op::softmax::BLOCK`], see [`op::softmax`].
    ///
    /// # Panics
    /// If there is not one sum for each block.
    #[inline]
    pub fn sum_weights(&self, logits: &[f32], largest: f32, scale: f32, sums: &mut [u64]) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.sum_weights)(logits, largest, scale, sums) }
    }

    /// Weights of tokens before they are rounded, see [`op::softmax::weight`].
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn weights(&self, logits: &[f32], largest: f32, scale: f32, weights: &mut [f32]) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.weights)(logits, largest, scale, weights) }
    }

    /// Rotates a head by a table of `[cos, sin]`, see [`op::rope`].
    ///
    /// # Panics
    /// If the head has fewer than twice the table's elements.
    #[inline]
    pub fn rotate(&self, head: &mut [f32], table: &[[f32; 2]], pairing: Pairing) {
        // SAFETY: the instruction set is supported; the body checks the lengths.
        unsafe { (self.rotate)(head, table, pairing) }
    }

    /// Converts to f16, rounding to nearest, ties to even.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn to_half(&self, x: &[f32], output: &mut [u16]) {
        assert_eq!(x.len(), output.len());
        // SAFETY: the instruction set is supported, and the lengths are equal.
        unsafe { (self.to_half)(x, output) }
    }

    /// The wrapping sum of all words of eight bytes, and of the bytes after the last: a streaming read, to measure memory
    /// by.
    #[inline]
    #[must_use]
    pub fn sum_words(&self, bytes: &[u8]) -> u64 {
        // SAFETY: the instruction set is supported.
        unsafe { (self.sum_words)(bytes) }
    }

    /// Makes `rounds` rounds of 8-bit multiply-adds as fast as the instruction set allows and returns how many they were
    /// (products of one weight level and one activation level): the limit of integer products, to measure prefill by.
    #[inline]
    #[must_use]
    pub fn multiply_adds(&self, rounds: usize) -> u64 {
        // SAFETY: the instruction set is supported.
        unsafe { (self.multiply_adds)(rounds) }
    }
}

/// Whether `length` elements are enough for `count` times `each` of them.
fn holds(length: usize, count: usize, each: usize) -> bool {
    count
        .checked_mul(each)
        .is_some_and(|elements| elements <= length)
}

/// Panics unless `rows` covers `positions` positions of rows up to row `last`, [`CHUNK`] apart.
fn check_rows(rows: &[f32], last: usize, positions: usize) {
    let start = last.checked_mul(CHUNK).expect("rows can be counted");
    assert!(rows.len().checked_sub(start) >= Some(positions));
}

/// Panics unless `output` is whole rows and `weights` covers `positions` positions of each.
fn check_weights(weights: &[f32], positions: usize, head_dim: usize, output: &[f32]) {
    assert!(positions <= PAGE && output.len().is_multiple_of(head_dim));
    if let Some(last) = (output.len() / head_dim).checked_sub(1) {
        check_rows(weights, last, positions);
    }
}
