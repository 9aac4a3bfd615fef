//! Attention: every instruction set against scalar to the bit, scalar against f64, and rows against their neighbours.

use super::{HASH_START, Random, assert_same_bits, fold_bits, scalar};
use crate::attend::{Attention, Block, Partial, QuantizedQueriesMut};
use crate::op::attention::{
    CHUNK, Keys, PAGE, Queries, TILE, Values, key_groups, key_index, key_level_index, key_levels,
    key_scale_index,
};
use crate::{Isa, Table};
use std::ops::Range;
use std::string::String;
use std::vec;
use std::vec::Vec;

/// Keys and values of one KV head, in both forms, and what they stand for.
struct Store {
    head_dim: usize,
    length: usize,
    keys: Vec<u16>,
    values: Vec<u16>,
    key_levels: Vec<i8>,
    key_scales: Vec<u16>,
    value_levels: Vec<i8>,
    value_scales: Vec<u16>,
}

impl Store {
    /// Positions that are not there hold what spoils every result it gets into.
    fn new(random: &mut Random, head_dim: usize, length: usize) -> Store {
        let padded = length.next_multiple_of(PAGE);
        let nan = 0x7e00;
        let (levels, groups) = (key_levels(head_dim), key_groups(head_dim));
        let mut store = Store {
            head_dim,
            length,
            keys: vec![nan; padded * head_dim],
            values: vec![nan; padded * head_dim],
            key_levels: vec![0; padded * levels],
            key_scales: vec![nan; padded * groups],
            value_levels: vec![0; padded * head_dim],
            value_scales: vec![nan; padded],
        };
        let table = scalar();
        for position in 0..length {
            // Some dimensions of keys are much larger than others, as they are in models.
            let key: Vec<f32> = (0..head_dim)
                .map(|dim| random.unit() * if dim % 37 == 5 { 30.0 } else { 2.0 })
                .collect();
            let value: Vec<f32> = (0..head_dim).map(|_| random.unit() * 4.0).collect();
            let (mut to, mut scales) = (vec![0; levels], vec![0; groups]);
            table.quantize_key(&key, &mut to, &mut scales);
            for (dim, &level) in to.iter().enumerate() {
                store.key_levels[key_level_index(position, dim, head_dim)] = level;
            }
            for (group, &scale) in scales.iter().enumerate() {
                store.key_scales[key_scale_index(position, group, head_dim)] = scale;
            }
            let row = position * head_dim..(position + 1) * head_dim;
            store.value_scales[position] =
                table.quantize_head(&value, &mut store.value_levels[row.clone()]);
            for (dim, &key) in key.iter().enumerate() {
                store.keys[key_index(position, dim, head_dim)] = half::f16::from_f32(key).to_bits();
            }
            table.to_half(&value, &mut store.values[row]);
        }
        store
    }

    fn page(&self, page: usize, quantized: bool) -> (Keys<'_>, Values<'_>) {
        let of = |each: usize| page * PAGE * each..(page + 1) * PAGE * each;
        if quantized {
            let keys = &self.key_levels[of(key_levels(self.head_dim))];
            (
                Keys::Q8(keys, &self.key_scales[of(key_groups(self.head_dim))]),
                Values::Q8(
                    &self.value_levels[of(self.head_dim)],
                    &self.value_scales[of(1)],
                ),
            )
        } else {
            (
                Keys::F16(&self.keys[of(self.head_dim)]),
                Values::F16(&self.values[of(self.head_dim)]),
            )
        }
    }

    fn key(&self, position: usize, dim: usize, quantized: bool) -> f64 {
        if quantized {
            let level = self.key_levels[key_level_index(position, dim, self.head_dim)];
            let scale = self.key_scales[key_scale_index(position, dim / 32, self.head_dim)];
            f64::from(level) * half::f16::from_bits(scale).to_f64()
        } else {
            half::f16::from_bits(self.keys[key_index(position, dim, self.head_dim)]).to_f64()
        }
    }

    fn value(&self, position: usize, dim: usize, quantized: bool) -> f64 {
        let at = position * self.head_dim + dim;
        if quantized {
            let scale = half::f16::from_bits(self.value_scales[position]).to_f64();
            f64::from(self.value_levels[at]) * scale
        } else {
            half::f16::from_bits(self.values[at]).to_f64()
        }
    }
}

fn partial<'a>(sums: &'a mut [[f32; 2]], outputs: &'a mut [f32]) -> Partial<'a> {
    Partial { sums, outputs }
}

/// A block of queries and how it attends.
struct Case {
    store: Store,
    queries: Vec<f32>,
    tokens: usize,
    group: usize,
    position: usize,
    quantized: bool,
    cap: Option<f32>,
    slopes: Option<Vec<f32>>,
    before: usize,
    after: usize,
}

impl Case {
    fn attention(&self) -> Attention<'_> {
        Attention {
            scale: 0.125,
            cap: self.cap,
            slopes: self.slopes.as_deref(),
            before: self.before,
            after: self.after,
        }
    }

    fn name(&self) -> String {
        std::format!(
            "head {} group {} tokens {} at {} of {} seeing {}+{} 8 bits {}",
            self.store.head_dim,
            self.group,
            self.tokens,
            self.position,
            self.store.length,
            self.before,
            self.after,
            self.quantized
        )
    }

    /// What the rows of `tokens` get, computed together: `[token][head][dimension]`.
    fn run(&self, table: &Table, tokens: Range<usize>) -> Vec<f32> {
        let head_dim = self.store.head_dim;
        let width = self.group * head_dim;
        // The queries of other heads lie between those of two tokens.
        let queries = Queries {
            values: &self.queries[tokens.start * (width + 3)..],
            token_stride: width + 3,
            tokens: tokens.len(),
            group: self.group,
            head_dim,
        };
        let rows = queries.rows();
        let mut levels = vec![0; 2 * rows * key_levels(head_dim)];
        let mut scales = vec![0.0; 2 * rows * key_groups(head_dim)];
        let mut offsets = vec![0; 2 * rows * key_groups(head_dim)];
        let quantized = self.quantized.then(|| {
            let output = QuantizedQueriesMut {
                levels: &mut levels,
                scales: &mut scales,
                offsets: &mut offsets,
            };
            table.quantize_queries(&queries, output)
        });
        let block = Block {
            queries,
            quantized,
            position: self.position + tokens.start,
            length: self.store.length,
        };
        let attention = self.attention();
        let mut weights = vec![f32::NAN; 2 * rows * CHUNK];
        let (mut sums, mut outputs) = (vec![[0.0; 2]; rows], vec![0.0; rows * head_dim]);
        let (mut next_sums, mut next) = (vec![[0.0; 2]; rows], vec![0.0; rows * head_dim]);
        for chunk in attention.chunks(&block) {
            table.attend_chunk(
                &attention,
                &block,
                chunk,
                |page| self.store.page(page, self.quantized),
                &mut weights,
                partial(&mut next_sums, &mut next),
            );
            let total = partial(&mut sums, &mut outputs);
            table.merge_chunks(total, &partial(&mut next_sums, &mut next), head_dim);
        }
        for (output, [_, sum]) in outputs.chunks_exact_mut(head_dim).zip(sums) {
            output.iter_mut().for_each(|value| *value /= sum);
        }
        outputs
    }

    /// The query's elements as the scores see them.
    fn query(&self, token: usize, head: usize) -> Vec<f64> {
        let head_dim = self.store.head_dim;
        let start = token * (self.group * head_dim + 3) + head * head_dim;
        let query = &self.queries[start..start + head_dim];
        if !self.quantized {
            return query.iter().map(|&q| f64::from(q)).collect();
        }
        let (stride, groups) = (key_levels(head_dim), key_groups(head_dim));
        let (mut levels, mut scales) = (vec![0; 2 * stride], vec![0.0; 2 * groups]);
        scalar().quantize_query(query, &mut levels, &mut scales, &mut vec![0; 2 * groups]);
        let seen = (0..head_dim).map(|dim| {
            let part = |part: usize| {
                let level = f64::from(levels[part * stride + dim]);
                level * f64::from(scales[part * groups + dim / 32])
            };
            part(0) + part(1)
        });
        let seen: Vec<f64> = seen.collect();
        for (seen, &query) in seen.iter().zip(query) {
            assert!(
                (seen - f64::from(query)).abs() < 1e-4,
                "two parts are close"
            );
        }
        seen
    }

    /// Checks a row against f64.
    fn check_row(&self, token: usize, head: usize, actual: &[f32]) {
        let query = self.query(token, head);
        let position = self.position + token;
        let seen = self.attention().seen(position, self.store.length);
        let mut bound = 0.0f64;
        let scores: Vec<f64> = seen
            .clone()
            .map(|p| {
                let terms = query
                    .iter()
                    .enumerate()
                    .map(|(dim, q)| q * self.store.key(p, dim, self.quantized));
                let mut score = 0.125 * terms.clone().sum::<f64>();
                bound = bound.max(terms.map(f64::abs).sum::<f64>() * 0.125 * 4e-6);
                if let Some(cap) = self.cap.map(f64::from) {
                    score = cap * libm::tanh(score / cap);
                }
                if let Some(slopes) = &self.slopes {
                    score -= f64::from(slopes[head]) * position.abs_diff(p) as f64;
                }
                bound = bound.max(score.abs() * 1e-6);
                score
            })
            .collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| libm::exp(score - top)).collect();
        let total: f64 = weights.iter().sum();
        for (dim, &actual) in actual.iter().enumerate() {
            let values = seen
                .clone()
                .zip(&weights)
                .map(|(p, weight)| weight / total * self.store.value(p, dim, self.quantized));
            let size: f64 = values.clone().map(f64::abs).sum();
            let exact: f64 = values.sum();
            let error = (f64::from(actual) - exact).abs();
            // An error of the scores by `bound` changes a weight by that part of it.
            let bound = size * (2.0 * bound + 1e-4) + 1e-6;
            assert!(error <= bound, "{}: error {error}", self.name());
        }
    }
}

/// Cases that have every number of heads, ragged beginnings and ends, and windows that begin anywhere.
fn for_each_case(mut check: impl FnMut(&Case)) {
    let mut random = Random(2);
    let dims = [32, 64, 72, 80, 96, 128, 256, 40, 4, 200];
    for index in 0..dims.len() * 6 {
        let head_dim = dims[index % dims.len()];
        let group = index % 8 + 1;
        let tokens = [1, 3, 1, 5, 2, 8][index % 6].min(24 / group).max(1);
        let all = usize::MAX;
        let reach = random.below(2 * CHUNK);
        let (before, after) = [(all, 0), (reach, 0), (reach, reach), (all, all)][index % 4];
        let length = [
            tokens,
            tokens + random.below(PAGE),
            CHUNK - 1,
            CHUNK,
            CHUNK + 1 + random.below(TILE),
            2 * CHUNK + tokens + random.below(CHUNK),
        ][random.below(6)]
        .max(tokens);
        let position = length - tokens - random.below(1 + (length - tokens) / 4);
        // What is causal has stored nothing after its last token.
        let length = if after == 0 {
            position + tokens
        } else {
            length
        };
        let slopes = (index % 5 == 1).then(|| (0..group).map(|_| random.unit().abs()).collect());
        let queries = (0..tokens * (group * head_dim + 3))
            .map(|_| random.unit() * 2.0)
            .collect();
        let store = Store::new(&mut random, head_dim, length);
        check(&Case {
            store,
            queries,
            tokens,
            group,
            position,
            quantized: index / 2 % 2 == 1,
            cap: (index % 3 == 2).then_some(20.0),
            slopes,
            before,
            after,
        });
    }
}

#[test]
fn attention_has_the_scalar_bits_on_every_instruction_set() {
    for_each_case(|case| {
        let expected = case.run(&scalar(), 0..case.tokens);
        assert!(expected.iter().all(|value| value.is_finite()));
        for table in Table::runnable().filter(|table| table.isa() != Isa::Scalar) {
            let context = std::format!("{} {}", table.isa().name(), case.name());
            assert_same_bits(&case.run(&table, 0..case.tokens), &expected, &context);
        }
    });
}

#[test]
fn scalar_attention_follows_double_precision() {
    for_each_case(|case| {
        let actual = case.run(&scalar(), 0..case.tokens);
        for (row, actual) in actual.chunks_exact(case.store.head_dim).enumerate() {
            case.check_row(row / case.group, row % case.group, actual);
        }
    });
}

#[test]
fn a_token_does_not_depend_on_its_neighbours() {
    let table = Table::new(Isa::best()).expect("the best is supported");
    for_each_case(|case| {
        let together = case.run(&table, 0..case.tokens);
        let width = case.group * case.store.head_dim;
        for (token, expected) in together.chunks_exact(width).enumerate() {
            let alone = case.run(&table, token..token + 1);
            assert_same_bits(&alone, expected, &case.name());
        }
    });
}

#[test]
fn attention_is_the_same_on_every_architecture() {
    for table in Table::runnable() {
        let mut hash = HASH_START;
        for_each_case(|case| hash = fold_bits(hash, &case.run(&table, 0..case.tokens)));
        // Seen on x86-64. A change of what attention is changes it.
        assert_eq!(
            hash,
            0xe1c2_637f_f76a_0e45,
            "{}: {hash:#018x}",
            table.isa().name()
        );
    }
}

#[test]
fn heads_keep_within_half_a_step_and_mark_what_is_not_finite() {
    let mut random = Random(7);
    for table in Table::runnable() {
        for length in [1, 15, 32, 80, 256] {
            let x: Vec<f32> = (0..length).map(|_| random.unit() * 3.0).collect();
            let mut levels = vec![0; length];
            let scale = half::f16::from_bits(table.quantize_head(&x, &mut levels)).to_f32();
            for (&level, &value) in levels.iter().zip(&x) {
                let error = (f32::from(level) * scale - value).abs();
                // The scale is rounded too, which the largest elements feel.
                assert!(error <= scale * 0.57, "error {error} of step {scale}");
            }
            for fault in [f32::NAN, f32::INFINITY, 1e30] {
                let mut x = x.clone();
                x[length / 2] = fault;
                let scale = half::f16::from_bits(table.quantize_head(&x, &mut levels));
                assert!(scale.is_nan() && levels.iter().all(|&level| level == 0));
            }
            let small = vec![1e-9; length];
            assert_eq!(table.quantize_head(&small, &mut levels), 0);
            // Where the scale is a subnormal f16, levels stay in range.
            let small: Vec<f32> = x.iter().map(|x| x * 5e-6).collect();
            let scale = half::f16::from_bits(table.quantize_head(&small, &mut levels)).to_f32();
            for (&level, &value) in levels.iter().zip(&small) {
                let error = (f32::from(level) * scale - value).abs();
                assert!(level != i8::MIN && error <= 127.0 * 6e-8, "error {error}");
            }
        }
    }
}

#[test]
fn linear_biases_grow_with_the_distance() {
    let mut scores = [1.0; 4];
    crate::op::attention::add_linear_bias(&mut scores, 0.5, 18, 16);
    assert_eq!(scores, [0.0, 0.5, 1.0, 0.5]);
}
