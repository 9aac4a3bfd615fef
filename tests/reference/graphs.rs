//! The graph of each architecture, straight from its published description: the papers and model cards of Llama,
//! Mistral, SmolLM3, Qwen 2 and 3, Gemma 1 to 3, Phi-3, Granite and OLMo 2, and the configurations of their
//! checkpoints. Names of tensors and keys are those of GGUF.

use super::math::{Attention, Math, Rope, Rows};
use super::weights::Weights;
use std::f64::consts::PI;

/// Logits of every position.
pub(crate) fn logits(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let graph = match &*file.architecture {
        "llama" => llama,
        "mistral3" => mistral3,
        "smollm3" => smollm3,
        "qwen2" => qwen2,
        "qwen3" => qwen3,
        "gemma" => gemma,
        "gemma2" => gemma2,
        "gemma3" => gemma3,
        "phi3" => phi3,
        "granite" => granite,
        "olmo2" => olmo2,
        other => panic!("no reference of {other}"),
    };
    graph(math, file, tokens)
}

/// Sizes and the steps that every graph has.
struct Sizes {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    epsilon: f64,
}

fn sizes(file: &Weights) -> Sizes {
    let heads = file.count("attention.head_count");
    Sizes {
        layers: file.count("block_count"),
        heads,
        kv_heads: file.count("attention.head_count_kv"),
        head_dim: file.number("attention.key_length").map_or_else(
            || file.count("embedding_length") / heads,
            |length| length as usize,
        ),
        epsilon: file
            .number("attention.layer_norm_rms_epsilon")
            .expect("an epsilon"),
    }
}

impl Sizes {
    /// Attention over all positions, with the usual scale.
    fn attention(&self) -> Attention {
        Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            window: None,
            cap: None,
        }
    }
}

fn embedding(file: &Weights, tokens: &[u32]) -> Rows {
    let matrix = file.matrix("token_embd");
    let row =
        |&token: &u32| matrix.values[token as usize * matrix.columns..][..matrix.columns].to_vec();
    tokens.iter().map(row).collect()
}

/// The matrix of a layer, with its bias if it has one.
fn linear(math: &mut Math, file: &Weights, layer: usize, name: &str, x: &Rows) -> Rows {
    let name = format!("blk.{layer}.{name}");
    math.product(file.matrix(&name), file.bias(&name), x)
}

fn norm(math: &mut Math, file: &Weights, layer: usize, name: &str, x: &Rows) -> Rows {
    let weight = file.vector(&format!("blk.{layer}.{name}"));
    let weight = weight.unwrap_or_else(|| panic!("no {name}"));
    math.norm(x, weight, sizes(file).epsilon)
}

fn output(math: &mut Math, file: &Weights, hidden: &Rows) -> Rows {
    let weight = file.vector("output_norm").expect("an output norm");
    let x = math.norm(hidden, weight, sizes(file).epsilon);
    let tied = file.vector("output").is_none();
    math.product(
        file.matrix(if tied { "token_embd" } else { "output" }),
        None,
        &x,
    )
}

/// Frequencies from a base, all divided by a factor.
fn rope(base: f64, dims: usize, factor: f64, adjacent: bool) -> Rope {
    let frequency = |pair: usize| base.powf(-2.0 * pair as f64 / dims as f64) / factor;
    Rope {
        frequencies: (0..dims / 2).map(frequency).collect(),
        magnitude: 1.0,
        adjacent,
    }
}

/// The rotation with the scaling that the file names.
fn scaled_rope(file: &Weights, adjacent: bool) -> Rope {
    let base = file.number("rope.freq_base").expect("a base");
    let dims = file.count("rope.dimension_count");
    let mut rope = rope(base, dims, 1.0, adjacent);
    let factor = file.number("rope.scaling.factor").unwrap_or(1.0);
    match file.scaling() {
        "linear" => rope.frequencies.iter_mut().for_each(|f| *f /= factor),
        "yarn" => yarn(file, &mut rope, base, dims as f64, factor),
        "longrope" => {
            // Which list depends on the context served, here the whole of the file's.
            let long =
                file.count("context_length") > file.count("rope.scaling.original_context_length");
            let name = if long {
                "rope_factors_long"
            } else {
                "rope_factors_short"
            };
            let factors = file.vector(name).expect("factors");
            for (frequency, factor) in rope.frequencies.iter_mut().zip(factors) {
                *frequency /= factor;
            }
            rope.magnitude = file
                .number("rope.scaling.attn_factor")
                .expect("an attention factor");
        }
        _ => {}
    }
    if let Some(factors) = file.vector("rope_freqs") {
        for (frequency, factor) in rope.frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
    }
    rope
}

/// Peng and others, "YaRN: Efficient Context Window Extension of Large Language Models", with the ramp over the index
/// of the pair as in the authors' code.
fn yarn(file: &Weights, rope: &mut Rope, base: f64, dims: f64, factor: f64) {
    let original = file
        .number("rope.scaling.original_context_length")
        .expect("an original context");
    let fast = file.number("rope.scaling.yarn_beta_fast").unwrap_or(32.0);
    let slow = file.number("rope.scaling.yarn_beta_slow").unwrap_or(1.0);
    let dimension =
        |rotations: f64| dims * (original / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln());
    let low = dimension(fast).floor().max(0.0);
    let high = dimension(slow).ceil().min(dims - 1.0);
    for (pair, frequency) in rope.frequencies.iter_mut().enumerate() {
        let ramp = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        let (interpolated, extrapolated) = (*frequency / factor, *frequency);
        *frequency = interpolated * ramp + extrapolated * (1.0 - ramp);
    }
    // "mscale" and "mscale_all_dim" of the configurations: the first is one.
    let mscale = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
    let all = file.number("rope.scaling.yarn_log_multiplier");
    rope.magnitude = mscale(1.0) / all.map_or(1.0, mscale);
}

/// The feed-forward part of llama and most others.
fn swiglu(math: &mut Math, file: &Weights, layer: usize, x: &Rows) -> Rows {
    let gate = linear(math, file, layer, "ffn_gate", x);
    let up = linear(math, file, layer, "ffn_up", x);
    let inner = math.swiglu(&gate, &up);
    linear(math, file, layer, "ffn_down", &inner)
}

/// The feed-forward part of the Gemma family.
fn geglu(math: &mut Math, file: &Weights, layer: usize, x: &Rows) -> Rows {
    let gate = linear(math, file, layer, "ffn_gate", x);
    let up = linear(math, file, layer, "ffn_up", x);
    let inner = math.geglu(&gate, &up);
    linear(math, file, layer, "ffn_down", &inner)
}

fn llama(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, true);
    let window = file.number("attention.sliding_window");
    let mut h = embedding(file, tokens);
    for layer in 0..s.layers {
        let x = norm(math, file, layer, "attn_norm", &h);
        let mut q = linear(math, file, layer, "attn_q", &x);
        let mut k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        let how = Attention {
            window: window.map(|window| window as usize),
            ..s.attention()
        };
        let attended = math.attention(&q, &k, &v, &how);
        let projected = linear(math, file, layer, "attn_output", &attended);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let projected = swiglu(math, file, layer, &x);
        math.add(&mut h, &projected);
    }
    output(math, file, &h)
}

/// As llama, with queries multiplied by `1 + beta ln(1 + floor(position / original))`.
fn mistral3(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, true);
    let beta = file.number("attention.temperature_scale").expect("a scale");
    let original = file.count("rope.scaling.original_context_length");
    let mut h = embedding(file, tokens);
    for layer in 0..s.layers {
        let x = norm(math, file, layer, "attn_norm", &h);
        let mut q = linear(math, file, layer, "attn_q", &x);
        let mut k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        for (position, q) in q.iter_mut().enumerate() {
            let growth = 1.0 + beta * (1.0 + (position / original) as f64).ln();
            q.iter_mut().for_each(|q| *q *= growth);
        }
        let attended = math.attention(&q, &k, &v, &s.attention());
        let projected = linear(math, file, layer, "attn_output", &attended);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let projected = swiglu(math, file, layer, &x);
        math.add(&mut h, &projected);
    }
    output(math, file, &h)
}

/// As llama, but every fourth layer has no positions.
fn smollm3(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, true);
    let mut h = embedding(file, tokens);
    for layer in 0..s.layers {
        let x = norm(math, file, layer, "attn_norm", &h);
        let mut q = linear(math, file, layer, "attn_q", &x);
        let mut k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        if layer % 4 != 3 {
            math.rotate(&mut q, s.head_dim, &rope);
            math.rotate(&mut k, s.head_dim, &rope);
        }
        let attended = math.attention(&q, &k, &v, &s.attention());
        let projected = linear(math, file, layer, "attn_output", &attended);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let projected = swiglu(math, file, layer, &x);
        math.add(&mut h, &projected);
    }
    output(math, file, &h)
}

/// Biases on queries, keys and values; rotated in halves.
fn qwen2(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, false);
    let mut h = embedding(file, tokens);
    for layer in 0..s.layers {
        for part in ["attn_q", "attn_k", "attn_v"] {
            assert!(file.bias(&format!("blk.{layer}.{part}")).is_some());
        }
        let x = norm(math, file, layer, "attn_norm", &h);
        let mut q = linear(math, file, layer, "attn_q", &x);
        let mut k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        let attended = math.attention(&q, &k, &v, &s.attention());
        let projected = linear(math, file, layer, "attn_output", &attended);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let projected = swiglu(math, file, layer, &x);
        math.add(&mut h, &projected);
    }
    output(math, file, &h)
}

/// Norms of each head's queries and keys before the rotation.
fn qwen3(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, false);
    let mut h = embedding(file, tokens);
    for layer in 0..s.layers {
        let x = norm(math, file, layer, "attn_norm", &h);
        let q = linear(math, file, layer, "attn_q", &x);
        let k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        let mut q = norm(math, file, layer, "attn_q_norm", &q);
        let mut k = norm(math, file, layer, "attn_k_norm", &k);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        let attended = math.attention(&q, &k, &v, &s.attention());
        let projected = linear(math, file, layer, "attn_output", &attended);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let projected = swiglu(math, file, layer, &x);
        math.add(&mut h, &projected);
    }
    output(math, file, &h)
}

/// The embedding times the root of its width, and GEGLU. (That norms multiply by one plus their weight is in the file.)
fn gemma(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, false);
    let mut h = embedding(file, tokens);
    math.scale(&mut h, (file.count("embedding_length") as f64).sqrt());
    for layer in 0..s.layers {
        let x = norm(math, file, layer, "attn_norm", &h);
        let mut q = linear(math, file, layer, "attn_q", &x);
        let mut k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        let attended = math.attention(&q, &k, &v, &s.attention());
        let projected = linear(math, file, layer, "attn_output", &attended);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let projected = geglu(math, file, layer, &x);
        math.add(&mut h, &projected);
    }
    output(math, file, &h)
}

/// Norms before and after each part, the first of two layers with a window, capped scores and logits.
fn gemma2(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, false);
    let mut h = embedding(file, tokens);
    math.scale(&mut h, (file.count("embedding_length") as f64).sqrt());
    for layer in 0..s.layers {
        let x = norm(math, file, layer, "attn_norm", &h);
        let mut q = linear(math, file, layer, "attn_q", &x);
        let mut k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        let window = file.count("attention.sliding_window");
        let how = Attention {
            window: (layer % 2 == 0).then_some(window),
            cap: file.number("attn_logit_softcapping"),
            ..s.attention()
        };
        let attended = math.attention(&q, &k, &v, &how);
        let projected = linear(math, file, layer, "attn_output", &attended);
        let projected = norm(math, file, layer, "post_attention_norm", &projected);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let projected = geglu(math, file, layer, &x);
        let projected = norm(math, file, layer, "post_ffw_norm", &projected);
        math.add(&mut h, &projected);
    }
    let mut logits = output(math, file, &h);
    let cap = file.number("final_logit_softcapping").expect("a cap");
    math.soft_cap(&mut logits, cap);
    logits
}

/// Norms before and after each part and of queries and keys; five of six layers have a window and positions from base
/// 10000, the sixth all positions from the file's base with its scaling. Some files cap logits.
fn gemma3(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let global = scaled_rope(file, false);
    let local = rope(10000.0, s.head_dim, 1.0, false);
    let mut h = embedding(file, tokens);
    math.scale(&mut h, (file.count("embedding_length") as f64).sqrt());
    for layer in 0..s.layers {
        let period = file.number("attention.sliding_window_pattern");
        let period = period.map_or(6, |period| period as usize);
        let windowed = layer % period != period - 1;
        let rope = if windowed { &local } else { &global };
        let x = norm(math, file, layer, "attn_norm", &h);
        let q = linear(math, file, layer, "attn_q", &x);
        let k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        let mut q = norm(math, file, layer, "attn_q_norm", &q);
        let mut k = norm(math, file, layer, "attn_k_norm", &k);
        math.rotate(&mut q, s.head_dim, rope);
        math.rotate(&mut k, s.head_dim, rope);
        let how = Attention {
            window: windowed.then_some(file.count("attention.sliding_window")),
            ..s.attention()
        };
        let attended = math.attention(&q, &k, &v, &how);
        let projected = linear(math, file, layer, "attn_output", &attended);
        let projected = norm(math, file, layer, "post_attention_norm", &projected);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let projected = geglu(math, file, layer, &x);
        let projected = norm(math, file, layer, "post_ffw_norm", &projected);
        math.add(&mut h, &projected);
    }
    let mut logits = output(math, file, &h);
    if let Some(cap) = file.number("final_logit_softcapping") {
        math.soft_cap(&mut logits, cap);
    }
    logits
}

/// One matrix for queries, keys and values, one for gates and ups; rotated in halves.
fn phi3(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, false);
    let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let columns = |rows: &Rows, from: usize, count: usize| -> Rows {
        rows.iter()
            .map(|row| row[from..from + count].to_vec())
            .collect()
    };
    let mut h = embedding(file, tokens);
    for layer in 0..s.layers {
        let x = norm(math, file, layer, "attn_norm", &h);
        let all = linear(math, file, layer, "attn_qkv", &x);
        let mut q = columns(&all, 0, queries);
        let mut k = columns(&all, queries, keys);
        let v = columns(&all, queries + keys, keys);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        let attended = math.attention(&q, &k, &v, &s.attention());
        let projected = linear(math, file, layer, "attn_output", &attended);
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let both = linear(math, file, layer, "ffn_up", &x);
        let inner = both[0].len() / 2;
        let (gate, up) = (columns(&both, 0, inner), columns(&both, inner, inner));
        let gated = math.swiglu(&gate, &up);
        let projected = linear(math, file, layer, "ffn_down", &gated);
        math.add(&mut h, &projected);
    }
    output(math, file, &h)
}

/// As llama, with four multipliers.
fn granite(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, true);
    let factor = |name| file.number(name).expect("a factor");
    let mut h = embedding(file, tokens);
    math.scale(&mut h, factor("embedding_scale"));
    for layer in 0..s.layers {
        let x = norm(math, file, layer, "attn_norm", &h);
        let mut q = linear(math, file, layer, "attn_q", &x);
        let mut k = linear(math, file, layer, "attn_k", &x);
        let v = linear(math, file, layer, "attn_v", &x);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        let how = Attention {
            scale: factor("attention.scale"),
            ..s.attention()
        };
        let attended = math.attention(&q, &k, &v, &how);
        let mut projected = linear(math, file, layer, "attn_output", &attended);
        math.scale(&mut projected, factor("residual_scale"));
        math.add(&mut h, &projected);
        let x = norm(math, file, layer, "ffn_norm", &h);
        let mut projected = swiglu(math, file, layer, &x);
        math.scale(&mut projected, factor("residual_scale"));
        math.add(&mut h, &projected);
    }
    let mut logits = output(math, file, &h);
    math.scale(&mut logits, 1.0 / factor("logit_scale"));
    logits
}

/// Norms after each part only, and of all queries and all keys of a token.
fn olmo2(math: &mut Math, file: &Weights, tokens: &[u32]) -> Rows {
    let s = sizes(file);
    let rope = scaled_rope(file, false);
    let mut h = embedding(file, tokens);
    for layer in 0..s.layers {
        let q = linear(math, file, layer, "attn_q", &h);
        let k = linear(math, file, layer, "attn_k", &h);
        let v = linear(math, file, layer, "attn_v", &h);
        let mut q = norm(math, file, layer, "attn_q_norm", &q);
        let mut k = norm(math, file, layer, "attn_k_norm", &k);
        math.rotate(&mut q, s.head_dim, &rope);
        math.rotate(&mut k, s.head_dim, &rope);
        let attended = math.attention(&q, &k, &v, &s.attention());
        let projected = linear(math, file, layer, "attn_output", &attended);
        let projected = norm(math, file, layer, "post_attention_norm", &projected);
        math.add(&mut h, &projected);
        let projected = swiglu(math, file, layer, &h);
        let projected = norm(math, file, layer, "post_ffw_norm", &projected);
        math.add(&mut h, &projected);
    }
    output(math, file, &h)
}
