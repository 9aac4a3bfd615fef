//! Quantizing columns.

use crate::Run;
use crate::data::{Activations, DRAWS, Random, values};
use andon_cuda::Columns;
use andon_kernels::activation::GROUP;
use anyhow::{Result, ensure};

/// Fails unless what the device quantized is what the processor did.
pub(crate) fn compare(device: &(Vec<u8>, Vec<f32>), host: &Activations, what: &str) -> Result<()> {
    let (levels, scales) = device;
    let same = |left: f32, right: f32| {
        left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan()
    };
    for column in 0..host.count {
        for index in 0..host.k {
            let level = levels[Columns::level_index(host.k, column, index)] as i8;
            let expected = host.levels[column * host.k + index];
            ensure!(
                level == expected,
                "{what}: level {index} of column {column} is {level}, expected {expected}"
            );
        }
        for group in 0..host.k / GROUP {
            let at = Columns::scale_index(host.k, column, group);
            let expected = &host.groups[column * (host.k / GROUP) + group];
            ensure!(
                same(scales[at], expected.scale) && same(scales[at + 1], expected.scaled_sum),
                "{what}: group {group} of column {column} has {} and {}, expected {} and {}",
                scales[at],
                scales[at + 1],
                expected.scale,
                expected.scaled_sum
            );
        }
    }
    Ok(())
}

pub(crate) fn check(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    for draw in DRAWS {
        for (k, count) in [(32, 1), (96, 3), (576, 9), (2048, 17), (4096, 40)] {
            let mut x = values(&mut random, k, count, draw);
            if k > 32 {
                // What is not finite, what is too small for a scale, and ties.
                x[3] = f32::NAN;
                x[GROUP + 5] = f32::NEG_INFINITY;
                x[2 * GROUP..3 * GROUP].fill(1e-40);
                for (index, value) in x.iter_mut().rev().take(GROUP).enumerate() {
                    *value = (index as f32 - 15.5) * 2.0;
                }
                x[k * count - 1] = 127.0;
            }
            let host = Activations::new(&x, k);
            let device = run.device.upload(&x)?;
            let mut columns = run.device.columns(k, count)?;
            run.device.quantize(&device, k, count, &mut columns)?;
            let result = run.device.read_columns(&columns)?;
            compare(&result, &host, &format!("{draw:?}, {count} columns of {k}"))?;
            cases += 1;
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}
