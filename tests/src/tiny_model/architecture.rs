//! What files of each architecture say, for [`TinyModel`]: the keys and tensors in which they differ from llama's.

use super::{Draw, Metadata, Tensor, TensorType, TinyModel};

/// An architecture, with the things that its files may or may not have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Architecture {
    /// What tests call it.
    pub title: &'static str,
    /// `general.architecture`.
    pub name: &'static str,
    /// Layers it takes to have every kind of them.
    pub layer_count: usize,
    /// What has biases.
    pub biases: Biases,
    /// Whether queries, keys and values are one matrix, and gates and ups another.
    pub fused: bool,
    /// What is normalized of queries and keys.
    pub query_key_norm: QueryKeyNorm,
    /// Tensors of a layer's norms of the residual stream.
    pub norms: &'static [&'static str],
    /// `attention.sliding_window`, zero for none.
    pub window: u32,
    /// How positions are scaled.
    pub scaling: Scaling,
    /// Further keys.
    pub factors: &'static [(&'static str, f32)],
    /// Further keys of whole numbers.
    pub counts: &'static [(&'static str, u32)],
}

/// What has biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Biases {
    /// Nothing.
    None,
    /// Queries, keys and values.
    QueryKeyValue,
    /// Every matrix of a layer.
    Every,
    /// These matrices of a layer, and `output`.
    Of(&'static [&'static str]),
}

impl Biases {
    /// Whether that matrix has one.
    pub(super) fn of(self, part: &str) -> bool {
        match self {
            Biases::None => false,
            Biases::QueryKeyValue => ["attn_q", "attn_k", "attn_v"].contains(&part),
            Biases::Every => part != "output",
            Biases::Of(parts) => parts.contains(&part),
        }
    }
}

/// What is normalized of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// Nothing.
    None,
    /// Each head.
    Heads,
    /// All heads together.
    Whole,
}

/// How positions are scaled to a longer context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// By `rope_freqs.weight`.
    Factors,
    /// All alike.
    Linear {
        /// By this factor.
        factor: f32,
    },
    /// By YaRN.
    Yarn {
        /// By this factor.
        factor: f32,
        /// From so many positions.
        original: u32,
    },
    /// By LongRoPE.
    LongRope {
        /// Up to so many positions, by the short factors; beyond, by the long ones.
        original: u32,
        /// Factor of cosines and sines.
        attention: f32,
    },
}

const BEFORE: &[&str] = &["attn_norm", "ffn_norm"];
const AFTER: &[&str] = &["post_attention_norm", "post_ffw_norm"];
const BOTH: &[&str] = &[
    "attn_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
];

impl Architecture {
    /// The plainest.
    pub const LLAMA: Architecture = Architecture {
        title: "llama",
        name: "llama",
        layer_count: 2,
        biases: Biases::None,
        fused: false,
        query_key_norm: QueryKeyNorm::None,
        norms: BEFORE,
        window: 0,
        scaling: Scaling::None,
        factors: &[],
        counts: &[],
    };

    /// Every one, with every scaling.
    pub const ALL: [Architecture; 20] = [
        Architecture::LLAMA,
        Architecture {
            title: "llama with biases",
            biases: Biases::Every,
            ..Architecture::LLAMA
        },
        Architecture {
            title: "llama with a window",
            window: 24,
            ..Architecture::LLAMA
        },
        Architecture {
            title: "llama with factors",
            scaling: Scaling::Factors,
            ..Architecture::LLAMA
        },
        Architecture {
            title: "llama, linear",
            scaling: Scaling::Linear { factor: 4.0 },
            ..Architecture::LLAMA
        },
        Architecture {
            title: "llama, YaRN",
            scaling: Scaling::Yarn {
                factor: 8.0,
                original: 64,
            },
            ..Architecture::LLAMA
        },
        Architecture {
            title: "mistral3",
            name: "mistral3",
            scaling: Scaling::Yarn {
                factor: 16.0,
                original: 32,
            },
            factors: &[
                ("attention.temperature_scale", 0.1),
                ("rope.scaling.yarn_beta_fast", 16.0),
                ("rope.scaling.yarn_beta_slow", 2.0),
                ("rope.scaling.yarn_log_multiplier", 0.7),
            ],
            ..Architecture::LLAMA
        },
        Architecture {
            title: "smollm3",
            name: "smollm3",
            layer_count: 4,
            ..Architecture::LLAMA
        },
        Architecture {
            title: "qwen2",
            name: "qwen2",
            biases: Biases::QueryKeyValue,
            ..Architecture::LLAMA
        },
        Architecture {
            title: "qwen2, YaRN",
            name: "qwen2",
            biases: Biases::QueryKeyValue,
            scaling: Scaling::Yarn {
                factor: 4.0,
                original: 128,
            },
            ..Architecture::LLAMA
        },
        Architecture {
            title: "qwen3",
            name: "qwen3",
            query_key_norm: QueryKeyNorm::Heads,
            ..Architecture::LLAMA
        },
        Architecture {
            title: "gemma",
            name: "gemma",
            ..Architecture::LLAMA
        },
        Architecture {
            title: "gemma2",
            name: "gemma2",
            norms: BOTH,
            window: 20,
            factors: &[
                ("attn_logit_softcapping", 5.0),
                ("final_logit_softcapping", 3.0),
            ],
            ..Architecture::LLAMA
        },
        Architecture {
            title: "gemma3",
            name: "gemma3",
            layer_count: 6,
            query_key_norm: QueryKeyNorm::Heads,
            norms: BOTH,
            window: 20,
            scaling: Scaling::Linear { factor: 8.0 },
            factors: &[("rope.freq_base", 1e6)],
            ..Architecture::LLAMA
        },
        Architecture {
            title: "gemma3, every other layer",
            name: "gemma3",
            query_key_norm: QueryKeyNorm::Heads,
            norms: BOTH,
            window: 20,
            factors: &[("final_logit_softcapping", 3.0)],
            counts: &[("attention.sliding_window_pattern", 2)],
            ..Architecture::LLAMA
        },
        Architecture {
            title: "phi3",
            name: "phi3",
            fused: true,
            ..Architecture::LLAMA
        },
        Architecture {
            title: "phi3, LongRoPE, short",
            name: "phi3",
            fused: true,
            scaling: Scaling::LongRope {
                original: 512,
                attention: 1.19,
            },
            ..Architecture::LLAMA
        },
        Architecture {
            title: "phi3, LongRoPE, long",
            name: "phi3",
            fused: true,
            scaling: Scaling::LongRope {
                original: 64,
                attention: 1.19,
            },
            ..Architecture::LLAMA
        },
        Architecture {
            title: "granite",
            name: "granite",
            factors: &[
                ("logit_scale", 6.0),
                ("residual_scale", 0.22),
                ("embedding_scale", 12.0),
                ("attention.scale", 0.1),
            ],
            ..Architecture::LLAMA
        },
        Architecture {
            title: "olmo2",
            name: "olmo2",
            query_key_norm: QueryKeyNorm::Whole,
            norms: AFTER,
            ..Architecture::LLAMA
        },
    ];
}

/// The hyperparameters of a file.
pub(super) fn metadata(model: &TinyModel, meta: &mut Metadata) {
    let architecture = &model.architecture;
    let key = |name: &str| format!("{}.{name}", architecture.name);
    let head_dim = model.head_dim() as u32;
    meta.str("general.architecture", architecture.name);
    meta.str("general.name", &model.name);
    meta.u32("general.alignment", super::ALIGNMENT as u32);
    meta.u32(
        &key("block_count"),
        (model.layer_count + model.idle_layer_count) as u32,
    );
    meta.u32(&key("context_length"), model.context_tokens_max as u32);
    meta.u32(&key("embedding_length"), model.embedding as u32);
    meta.u32(&key("feed_forward_length"), model.feed_forward as u32);
    meta.u32(&key("attention.head_count"), model.head_count as u32);
    meta.u32(&key("attention.head_count_kv"), model.head_count_kv as u32);
    meta.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    if model.head_dim.is_some() {
        meta.u32(&key("attention.key_length"), head_dim);
        meta.u32(&key("attention.value_length"), head_dim);
    }
    meta.u32(&key("rope.dimension_count"), head_dim);
    let base_key = "rope.freq_base";
    if !architecture
        .factors
        .iter()
        .any(|&(name, _)| name == base_key)
    {
        meta.f32(&key(base_key), 10_000.0);
    }
    if architecture.window > 0 {
        meta.u32(&key("attention.sliding_window"), architecture.window);
    }
    let original_key = key("rope.scaling.original_context_length");
    match architecture.scaling {
        Scaling::None | Scaling::Factors => {}
        Scaling::Linear { factor } => {
            meta.str(&key("rope.scaling.type"), "linear");
            meta.f32(&key("rope.scaling.factor"), factor);
        }
        Scaling::Yarn { factor, original } => {
            meta.str(&key("rope.scaling.type"), "yarn");
            meta.f32(&key("rope.scaling.factor"), factor);
            meta.u32(&original_key, original);
        }
        Scaling::LongRope {
            original,
            attention,
        } => {
            meta.str(&key("rope.scaling.type"), "longrope");
            meta.f32(&key("rope.scaling.attn_factor"), attention);
            meta.u32(&original_key, original);
        }
    }
    for (name, value) in architecture.factors {
        meta.f32(&key(name), *value);
    }
    for (name, value) in architecture.counts {
        meta.u32(&key(name), *value);
    }
}

/// The tensors between the embedding and the last norm.
pub(super) fn layers(model: &TinyModel, draw: &mut Draw, tensors: &mut Vec<Tensor>) {
    let architecture = &model.architecture;
    let (width, inner) = (model.embedding, model.feed_forward);
    let queries = model.head_dim() * model.head_count;
    let keys = model.head_dim() * model.head_count_kv;
    for layer in 0..model.layer_count + model.idle_layer_count {
        let idle = layer >= model.layer_count;
        // What is drawn for these leaves what comes behind them as it is without.
        let mut aside = Draw {
            state: model.seed.wrapping_add(layer as u64),
        };
        let draw = if idle { &mut aside } else { &mut *draw };
        let name = |part: &str| format!("blk.{layer}.{part}");
        let mut matrix = |part: &str, columns: usize, rows: usize| {
            let mut values = draw.matrix(columns, rows);
            if idle && ["attn_output", "ffn_down"].contains(&part) {
                values.fill(0.0);
            }
            let dims = [columns, rows];
            let weight = name(&format!("{part}.weight"));
            tensors.push(Tensor::new(weight, &dims, model.weights, &values));
            if architecture.biases.of(part) {
                let bias: Vec<f32> = (0..rows).map(|_| draw.normal() * 0.5).collect();
                let name = name(&format!("{part}.bias"));
                tensors.push(Tensor::new(name, &[rows], TensorType::F32, &bias));
            }
        };
        if architecture.fused {
            matrix("attn_qkv", width, queries + 2 * keys);
        } else {
            matrix("attn_q", width, queries);
            matrix("attn_k", width, keys);
            matrix("attn_v", width, keys);
        }
        matrix("attn_output", queries, width);
        if architecture.fused {
            matrix("ffn_up", width, 2 * inner);
        } else {
            matrix("ffn_gate", width, inner);
            matrix("ffn_up", width, inner);
        }
        matrix("ffn_down", inner, width);
        let mut vector = |part: &str, values: &[f32]| {
            let name = name(&format!("{part}.weight"));
            tensors.push(Tensor::new(name, &[values.len()], TensorType::F32, values));
        };
        for part in architecture.norms {
            vector(part, &draw.norm(width));
        }
        let lengths = match architecture.query_key_norm {
            QueryKeyNorm::None => None,
            QueryKeyNorm::Heads => Some([model.head_dim(); 2]),
            QueryKeyNorm::Whole => Some([queries, keys]),
        };
        if let Some([queries, keys]) = lengths {
            vector("attn_q_norm", &draw.norm(queries));
            vector("attn_k_norm", &draw.norm(keys));
        }
    }
    let pairs = model.head_dim() / 2;
    let factors: &[(&str, f32)] = match architecture.scaling {
        Scaling::Factors => &[("rope_freqs.weight", 8.0)],
        Scaling::LongRope { .. } => &[
            ("rope_factors_long.weight", 16.0),
            ("rope_factors_short.weight", 1.5),
        ],
        _ => &[],
    };
    for &(name, last) in factors {
        // From one to `last`, growing with the pair.
        let values: Vec<f32> = (0..pairs)
            .map(|pair| 1.0 + (last - 1.0) * pair as f32 / pairs as f32)
            .collect();
        let name = name.to_owned();
        tensors.push(Tensor::new(name, &[pairs], TensorType::F32, &values));
    }
}
