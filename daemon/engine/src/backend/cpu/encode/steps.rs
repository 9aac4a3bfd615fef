//! Steps on rows of tokens that every part of a layer has.

use super::super::buffers::Levels;
use super::super::matmul::{Product, multiply};
use super::super::{Threads, share};
use super::ROWS;
use super::weights::LayerNorm;
use crate::weights::{Linear, Weights};
use andon_kernels::Table;

/// Products of `input` (rows of `k`) with matrices, biases added.
pub(super) fn project<const N: usize>(
    table: &Table,
    pool: &mut Threads,
    weights: Weights<'_>,
    levels: &mut Levels,
    input: &[f32],
    products: [(&Linear, &mut [f32]); N],
) {
    let k = products[0].0.matrix.row_elements;
    let count = input.len() / k;
    if products
        .iter()
        .any(|(linear, _)| linear.matrix.format.is_quantized())
    {
        let items = input.chunks(ROWS * k).zip(levels.pieces(k, ROWS));
        share(pool, items, |_, (input, mut levels)| {
            table.quantize(input, &mut levels.first(input.len()));
        });
    }
    let biases = products
        .each_ref()
        .map(|(linear, _)| linear.bias.as_deref());
    let mut products = products.map(|(linear, output)| Product {
        matrix: &linear.matrix,
        output,
    });
    multiply(
        table,
        pool,
        weights,
        levels.columns(input, k, count),
        products.each_mut().map(|product| Product {
            matrix: product.matrix,
            output: &mut *product.output,
        }),
    );
    for (product, bias) in products.iter_mut().zip(biases) {
        let Some(bias) = bias else { continue };
        for row in product.output[..count * bias.len()].chunks_exact_mut(bias.len()) {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    }
}

/// Normalizes rows of `input` into `output`.
pub(super) fn normalize(
    table: &Table,
    pool: &mut Threads,
    norm: &LayerNorm,
    input: &[f32],
    output: &mut [f32],
) {
    let width = norm.weight.len();
    let items = input
        .chunks(ROWS * width)
        .zip(output.chunks_mut(ROWS * width));
    share(pool, items, |_, (input, output)| {
        for (input, output) in input
            .chunks_exact(width)
            .zip(output.chunks_exact_mut(width))
        {
            let bias = norm.bias.as_deref();
            table.layer_norm(input, &norm.weight, bias, norm.epsilon, output);
        }
    });
}

/// Adds `more` to `rows` and normalizes the sums in place; `scratch` holds a copy of the rows.
pub(super) fn add_and_normalize(
    table: &Table,
    pool: &mut Threads,
    norm: Option<&LayerNorm>,
    rows: &mut [f32],
    more: &[f32],
    scratch: &mut [f32],
) {
    for (value, more) in rows.iter_mut().zip(more) {
        *value += more;
    }
    if let Some(norm) = norm {
        let scratch = &mut scratch[..rows.len()];
        scratch.copy_from_slice(rows);
        normalize(table, pool, norm, scratch, rows);
    }
}
