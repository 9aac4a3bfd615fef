//! Levels looked up in a table.

use super::k_quants::{Factors, Grouped, eight, scaled_by_group};
use super::legacy::{Single, nibbles};
use super::rows::{Levels, Pointers, halves};
use crate::arch::aarch64::vector::vqtbl1q_s8;
use crate::block::{IQ4NL, IQ4XS, MXFP4};
use core::arch::aarch64::{float32x4_t, uint8x16_t, vld1q_f32, vld1q_s8};
use core::mem::offset_of;

/// The levels of `table` that indices stand for.
#[inline(always)]
fn look_up(table: &[i8; 16], [low, high]: [uint8x16_t; 2]) -> Levels {
    // SAFETY: the table has sixteen bytes.
    let table = unsafe { vld1q_s8(table.as_ptr()) };
    [vqtbl1q_s8(table, low), vqtbl1q_s8(table, high)]
}

impl Single for IQ4NL {
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn levels(block: *const u8) -> Levels {
        // SAFETY: the caller owes a block.
        let indices = unsafe { nibbles(block.add(offset_of!(IQ4NL, indices))) };
        look_up(&IQ4NL::TABLE, indices)
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> (float32x4_t, Option<float32x4_t>) {
        // SAFETY: the caller owes the blocks.
        let scale = unsafe { halves(rows, offset + offset_of!(IQ4NL, scale)) };
        (scale, None)
    }
}

impl Single for MXFP4 {
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn levels(block: *const u8) -> Levels {
        // SAFETY: the caller owes a block.
        let indices = unsafe { nibbles(block.add(offset_of!(MXFP4, indices))) };
        look_up(&MXFP4::TABLE, indices)
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> (float32x4_t, Option<float32x4_t>) {
        // SAFETY: the caller owes the blocks, which have alignment 1.
        let scale = |row: usize| unsafe { (*rows[row].add(offset).cast::<MXFP4>()).scale() };
        let scales = [scale(0), scale(1), scale(2), scale(3)];
        // SAFETY: the array has four elements.
        (unsafe { vld1q_f32(scales.as_ptr()) }, None)
    }
}

impl Grouped for IQ4XS {
    const MINIMUM: bool = false;

    #[inline(always)]
    unsafe fn levels(block: *const u8, group: usize) -> Levels {
        // SAFETY: the caller owes a block.
        let indices = unsafe { nibbles(block.add(offset_of!(IQ4XS, indices) + group * 16)) };
        look_up(&IQ4NL::TABLE, indices)
    }

    #[inline(always)]
    unsafe fn factors(rows: &Pointers, offset: usize) -> Factors {
        // SAFETY: the caller owes the blocks, which have alignment 1.
        let scales =
            |row: usize| unsafe { eight(&(*rows[row].add(offset).cast::<IQ4XS>()).scales()) };
        // SAFETY: as above.
        let scale = unsafe { halves(rows, offset + offset_of!(IQ4XS, scale)) };
        let groups = scaled_by_group([scales(0), scales(1), scales(2), scales(3)], scale);
        Factors {
            scales: groups,
            minimums: groups,
        }
    }
}
