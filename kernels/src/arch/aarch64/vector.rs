//! Vector instructions that every aarch64 processor has, under the names that they have in [`core::arch::aarch64`].
//!
//! There they are safe only in functions with the attribute `target_feature`, which keeps functions from being
//! inlined always. The bodies here have to be: they are written once, and get the instructions of an instruction set by
//! becoming part of the functions that are compiled for it.

use core::arch::aarch64::{
    float16x4_t, float16x8_t, float32x2_t, float32x4_t, int8x8_t, int8x16_t, int16x4_t, int16x8_t,
    int32x4_t, int64x2_t, uint8x8_t, uint8x16_t, uint16x4_t, uint16x8_t, uint32x4_t,
};

const _: () = assert!(cfg!(target_feature = "neon"));

macro_rules! instructions {
    ($(fn $name:ident $(<const $constant:ident>)? ($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        #[doc = concat!("[`core::arch::aarch64::", stringify!($name), "`].")]
        #[inline(always)]
        pub(super) fn $name $(<const $constant: i32>)? ($($argument: $type),*) -> $result {
            // SAFETY: the instruction works on values alone, and the processor has it, see the assertion above.
            unsafe { core::arch::aarch64::$name $(::<$constant>)? ($($argument),*) }
        }
    )*};
}

instructions! {
    fn vadd_f32(a: float32x2_t, b: float32x2_t) -> float32x2_t;
    fn vaddq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t;
    fn vaddq_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    fn vandq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    fn vcombine_u8(low: uint8x8_t, high: uint8x8_t) -> uint8x16_t;
    fn vcreate_u8(bits: u64) -> uint8x8_t;
    fn vcvt_f32_f16(a: float16x4_t) -> float32x4_t;
    fn vcvt_high_f32_f16(a: float16x8_t) -> float32x4_t;
    fn vcvtq_f32_s32(a: int32x4_t) -> float32x4_t;
    fn vcvtq_f32_u32(a: uint32x4_t) -> float32x4_t;
    fn vdup_n_u8(value: u8) -> uint8x8_t;
    fn vdupq_laneq_s32<const LANE>(a: int32x4_t) -> int32x4_t;
    fn vdupq_n_f32(value: f32) -> float32x4_t;
    fn vdupq_n_s32(value: i32) -> int32x4_t;
    fn vdupq_n_s8(value: i8) -> int8x16_t;
    fn vdupq_n_u8(value: u8) -> uint8x16_t;
    fn veorq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    fn vfmaq_f32(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t;
    fn vfmaq_n_f32(a: float32x4_t, b: float32x4_t, c: f32) -> float32x4_t;
    fn vfmsq_f32(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t;
    fn vfmsq_n_f32(a: float32x4_t, b: float32x4_t, c: f32) -> float32x4_t;
    fn vget_high_f32(a: float32x4_t) -> float32x2_t;
    fn vget_high_s8(a: int8x16_t) -> int8x8_t;
    fn vget_lane_f32<const LANE>(a: float32x2_t) -> f32;
    fn vget_low_f32(a: float32x4_t) -> float32x2_t;
    fn vget_low_s16(a: int16x8_t) -> int16x4_t;
    fn vget_low_s8(a: int8x16_t) -> int8x8_t;
    fn vget_low_u16(a: uint16x8_t) -> uint16x4_t;
    fn vmlaq_n_s32(a: int32x4_t, b: int32x4_t, c: i32) -> int32x4_t;
    fn vmlaq_s32(a: int32x4_t, b: int32x4_t, c: int32x4_t) -> int32x4_t;
    fn vmovl_high_s16(a: int16x8_t) -> int32x4_t;
    fn vmovl_s16(a: int16x4_t) -> int32x4_t;
    fn vmovl_s8(a: int8x8_t) -> int16x8_t;
    fn vmovl_u16(a: uint16x4_t) -> uint32x4_t;
    fn vmovl_u8(a: uint8x8_t) -> uint16x8_t;
    fn vmull_high_s8(a: int8x16_t, b: int8x16_t) -> int16x8_t;
    fn vmull_s8(a: int8x8_t, b: int8x8_t) -> int16x8_t;
    fn vmulq_f32(a: float32x4_t, b: float32x4_t) -> float32x4_t;
    fn vmulq_n_f32(a: float32x4_t, b: f32) -> float32x4_t;
    fn vmulq_n_s32(a: int32x4_t, b: i32) -> int32x4_t;
    fn vmulq_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    fn vorrq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    fn vpadalq_s16(a: int32x4_t, b: int16x8_t) -> int32x4_t;
    fn vpaddq_s16(a: int16x8_t, b: int16x8_t) -> int16x8_t;
    fn vpaddq_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    fn vqtbl1q_s8(table: int8x16_t, indices: uint8x16_t) -> int8x16_t;
    fn vreinterpret_f16_u16(a: uint16x4_t) -> float16x4_t;
    fn vreinterpret_s8_u8(a: uint8x8_t) -> int8x8_t;
    fn vreinterpretq_f16_u16(a: uint16x8_t) -> float16x8_t;
    fn vreinterpretq_f32_u32(a: uint32x4_t) -> float32x4_t;
    fn vreinterpretq_s32_s8(a: int8x16_t) -> int32x4_t;
    fn vreinterpretq_s64_s8(a: int8x16_t) -> int64x2_t;
    fn vreinterpretq_s8_s32(a: int32x4_t) -> int8x16_t;
    fn vreinterpretq_s8_s64(a: int64x2_t) -> int8x16_t;
    fn vreinterpretq_s8_u8(a: uint8x16_t) -> int8x16_t;
    fn vsetq_lane_s32<const LANE>(value: i32, a: int32x4_t) -> int32x4_t;
    fn vshll_high_n_u16<const COUNT>(a: uint16x8_t) -> uint32x4_t;
    fn vshll_n_u16<const COUNT>(a: uint16x4_t) -> uint32x4_t;
    fn vshlq_n_u8<const COUNT>(a: uint8x16_t) -> uint8x16_t;
    fn vshlq_u8(a: uint8x16_t, counts: int8x16_t) -> uint8x16_t;
    fn vshrq_n_u8<const COUNT>(a: uint8x16_t) -> uint8x16_t;
    fn vtstq_u8(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t;
    fn vuzp1q_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    fn vuzp2q_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    fn vzip1_s8(a: int8x8_t, b: int8x8_t) -> int8x8_t;
    fn vzip1q_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    fn vzip1q_s64(a: int64x2_t, b: int64x2_t) -> int64x2_t;
    fn vzip2_s8(a: int8x8_t, b: int8x8_t) -> int8x8_t;
    fn vzip2q_s32(a: int32x4_t, b: int32x4_t) -> int32x4_t;
    fn vzip2q_s64(a: int64x2_t, b: int64x2_t) -> int64x2_t;
}
