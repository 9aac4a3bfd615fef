//! The graph of a decoder for training: what the engine computes of a file, in f32 and with gradients.
//!
//! Matrices are kept the other way round than in files, inputs first, so that neither a product nor its gradient has to
//! turn one. The embedding is no weight: it stays the target's.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use super::fused::{Angles, Attend, Segment, attention, gated, rms_norm, rotate};
use super::target::Shape;

/// Tokens of one or several texts, and which of them predict something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) tokens: Vec<u32>,
    /// Of each token, counted from the beginning of its text.
    pub(super) positions: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    /// Rows of which logits are wanted.
    pub(super) outputs: Vec<u32>,
}

impl Sequence {
    /// Adds a text that branches: what comes first, and continuations of it that do not see each other. Each
    /// continuation's tokens are predicted, and the place behind it; for this the last of the prompt stands before every
    /// one again.
    pub(super) fn add(&mut self, prompt: &[u32], continuations: &[&[u32]]) {
        let Some((last, before)) = prompt.split_last() else {
            return;
        };
        let start = self.tokens.len();
        let common = start..start + before.len();
        self.tokens.extend(before);
        self.positions.extend(0..before.len() as u32);
        if !common.is_empty() {
            self.segments.push(Segment {
                rows: common.clone(),
                before: 0..0,
            });
        }
        for continuation in continuations {
            let rows = self.tokens.len()..self.tokens.len() + 1 + continuation.len();
            self.outputs.extend(rows.start as u32..rows.end as u32);
            self.tokens.push(*last);
            self.tokens.extend(*continuation);
            let position = before.len() as u32;
            self.positions
                .extend(position..=position + continuation.len() as u32);
            self.segments.push(Segment {
                rows,
                before: common.clone(),
            });
        }
    }
}

/// Weights by name, on a device. Names are those of files.
pub(super) type Weights = BTreeMap<String, Tensor>;

/// What a layer had between its matrices, for judging what matters of it.
#[derive(Debug)]
pub(super) struct Trace {
    /// What the heads found, before their output matrix.
    pub(super) found: Tensor,
    /// What the neurons gave, before theirs.
    pub(super) active: Tensor,
}

/// What is common to the layers of a pass over a sequence.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    shape: &'a Shape,
    angles: Arc<Angles>,
    attend: Arc<Attend>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(shape: &'a Shape, sequence: &Sequence) -> Pass<'a> {
        let angle = |&position: &u32| {
            let position = f64::from(position);
            shape
                .frequencies
                .iter()
                .map(move |frequency| position * frequency)
        };
        let angles: Vec<f64> = sequence.positions.iter().flat_map(angle).collect();
        Pass {
            shape,
            angles: Arc::new(Angles {
                cosines: angles.iter().map(|angle| angle.cos() as f32).collect(),
                sines: angles.iter().map(|angle| angle.sin() as f32).collect(),
                pairs: shape.frequencies.len(),
                head_dim: shape.head_dim,
                adjacent: shape.adjacent,
            }),
            attend: Arc::new(Attend {
                segments: sequence.segments.clone(),
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
            }),
        }
    }

    /// The residual stream behind a layer, whose weights are those of index `layer`.
    pub(super) fn layer(
        &self,
        weights: &Weights,
        layer: usize,
        x: &Tensor,
    ) -> Result<(Tensor, Trace)> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let get = |part: &str| find(weights, &name(part));
        let epsilon = self.shape.epsilon;
        let linear = |x: &Tensor, part: &str| {
            let y = x.matmul(get(&format!("{part}.weight"))?)?;
            match weights.get(&name(&format!("{part}.bias"))) {
                Some(bias) => y.broadcast_add(bias),
                None => Ok(y),
            }
        };
        let head_norm = |x: Tensor, part: &str| match weights.get(&name(part)) {
            Some(weight) => rms_norm(&x, weight, epsilon),
            None => Ok(x),
        };
        let normed = rms_norm(x, get("attn_norm.weight")?, epsilon)?;
        let q = head_norm(linear(&normed, "attn_q")?, "attn_q_norm.weight")?;
        let k = head_norm(linear(&normed, "attn_k")?, "attn_k_norm.weight")?;
        let v = linear(&normed, "attn_v")?;
        let (q, k) = (rotate(&q, &self.angles)?, rotate(&k, &self.angles)?);
        let found = attention(&q, &k, &v, &self.attend)?;
        let x = (x + linear(&found, "attn_output")?)?;
        let normed = rms_norm(&x, get("ffn_norm.weight")?, epsilon)?;
        let active = gated(&linear(&normed, "ffn_gate")?, &linear(&normed, "ffn_up")?)?;
        let x = (x + linear(&active, "ffn_down")?)?;
        Ok((x, Trace { found, active }))
    }

    /// Logits of the sequence's outputs, behind the last layer.
    pub(super) fn logits(&self, weights: &Weights, outputs: &[u32], x: &Tensor) -> Result<Tensor> {
        let outputs = Tensor::from_slice(outputs, outputs.len(), x.device())?;
        let x = x.index_select(&outputs, 0)?;
        let x = rms_norm(&x, find(weights, "output_norm.weight")?, self.shape.epsilon)?;
        x.matmul(find(weights, "output.weight")?)
    }
}

fn find<'a>(weights: &'a Weights, name: &str) -> Result<&'a Tensor> {
    match weights.get(name) {
        Some(tensor) => Ok(tensor),
        None => bail!("there is no weight `{name}`"),
    }
}

/// The logits of a sequence, whose tokens' embeddings are `embedded`.
pub(super) fn forward(
    shape: &Shape,
    weights: &Weights,
    sequence: &Sequence,
    embedded: Vec<f32>,
    device: &Device,
) -> Result<Tensor> {
    let pass = Pass::new(shape, sequence);
    let mut x = Tensor::from_vec(embedded, (sequence.tokens.len(), shape.width), device)?;
    for layer in 0..shape.layers {
        x = pass.layer(weights, layer, &x)?.0;
    }
    pass.logits(weights, &sequence.outputs, &x)
}

/// A matrix of `rows` rows the other way round.
pub(super) fn turned(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows.max(1);
    let mut out = vec![0f32; matrix.len()];
    for (row, values) in matrix.chunks_exact(columns.max(1)).enumerate() {
        for (column, &value) in values.iter().enumerate() {
            out[column * rows + row] = value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Sequence, turned};
    use crate::draft::fused::Segment;

    #[test]
    fn continuations_share_a_prompt_and_do_not_see_each_other() {
        let mut sequence = Sequence::default();
        sequence.add(&[1, 2, 3], &[&[4, 5], &[6]]);
        assert_eq!(sequence.tokens, [1, 2, 3, 4, 5, 3, 6]);
        assert_eq!(sequence.positions, [0, 1, 2, 3, 4, 2, 3]);
        assert_eq!(sequence.outputs, [2, 3, 4, 5, 6]);
        let segment = |rows, before| Segment { rows, before };
        assert_eq!(
            sequence.segments,
            [
                segment(0..2, 0..0),
                segment(2..5, 0..2),
                segment(5..7, 0..2)
            ]
        );
        sequence.add(&[9], &[&[]]);
        assert_eq!(sequence.segments[3], segment(7..8, 7..7));
        assert_eq!((sequence.positions[7], sequence.outputs[5]), (0, 7));
    }

    #[test]
    fn matrices_are_turned() {
        assert_eq!(
            turned(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
    }
}
