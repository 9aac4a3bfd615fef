//! Biases, norms of whole columns, the last of logits, copies of columns, rows of tokens.

use crate::Run;
use crate::compare::{poison, same};
use crate::data::{DRAWS, Draw, Random, block_elements, host, scalar, values, weights};
use andon_cuda::Format;
use andon_kernels::block;
use anyhow::Result;

pub(crate) fn check(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    for draw in DRAWS {
        for n in [32, 96, 576, 2048, 4096] {
            cases += one(run, &mut random, n, draw)?;
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}

fn one(run: &Run<'_>, random: &mut Random, n: usize, draw: Draw) -> Result<usize> {
    let table = scalar();
    let count = 1 + random.below(6);
    let (first, after) = (32 * random.below(3), 32 * random.below(2));
    let stride = first + n + after;
    let x = values(random, stride, count, draw);
    let other = values(random, n, 1, Draw::Random);
    let device_other = run.device.upload(&other)?;
    let what =
        |kind: &str| format!("{kind} {draw:?} n {n} columns {count} from {first} of {stride}");

    let mut device_x = run.device.upload(&x)?;
    run.device
        .add_bias(&mut device_x, stride, count, &device_other)?;
    let mut expected = x.clone();
    for column in expected.chunks_exact_mut(stride) {
        for (value, bias) in column.iter_mut().zip(&other) {
            *value += bias;
        }
    }
    let mut actual = poison(x.len());
    run.device.read(&device_x, &mut actual)?;
    same(&actual, &expected, || what("bias"))?;

    let mut device_x = run.device.upload(&x)?;
    run.device
        .norm_columns(&mut device_x, stride, count, first, &device_other, 1e-5)?;
    let mut expected = x.clone();
    for (column, x) in expected
        .chunks_exact_mut(stride)
        .zip(x.chunks_exact(stride))
    {
        let to = &mut column[first..first + n];
        table.rms_norm(&x[first..first + n], &other, 1e-5, to);
    }
    run.device.read(&device_x, &mut actual)?;
    same(&actual, &expected, || what("norm"))?;

    for (bias, scale, cap) in [
        (false, 0.125, None),
        (true, 1.0, Some(30.0)),
        (true, 0.3, None),
        (false, 1.0, Some(0.5)),
    ] {
        let mut device_x = run.device.upload(&x)?;
        let device_bias = bias.then_some(&device_other);
        run.device
            .finish_logits(&mut device_x, stride, (n, count), device_bias, scale, cap)?;
        let mut expected = x.clone();
        for column in expected.chunks_exact_mut(stride) {
            let column = &mut column[..n];
            for (value, other) in column.iter_mut().zip(&other) {
                if bias {
                    *value += other;
                }
                *value *= scale;
            }
            if let Some(cap) = cap {
                table.soft_cap(column, cap);
            }
        }
        run.device.read(&device_x, &mut actual)?;
        same(&actual, &expected, || what("logits"))?;
    }

    let indices: Vec<i32> = (0..count).map(|_| random.below(count) as i32).collect();
    let device_x = run.device.upload(&x)?;
    let mut gathered = run.device.upload(&poison(count * stride))?;
    run.device.gather_columns(
        &device_x,
        stride,
        (&run.device.upload(&indices)?, count),
        &mut gathered,
    )?;
    let columns = indices
        .iter()
        .map(|&index| &x[index as usize * stride..][..stride]);
    let expected: Vec<f32> = columns.flatten().copied().collect();
    run.device.read(&gathered, &mut actual)?;
    same(&actual, &expected, || what("gather"))?;
    Ok(7)
}

/// Rows of tokens from packed weights.
pub(crate) fn embed(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    for format in Format::ALL {
        let block_elements = block_elements(format);
        for draw in DRAWS {
            for blocks in [1, 2, 3, 7] {
                let (k, rows) = (blocks * block_elements, 1 + random.below(70));
                let raw = weights(&mut random, host(format), rows * k, draw);
                let matrix = run
                    .device
                    .pack(format, &run.device.upload(&raw)?, rows, k)?;
                let mut tokens: Vec<u32> = (0..1 + random.below(20))
                    .map(|_| random.below(rows) as u32)
                    .collect();
                // One that is not there.
                tokens.push(rows as u32);
                let scale = [1.0, 25.298_22][random.below(2)];
                let mut expected = vec![f32::NAN; tokens.len() * k];
                for (&token, row) in tokens.iter().zip(expected.chunks_exact_mut(k)) {
                    let bytes = raw.len() / rows;
                    let Some(from) = raw.chunks_exact(bytes).nth(token as usize) else {
                        continue;
                    };
                    block::decode_row(host(format), from, row);
                    for value in row {
                        *value *= scale;
                    }
                }
                let mut output = run.device.upload(&poison(expected.len()))?;
                let device_tokens = run.device.upload(&tokens)?;
                run.device
                    .embed(&matrix, &device_tokens, tokens.len(), scale, &mut output)?;
                let mut actual = poison(expected.len());
                run.device.read(&output, &mut actual)?;
                same(&actual, &expected, || {
                    format!("{format:?} {draw:?} {rows} rows of {k}")
                })?;
                cases += 1;
            }
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}
