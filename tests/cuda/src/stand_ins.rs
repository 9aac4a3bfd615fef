//! The kernels that do others' work where a device lets a block have less shared memory.

use crate::{Run, attention, products};
use andon_cuda::{Device, Format};
use anyhow::Result;

/// Bytes of shared memory that a block may have on every device that kernels are made for: 8.6, 8.9 and 12 have no more.
const LEAST: u32 = 99 << 10;

pub(crate) fn check(run: &Run<'_>) -> Result<String> {
    let device = Device::open_within(run.ordinal, LEAST)?;
    let run = Run {
        device: &device,
        ..*run
    };
    let attended = attention::check(&run)?;
    let mut panels = 0;
    for format in Format::ALL.into_iter().filter(|one| one.is_quantized()) {
        panels += products::panels(&run, format)?;
    }
    Ok(format!(
        "within {LEAST} bytes of shared memory {attended}, and so are {panels} products"
    ))
}
