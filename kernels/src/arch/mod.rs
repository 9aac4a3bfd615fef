//! Kernels by instruction set: a folder each, with the same file names.

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

/// Defines the steps of attention that need no intrinsics, compiled for `$features`.
#[cfg(target_arch = "x86_64")]
macro_rules! portable_attention {
    ($features:literal) => {
        /// [`crate::op::attention::weigh`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn weigh(scores: &mut [f32], first: usize, end: usize) -> [f32; 2] {
            crate::op::attention::weigh(scores, first, end)
        }

        /// [`crate::op::attention::add_parts`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn add_parts(
            scores: &mut [f32],
            rows: usize,
            positions: core::ops::Range<usize>,
        ) {
            crate::op::attention::add_parts(scores, rows, positions);
        }

        /// [`crate::op::attention::merge`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn merge(
            total: &mut [f32; 2],
            output: &mut [f32],
            partial: [f32; 2],
            partial_output: &[f32],
        ) {
            crate::op::attention::merge(total, output, partial, partial_output);
        }

        /// [`crate::op::quantize_heads::quantize_head`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn quantize_head(x: &[f32], levels: &mut [i8]) -> u16 {
            crate::op::quantize_heads::quantize_head(x, levels)
        }

        /// [`crate::op::quantize_heads::quantize_key`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn quantize_key(x: &[f32], levels: &mut [i8], scales: &mut [u16]) {
            crate::op::quantize_heads::quantize_key(x, levels, scales);
        }

        /// [`crate::op::quantize_heads::quantize_query`].
        ///
        /// # Safety
        /// The instruction set must be supported.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn quantize_query(
            x: &[f32],
            levels: &mut [i8],
            scales: &mut [f32],
            offsets: &mut [i32],
        ) {
            crate::op::quantize_heads::quantize_query(x, levels, scales, offsets);
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use portable_attention;
