//! Products of matrices of floats against the processor's.

use crate::Run;
use crate::compare::{POISON, poison, same};
use crate::data::{DRAWS, Draw, Random, fastest, host, scalar, values, weights};
use andon_cuda::Format;
use andon_kernels::Tile;
use andon_kernels::activation::{Columns, Quantized};
use anyhow::{Result, ensure};

pub(crate) fn check(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    for format in Format::ALL.into_iter().filter(|one| !one.is_quantized()) {
        // Wide ones of 32 bits have sums that are no numbers.
        let wide = format == Format::F16;
        for draw in DRAWS
            .into_iter()
            .filter(|&draw| wide || draw != Draw::WideScales)
        {
            for (k, rows, count) in [
                (32, 1, 1),
                (64, 7, 3),
                (96, 65, 8),
                (160, 129, 9),
                (576, 40, 16),
                (2048, 200, 1),
                (352, 33, 17),
            ] {
                one(run, &mut random, format, draw, [k, rows, count])?;
                cases += 1;
            }
        }
        if !run.small {
            // The vocabulary of Gemma 3 1B, in part.
            one(run, &mut random, format, Draw::Random, [1152, 30_000, 16])?;
            cases += 1;
        }
    }
    Ok(format!("{cases} products are the processor's bytes"))
}

fn one(
    run: &Run<'_>,
    random: &mut Random,
    format: Format,
    draw: Draw,
    [k, rows, count]: [usize; 3],
) -> Result<()> {
    let raw = weights(random, host(format), k * rows, draw);
    let x = values(random, k, count, draw);
    let table = if run.small { scalar() } else { fastest() };
    let mut expected = vec![0.0; rows * count];
    let columns = Columns {
        k,
        count,
        values: &x,
        quantized: Quantized {
            levels: &[],
            groups: &[],
        },
    };
    let mut tile = Tile::whole(&mut expected, rows, count);
    table.matmul(host(format), &raw, columns, &mut tile);
    let matrix = run
        .device
        .pack(format, &run.device.upload(&raw)?, rows, k)?;
    // Room between columns, on both sides.
    let (stride_in, stride) = (k + 32, rows + 5);
    let mut padded_x = poison(stride_in * count);
    for (column, to) in x.chunks_exact(k).zip(padded_x.chunks_exact_mut(stride_in)) {
        to[..k].copy_from_slice(column);
    }
    let device_x = run.device.upload(&padded_x)?;
    let mut output = run.device.upload(&poison(stride * count))?;
    let columns = (&device_x, stride_in);
    run.device
        .matmul_floats(&matrix, columns, count, &mut output, stride)?;
    let mut padded = poison(stride * count);
    run.device.read(&output, &mut padded)?;
    let mut actual = Vec::with_capacity(rows * count);
    for column in padded.chunks_exact(stride) {
        actual.extend_from_slice(&column[..rows]);
        let between = column[rows..].iter();
        ensure!(
            between.copied().all(|value| value.to_bits() == POISON),
            "{format:?} wrote between columns"
        );
    }
    same(&actual, &expected, || {
        format!("{format:?} {draw:?} k {k} rows {rows} columns {count}")
    })
}
