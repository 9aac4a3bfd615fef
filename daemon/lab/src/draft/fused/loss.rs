//! What outputs are measured by while they are learnt.

use std::sync::Arc;

use andon_kernels::op::exp::exp;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

use super::{slice, values};

/// What the outputs of a sequence should be: for each row, tokens with the weight that each is to have. A row without
/// weight asks for nothing.
#[derive(Debug, Default)]
pub(in crate::draft) struct Wanted {
    /// The same number for every row.
    pub(in crate::draft) tokens_per_row: usize,
    pub(in crate::draft) tokens: Vec<u32>,
    pub(in crate::draft) weights: Vec<f32>,
}

struct CrossEntropy(Arc<Wanted>);

/// The cross-entropy of `logits` to what is wanted, added up over all rows: a scalar.
pub(in crate::draft) fn cross_entropy(logits: &Tensor, wanted: &Arc<Wanted>) -> Result<Tensor> {
    if logits.device().is_cpu() {
        return logits.apply_op1(CrossEntropy(Arc::clone(wanted)));
    }
    cross_entropy_composed(logits, wanted)
}

pub(super) fn cross_entropy_composed(logits: &Tensor, wanted: &Wanted) -> Result<Tensor> {
    let rows = logits.dims2()?.0;
    let shape = (rows, wanted.tokens_per_row);
    let tokens = Tensor::from_slice(&wanted.tokens, shape, logits.device())?;
    let weights = Tensor::from_slice(&wanted.weights, shape, logits.device())?;
    let most = logits.max_keepdim(D::Minus1)?.detach();
    let below = logits.broadcast_sub(&most)?;
    let log_sum = below.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log = below.gather(&tokens, 1)?.broadcast_sub(&log_sum)?;
    (log * weights)?.sum_all()?.neg()
}

impl Wanted {
    fn rows(&self) -> impl Iterator<Item = (&[u32], &[f32])> {
        let count = self.tokens_per_row.max(1);
        self.tokens
            .chunks_exact(count)
            .zip(self.weights.chunks_exact(count))
    }
}

/// The largest of a row, and the sum of the exponentials of all less that.
fn sum_of_exponentials(row: &[f32]) -> (f32, f32) {
    let most = row.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
    (most, row.iter().map(|x| exp(x - most)).sum())
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let columns = layout.shape().dims2()?.1;
        let mut loss = 0f64;
        for (row, (tokens, weights)) in slice(logits, layout)?
            .chunks_exact(columns)
            .zip(self.0.rows())
        {
            let (most, sum) = sum_of_exponentials(row);
            let log_sum = f64::from(sum).ln();
            for (&token, &weight) in tokens.iter().zip(weights) {
                let below = f64::from(row[token as usize] - most);
                loss -= f64::from(weight) * (below - log_sum);
            }
        }
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let factor = gradient.to_scalar::<f32>()?;
        let mut out = values(logits)?;
        let columns = logits.dims2()?.1;
        for (row, (tokens, weights)) in out.chunks_exact_mut(columns).zip(self.0.rows()) {
            let (most, sum) = sum_of_exponentials(row);
            let whole: f32 = weights.iter().sum();
            let scale = factor * whole / sum;
            row.iter_mut().for_each(|x| *x = exp(*x - most) * scale);
            for (&token, &weight) in tokens.iter().zip(weights) {
                row[token as usize] -= factor * weight;
            }
        }
        Tensor::from_vec(out, logits.shape(), logits.device()).map(Some)
    }
}
