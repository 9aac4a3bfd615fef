//! The steps of a decoder between its matrix products, each with its gradient.
//!
//! On a processor a step is one pass over its elements on the calling thread; made of the library's own elementwise
//! operations it would be five to fifteen passes, which together take longer than the products. On other devices a step
//! is made of these. Invariant: both give the same up to rounding (the tests compare them, and gradients with
//! differences).

use std::ops::Range;
use std::sync::Arc;

use andon_kernels::op::exp::exp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Storage, Tensor,
    bail,
};

/// The elements of a contiguous tensor in the processor's memory.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a tensor that is not contiguous")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// A copy of a tensor's elements, in order.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Hands the elements of a tensor to `work`, without a copy where they are in the processor's memory and in order.
pub(super) fn with_values<T>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    {
        let (storage, layout) = tensor.storage_and_layout();
        if let Storage::Cpu(storage) = &*storage
            && let Ok(slice) = slice(storage, layout)
        {
            return Ok(work(slice));
        }
    }
    Ok(work(&values(tensor)?))
}

/// A product that both run on the same small matrices.
fn matrix(values: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor> {
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

// ---- Root mean square norm ----

struct RmsNorm {
    epsilon: f32,
}

/// Rows of `x` over the root of their mean square, times `weight`. Rows are as long as `weight`; a row of `x` may hold
/// several of them.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op2(weight, RmsNorm { epsilon });
    }
    rms_norm_composed(x, weight, epsilon)
}

fn rms_norm_composed(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let shape = x.shape().clone();
    let x = x.reshape(((), weight.elem_count()))?;
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?.sqrt()?;
    x.broadcast_div(&root)?
        .broadcast_mul(weight)?
        .reshape(shape)
}

impl RmsNorm {
    fn inverse_root(&self, row: &[f32]) -> f32 {
        let squares: f32 = row.iter().map(|x| x * x).sum();
        1.0 / (squares / row.len() as f32 + self.epsilon).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(weight.len()) {
            let factor = self.inverse_root(row);
            out.extend(row.iter().zip(weight).map(|(x, w)| x * factor * w));
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x_values, w, g) = (values(x)?, values(weight)?, values(gradient)?);
        let mut of_x = Vec::with_capacity(x_values.len());
        let mut of_weight = vec![0f32; w.len()];
        for (row, g) in x_values.chunks_exact(w.len()).zip(g.chunks_exact(w.len())) {
            let factor = self.inverse_root(row);
            let along: f32 = row.iter().zip(g).zip(&w).map(|((x, g), w)| x * g * w).sum();
            let back = along * factor * factor * factor / w.len() as f32;
            of_x.extend(
                row.iter()
                    .zip(g)
                    .zip(&w)
                    .map(|((x, g), w)| g * w * factor - x * back),
            );
            for (sum, (x, g)) in of_weight.iter_mut().zip(row.iter().zip(g)) {
                *sum += x * factor * g;
            }
        }
        let of_x = Tensor::from_vec(of_x, x.shape(), x.device())?;
        Ok((
            Some(of_x),
            Some(Tensor::from_vec(
                of_weight,
                weight.shape(),
                weight.device(),
            )?),
        ))
    }
}

// ---- SwiGLU ----

struct Gated;

/// `silu(gate) * up`.
pub(super) fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() {
        return gate.apply_op2(up, Gated);
    }
    gate.silu()? * up
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let out = gate
            .iter()
            .zip(up)
            .map(|(g, u)| g * sigmoid(*g) * u)
            .collect();
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = values(gradient)?;
        let (of_gate, of_up) = with_values(gate, |gate| {
            with_values(up, |up| {
                let mut of_gate = vec![0f32; gate.len()];
                let mut of_up = vec![0f32; gate.len()];
                let out = of_gate.iter_mut().zip(&mut of_up);
                for ((of_gate, of_up), ((&x, &u), &d)) in
                    out.zip(gate.iter().zip(up).zip(&gradient))
                {
                    let s = sigmoid(x);
                    *of_up = d * x * s;
                    *of_gate = d * u * s * (1.0 + x * (1.0 - s));
                }
                (of_gate, of_up)
            })
        })??;
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(of_gate)?), Some(tensor(of_up)?)))
    }
}

// ---- Rotary positions ----

/// Cosines and sines of a sequence's positions, a row of `pairs` for each token.
#[derive(Debug)]
pub(super) struct Angles {
    pub(super) cosines: Vec<f32>,
    pub(super) sines: Vec<f32>,
    pub(super) pairs: usize,
    pub(super) head_dim: usize,
    /// Whether a pair is two neighbours, or an element of the first half and one of the second.
    pub(super) adjacent: bool,
}

struct Rotate {
    angles: Arc<Angles>,
    back: bool,
}

/// Each head of each row turned by the angles of its position.
pub(super) fn rotate(x: &Tensor, angles: &Arc<Angles>) -> Result<Tensor> {
    if x.device().is_cpu() {
        let angles = Arc::clone(angles);
        return x.contiguous()?.apply_op1(Rotate {
            angles,
            back: false,
        });
    }
    rotate_composed(x, angles)
}

fn rotate_composed(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let (pairs, dim) = (angles.pairs, angles.head_dim);
    let table = |values: &[f32]| Tensor::from_slice(values, (rows, 1, pairs), x.device());
    let (cosines, sines) = (table(&angles.cosines)?, table(&angles.sines)?);
    let heads = x.reshape((rows, columns / dim, dim))?;
    let turned = heads.narrow(2, 0, 2 * pairs)?;
    let (first, second) = if angles.adjacent {
        let split = turned.reshape((rows, columns / dim, pairs, 2))?;
        (
            split.narrow(3, 0, 1)?.squeeze(3)?,
            split.narrow(3, 1, 1)?.squeeze(3)?,
        )
    } else {
        (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?)
    };
    let a = (first.broadcast_mul(&cosines)? - second.broadcast_mul(&sines)?)?;
    let b = (first.broadcast_mul(&sines)? + second.broadcast_mul(&cosines)?)?;
    let turned = if angles.adjacent {
        Tensor::stack(&[a, b], 3)?.reshape((rows, columns / dim, 2 * pairs))?
    } else {
        Tensor::cat(&[a, b], 2)?
    };
    let rest = heads.narrow(2, 2 * pairs, dim - 2 * pairs)?;
    let all = if dim > 2 * pairs {
        Tensor::cat(&[turned, rest], 2)?
    } else {
        turned
    };
    all.reshape((rows, columns))
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = slice(x, layout)?.to_vec();
        let columns = layout.shape().dims2()?.1;
        let Angles {
            pairs,
            head_dim,
            adjacent,
            ..
        } = *self.angles;
        for (row, token) in out.chunks_exact_mut(columns).enumerate() {
            let range = row * pairs..(row + 1) * pairs;
            let (cosines, sines) = (
                &self.angles.cosines[range.clone()],
                &self.angles.sines[range],
            );
            for head in token.chunks_exact_mut(head_dim) {
                for pair in 0..pairs {
                    let (i, j) = if adjacent {
                        (2 * pair, 2 * pair + 1)
                    } else {
                        (pair, pair + pairs)
                    };
                    let (cos, sin) = (
                        cosines[pair],
                        if self.back { -sines[pair] } else { sines[pair] },
                    );
                    (head[i], head[j]) =
                        (head[i] * cos - head[j] * sin, head[i] * sin + head[j] * cos);
                }
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let back = Rotate {
            angles: Arc::clone(&self.angles),
            back: !self.back,
        };
        gradient.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

// ---- Attention ----

/// A stretch of tokens that follow each other, behind another that they follow: an answer behind its prompt, say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its tokens, as rows of the sequence.
    pub(super) rows: Range<usize>,
    /// What stands before it; empty for nothing.
    pub(super) before: Range<usize>,
}

/// Who attends to whom.
#[derive(Debug)]
pub(super) struct Attend {
    pub(super) segments: Vec<Segment>,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

struct Attention(Arc<Attend>);

/// What each head of `q` finds among keys and values: every token of a segment looks at what stands before the segment,
/// at those before it in the segment, and at itself. Scores are not kept for the gradient but computed again, as in
/// FlashAttention (Dao and others, 2022): memory stays linear in the sequence.
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    attend: &Arc<Attend>,
) -> Result<Tensor> {
    if q.device().is_cpu() {
        return q.apply_op3(k, v, Attention(Arc::clone(attend)));
    }
    attention_composed(q, k, v, attend)
}

fn attention_composed(q: &Tensor, k: &Tensor, v: &Tensor, attend: &Attend) -> Result<Tensor> {
    let (kv_heads, dim, group) = (attend.kv_heads, attend.head_dim, attend.group());
    let mut outs = Vec::new();
    for Segment { rows, before } in &attend.segments {
        let (count, seen) = (rows.len(), before.len() + rows.len());
        let keys = |x: &Tensor| {
            let before = x.narrow(0, before.start, before.len())?;
            let own = x.narrow(0, rows.start, count)?;
            let all = if before.elem_count() == 0 {
                own
            } else {
                Tensor::cat(&[before, own], 0)?
            };
            all.reshape((seen, kv_heads, dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let (k, v) = (keys(k)?, keys(v)?);
        let q = q
            .narrow(0, rows.start, count)?
            .reshape((count, kv_heads, group, dim))?;
        let q = q
            .permute((1, 2, 0, 3))?
            .reshape((kv_heads, group * count, dim))?;
        let hidden: Vec<f32> = (0..count * seen)
            .map(|at| {
                if at % seen > before.len() + at / seen {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        let hidden = Tensor::from_vec(hidden, (1, 1, count, seen), q.device())?;
        let scores = (q.matmul(&k.transpose(1, 2)?)? * f64::from(attend.scale()))?;
        let scores = scores
            .reshape((kv_heads, group, count, seen))?
            .broadcast_add(&hidden)?;
        let most = scores.max_keepdim(D::Minus1)?.detach();
        let weights = scores.broadcast_sub(&most)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let out = weights
            .reshape((kv_heads, group * count, seen))?
            .matmul(&v)?;
        let out = out
            .reshape((kv_heads, group, count, dim))?
            .permute((2, 0, 1, 3))?;
        outs.push(out.reshape((count, kv_heads * group * dim))?);
    }
    Tensor::cat(&outs, 0)
}

impl Attend {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Columns of a key/value head, for a segment's keys: those before it and its own, in this order.
    fn keys(&self, x: &[f32], segment: &Segment, kv_head: usize) -> Vec<f32> {
        let (dim, width) = (self.head_dim, self.kv_heads * self.head_dim);
        let rows = segment.before.clone().chain(segment.rows.clone());
        let mut out = Vec::with_capacity((segment.before.len() + segment.rows.len()) * dim);
        for row in rows {
            out.extend_from_slice(&x[row * width + kv_head * dim..][..dim]);
        }
        out
    }

    /// Columns of the query heads of a key/value head, head after head.
    fn queries(&self, x: &[f32], segment: &Segment, kv_head: usize) -> Vec<f32> {
        let (dim, width) = (self.head_dim, self.heads * self.head_dim);
        let mut out = Vec::with_capacity(segment.rows.len() * self.group() * dim);
        for head in kv_head * self.group()..(kv_head + 1) * self.group() {
            for row in segment.rows.clone() {
                out.extend_from_slice(&x[row * width + head * dim..][..dim]);
            }
        }
        out
    }

    /// The weights of a segment's keys for each query: the softmax of what it may see.
    fn weights(&self, q: &Tensor, k: &Tensor, segment: &Segment) -> Result<Vec<f32>> {
        let mut scores = values(&q.matmul(&k.t()?)?)?;
        let (count, seen) = (
            segment.rows.len(),
            segment.before.len() + segment.rows.len(),
        );
        for (index, row) in scores.chunks_exact_mut(seen).enumerate() {
            let (visible, hidden) = row.split_at_mut(segment.before.len() + index % count + 1);
            let most = visible
                .iter()
                .fold(f32::NEG_INFINITY, |most, &x| most.max(x));
            let mut sum = 0.0;
            for x in visible.iter_mut() {
                *x = exp((*x - most) * self.scale());
                sum += *x;
            }
            visible.iter_mut().for_each(|x| *x /= sum);
            hidden.fill(0.0);
        }
        Ok(scores)
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let attend = &*self.0;
        let (q, k, v) = (
            slice(q, q_layout)?,
            slice(k, k_layout)?,
            slice(v, v_layout)?,
        );
        let (dim, group, width) = (
            attend.head_dim,
            attend.group(),
            attend.heads * attend.head_dim,
        );
        let mut out = vec![0f32; q.len()];
        for segment in &attend.segments {
            let (count, seen) = (
                segment.rows.len(),
                segment.before.len() + segment.rows.len(),
            );
            for kv_head in 0..attend.kv_heads {
                let q = matrix(attend.queries(q, segment, kv_head), group * count, dim)?;
                let k = matrix(attend.keys(k, segment, kv_head), seen, dim)?;
                let v = matrix(attend.keys(v, segment, kv_head), seen, dim)?;
                let weights = matrix(attend.weights(&q, &k, segment)?, group * count, seen)?;
                let found = values(&weights.matmul(&v)?)?;
                for (index, found) in found.chunks_exact(dim).enumerate() {
                    let row = segment.rows.start + index % count;
                    let head = kv_head * group + index / count;
                    out[row * width + head * dim..][..dim].copy_from_slice(found);
                }
            }
        }
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let attend = &*self.0;
        let [qs, ks, vs, outs, gs] = [q, k, v, out, gradient].map(values);
        let (qs, ks, vs, outs, gs) = (qs?, ks?, vs?, outs?, gs?);
        let (dim, group) = (attend.head_dim, attend.group());
        let (width, kv_width) = (attend.heads * dim, attend.kv_heads * dim);
        let (mut of_q, mut of_k, mut of_v) = (
            vec![0f32; qs.len()],
            vec![0f32; ks.len()],
            vec![0f32; vs.len()],
        );
        for segment in &attend.segments {
            let (count, seen) = (
                segment.rows.len(),
                segment.before.len() + segment.rows.len(),
            );
            for kv_head in 0..attend.kv_heads {
                let q = matrix(attend.queries(&qs, segment, kv_head), group * count, dim)?;
                let k = matrix(attend.keys(&ks, segment, kv_head), seen, dim)?;
                let v = matrix(attend.keys(&vs, segment, kv_head), seen, dim)?;
                let out = attend.queries(&outs, segment, kv_head);
                let g_values = attend.queries(&gs, segment, kv_head);
                let along: Vec<f32> = out
                    .chunks_exact(dim)
                    .zip(g_values.chunks_exact(dim))
                    .map(|(out, g)| out.iter().zip(g).map(|(a, b)| a * b).sum())
                    .collect();
                let g = matrix(g_values, group * count, dim)?;
                let weights = attend.weights(&q, &k, segment)?;
                let mut of_scores = values(&g.matmul(&v.t()?)?)?;
                let rows = of_scores
                    .chunks_exact_mut(seen)
                    .zip(weights.chunks_exact(seen));
                for ((of_scores, weights), along) in rows.zip(along) {
                    for (of_score, weight) in of_scores.iter_mut().zip(weights) {
                        *of_score = (*of_score - along) * weight * attend.scale();
                    }
                }
                let weights = matrix(weights, group * count, seen)?;
                let of_scores = matrix(of_scores, group * count, seen)?;
                let keys = segment.before.clone().chain(segment.rows.clone());
                let new_v = values(&weights.t()?.matmul(&g)?)?;
                let new_k = values(&of_scores.t()?.matmul(&q)?)?;
                for (index, row) in keys.enumerate() {
                    let (from, to) = (index * dim, row * kv_width + kv_head * dim);
                    add(&mut of_v[to..to + dim], &new_v[from..from + dim]);
                    add(&mut of_k[to..to + dim], &new_k[from..from + dim]);
                }
                let new_q = values(&of_scores.matmul(&k)?)?;
                for (index, new) in new_q.chunks_exact(dim).enumerate() {
                    let row = segment.rows.start + index % count;
                    let head = kv_head * group + index / count;
                    of_q[row * width + head * dim..][..dim].copy_from_slice(new);
                }
            }
        }
        let tensor =
            |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device()).map(Some);
        Ok((tensor(of_q, q)?, tensor(of_k, k)?, tensor(of_v, v)?))
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

// ---- Loss ----

/// What the outputs of a sequence should be: for each row, tokens with the weight that each is to have. A row without
/// weight asks for nothing.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The same number for every row.
    pub(super) tokens_per_row: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) weights: Vec<f32>,
}

struct CrossEntropy(Arc<Wanted>);

/// The cross-entropy of `logits` to what is wanted, added up over all rows: a scalar.
pub(super) fn cross_entropy(logits: &Tensor, wanted: &Arc<Wanted>) -> Result<Tensor> {
    if logits.device().is_cpu() {
        return logits.apply_op1(CrossEntropy(Arc::clone(wanted)));
    }
    cross_entropy_composed(logits, wanted)
}

fn cross_entropy_composed(logits: &Tensor, wanted: &Wanted) -> Result<Tensor> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// Values that are all different.
    fn drawn(dims: &[usize], seed: u32) -> Var {
        let count = dims.iter().product::<usize>() as u32;
        let values: Vec<f32> = (0..count)
            .map(|index| ((index * 7 + seed * 13) as f32 * 0.37).sin())
            .collect();
        Var::from_vec(values, dims, &Device::Cpu).expect("a tensor")
    }

    /// That a step in one pass and the same made of the library's operations give the same, and the same gradients.
    fn same(
        inputs: &[Var],
        fused: impl Fn(&[Tensor]) -> Result<Tensor>,
        composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let run = |step: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> Result<Vec<Vec<f32>>> {
            let tensors: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
            let out = step(&tensors)?;
            // Each output has a gradient of its own.
            let gradients = (out.clone() * drawn(out.dims(), 5).as_tensor())?
                .sum_all()?
                .backward()?;
            let mut all = vec![values(&out)?];
            for input in inputs {
                all.push(values(gradients.get(input).expect("a gradient"))?);
            }
            Ok(all)
        };
        let (fused, composed) = (
            run(&fused).expect("fused"),
            run(&composed).expect("composed"),
        );
        for (which, (fused, composed)) in fused.iter().zip(&composed).enumerate() {
            assert_eq!(fused.len(), composed.len());
            for (fused, composed) in fused.iter().zip(composed) {
                let bound = 1e-5 + 1e-4 * composed.abs();
                assert!(
                    (fused - composed).abs() < bound,
                    "{which}: {fused} is not {composed}"
                );
            }
        }
    }

    #[test]
    fn norms_are_what_the_library_makes_of_them() {
        let inputs = [drawn(&[5, 12], 1), drawn(&[6], 2)];
        same(
            &inputs,
            |x| rms_norm(&x[0], &x[1], 1e-5),
            |x| rms_norm_composed(&x[0], &x[1], 1e-5),
        );
    }

    #[test]
    fn gates_are_what_the_library_makes_of_them() {
        same(
            &[drawn(&[5, 12], 1), drawn(&[5, 12], 2)],
            |x| gated(&x[0], &x[1]),
            |x| x[0].silu()? * &x[1],
        );
    }

    #[test]
    fn rotations_are_what_the_library_makes_of_them() {
        for (adjacent, pairs) in [(true, 4), (false, 4), (true, 3), (false, 3)] {
            let angle = |index: usize| (index as f32 * 0.7).sin_cos();
            let angles = Arc::new(Angles {
                cosines: (0..5 * pairs).map(|index| angle(index).1).collect(),
                sines: (0..5 * pairs).map(|index| angle(index).0).collect(),
                pairs,
                head_dim: 8,
                adjacent,
            });
            same(
                &[drawn(&[5, 16], 1)],
                |x| rotate(&x[0], &angles),
                |x| rotate_composed(&x[0], &angles),
            );
        }
    }

    #[test]
    fn attention_is_what_the_library_makes_of_it() {
        let segment = |rows, before| Segment { rows, before };
        let attend = Arc::new(Attend {
            segments: vec![
                segment(0..3, 0..0),
                segment(3..7, 0..3),
                segment(7..9, 0..3),
                segment(9..10, 9..9),
            ],
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
        });
        let inputs = [drawn(&[10, 16], 1), drawn(&[10, 8], 2), drawn(&[10, 8], 3)];
        same(
            &inputs,
            |x| attention(&x[0], &x[1], &x[2], &attend),
            |x| attention_composed(&x[0], &x[1], &x[2], &attend),
        );
    }

    #[test]
    fn losses_are_what_the_library_makes_of_them() {
        let wanted = Arc::new(Wanted {
            tokens_per_row: 2,
            tokens: vec![3, 1, 0, 0, 8, 2],
            weights: vec![0.6, 0.4, 0.0, 0.0, 1.0, 0.25],
        });
        same(
            &[drawn(&[3, 9], 1)],
            |x| cross_entropy(&x[0], &wanted),
            |x| cross_entropy_composed(&x[0], &wanted),
        );
    }
}
