//! Makes up for layers that are left out, before any training: the output matrix of the feed-forward part of each kept
//! layer is changed so that what leaves the layer is what the next kept one was used to.
//!
//! This is a linear problem (least squares of the residual stream that is missing, towards the matrix as it was), solved
//! once for each layer, in order, with what the changed layers before it really give. Rows count relative to the length
//! of the stream, which the next norm takes away. It costs a few passes over some thousands of tokens and is worth
//! many steps of training. Others do the same with a matrix of its own (Shopkhoev and others, ReplaceMe, 2025).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use candle_core::{D, Device, Tensor};

use super::Progress;
use super::fused::values;
use super::network::{Pass, Sequence};
use super::select::{Parameter, Plan, shape_of, tensors, whole_layer};
use super::target::Target;

/// What is added to the diagonal, relative to its mean: how strongly the matrix is held where it was.
const RIDGE: f64 = 0.02;

/// Changes the output matrices among `weights`, those of a draft that `plan` describes.
pub(super) fn refit(
    target: &Target<'_>,
    plan: &Plan,
    sequences: &[&Sequence],
    weights: &mut BTreeMap<String, Parameter>,
) -> Result<()> {
    let shape = shape_of(&target.shape, plan);
    let passes: Vec<(Pass<'_>, Pass<'_>)> = sequences
        .iter()
        .map(|sequence| {
            (
                Pass::new(&target.shape, sequence),
                Pass::new(&shape, sequence),
            )
        })
        .collect();
    let embed = |sequence: &&Sequence| -> Result<Tensor> {
        let embedded = target.embed(&sequence.tokens)?;
        Ok(Tensor::from_vec(
            embedded,
            (sequence.tokens.len(), shape.width),
            &Device::Cpu,
        )?)
    };
    let mut wanted = sequences.iter().map(embed).collect::<Result<Vec<_>>>()?;
    let mut given = wanted.clone();
    let progress = Progress::new("making up for layers", target.shape.layers);
    let mut at = 0;
    for index in 0..plan.layers.len() {
        let end = plan
            .layers
            .get(index + 1)
            .copied()
            .unwrap_or(target.shape.layers);
        while at < end {
            let layer = whole_layer(target, at)?;
            for ((pass, _), x) in passes.iter().zip(&mut wanted) {
                *x = pass.layer(&layer, at, x)?.0;
            }
            at += 1;
            progress.at(at);
        }
        let prefix = format!("blk.{index}.");
        let own = weights.iter().filter(|(name, _)| name.starts_with(&prefix));
        let own = tensors(
            own.map(|(name, weight)| (name.clone(), weight.clone()))
                .collect(),
        )?;
        let mut squares = Tensor::zeros(
            (shape.neurons, shape.neurons),
            candle_core::DType::F32,
            &Device::Cpu,
        )?;
        let mut products = Tensor::zeros(
            (shape.neurons, shape.width),
            candle_core::DType::F32,
            &Device::Cpu,
        )?;
        let mut actives = Vec::new();
        for ((_, pass), (given, wanted)) in passes.iter().zip(given.iter_mut().zip(&wanted)) {
            let (out, trace) = pass.layer(&own, index, given)?;
            let length = (wanted.sqr()?.mean_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
            let active = trace.active.broadcast_div(&length)?;
            let missing = (wanted - &out)?.broadcast_div(&length)?;
            squares = (squares + active.t()?.matmul(&active)?)?;
            products = (products + active.t()?.matmul(&missing)?)?;
            *given = out;
            actives.push(trace.active);
        }
        let change = solved(
            &values(&squares)?,
            &values(&products)?,
            shape.neurons,
            shape.width,
        );
        let name = format!("{prefix}ffn_down.weight");
        let (_, down) = weights
            .get_mut(&name)
            .with_context(|| format!("there is no weight `{name}`"))?;
        down.iter_mut()
            .zip(&change)
            .for_each(|(weight, change)| *weight += change);
        let change = Tensor::from_vec(change, (shape.neurons, shape.width), &Device::Cpu)?;
        for (given, active) in given.iter_mut().zip(&actives) {
            *given = (&*given + active.matmul(&change)?)?;
        }
    }
    Ok(())
}

/// `(squares + ridge) ^ -1 * products`, by Cholesky's decomposition. Nothing where there is nothing to solve.
fn solved(squares: &[f32], products: &[f32], size: usize, columns: usize) -> Vec<f32> {
    let mean = (0..size)
        .map(|at| f64::from(squares[at * size + at]))
        .sum::<f64>()
        / size as f64;
    let ridge = mean * RIDGE;
    if ridge <= 0.0 || !ridge.is_finite() {
        return vec![0.0; products.len()];
    }
    let mut lower: Vec<f64> = squares.iter().copied().map(f64::from).collect();
    for row in 0..size {
        lower[row * size + row] += ridge;
        for column in 0..=row {
            let (before, own) = lower.split_at(row * size);
            let other = if column == row {
                own
            } else {
                &before[column * size..]
            };
            let product = product(&own[..column], &other[..column]);
            let rest = own[column] - product;
            lower[row * size + column] = if column == row {
                rest.max(ridge * 1e-6).sqrt()
            } else {
                rest / lower[column * size + column]
            };
        }
    }
    let mut x: Vec<f64> = products.iter().copied().map(f64::from).collect();
    let eliminate = |x: &mut [f64], row: usize, other: usize, factor: f64| {
        let (before, behind) = x.split_at_mut(row.max(other) * columns);
        let (low, high) = (
            &mut before[row.min(other) * columns..][..columns],
            &mut behind[..columns],
        );
        let (to, from) = if row < other {
            (low, high)
        } else {
            (high, low)
        };
        to.iter_mut()
            .zip(from)
            .for_each(|(to, from)| *to -= factor * *from);
    };
    let scale = |x: &mut [f64], row: usize| {
        let by = lower[row * size + row];
        x[row * columns..][..columns]
            .iter_mut()
            .for_each(|x| *x /= by);
    };
    for row in 0..size {
        for other in 0..row {
            eliminate(&mut x, row, other, lower[row * size + other]);
        }
        scale(&mut x, row);
    }
    for row in (0..size).rev() {
        for other in row + 1..size {
            eliminate(&mut x, row, other, lower[other * size + row]);
        }
        scale(&mut x, row);
    }
    x.into_iter().map(|x| x as f32).collect()
}

/// The sum of the products, in lanes that a processor adds up side by side.
fn product(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::{RIDGE, solved};

    #[test]
    fn linear_problems_are_solved() {
        // The inverse of [[4, 2], [2, 3]] with the ridge on its diagonal, times what that gives for x.
        let ridge = (3.5 * RIDGE) as f32;
        let (a, b, c) = (4.0 + ridge, 2.0, 3.0 + ridge);
        let x = [1.0, -2.0, 0.5, 3.0];
        let products = [
            a * x[0] + b * x[2],
            a * x[1] + b * x[3],
            b * x[0] + c * x[2],
            b * x[1] + c * x[3],
        ];
        for (found, x) in solved(&[4.0, 2.0, 2.0, 3.0], &products, 2, 2).iter().zip(x) {
            assert!((found - x).abs() < 1e-5, "{found} is not {x}");
        }
        assert_eq!(solved(&[0.0; 4], &[0.0; 4], 2, 2), [0.0; 4]);
    }
}
