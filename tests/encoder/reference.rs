//! The graph of each encoder in double precision, written from its published description: BERT (Devlin et al., 2018),
//! rotary positions (Su et al., 2021), linear biases (Press et al., 2021), gated units (Shazeer, 2020), ModernBERT
//! (Warner et al., 2024). Nothing of it is shared with the engine but the reading of the file.

use andon_engine::gguf::Gguf;
use andon_kernels::block;

/// Rows of numbers.
type Rows = Vec<Vec<f64>>;

/// A file's weights and numbers.
pub(crate) struct Reference<'a> {
    gguf: Gguf<'a>,
    architecture: String,
}

impl<'a> Reference<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reference<'a> {
        let gguf = Gguf::parse(bytes).expect("a sound file");
        let architecture = gguf
            .str("general.architecture")
            .expect("it names one")
            .to_owned();
        Reference { gguf, architecture }
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn count(&self, key: &str) -> usize {
        self.gguf.u32(&self.key(key)).expect("a count") as usize
    }

    fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    fn rows(&self, name: &str) -> Rows {
        let tensor = self.gguf.tensor(name).expect("the tensor is there");
        let (columns, rows) = (tensor.dims[0], tensor.dims.row_count());
        let mut values = vec![0.0; columns * rows];
        let format = tensor.format.expect("a known format");
        block::decode_row(format, self.gguf.data(tensor), &mut values);
        values
            .chunks(columns)
            .map(|row| row.iter().map(|&value| f64::from(value)).collect())
            .collect()
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        self.rows(name).remove(0)
    }

    fn linear(&self, name: &str, x: &Rows) -> Rows {
        let matrix = self.rows(&format!("{name}.weight"));
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) {
            self.vector(&bias)
        } else {
            vec![0.0; matrix.len()]
        };
        x.iter()
            .map(|x| {
                matrix
                    .iter()
                    .zip(&bias)
                    .map(|(row, bias)| dot(row, x) + bias)
                    .collect()
            })
            .collect()
    }

    fn norm(&self, name: &str, x: &Rows) -> Rows {
        let weight = self.vector(&format!("{name}.weight"));
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) {
            self.vector(&bias)
        } else {
            vec![0.0; weight.len()]
        };
        let epsilon = self
            .gguf
            .f32(&self.key("attention.layer_norm_epsilon"))
            .expect("an epsilon");
        x.iter()
            .map(|x| {
                let count = x.len() as f64;
                let mean = x.iter().sum::<f64>() / count;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                let deviation = (variance + f64::from(epsilon)).sqrt();
                x.iter()
                    .zip(weight.iter().zip(&bias))
                    .map(|(x, (weight, bias))| (x - mean) / deviation * weight + bias)
                    .collect()
            })
            .collect()
    }

    /// The last residual stream of every token.
    pub(crate) fn hidden(&self, tokens: &[u32]) -> Rows {
        let embedding = self.rows("token_embd.weight");
        let mut h: Rows = tokens
            .iter()
            .map(|&token| embedding[token as usize].clone())
            .collect();
        if self.has("token_types.weight") {
            let first = self.vector("token_types.weight");
            h = h.iter().map(|h| add(h, &first)).collect();
        }
        if self.has("position_embd.weight") {
            let rows = self.rows("position_embd.weight");
            h = h.iter().zip(&rows).map(|(h, row)| add(h, row)).collect();
        }
        h = self.norm("token_embd_norm", &h);
        let modern = self.architecture == "modern-bert";
        for layer in 0..self.count("block_count") {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let input = if modern && layer > 0 {
                self.norm(&name("attn_norm"), &h)
            } else {
                h.clone()
            };
            let attended = self.linear(&name("attn_output"), &self.attention(layer, &input));
            let before = h.clone();
            h = add_rows(&h, &attended);
            if modern {
                let input = self.norm(&name("ffn_norm"), &h);
                h = add_rows(&h, &self.feed_forward(layer, &input));
                continue;
            }
            h = self.norm(&name("attn_output_norm"), &h);
            if self.has(&name("attn_norm_2.weight")) {
                h = self.norm(&name("attn_norm_2"), &add_rows(&h, &before));
            }
            h = add_rows(&h, &self.feed_forward(layer, &h));
            h = self.norm(&name("layer_output_norm"), &h);
        }
        if modern {
            h = self.norm("output_norm", &h);
        }
        h
    }

    fn attention(&self, layer: usize, x: &Rows) -> Rows {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let width = x[0].len();
        let (mut query, mut key, value) = if self.has(&name("attn_qkv.weight")) {
            let all = self.linear(&name("attn_qkv"), x);
            let part = |part: usize| -> Rows {
                all.iter()
                    .map(|row| row[part * width..(part + 1) * width].to_vec())
                    .collect()
            };
            (part(0), part(1), part(2))
        } else {
            (
                self.linear(&name("attn_q"), x),
                self.linear(&name("attn_k"), x),
                self.linear(&name("attn_v"), x),
            )
        };
        if self.has(&name("attn_q_norm.weight")) {
            query = self.norm(&name("attn_q_norm"), &query);
            key = self.norm(&name("attn_k_norm"), &key);
        }
        let heads = self.count("attention.head_count");
        let dims = width / heads;
        let local = self.architecture == "modern-bert" && !layer.is_multiple_of(3);
        let base = match &*self.architecture {
            "modern-bert" if local => Some("rope.freq_base_swa"),
            "modern-bert" | "nomic-bert" => Some("rope.freq_base"),
            _ => None,
        };
        if let Some(base) = base {
            let base = f64::from(self.gguf.f32(&self.key(base)).expect("a base"));
            for rows in [&mut query, &mut key] {
                for (position, row) in rows.iter_mut().enumerate() {
                    row.chunks_mut(dims)
                        .for_each(|head| rotate(head, base, position));
                }
            }
        }
        let reach = if local {
            self.count("attention.sliding_window") / 2
        } else {
            usize::MAX
        };
        let slope = |head: usize| {
            if self.architecture != "jina-bert-v2" {
                return 0.0;
            }
            // The power of two at or below the number of heads, then every second slope of twice as many.
            let below = 1usize << heads.ilog2();
            if head < below {
                2f64.powf(-8.0 * (head + 1) as f64 / below as f64)
            } else {
                let beyond = head - below;
                2f64.powf(-4.0 * (2 * beyond + 1) as f64 / below as f64)
            }
        };
        (0..x.len())
            .map(|position| {
                (0..heads)
                    .flat_map(|head| {
                        let at = head * dims..(head + 1) * dims;
                        let seen: Vec<usize> = (0..x.len())
                            .filter(|other| other.abs_diff(position) <= reach)
                            .collect();
                        let weights: Vec<f64> = seen
                            .iter()
                            .map(|&other| {
                                let score =
                                    dot(&query[position][at.clone()], &key[other][at.clone()]);
                                let distance = other.abs_diff(position) as f64;
                                (score / (dims as f64).sqrt() - slope(head) * distance).exp()
                            })
                            .collect();
                        let sum: f64 = weights.iter().sum();
                        at.map(|dim| {
                            let weighted = seen.iter().zip(&weights);
                            weighted
                                .map(|(&other, weight)| weight * value[other][dim])
                                .sum::<f64>()
                                / sum
                        })
                        .collect::<Vec<f64>>()
                    })
                    .collect()
            })
            .collect()
    }

    fn feed_forward(&self, layer: usize, x: &Rows) -> Rows {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let up = self.linear(&name("ffn_up"), x);
        let inner: Rows = match &*self.architecture {
            "bert" => up
                .iter()
                .map(|row| row.iter().map(|&x| gelu(x)).collect())
                .collect(),
            "modern-bert" => up
                .iter()
                .map(|row| {
                    let (gate, up) = row.split_at(row.len() / 2);
                    gate.iter()
                        .zip(up)
                        .map(|(&gate, up)| gelu(gate) * up)
                        .collect()
                })
                .collect(),
            architecture => {
                let act = |x: f64| {
                    if architecture == "nomic-bert" {
                        x / (1.0 + (-x).exp())
                    } else {
                        gelu(x)
                    }
                };
                self.linear(&name("ffn_gate"), x)
                    .iter()
                    .zip(&up)
                    .map(|(gate, up)| {
                        gate.iter()
                            .zip(up)
                            .map(|(&gate, up)| act(gate) * up)
                            .collect()
                    })
                    .collect()
            }
        };
        self.linear(&name("ffn_down"), &inner)
    }
}

/// Rotates pairs of elements half a head apart.
fn rotate(head: &mut [f64], base: f64, position: usize) {
    let dims = head.len();
    for pair in 0..dims / 2 {
        let angle = position as f64 * base.powf(-2.0 * pair as f64 / dims as f64);
        let (x, y) = (head[pair], head[pair + dims / 2]);
        head[pair] = x * angle.cos() - y * angle.sin();
        head[pair + dims / 2] = x * angle.sin() + y * angle.cos();
    }
}

/// `x Φ(x)`, with the normal distribution's function by the series of Marsaglia (2004), which converges everywhere.
fn gelu(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    if x.abs() > 12.0 {
        return x.max(0.0);
    }
    while term.abs() > 1e-17 * sum.abs() {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    x * (0.5 + density * sum)
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter()
        .zip(right)
        .map(|(left, right)| left * right)
        .sum()
}

fn add(left: &[f64], right: &[f64]) -> Vec<f64> {
    left.iter()
        .zip(right)
        .map(|(left, right)| left + right)
        .collect()
}

fn add_rows(left: &Rows, right: &Rows) -> Rows {
    left.iter()
        .zip(right)
        .map(|(left, right)| add(left, right))
        .collect()
}
