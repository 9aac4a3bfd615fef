//! Which layers, heads, neurons and tokens of the target become the draft.
//!
//! All is measured on answers of the target itself. A layer matters as much as it turns the residual stream (block
//! influence: Men and others, ShortGPT, 2024); a group of heads as much as its part of the attention's output is long, a
//! neuron as its mean activation times the length of its column of the output matrix (Muralidharan and others, Minitron,
//! 2024; Ma and others, LLM-Pruner, 2023). Layers of the target are computed one by one, so that no more than one is in
//! memory in f32.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Progress;
use super::dataset::Record;
use super::fused::values;
use super::network::{Pass, Sequence, Weights, turned};
use super::target::{Shape, Target};
use super::train::State;

/// Tokens that importance is measured on.
const CALIBRATION_TOKENS: usize = 1536;

/// The matrix that gives each token that can be guessed its logit.
const OUTPUT: &str = "output.weight";

/// What a token in a prompt counts among those in answers.
const PROMPT_WEIGHT: f64 = 0.1;

/// What becomes of the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Its layers, ascending.
    pub(super) layers: Vec<usize>,
    /// Of each of these, the key/value heads, each with its queries.
    pub(super) kv_heads: Vec<Vec<usize>>,
    /// Of each of these, the neurons.
    pub(super) neurons: Vec<Vec<usize>>,
    /// Tokens that it guesses, ascending.
    pub(super) tokens: Vec<u32>,
}

/// How much is to be kept.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// So many, or these.
    pub(super) layers: Layers,
    pub(super) kv_heads: usize,
    pub(super) neurons: usize,
    pub(super) tokens: usize,
}

/// Which layers are kept.
#[derive(Clone, Debug)]
pub(super) enum Layers {
    /// The first, the last, and of the others those with the most influence.
    Count(usize),
    /// Those that were named.
    These(Vec<usize>),
}

impl Plan {
    /// Whether it can be a plan for this target: it may come from a file.
    fn is_of(&self, target: &Shape) -> bool {
        let within = |parts: &[Vec<usize>], count: usize| {
            let length = parts.first().map_or(0, Vec::len);
            parts.len() == self.layers.len()
                && length > 0
                && parts
                    .iter()
                    .all(|part| part.len() == length && part.iter().all(|&index| index < count))
        };
        !self.layers.is_empty()
            && self.layers.iter().all(|&layer| layer < target.layers)
            && within(&self.kv_heads, target.kv_heads)
            && within(&self.neurons, target.neurons)
    }

    /// The sizes of another plan of the same layers, for so many tokens.
    pub(super) fn sizes(&self, tokens: usize) -> Sizes {
        Sizes {
            layers: Layers::These(self.layers.clone()),
            kv_heads: self.kv_heads.first().map_or(0, Vec::len),
            neurons: self.neurons.first().map_or(0, Vec::len),
            tokens,
        }
    }
}

impl Sizes {
    /// The sizes of such a draft, if the target has as much.
    pub(super) fn of(&self, target: &Shape) -> Result<Shape> {
        let (kept, in_range) = match &self.layers {
            Layers::Count(count) => (*count, true),
            Layers::These(layers) => (
                layers.len(),
                layers.iter().all(|&layer| layer < target.layers),
            ),
        };
        ensure!(
            (1..=target.layers).contains(&kept) && in_range,
            "the target has {} layers, of which a draft keeps at least one",
            target.layers
        );
        ensure!(
            (1..=target.kv_heads).contains(&self.kv_heads),
            "--kv-heads must be between 1 and the target's {}",
            target.kv_heads
        );
        ensure!(
            (1..=target.neurons).contains(&self.neurons),
            "--neurons must be between 1 and the target's {}",
            target.neurons
        );
        Ok(Shape {
            layers: kept,
            heads: target.heads / target.kv_heads * self.kv_heads,
            kv_heads: self.kv_heads,
            neurons: self.neurons,
            ..target.clone()
        })
    }
}

/// What was measured of a layer.
#[derive(Clone, Debug, Default)]
struct Importance {
    influence: f64,
    kv_heads: Vec<f64>,
    neurons: Vec<f64>,
}

/// Measures the target on some of its answers and chooses.
pub(super) fn plan(target: &Target<'_>, records: &[Record], sizes: &Sizes) -> Result<Plan> {
    let shape = &target.shape;
    sizes.of(shape)?;
    let importance = measure(target, &calibration(records))?;
    let layers = match &sizes.layers {
        Layers::Count(count) => {
            let influence = |layer: usize| match layer {
                0 => f64::INFINITY,
                last if last + 1 == shape.layers => f64::MAX,
                other => importance[other].influence,
            };
            best(
                &(0..shape.layers).map(influence).collect::<Vec<_>>(),
                *count,
            )
        }
        Layers::These(layers) => layers.clone(),
    };
    let of = |layer: &usize| &importance[*layer];
    Ok(Plan {
        kv_heads: layers
            .iter()
            .map(|layer| best(&of(layer).kv_heads, sizes.kv_heads))
            .collect(),
        neurons: layers
            .iter()
            .map(|layer| best(&of(layer).neurons, sizes.neurons))
            .collect(),
        tokens: tokens(records, target.vocabulary, sizes.tokens),
        layers,
    })
}

/// Indices of the `count` largest, ascending; of equals the first.
fn best(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Some answers, spread over all.
fn calibration(records: &[Record]) -> Sequence {
    let mut sequence = Sequence::default();
    let step = (records.len() / 16).max(1);
    for record in (0..step).flat_map(|first| records.iter().skip(first).step_by(step)) {
        if let Some(answer) = record.answers.first() {
            sequence.add(&record.prompt, &[&answer.tokens]);
        }
        if sequence.tokens.len() >= CALIBRATION_TOKENS {
            break;
        }
    }
    sequence
}

fn measure(target: &Target<'_>, sequence: &Sequence) -> Result<Vec<Importance>> {
    let shape = &target.shape;
    let pass = Pass::new(shape, sequence);
    let rows = sequence.tokens.len();
    let mut x = Tensor::from_vec(
        target.embed(&sequence.tokens)?,
        (rows, shape.width),
        &Device::Cpu,
    )?;
    let progress = Progress::new("judging layers", shape.layers);
    let mut all = Vec::new();
    for layer in 0..shape.layers {
        let weights = whole_layer(target, layer)?;
        let (next, trace) = pass.layer(&weights, layer, &x)?;
        let output = &weights[&format!("blk.{layer}.attn_output.weight")];
        let group = shape.heads / shape.kv_heads * shape.head_dim;
        let mut kv_heads = Vec::new();
        for kv_head in 0..shape.kv_heads {
            let part = trace
                .found
                .narrow(1, kv_head * group, group)?
                .contiguous()?;
            let part = part.matmul(&output.narrow(0, kv_head * group, group)?)?;
            kv_heads.push(lengths(&values(&part)?, shape.width).sum());
        }
        let down = values(&weights[&format!("blk.{layer}.ffn_down.weight")])?;
        let mut neurons = vec![0f64; shape.neurons];
        for row in values(&trace.active)?.chunks_exact(shape.neurons) {
            neurons
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += f64::from(x.abs()));
        }
        neurons
            .iter_mut()
            .zip(lengths(&down, shape.width))
            .for_each(|(sum, length)| *sum *= length);
        all.push(Importance {
            influence: influence(&values(&x)?, &values(&next)?, shape.width),
            kv_heads,
            neurons,
        });
        x = next;
        progress.at(layer + 1);
    }
    Ok(all)
}

fn lengths(rows: &[f32], width: usize) -> impl Iterator<Item = f64> {
    rows.chunks_exact(width).map(|row| {
        row.iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt()
    })
}

/// One minus the cosine between rows before and after, on average.
fn influence(before: &[f32], after: &[f32], width: usize) -> f64 {
    let rows = before.chunks_exact(width).zip(after.chunks_exact(width));
    let count = rows.len().max(1) as f64;
    let lengths = lengths(before, width).zip(lengths(after, width));
    let sum: f64 = rows
        .zip(lengths)
        .map(|((before, after), (a, b))| {
            let product: f64 = before
                .iter()
                .zip(after)
                .map(|(x, y)| f64::from(x * y))
                .sum();
            1.0 - product / (a * b).max(f64::MIN_POSITIVE)
        })
        .sum();
    sum / count
}

/// A layer of the target as it is.
pub(super) fn whole_layer(target: &Target<'_>, layer: usize) -> Result<Weights> {
    let shape = &target.shape;
    let all = |count| (0..count).collect::<Vec<usize>>();
    let (kv_heads, neurons) = (all(shape.kv_heads), all(shape.neurons));
    tensors(layer_of(target, layer, layer, &kv_heads, &neurons)?)
}

/// Weights on the processor.
pub(super) fn tensors(weights: BTreeMap<String, Parameter>) -> Result<Weights> {
    let tensor = |(name, (dims, values)): (String, Parameter)| {
        Ok((name, Tensor::from_vec(values, dims, &Device::Cpu)?))
    };
    weights.into_iter().map(tensor).collect()
}

/// Dimensions and elements of a weight of the network.
pub(super) type Parameter = (Vec<usize>, Vec<f32>);

/// The weights that a draft begins with.
pub(super) fn weights_of(target: &Target<'_>, plan: &Plan) -> Result<BTreeMap<String, Parameter>> {
    let mut weights = last_of(target, &plan.tokens)?;
    for (index, &layer) in plan.layers.iter().enumerate() {
        let (kv_heads, neurons) = (&plan.kv_heads[index], &plan.neurons[index]);
        weights.extend(layer_of(target, layer, index, kv_heads, neurons)?);
    }
    Ok(weights)
}

/// The layers of another draft as they were learnt, with the output's rows for tokens that these answers are likely to have:
/// rows that the other draft had no use for are the target's.
pub(super) fn again(
    target: &Target<'_>,
    records: &[Record],
    before: &Plan,
    state: &State,
    sizes: &Sizes,
) -> Result<(Plan, BTreeMap<String, Parameter>)> {
    ensure!(
        before.is_of(&target.shape),
        "it is a draft of another model"
    );
    let plan = Plan {
        tokens: tokens(records, target.vocabulary, sizes.tokens),
        ..before.clone()
    };
    let mut weights = weights_of(target, &plan)?;
    for (name, (dims, values)) in &mut weights {
        let Some(learnt) = state.weights.get(name) else {
            bail!("there was nothing learnt for `{name}`: is it a draft of another model?");
        };
        if name == OUTPUT {
            let width = target.shape.width;
            ensure!(
                learnt.dims == [width, before.tokens.len()],
                "`{name}` is of another model"
            );
            for (column, token) in plan.tokens.iter().enumerate() {
                if let Ok(from) = before.tokens.binary_search(token) {
                    for row in 0..width {
                        values[row * plan.tokens.len() + column] =
                            learnt.values[row * before.tokens.len() + from];
                    }
                }
            }
        } else {
            ensure!(learnt.dims == *dims, "`{name}` is of another model");
            values.clone_from(&learnt.values);
        }
    }
    ensure!(
        state.weights.len() == weights.len(),
        "it is a draft of another model"
    );
    Ok((plan, weights))
}

/// What is behind the layers: a norm, and the rows of the output for some tokens.
fn last_of(target: &Target<'_>, tokens: &[u32]) -> Result<BTreeMap<String, Parameter>> {
    let width = target.shape.width;
    let norm = target.tensor("output_norm.weight")?;
    let head = turned(&target.head(tokens)?, tokens.len());
    Ok(BTreeMap::from([
        ("output_norm.weight".to_owned(), (vec![width], norm)),
        (OUTPUT.to_owned(), (vec![width, tokens.len()], head)),
    ]))
}

/// The sizes of a draft.
pub(super) fn shape_of(target: &Shape, plan: &Plan) -> Shape {
    let kv_heads = plan.kv_heads.first().map_or(target.kv_heads, Vec::len);
    Shape {
        layers: plan.layers.len(),
        heads: target.heads / target.kv_heads * kv_heads,
        kv_heads,
        neurons: plan.neurons.first().map_or(target.neurons, Vec::len),
        ..target.clone()
    }
}

/// A layer of the target, under another index, with some of its heads and neurons.
fn layer_of(
    target: &Target<'_>,
    layer: usize,
    index: usize,
    kv_heads: &[usize],
    neurons: &[usize],
) -> Result<BTreeMap<String, Parameter>> {
    let shape = &target.shape;
    let (dim, width) = (shape.head_dim, shape.width);
    let group = shape.heads / shape.kv_heads * dim;
    let ranges = |size: usize| -> Vec<Range<usize>> {
        kv_heads
            .iter()
            .map(|head| head * size..(head + 1) * size)
            .collect()
    };
    let (queries, keys) = (ranges(group), ranges(dim));
    let neurons: Vec<Range<usize>> = neurons.iter().map(|&neuron| neuron..neuron + 1).collect();
    let mut out = BTreeMap::new();
    let mut put = |part: &str, dims: Vec<usize>, values| {
        out.insert(format!("blk.{index}.{part}"), (dims, values));
    };
    let name = |part: &str| format!("blk.{layer}.{part}");
    for part in ["attn_norm.weight", "ffn_norm.weight"] {
        put(part, vec![width], target.tensor(&name(part))?);
    }
    for part in ["attn_q_norm.weight", "attn_k_norm.weight"] {
        if let Some(norm) = target.find(&name(part))? {
            put(part, vec![dim], norm);
        }
    }
    for (part, ranges) in [
        ("attn_q", &queries),
        ("attn_k", &keys),
        ("attn_v", &keys),
        ("ffn_gate", &neurons),
        ("ffn_up", &neurons),
    ] {
        let weight = rows(
            &target.tensor(&name(&format!("{part}.weight")))?,
            width,
            ranges,
        );
        let count = weight.len() / width;
        put(
            &format!("{part}.weight"),
            vec![width, count],
            turned(&weight, count),
        );
        if let Some(bias) = target.find(&name(&format!("{part}.bias")))? {
            put(&format!("{part}.bias"), vec![count], rows(&bias, 1, ranges));
        }
    }
    for (part, ranges) in [
        ("attn_output.weight", &queries),
        ("ffn_down.weight", &neurons),
    ] {
        // Inputs are what is chosen of these: rows, once the matrix is turned.
        let weight = rows(&turned(&target.tensor(&name(part))?, width), width, ranges);
        put(part, vec![weight.len() / width, width], weight);
    }
    Ok(out)
}

/// Some rows of a matrix.
fn rows(matrix: &[f32], columns: usize, ranges: &[Range<usize>]) -> Vec<f32> {
    let of = |range: &Range<usize>| &matrix[range.start * columns..range.end * columns];
    ranges.iter().flat_map(of).copied().collect()
}

/// The tokens that answers are most likely to have, and those that end them.
fn tokens(records: &[Record], vocabulary: usize, count: usize) -> Vec<u32> {
    let mut scores = vec![0f64; vocabulary];
    for record in records {
        record
            .prompt
            .iter()
            .for_each(|&token| scores[token as usize] += PROMPT_WEIGHT);
        for answer in &record.answers {
            answer
                .end
                .iter()
                .for_each(|&token| scores[token as usize] = f64::INFINITY);
            for &(token, share) in answer.likely.iter().flatten() {
                scores[token as usize] += f64::from(share);
            }
        }
    }
    // Ids of vocabularies made by merging grow with rarity: where nothing is known the first are the best.
    best(&scores, count.min(vocabulary))
        .into_iter()
        .map(|token| token as u32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{best, influence, rows, tokens};
    use crate::draft::dataset::{Answer, Record};

    #[test]
    fn the_largest_are_kept_in_order() {
        assert_eq!(best(&[0.1, 3.0, 2.0, 3.0], 3), [1, 2, 3]);
        assert_eq!(best(&[1.0, 1.0, 1.0], 2), [0, 1]);
        assert_eq!(
            rows(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, &[2..3, 0..1]),
            [5.0, 6.0, 1.0, 2.0]
        );
    }

    #[test]
    fn a_layer_that_only_stretches_has_no_influence() {
        assert!(influence(&[1.0, 2.0], &[2.0, 4.0], 2).abs() < 1e-9);
        assert!((influence(&[1.0, 0.0], &[0.0, 1.0], 2) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn likely_tokens_and_ends_are_guessed() {
        let answer = Answer {
            tokens: vec![5],
            end: Some(9),
            likely: vec![vec![(5, 0.6), (7, 0.3)]],
        };
        let record = Record {
            prompt_index: 0,
            prompt: vec![3, 3],
            answers: vec![answer],
        };
        assert_eq!(tokens(std::slice::from_ref(&record), 10, 3), [5, 7, 9]);
        assert_eq!(tokens(&[record], 10, 5), [0, 3, 5, 7, 9]);
    }
}
