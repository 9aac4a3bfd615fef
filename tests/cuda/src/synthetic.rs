//! Model files in the shapes of real models, with weights by chance: their text means nothing, their cost is the real one.
//!
//! Invariant: values are about as large as those of real models, so that nothing overflows, and no two rows are the same, so
//! that the best token is one.

use andon_engine::gguf::{Value, Writer};
use andon_kernels::Format;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A shape, and how weights are kept.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// By which it is asked for, and named in results.
    pub name: &'static str,
    /// `llama` or `gemma3`.
    pub architecture: &'static str,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Width of the feed-forward part.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Whether the embedding is the output matrix, too.
    pub tied: bool,
    /// Format of the layers' matrices.
    pub weights: Format,
    /// Format of the embedding and of the output matrix, and of the values' and the feed-forward's last in some layers.
    pub outer: Format,
}

/// Llama 3's vocabulary.
const LLAMA_3: usize = 128_256;

/// The small ones, whose tokens are compared with the processor's.
pub const COMPARED: [Shape; 2] = [
    Shape {
        name: "smollm2-135m",
        architecture: "llama",
        layers: 30,
        embedding: 576,
        feed_forward: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocabulary: 49_152,
        tied: true,
        weights: Format::Q4_1,
        outer: Format::Q8_0,
    },
    Shape {
        name: "gemma3-270m",
        architecture: "gemma3",
        layers: 18,
        embedding: 640,
        feed_forward: 2048,
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        vocabulary: 262_144,
        tied: true,
        weights: Format::Q5_0,
        outer: Format::Q8_0,
    },
];

/// Those whose tokens are timed.
pub const TIMED: [Shape; 3] = [
    Shape {
        name: "1b",
        architecture: "llama",
        layers: 16,
        embedding: 2048,
        feed_forward: 8192,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        vocabulary: LLAMA_3,
        tied: true,
        weights: Format::Q4K,
        outer: Format::Q6K,
    },
    Shape {
        name: "3b",
        architecture: "llama",
        layers: 28,
        embedding: 3072,
        feed_forward: 8192,
        heads: 24,
        kv_heads: 8,
        head_dim: 128,
        vocabulary: LLAMA_3,
        tied: true,
        weights: Format::Q4K,
        outer: Format::Q6K,
    },
    Shape {
        name: "8b",
        architecture: "llama",
        layers: 32,
        embedding: 4096,
        feed_forward: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocabulary: LLAMA_3,
        tied: false,
        weights: Format::Q4K,
        outer: Format::Q6K,
    },
];

impl Shape {
    /// The shape called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Shape> {
        let all = COMPARED.into_iter().chain(TIMED);
        all.into_iter().find(|shape| shape.name == name)
    }

    /// The same with little of everything, for runs in the emulation.
    #[must_use]
    pub fn small(self) -> Shape {
        let wide = self.weights.block_elements() == 256;
        Shape {
            layers: 3,
            embedding: if wide { 256 } else { 64 },
            feed_forward: if wide { 256 } else { 96 },
            heads: 2,
            kv_heads: 1,
            head_dim: if wide { 128 } else { 64 },
            vocabulary: 300,
            ..self
        }
    }

    /// The file of this shape in a folder, which is written unless it is there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn in_folder(&self, folder: &Path) -> io::Result<PathBuf> {
        let path = folder.join(format!("{}-{}.gguf", self.name, self.vocabulary));
        if !path.is_file() {
            let writing = folder.join(format!("{}.{}", self.name, std::process::id()));
            self.write(&writing)?;
            fs::rename(writing, &path)?;
        }
        Ok(path)
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut writer = Writer::new();
        self.describe(&mut writer);
        let tensors = self.tensors();
        for (name, dims, format) in &tensors {
            let known = writer.tensor(name, dims, *format);
            known.ok_or_else(|| io::Error::other(format!("{name} is in no whole blocks")))?;
        }
        let mut tensors = tensors.iter();
        let mut state = 1;
        let mut out = BufWriter::with_capacity(8 << 20, File::create(path)?);
        writer.write(&mut out, |_, out| match tensors.next() {
            Some((_, dims, format)) => weights(&mut state, dims, *format, out),
            None => Ok(()),
        })?;
        out.into_inner()?.sync_data()
    }

    fn describe(&self, writer: &mut Writer) {
        let text = |writer: &mut Writer, key: &str, text: &str| writer.put(key, &Value::Str(text));
        text(writer, "general.architecture", self.architecture);
        text(writer, "general.name", &format!("synthetic {}", self.name));
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", 8192),
            ("embedding_length", self.embedding),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocabulary),
        ] {
            let value = Value::U32(u32::try_from(value).unwrap_or(u32::MAX));
            writer.put(&format!("{}.{key}", self.architecture), &value);
        }
        let key = |name: &str| format!("{}.{name}", self.architecture);
        writer.put(&key("attention.layer_norm_rms_epsilon"), &Value::F32(1e-5));
        writer.put(&key("rope.freq_base"), &Value::F32(500_000.0));
        if self.architecture == "gemma3" {
            writer.put(&key("attention.sliding_window"), &Value::U32(512));
        }
        text(writer, "tokenizer.ggml.model", "gpt2");
        text(writer, "tokenizer.ggml.pre", "smollm");
        let tokens = tokens(self.vocabulary);
        writer.put_texts("tokenizer.ggml.tokens", &tokens);
        let kinds = (0..tokens.len()).map(|token| if token < CONTROLS { 3 } else { 1 });
        writer.put_list("tokenizer.ggml.token_type", &kinds.collect::<Vec<u32>>());
        writer.put_texts("tokenizer.ggml.merges", &["t h", "i n"]);
        for (key, token) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            writer.put(&key, &Value::U32(token));
        }
        writer.put("tokenizer.ggml.add_bos_token", &Value::Bool(false));
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>, Format)> {
        let mut all = Vec::new();
        let mut add = |name: &str, columns: usize, rows: usize, format| {
            let dims = if rows == 1 {
                vec![columns]
            } else {
                vec![columns, rows]
            };
            all.push((name.to_owned(), dims, format));
        };
        let (width, query, kv) = (
            self.embedding,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        );
        let gemma = self.architecture == "gemma3";
        add("token_embd.weight", width, self.vocabulary, self.outer);
        for layer in 0..self.layers {
            // As mixtures for medium quality have it: more bits in some of the layers.
            let better = if layer < self.layers / 8 || layer % 3 == 2 {
                self.outer
            } else {
                self.weights
            };
            let mut part = |name: &str, columns: usize, rows: usize, format| {
                add(&format!("blk.{layer}.{name}.weight"), columns, rows, format);
            };
            part("attn_norm", width, 1, Format::F32);
            part("attn_q", width, query, self.weights);
            part("attn_k", width, kv, self.weights);
            part("attn_v", width, kv, better);
            if gemma {
                part("attn_q_norm", self.head_dim, 1, Format::F32);
                part("attn_k_norm", self.head_dim, 1, Format::F32);
            }
            part("attn_output", query, width, self.weights);
            if gemma {
                part("post_attention_norm", width, 1, Format::F32);
            }
            part("ffn_norm", width, 1, Format::F32);
            part("ffn_gate", width, self.feed_forward, self.weights);
            part("ffn_up", width, self.feed_forward, self.weights);
            part("ffn_down", self.feed_forward, width, better);
            if gemma {
                part("post_ffw_norm", width, 1, Format::F32);
            }
        }
        add("output_norm.weight", width, 1, Format::F32);
        if !self.tied {
            add("output.weight", width, self.vocabulary, self.outer);
        }
        all
    }
}

/// Tokens that are no text.
const CONTROLS: usize = 3;

/// Controls, the 256 bytes, two pairs, and numbers.
fn tokens(count: usize) -> Vec<String> {
    let controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    let bytes = (0..=u8::MAX).map(|byte| byte_character(byte).to_string());
    let pairs = ["th", "in"].map(str::to_owned);
    let numbers = (100..).map(|number| format!("\u{120}{number}"));
    let all = controls.into_iter().chain(bytes).chain(pairs);
    all.chain(numbers).take(count).collect()
}

/// The character that stands for a byte in byte-level BPE: itself if it is visible, else one moved up.
fn byte_character(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return byte as char;
    }
    let before = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(256 + before).unwrap_or('\u{fffd}')
}

/// Where the f16 fields of a block are, and what they have to be for values with a deviation of one.
fn scales(format: Format) -> &'static [(usize, f32)] {
    match format {
        Format::Q4_0 => &[(0, 1.0 / 4.6)],
        Format::Q4_1 => &[(0, 1.0 / 4.6), (2, -7.5 / 4.6)],
        Format::Q5_0 => &[(0, 1.0 / 9.2)],
        Format::Q8_0 => &[(0, 1.0 / 74.0)],
        Format::Q4K => &[(0, 1.0 / 147.0), (2, 7.5 / 147.0)],
        Format::Q6K => &[(208, 1.0 / 1152.0)],
        _ => &[],
    }
}

/// One tensor: ones if it is a vector, else blocks by chance.
fn weights(state: &mut u64, dims: &[usize], format: Format, out: &mut dyn Write) -> io::Result<()> {
    let &[columns, rows] = dims else {
        let ones: Vec<u8> = dims
            .iter()
            .flat_map(|&columns| (0..columns).flat_map(|_| 1.0f32.to_le_bytes()))
            .collect();
        return out.write_all(&ones);
    };
    let deviation = 0.7 / (columns as f32).sqrt();
    let fields = scales(format);
    if fields.is_empty() {
        return Err(io::Error::other("a format that nothing is drawn for"));
    }
    let fields = fields.iter().map(|&(at, unit)| {
        let half = half::f16::from_f32(unit * deviation);
        (at, half.to_le_bytes())
    });
    let fields: Vec<_> = fields.collect();
    let row_bytes = format.bytes(columns).unwrap_or(0);
    let mut row = vec![0; row_bytes.next_multiple_of(8)];
    for _ in 0..rows {
        for word in row.chunks_exact_mut(8) {
            // SplitMix64 (Steele, Lea and Flood, 2014).
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
        for block in row[..row_bytes].chunks_exact_mut(format.block_bytes()) {
            for &(at, half) in &fields {
                block[at..at + 2].copy_from_slice(&half);
            }
        }
        out.write_all(&row[..row_bytes])?;
    }
    Ok(())
}
