//! F32, F16, BF16: conversions, rounded to nearest with ties to even. Infinities and NaN stay what they are; a value
//! beyond the largest of F16 becomes infinite, as IEEE 754 has it.

use half::{bf16, f16};

pub(super) fn f32(value: f32, output: &mut [u8]) {
    output.copy_from_slice(&value.to_le_bytes());
}

pub(super) fn f16(value: f32, output: &mut [u8]) {
    output.copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

pub(super) fn bf16(value: f32, output: &mut [u8]) {
    output.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
}
