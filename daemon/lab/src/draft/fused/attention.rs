//! Attention of texts that branch.

use std::ops::Range;
use std::sync::Arc;

use andon_kernels::op::exp::exp;
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};

use super::{matrix, slice, values};

/// A stretch of tokens that follow each other, behind another that they follow: an answer behind its prompt, say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::draft) struct Segment {
    /// Its tokens, as rows of the sequence.
    pub(in crate::draft) rows: Range<usize>,
    /// What stands before it; empty for nothing.
    pub(in crate::draft) before: Range<usize>,
}

/// Who attends to whom.
#[derive(Debug)]
pub(in crate::draft) struct Attend {
    pub(in crate::draft) segments: Vec<Segment>,
    pub(in crate::draft) heads: usize,
    pub(in crate::draft) kv_heads: usize,
    pub(in crate::draft) head_dim: usize,
}

struct Attention(Arc<Attend>);

/// What each head of `q` finds among keys and values: every token of a segment looks at what stands before the segment,
/// at those before it in the segment, and at itself. Scores are not kept for the gradient but computed again, as in
/// FlashAttention (Dao and others, 2022): memory stays linear in the sequence.
pub(in crate::draft) fn attention(
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

pub(super) fn attention_composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    attend: &Attend,
) -> Result<Tensor> {
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
