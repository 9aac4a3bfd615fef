//! Products of every kernel against the processor's.

use crate::Run;
use crate::compare::{poison, same};
use crate::data::{
    Activations, DRAWS, Draw, Random, fastest, host, many_weights, scalar, values, weights,
};
use andon_cuda::{Columns, Format, Kernel, Matrix};
use anyhow::Result;

/// Rows and elements of the matrices of supported models.
const SHAPES: &[(usize, usize)] = &[
    (576, 576), // SmolLM2-135M
    (192, 576),
    (1536, 576),
    (576, 1536),
    (1024, 640), // Gemma 3 270M
    (640, 1024),
    (640, 2048),
    (128, 896), // Qwen2.5-0.5B
    (4864, 896),
    (896, 4864),
    (1024, 1024), // Qwen3-0.6B
    (6912, 1152), // Gemma 3 1B
    (1152, 6912),
    (512, 2048), // Llama 3.2 1B
    (8192, 2048),
    (2048, 8192),
    (3072, 3072), // Llama 3.2 3B
    (8192, 3072),
    (3072, 8192),
    (6144, 4096), // Llama 3.1 8B
    (4096, 4096),
    (28672, 4096),
    (4096, 14336),
];

/// Runs `kernel` on the first `count` columns over a poisoned output, with room before and between columns.
fn product(
    run: &Run<'_>,
    matrix: &Matrix,
    columns: &Columns,
    count: usize,
    kernel: Kernel,
) -> Result<Vec<f32>> {
    let rows = matrix.rows();
    let (first, stride) = (2, rows + 5);
    let mut output = run.device.upload(&poison(stride * count))?;
    run.device
        .matmul_at(matrix, columns, count, kernel, &mut output, (first, stride))?;
    let mut padded = poison(stride * count);
    run.device.read(&output, &mut padded)?;
    let mut result = Vec::with_capacity(rows * count);
    for column in padded.chunks_exact(stride) {
        result.extend_from_slice(&column[first..first + rows]);
        let around = column[..first].iter().chain(&column[first + rows..]);
        anyhow::ensure!(
            around
                .copied()
                .all(|x| x.to_bits() == crate::compare::POISON),
            "{kernel:?} wrote between columns"
        );
    }
    Ok(result)
}

pub(crate) fn one(
    run: &Run<'_>,
    random: &mut Random,
    format: Format,
    draw: Draw,
    [k, rows, count]: [usize; 3],
) -> Result<usize> {
    let raw = weights(random, host(format), k * rows, draw);
    let x = values(random, k, count, draw);
    let activations = Activations::new(&x, k);
    let expected = activations.product(&scalar(), host(format), &raw, rows);
    let matrix = run
        .device
        .pack(format, &run.device.upload(&raw)?, rows, k)?;
    let mut columns = run.device.columns(k, count)?;
    run.device
        .quantize(&run.device.upload(&x)?, k, count, &mut columns)?;
    let mut cases = 0;
    for kernel in Kernel::ALL {
        if count <= kernel.columns_max() {
            let actual = product(run, &matrix, &columns, count, kernel)?;
            same(&actual, &expected, || {
                format!("{kernel:?} {draw:?} k {k} rows {rows} columns {count}")
            })?;
            cases += 1;
        }
    }
    Ok(cases)
}

/// Products of many columns, small and ragged.
pub(crate) fn panels(run: &Run<'_>, format: Format) -> Result<usize> {
    let mut random = Random(run.seed);
    let k = 3 * host(format).block_elements();
    let sizes = [[k, 129, 66], [k, 40, 131]];
    let cases = sizes.map(|size| one(run, &mut random, format, Draw::Random, size));
    cases.into_iter().sum()
}

/// Every kernel and number of columns on a model's matrix: against the processor in some rows, and in all of them
/// against each other.
fn model(
    run: &Run<'_>,
    random: &mut Random,
    format: Format,
    rows: usize,
    k: usize,
) -> Result<usize> {
    const COLUMNS: usize = 64 + 128 + 8;
    let raw = many_weights(random, host(format), rows, k);
    let x = values(random, k, COLUMNS, Draw::Random);
    let matrix = run
        .device
        .pack(format, &run.device.upload(&raw)?, rows, k)?;
    let mut columns = run.device.columns(k, COLUMNS)?;
    let device_x = run.device.upload(&x)?;
    run.device.quantize(&device_x, k, COLUMNS, &mut columns)?;
    let whole = product(run, &matrix, &columns, COLUMNS, Kernel::Panel128)?;
    // In pieces: the first rows, some in the middle, the last.
    let activations = Activations::new(&x[..k * 24], k);
    let row_bytes = raw.len() / rows;
    let some = rows.min(40);
    for first in [0, (rows - some) / 2, rows - some] {
        let part = &raw[first * row_bytes..(first + some) * row_bytes];
        let expected = activations.product(&fastest(), host(format), part, some);
        for (column, expected) in expected.chunks_exact(some).enumerate() {
            let actual = &whole[column * rows + first..][..some];
            same(actual, expected, || {
                format!("k {k} rows {first}.. of {rows} column {column}")
            })?;
        }
    }
    let mut cases = 0;
    for count in (1..=16).chain([17, 33, 64, 100]) {
        for kernel in Kernel::ALL {
            if count <= kernel.columns_max() {
                let actual = product(run, &matrix, &columns, count, kernel)?;
                same(&actual, &whole[..rows * count], || {
                    format!("{kernel:?} with {count} columns for {COLUMNS}, k {k} rows {rows}")
                })?;
                cases += 1;
            }
        }
    }
    // A prompt in chunks: the same columns, quantized at other places.
    for (first, count) in [(3, 5), (9, 16), (41, 64), (70, 130)] {
        let part = run.device.upload(&x[first * k..(first + count) * k])?;
        run.device.quantize(&part, k, count, &mut columns)?;
        let actual = product(run, &matrix, &columns, count, Kernel::of(count))?;
        same(
            &actual,
            &whole[first * rows..(first + count) * rows],
            || format!("columns {first}.. in a chunk of {count}, k {k} rows {rows}"),
        )?;
        cases += 1;
    }
    Ok(cases)
}

pub(crate) fn check(run: &Run<'_>, format: Format) -> Result<String> {
    let mut random = Random(run.seed ^ u64::from(host(format).ggml_id()));
    let block = host(format).block_elements();
    let mut cases = 0;
    for draw in DRAWS {
        for (blocks, rows, count) in [
            (1, 1, 1),
            (2, 7, 3),
            (3, 8, 4),
            (5, 15, 9),
            (18, 16, 2),
            (7, 17, 8),
            (4, 33, 13),
            (40, 24, 1),
            (9, 20, 16),
            (3, 18, 29),
            (11, 129, 66),
            (5, 260, 131),
        ] {
            cases += one(
                run,
                &mut random,
                format,
                draw,
                [blocks * block, rows, count],
            )?;
        }
    }
    let rest = if run.small { 20 } else { 150 };
    for _ in 0..rest {
        let draw = DRAWS[random.below(3)];
        let k = block * (1 + random.below(2048 / block + 3));
        let count = [1 + random.below(16), 1 + random.below(80)][random.below(2)];
        let rows = 1 + random.below(150);
        cases += one(run, &mut random, format, draw, [k, rows, count])?;
    }
    let mut shapes = 0;
    if !run.small {
        for &(rows, k) in SHAPES {
            if k.is_multiple_of(block) {
                cases += model(run, &mut random, format, rows, k)?;
                shapes += 1;
            }
        }
    }
    Ok(format!(
        "{cases} products are the processor's bytes, of {shapes} shapes of models"
    ))
}
