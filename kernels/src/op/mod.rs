//! What each operation computes, to the last bit.
//!
//! Operations whose speed does not need intrinsics are written here once, as plain arithmetic over 16 virtual lanes,
//! and every instruction set compiles the same body: Rust neither reorders nor fuses floating-point operations, so
//! the results are equal by construction. Matrix products and attention have hand-written kernels; their modules
//! state the result that all of them must give.

pub mod attention;
pub mod exp;
pub mod gelu_erf;
pub mod gelu_tanh;
pub mod glu;
pub mod matmul;
pub mod norm;
pub(crate) mod peak;
pub mod quantize;
pub mod quantize_heads;
pub mod rope;
pub mod softmax;
pub mod stream;
pub mod tanh;

/// Virtual lanes of every f32 reduction over elements: lane `l` takes the elements whose index is `l` modulo 16.
pub const LANES: usize = 16;

/// Adds up the lanes of a reduction as a fixed tree: halves are added until one is left.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
