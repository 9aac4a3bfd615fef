//! Kernels for x86-64.

pub(crate) mod avx2;
pub(crate) mod avx512vnni;
pub(crate) mod avxvnni;

/// The register sets that the operating system saves (XCR0).
///
/// Call only when cpuid reports OSXSAVE.
pub(crate) fn saved_registers() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: register 0 exists wherever xgetbv does.
        unsafe { core::arch::x86_64::_xgetbv(0) }
    }
    // SAFETY: OSXSAVE was reported, see above.
    unsafe { read() }
}

/// How far ahead to prefetch at least, where rows are short: what arrives from memory within its latency.
const PREFETCH_BYTES_MIN: usize = 8 * 1024;

/// Columns that every block of rows passes over before the next are taken, in multiples of `multiple`: their levels
/// take a share of L2 that leaves room for the tile's weights.
#[inline]
fn column_span(k: usize, multiple: usize) -> usize {
    const LEVELS_BYTES: usize = 128 * 1024;
    (LEVELS_BYTES / k.max(1)).max(1).next_multiple_of(multiple)
}

/// Defines `$name`, the matrix product kernel of a family of quantized formats, compiled for `$features`: it walks over
/// the product in blocks of `ROWS` rows and up to `COLUMNS` columns, which `$block` (generic over the format, a block
/// type with the trait `$family`, and the number of columns) computes and `store` writes; all of these come from the
/// calling module.
macro_rules! blocked_kernel {
    ($features:literal, $name:ident, $family:ident, $block:ident) => {
        /// See [`Kernel`].
        ///
        /// # Safety
        /// See [`Kernel`].
        #[target_feature(enable = $features)]
        unsafe fn $name<F: $family>(product: Product<'_>) {
            let columns = &product.columns;
            let blocks = columns.k / F::ELEMENTS;
            let span = column_span(columns.k, COLUMNS);
            for start in (0..columns.count).step_by(span) {
                let end = columns.count.min(start + span);
                for first in (0..product.row_count).step_by(ROWS) {
                    // A block past the end repeats the last row and drops the copies.
                    let rows: Rows = core::array::from_fn(|index| {
                        let row = (first + index).min(product.row_count - 1);
                        // SAFETY: `row` is one of the rows the caller owes.
                        unsafe { product.weights.add(row * product.row_bytes) }
                    });
                    let mut column = start;
                    while column < end {
                        // SAFETY: the rows have `blocks` blocks, the columns exist, and so does their output.
                        unsafe {
                            match end - column {
                                COLUMNS.. => {
                                    let sums = $block::<F, COLUMNS>(rows, blocks, columns, column);
                                    store(&product, first, column, &sums);
                                    column += COLUMNS;
                                }
                                2.. => {
                                    let sums = $block::<F, 2>(rows, blocks, columns, column);
                                    store(&product, first, column, &sums);
                                    column += 2;
                                }
                                _ => {
                                    let sums = $block::<F, 1>(rows, blocks, columns, column);
                                    store(&product, first, column, &sums);
                                    column += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}
use blocked_kernel;

/// Defines the elementwise steps that evaluate a function, from their portable bodies, compiled for `$features`.
macro_rules! units {
    ($features:literal) => {
        /// [`crate::op::glu::swiglu`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn swiglu(gate: &mut [f32], up: &[f32]) {
            $crate::op::glu::swiglu(gate, up);
        }

        /// [`crate::op::gelu_erf::gelu_erf_all`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn gelu_erf(x: &mut [f32]) {
            $crate::op::gelu_erf::gelu_erf_all(x);
        }

        /// [`crate::op::gelu_erf::geglu_erf`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn geglu_erf(gate: &mut [f32], up: &[f32]) {
            $crate::op::gelu_erf::geglu_erf(gate, up);
        }

        /// [`crate::op::glu::geglu_tanh`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn geglu_tanh(gate: &mut [f32], up: &[f32]) {
            $crate::op::glu::geglu_tanh(gate, up);
        }

        /// [`crate::op::tanh::soft_cap`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn soft_cap(x: &mut [f32], cap: f32) {
            $crate::op::tanh::soft_cap(x, cap);
        }

        /// [`crate::op::softmax::largest_finite`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn largest_finite(logits: &[f32]) -> Option<f32> {
            $crate::op::softmax::largest_finite(logits)
        }

        /// [`crate::op::softmax::sum_weights`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn sum_weights(
            logits: &[f32],
            largest: f32,
            scale: f32,
            sums: &mut [u64],
        ) {
            $crate::op::softmax::sum_weights(logits, largest, scale, sums);
        }

        /// [`crate::op::softmax::weights`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn weights(
            logits: &[f32],
            largest: f32,
            scale: f32,
            weights: &mut [f32],
        ) {
            $crate::op::softmax::weights(logits, largest, scale, weights);
        }
    };
}
use units;
