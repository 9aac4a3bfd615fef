//! GGUF files of encoders, which make embeddings: small enough for any test and the same on every machine.
//!
//! The vectors mean nothing, but everything else about them is real: each architecture's tensors and keys, and a
//! vocabulary of its own kind.

use std::io;
use std::path::Path;

use crate::tiny_model::{
    ALIGNMENT, Draw, MERGES, Metadata, Tensor, TensorType, byte_level, file, vocabulary,
};

/// Which encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `bert`: learned positions, biases, GELU.
    Bert,
    /// `nomic-bert`: rotations, SwiGLU, no biases.
    Nomic,
    /// `jina-bert-v2`: linear biases by distance, GEGLU.
    JinaV2,
    /// `jina-bert-v2` with norms of queries and keys and one more of the residual stream.
    JinaV2Code,
    /// `modern-bert`: norms before each part, rotations, GEGLU, windows.
    ModernBert,
}

impl Family {
    /// Every one, for tests that walk them.
    pub const ALL: [Family; 5] = [
        Family::Bert,
        Family::Nomic,
        Family::JinaV2,
        Family::JinaV2Code,
        Family::ModernBert,
    ];

    /// `general.architecture`
    #[must_use]
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Bert => "bert",
            Family::Nomic => "nomic-bert",
            Family::JinaV2 | Family::JinaV2Code => "jina-bert-v2",
            Family::ModernBert => "modern-bert",
        }
    }
}

/// The shape of a tiny encoder; every field may be changed before [`TinyEncoder::bytes`].
#[derive(Clone, Debug)]
pub struct TinyEncoder {
    /// Which one.
    pub family: Family,
    /// What `general.name` says.
    pub name: String,
    /// Layers.
    pub layer_count: usize,
    /// Width of the residual stream; in whole blocks of `weights`, and a multiple of `head_count`.
    pub embedding: usize,
    /// Width of the feed-forward; in whole blocks of `weights`.
    pub feed_forward: usize,
    /// Heads; a count that is no power of two shows more of the linear biases.
    pub head_count: usize,
    /// Longest context the file claims.
    pub context_tokens_max: usize,
    /// Positions that a window of `modern-bert` holds.
    pub window: u32,
    /// Type of the layers' matrices; the embedding is Q8_0 under a quantized type, all else F32.
    pub weights: TensorType,
    /// Queries, keys and values in one matrix; `modern-bert` has them so anyway.
    pub fused: bool,
    /// `<architecture>.pooling_type`; `None` leaves it out.
    pub pooling: Option<u32>,
    /// With a head that classifies.
    pub head: bool,
    /// What the weights are drawn from.
    pub seed: u64,
}

impl Default for TinyEncoder {
    fn default() -> TinyEncoder {
        TinyEncoder {
            family: Family::Bert,
            name: "tiny-encoder".to_owned(),
            layer_count: 4,
            embedding: 96,
            feed_forward: 192,
            head_count: 6,
            context_tokens_max: 320,
            window: 24,
            weights: TensorType::F32,
            fused: false,
            pooling: Some(1),
            head: false,
            seed: 1,
        }
    }
}

impl TinyEncoder {
    /// Writes the file to `path`.
    ///
    /// # Errors
    /// When `path` cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.bytes())
    }

    /// The whole file.
    ///
    /// # Panics
    /// When the shape breaks a rule its fields name.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        assert_eq!(self.embedding % self.head_count, 0, "in whole heads");
        file(&self.metadata(), &self.tensors())
    }

    fn metadata(&self) -> Metadata {
        let name = self.family.architecture();
        let mut meta = Metadata::default();
        meta.str("general.architecture", name);
        meta.str("general.name", &self.name);
        meta.u32("general.alignment", ALIGNMENT as u32);
        let counts = [
            ("block_count", self.layer_count),
            ("context_length", self.context_tokens_max),
            ("embedding_length", self.embedding),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.head_count),
        ];
        for (key, count) in counts {
            meta.u32(&format!("{name}.{key}"), count as u32);
        }
        // BERT's own: small enough that a variance near zero is not hidden by it.
        meta.f32(&format!("{name}.attention.layer_norm_epsilon"), 1e-12);
        meta.bool(&format!("{name}.attention.causal"), false);
        if let Some(pooling) = self.pooling {
            meta.u32(&format!("{name}.pooling_type"), pooling);
        }
        match self.family {
            Family::Nomic => meta.f32("nomic-bert.rope.freq_base", 1000.0),
            Family::ModernBert => {
                meta.f32("modern-bert.rope.freq_base", 160_000.0);
                meta.f32("modern-bert.rope.freq_base_swa", 10_000.0);
                meta.u32("modern-bert.attention.sliding_window", self.window);
                meta.u32("modern-bert.attention.sliding_window_pattern", 3);
            }
            Family::Bert | Family::JinaV2 | Family::JinaV2Code => {}
        }
        meta.u32("tokenizer.ggml.token_type_count", 2);
        if self.family == Family::ModernBert {
            byte_level(&mut meta, &vocabulary(MERGES.len()), MERGES.len());
        } else {
            word_piece(&mut meta);
        }
        meta
    }

    fn tensors(&self) -> Vec<Tensor> {
        // As files have it: no rows of 4 bits where tokens are looked up, and floats where positions are.
        let outer = match self.weights {
            TensorType::F32 | TensorType::F16 => self.weights,
            _ => TensorType::Q8_0,
        };
        let mut writer = Tensors {
            draw: Draw { state: self.seed },
            weights: self.weights,
            tensors: Vec::new(),
        };
        let (width, between) = (self.embedding, self.feed_forward);
        let modern = self.family == Family::ModernBert;
        let jina = matches!(self.family, Family::JinaV2 | Family::JinaV2Code);
        let biases = self.family == Family::Bert || jina;
        let token_count = if modern {
            vocabulary(MERGES.len()).len()
        } else {
            pieces().len()
        };
        writer.rows("token_embd", width, token_count, outer);
        if !modern {
            writer.rows("token_types", width, 2, TensorType::F32);
        }
        if self.family == Family::Bert {
            let count = self.context_tokens_max;
            writer.rows("position_embd", width, count, TensorType::F32);
        }
        writer.norm("token_embd_norm", width, !modern);
        for layer in 0..self.layer_count {
            let name = |part: &str| format!("blk.{layer}.{part}");
            if self.fused || modern {
                writer.linear(&name("attn_qkv"), width, 3 * width, biases);
            } else {
                for part in ["attn_q", "attn_k", "attn_v"] {
                    writer.linear(&name(part), width, width, biases);
                }
            }
            writer.linear(&name("attn_output"), width, width, biases);
            if self.family == Family::JinaV2Code {
                for part in ["attn_q_norm", "attn_k_norm", "attn_norm_2"] {
                    writer.norm(&name(part), width, true);
                }
            }
            if modern {
                writer.linear(&name("ffn_up"), width, 2 * between, false);
                if layer > 0 {
                    writer.norm(&name("attn_norm"), width, false);
                }
                writer.norm(&name("ffn_norm"), width, false);
            } else {
                writer.linear(&name("ffn_up"), width, between, self.family == Family::Bert);
                if self.family != Family::Bert {
                    writer.linear(&name("ffn_gate"), width, between, false);
                }
                writer.norm(&name("attn_output_norm"), width, true);
                writer.norm(&name("layer_output_norm"), width, true);
            }
            writer.linear(&name("ffn_down"), between, width, biases);
        }
        if modern {
            writer.norm("output_norm", width, false);
        }
        if self.head {
            writer.linear("cls", width, width, true);
            writer.norm("cls.norm", width, false);
            writer.linear("cls.output", width, 1, true);
        }
        writer.tensors
    }
}

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Special tokens, then letters, digits, marks and syllables, first those that begin a word and then those that go on
/// with one. U+2581 stands before what begins a word, as files have it.
fn pieces() -> Vec<String> {
    let letters = || ('a'..='z').chain('0'..='9').map(String::from);
    let syllables = || {
        ('a'..='z').flat_map(|first| {
            "aeiou"
                .chars()
                .map(move |second| format!("{first}{second}"))
        })
    };
    let marks = ('!'..='~')
        .filter(char::is_ascii_punctuation)
        .map(String::from);
    let first = letters().chain(marks).chain(syllables());
    let special = SPECIAL.iter().map(|text| (*text).to_owned());
    special
        .chain(first.map(|text| format!("\u{2581}{text}")))
        .chain(letters().chain(syllables()))
        .collect()
}

/// The keys of a WordPiece vocabulary.
fn word_piece(meta: &mut Metadata) {
    let pieces = pieces();
    meta.str("tokenizer.ggml.model", "bert");
    let texts: Vec<&str> = pieces.iter().map(String::as_str).collect();
    meta.strs("tokenizer.ggml.tokens", &texts);
    // 1 is an ordinary token, 2 the unknown one, 3 a control token.
    let kinds: Vec<i32> = (0..pieces.len())
        .map(|id| match id {
            1 => 2,
            0..5 => 3,
            _ => 1,
        })
        .collect();
    meta.i32s("tokenizer.ggml.token_type", &kinds);
    for (key, id) in [
        ("padding", 0),
        ("unknown", 1),
        ("cls", 2),
        ("bos", 2),
        ("seperator", 3),
        ("eos", 3),
        ("mask", 4),
    ] {
        meta.u32(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
}

struct Tensors {
    draw: Draw,
    weights: TensorType,
    tensors: Vec<Tensor>,
}

impl Tensors {
    fn put(&mut self, name: &str, dims: &[usize], kind: TensorType, values: &[f32]) {
        let tensor = Tensor::new(name.to_owned(), dims, kind, values);
        self.tensors.push(tensor);
    }

    /// Rows that are looked up, with elements of about one.
    fn rows(&mut self, name: &str, columns: usize, rows: usize, kind: TensorType) {
        let values: Vec<f32> = (0..columns * rows).map(|_| self.draw.normal()).collect();
        self.put(&format!("{name}.weight"), &[columns, rows], kind, &values);
    }

    fn linear(&mut self, name: &str, columns: usize, rows: usize, bias: bool) {
        let values = self.draw.matrix(columns, rows);
        self.put(
            &format!("{name}.weight"),
            &[columns, rows],
            self.weights,
            &values,
        );
        if bias {
            self.bias(name, rows);
        }
    }

    fn norm(&mut self, name: &str, width: usize, bias: bool) {
        let values = self.draw.norm(width);
        self.put(
            &format!("{name}.weight"),
            &[width],
            TensorType::F32,
            &values,
        );
        if bias {
            self.bias(name, width);
        }
    }

    fn bias(&mut self, name: &str, width: usize) {
        let values: Vec<f32> = (0..width).map(|_| 0.1 * self.draw.normal()).collect();
        self.put(&format!("{name}.bias"), &[width], TensorType::F32, &values);
    }
}
