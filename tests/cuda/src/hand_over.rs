//! Products whose accumulators pass from warp to warp and from tile to tile, as few as it takes: for tools that watch every
//! access.

use crate::Run;
use crate::data::{Draw, Random, host};
use crate::products::one;
use andon_cuda::Format;
use anyhow::Result;

pub(crate) fn check(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    // More tiles than are taken at a time, in stretches of which the last is not whole.
    let rows = run.device.limits()?.processors as usize * 4 * 16 + 17;
    let mut cases = 0;
    for format in Format::ALL.into_iter().filter(|one| one.is_quantized()) {
        let k = 864usize.next_multiple_of(host(format).block_elements());
        for count in [5, 16] {
            cases += one(run, &mut random, format, Draw::Random, [k, rows, count])?;
        }
    }
    Ok(format!("{cases} products are the processor's bytes"))
}
