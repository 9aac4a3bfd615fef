//! Arithmetic in double precision, and how far single precision may be from it.
//!
//! Each step says how large its rounding errors can be, in units of [`UNIT`] of the magnitudes that it adds up:
//! one for a rounded operation, and for a sum of n terms in 16 lanes n / 16 for the terms of a lane and a few for the
//! tree.

use super::weights::Matrix;

/// Half the distance between 1 and the next single-precision number.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// One vector for each token.
pub(crate) type Rows = Vec<Vec<f64>>;

/// How a step of attention is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) scale: f64,
    pub(crate) window: Option<usize>,
    pub(crate) cap: Option<f64>,
}

/// Frequencies of pairs and the factor of their cosines and sines.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    pub(crate) frequencies: Vec<f64>,
    pub(crate) magnitude: f64,
    /// Whether a pair is two adjacent elements, rather than one of each half.
    pub(crate) adjacent: bool,
}

/// Exact, or with every result moved at random by its rounding error.
#[derive(Debug)]
pub(crate) struct Math {
    noise: f64,
    state: u64,
}

impl Math {
    pub(crate) fn exact() -> Math {
        Math {
            noise: 0.0,
            state: 0,
        }
    }

    pub(crate) fn rounded(seed: u64) -> Math {
        Math {
            noise: 1.0,
            state: seed,
        }
    }

    /// `value` with an error of at most `units` of `magnitude`.
    fn round(&mut self, value: f64, units: f64, magnitude: f64) -> f64 {
        if self.noise == 0.0 {
            return value;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let uniform = (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
        value + uniform * self.noise * units * UNIT * magnitude.abs()
    }

    /// `matrix` times each row, plus `bias`.
    pub(crate) fn product(&mut self, matrix: &Matrix, bias: Option<&[f64]>, x: &Rows) -> Rows {
        let units = matrix.columns as f64 / 16.0 + 5.0;
        let mut result = Vec::new();
        for x in x {
            let mut row = Vec::with_capacity(matrix.rows);
            for index in 0..matrix.rows {
                let weights = &matrix.values[index * matrix.columns..][..matrix.columns];
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for (weight, x) in weights.iter().zip(x) {
                    sum += weight * x;
                    magnitude += (weight * x).abs();
                }
                let sum = self.round(sum, units, magnitude);
                let bias = bias.map_or(0.0, |bias| bias[index]);
                row.push(self.round(sum + bias, 1.0, sum + bias));
            }
            result.push(row);
        }
        result
    }

    /// Root mean square norm of each row, in pieces as long as the weights.
    pub(crate) fn norm(&mut self, x: &Rows, weight: &[f64], epsilon: f64) -> Rows {
        let units = weight.len() as f64 / 32.0 + 6.0;
        let mut result = x.clone();
        for row in &mut result {
            for piece in row.chunks_exact_mut(weight.len()) {
                let mean = piece.iter().map(|x| x * x).sum::<f64>() / weight.len() as f64;
                for (x, weight) in piece.iter_mut().zip(weight) {
                    *x = *x / (mean + epsilon).sqrt() * weight;
                    *x = self.round(*x, units, *x);
                }
            }
        }
        result
    }

    pub(crate) fn add(&mut self, x: &mut Rows, other: &Rows) {
        for (x, other) in x.iter_mut().flatten().zip(other.iter().flatten()) {
            *x += other;
            *x = self.round(*x, 1.0, *x);
        }
    }

    pub(crate) fn scale(&mut self, x: &mut Rows, factor: f64) {
        for x in x.iter_mut().flatten() {
            *x *= factor;
            *x = self.round(*x, 2.0, *x);
        }
    }

    /// `cap tanh(x / cap)`.
    pub(crate) fn soft_cap(&mut self, x: &mut Rows, cap: f64) {
        for x in x.iter_mut().flatten() {
            *x = cap * (*x / cap).tanh();
            *x = self.round(*x, 6.0, cap);
        }
    }

    /// `silu(gate) * up`.
    pub(crate) fn swiglu(&mut self, gate: &Rows, up: &Rows) -> Rows {
        self.gated(gate, up, |x| x / (1.0 + (-x).exp()))
    }

    /// `gelu(gate) * up`, in the form with a tanh.
    pub(crate) fn geglu(&mut self, gate: &Rows, up: &Rows) -> Rows {
        self.gated(gate, up, |x| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        })
    }

    fn gated(&mut self, gate: &Rows, up: &Rows, activation: fn(f64) -> f64) -> Rows {
        let mut result = gate.clone();
        for (gate, up) in result.iter_mut().flatten().zip(up.iter().flatten()) {
            let x = *gate;
            *gate = activation(x) * up;
            // An exponential of x has an error that grows with x.
            *gate = self.round(*gate, 10.0 + 10.0 * x.abs(), *gate);
        }
        result
    }

    /// Rotates each head of each row by its position, the row's index.
    pub(crate) fn rotate(&mut self, x: &mut Rows, head_dim: usize, rope: &Rope) {
        let pairs = rope.frequencies.len();
        for (position, row) in x.iter_mut().enumerate() {
            for head in row.chunks_exact_mut(head_dim) {
                for (pair, frequency) in rope.frequencies.iter().enumerate() {
                    let (a, b) = if rope.adjacent {
                        (2 * pair, 2 * pair + 1)
                    } else {
                        (pair, pair + pairs)
                    };
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    let (x, y) = (head[a] * rope.magnitude, head[b] * rope.magnitude);
                    let size = x.abs() + y.abs();
                    head[a] = self.round(x * cos - y * sin, 3.0, size);
                    head[b] = self.round(x * sin + y * cos, 3.0, size);
                }
            }
        }
    }

    /// Causal attention of queries over keys and values, which the engine keeps in half precision.
    pub(crate) fn attention(&mut self, q: &Rows, k: &Rows, v: &Rows, how: &Attention) -> Rows {
        let half = |rows: &Rows| -> Rows {
            rows.iter()
                .map(|row| {
                    row.iter()
                        .map(|&x| half::f16::from_f64(x).to_f64())
                        .collect()
                })
                .collect()
        };
        let (k, v) = (half(k), half(v));
        let dim = q[0].len() / how.heads;
        let mut result = Vec::new();
        for (position, query) in q.iter().enumerate() {
            let mut row = Vec::with_capacity(query.len());
            for head in 0..how.heads {
                let kv_head = head / (how.heads / how.kv_heads);
                let query = &query[head * dim..][..dim];
                let seen: Vec<usize> = (0..=position)
                    .filter(|p| how.window.is_none_or(|window| position - p < window))
                    .collect();
                let mut scores = Vec::with_capacity(seen.len());
                for &p in &seen {
                    let key = &k[p][kv_head * dim..][..dim];
                    let (mut sum, mut magnitude) = (0.0, 0.0);
                    for (q, k) in query.iter().zip(key) {
                        sum += q * k;
                        magnitude += (q * k).abs();
                    }
                    let mut score = self.round(sum, dim as f64, magnitude) * how.scale;
                    score = self.round(score, 1.0, score);
                    if let Some(cap) = how.cap {
                        score = cap * (score / cap).tanh();
                        score = self.round(score, 6.0, cap);
                    }
                    scores.push(score);
                }
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores
                    .iter()
                    .map(|score| {
                        let weight = (score - largest).exp();
                        self.round(weight, 5.0, weight)
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for element in 0..dim {
                    let element = kv_head * dim + element;
                    let (mut sum, mut magnitude) = (0.0, 0.0);
                    for (weight, &p) in weights.iter().zip(&seen) {
                        sum += weight * v[p][element];
                        magnitude += (weight * v[p][element]).abs();
                    }
                    let units = seen.len() as f64 + 6.0;
                    row.push(self.round(sum / total, units, magnitude / total));
                }
            }
            result.push(row);
        }
        result
    }
}
