//! A GGUF file of the llama architecture, small enough for any test and the same on every machine.
//!
//! Its text means nothing, but everything about it is real: byte-level BPE with merges and special
//! tokens, grouped-query attention, a chat template. Greedy decoding of it never ends by itself and
//! yields printable ASCII only, because the embedding rows of every other token are next to zero.

use std::io;
use std::path::Path;

use half::f16;

/// Weights in a block of every quantized type here.
const BLOCK: usize = 32;

/// Weights in a block of the K types.
const SUPER_BLOCK: usize = 256;

/// Every tensor starts at a multiple of this.
const ALIGNMENT: usize = 32;

const END_OF_TEXT: u32 = 0;
const START_OF_TURN: u32 = 1;
const END_OF_TURN: u32 = 2;
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Pairs joined in this order; `Ġ` is the space of byte-level BPE.
const MERGES: [(&str, &str); 16] = [
    ("Ġ", "t"),
    ("h", "e"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "a"),
    ("a", "t"),
    ("Ġ", "s"),
    ("o", "u"),
    ("in", "g"),
    ("a", "n"),
    ("Ġa", "n"),
    ("Ġan", "d"),
    ("l", "l"),
];

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// How the matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 4 bits, one scale for 32.
    Q4_0,
    /// 4 bits, scale and minimum for 32.
    Q4_1,
    /// 8 bits, one scale for 32.
    Q8_0,
    /// 4 bits in groups of 32 of a block of 256; needs widths in whole blocks.
    Q4K,
    /// 6 bits in groups of 16 of a block of 256; needs widths in whole blocks.
    Q6K,
}

impl TensorType {
    /// Every type, for tests that walk them.
    pub const ALL: [TensorType; 7] = [
        TensorType::F32,
        TensorType::F16,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q8_0,
        TensorType::Q4K,
        TensorType::Q6K,
    ];

    /// The type's number in a GGUF file.
    #[must_use]
    pub fn ggml_id(self) -> u32 {
        match self {
            TensorType::F32 => 0,
            TensorType::F16 => 1,
            TensorType::Q4_0 => 2,
            TensorType::Q4_1 => 3,
            TensorType::Q8_0 => 8,
            TensorType::Q4K => 12,
            TensorType::Q6K => 14,
        }
    }

    fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            TensorType::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
            TensorType::F16 => values
                .iter()
                .for_each(|v| out.extend(f16::from_f32(*v).to_le_bytes())),
            TensorType::Q4_0 => values
                .chunks_exact(BLOCK)
                .for_each(|block| encode_q4_0(block, out)),
            TensorType::Q4_1 => values
                .chunks_exact(BLOCK)
                .for_each(|block| encode_q4_1(block, out)),
            TensorType::Q8_0 => values
                .chunks_exact(BLOCK)
                .for_each(|block| encode_q8_0(block, out)),
            TensorType::Q4K => values
                .chunks_exact(SUPER_BLOCK)
                .for_each(|block| encode_q4_k(block, out)),
            TensorType::Q6K => values
                .chunks_exact(SUPER_BLOCK)
                .for_each(|block| encode_q6_k(block, out)),
        }
    }
}

/// The shape of a tiny model; every field may be changed before [`TinyModel::bytes`].
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// What `general.name` says.
    pub name: String,
    /// Layers.
    pub layer_count: usize,
    /// Width of the residual stream; a multiple of 32 and of `head_count`.
    pub embedding: usize,
    /// Width of the feed-forward; a multiple of 32.
    pub feed_forward: usize,
    /// Query heads.
    pub head_count: usize,
    /// Key and value heads; divides `head_count`.
    pub head_count_kv: usize,
    /// Longest context the file claims.
    pub context_tokens_max: usize,
    /// Type of the layers' matrices; norms are F32, the embedding is Q8_0 under a quantized type.
    pub weights: TensorType,
    /// Whether the embedding is the output matrix too.
    pub tied: bool,
    /// What the weights are drawn from.
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> TinyModel {
        TinyModel {
            name: "tiny".to_owned(),
            layer_count: 2,
            embedding: 128,
            feed_forward: 256,
            head_count: 4,
            head_count_kv: 2,
            context_tokens_max: 512,
            weights: TensorType::Q4_0,
            tied: false,
            seed: 1,
        }
    }
}

impl TinyModel {
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
        assert_eq!(self.embedding % BLOCK, 0, "embedding in whole blocks");
        assert_eq!(self.feed_forward % BLOCK, 0, "feed_forward in whole blocks");
        assert_eq!(
            self.embedding % self.head_count,
            0,
            "embedding in whole heads"
        );
        assert_eq!(
            self.head_count % self.head_count_kv,
            0,
            "whole groups of heads"
        );
        let tensors = self.tensors();
        let mut out = Vec::new();
        out.extend(b"GGUF");
        out.extend(3_u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        let metadata = self.metadata();
        out.extend((metadata.count).to_le_bytes());
        out.extend(&metadata.bytes);
        let mut offset = 0_usize;
        for tensor in &tensors {
            put_str(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor
                .dims
                .iter()
                .for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
            out.extend(tensor.kind.ggml_id().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
        }
        for tensor in &tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    fn metadata(&self) -> Metadata {
        let mut meta = Metadata::default();
        meta.str("general.architecture", "llama");
        meta.str("general.name", &self.name);
        meta.u32("general.alignment", ALIGNMENT as u32);
        meta.u32("llama.block_count", self.layer_count as u32);
        meta.u32("llama.context_length", self.context_tokens_max as u32);
        meta.u32("llama.embedding_length", self.embedding as u32);
        meta.u32("llama.feed_forward_length", self.feed_forward as u32);
        meta.u32("llama.attention.head_count", self.head_count as u32);
        meta.u32("llama.attention.head_count_kv", self.head_count_kv as u32);
        meta.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
        meta.u32(
            "llama.rope.dimension_count",
            (self.embedding / self.head_count) as u32,
        );
        meta.f32("llama.rope.freq_base", 10_000.0);
        let vocabulary = vocabulary();
        meta.u32("llama.vocab_size", vocabulary.len() as u32);
        meta.str("tokenizer.ggml.model", "gpt2");
        meta.str("tokenizer.ggml.pre", "smollm");
        let texts: Vec<&str> = vocabulary.iter().map(|token| token.text.as_str()).collect();
        meta.strs("tokenizer.ggml.tokens", &texts);
        // 1 is an ordinary token, 3 a control token.
        let kinds: Vec<i32> = (0..vocabulary.len())
            .map(|id| if id < SPECIAL.len() { 3 } else { 1 })
            .collect();
        meta.i32s("tokenizer.ggml.token_type", &kinds);
        let merges: Vec<String> = MERGES
            .iter()
            .map(|(left, right)| format!("{left} {right}"))
            .collect();
        meta.strs(
            "tokenizer.ggml.merges",
            &merges.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        meta.u32("tokenizer.ggml.bos_token_id", START_OF_TURN);
        meta.u32("tokenizer.ggml.eos_token_id", END_OF_TURN);
        meta.u32("tokenizer.ggml.unknown_token_id", END_OF_TEXT);
        meta.bool("tokenizer.ggml.add_bos_token", false);
        meta.bool("tokenizer.ggml.add_space_prefix", false);
        meta.str("tokenizer.chat_template", CHAT_TEMPLATE);
        meta
    }

    fn tensors(&self) -> Vec<Tensor> {
        let mut draw = Draw { state: self.seed };
        let (embedding, feed_forward) = (self.embedding, self.feed_forward);
        let kv = embedding / self.head_count * self.head_count_kv;
        let outer = match self.weights {
            TensorType::F32 | TensorType::F16 => self.weights,
            _ => TensorType::Q8_0,
        };
        let mut tensors = vec![self.vocabulary_matrix(&mut draw, "token_embd.weight", outer)];
        for layer in 0..self.layer_count {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let mut matrix = |part: &str, columns: usize, rows: usize| {
                let values = draw.matrix(columns, rows);
                tensors.push(Tensor::new(
                    name(part),
                    &[columns, rows],
                    self.weights,
                    &values,
                ));
            };
            matrix("attn_q", embedding, embedding);
            matrix("attn_k", embedding, kv);
            matrix("attn_v", embedding, kv);
            matrix("attn_output", embedding, embedding);
            matrix("ffn_gate", embedding, feed_forward);
            matrix("ffn_up", embedding, feed_forward);
            matrix("ffn_down", feed_forward, embedding);
            for part in ["attn_norm", "ffn_norm"] {
                tensors.push(Tensor::new(
                    name(part),
                    &[embedding],
                    TensorType::F32,
                    &draw.norm(embedding),
                ));
            }
        }
        let norm = draw.norm(embedding);
        tensors.push(Tensor::new(
            "output_norm.weight".to_owned(),
            &[embedding],
            TensorType::F32,
            &norm,
        ));
        if !self.tied {
            tensors.push(self.vocabulary_matrix(&mut draw, "output.weight", outer));
        }
        tensors
    }

    /// One row a token; rows of tokens that are not printable are next to zero.
    fn vocabulary_matrix(&self, draw: &mut Draw, name: &str, kind: TensorType) -> Tensor {
        let vocabulary = vocabulary();
        let mut values = Vec::with_capacity(vocabulary.len() * self.embedding);
        for token in &vocabulary {
            let scale = if token.printable { 0.25 } else { 0.001 };
            values.extend((0..self.embedding).map(|_| draw.normal() * scale));
        }
        Tensor::new(
            name.to_owned(),
            &[self.embedding, vocabulary.len()],
            kind,
            &values,
        )
    }
}

struct Token {
    text: String,
    printable: bool,
}

/// Special tokens, then the 256 bytes, then what the merges make.
fn vocabulary() -> Vec<Token> {
    let special = SPECIAL.iter().map(|text| Token {
        text: (*text).to_owned(),
        printable: false,
    });
    let bytes = (0..=u8::MAX).map(|byte| Token {
        text: byte_character(byte).to_string(),
        printable: byte == b' ' || byte.is_ascii_graphic(),
    });
    let merged = MERGES.iter().map(|(left, right)| Token {
        text: format!("{left}{right}"),
        printable: true,
    });
    special.chain(bytes).chain(merged).collect()
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

struct Tensor {
    name: String,
    dims: Vec<usize>,
    kind: TensorType,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(name: String, dims: &[usize], kind: TensorType, values: &[f32]) -> Tensor {
        let mut bytes = Vec::new();
        kind.encode(values, &mut bytes);
        Tensor {
            name,
            dims: dims.to_vec(),
            kind,
            bytes,
        }
    }
}

#[derive(Default)]
struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.count += 1;
        put_str(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.put(key, 4, &value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.put(key, 6, &value.to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.put(key, 7, &[u8::from(value)]);
    }

    fn str(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_str(&mut bytes, value);
        self.put(key, 8, &bytes);
    }

    fn strs(&mut self, key: &str, values: &[&str]) {
        let mut bytes = Vec::new();
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put_str(&mut bytes, value));
        self.put(key, 9, &bytes);
    }

    fn i32s(&mut self, key: &str, values: &[i32]) {
        let mut bytes = Vec::new();
        bytes.extend(5_u32.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        values
            .iter()
            .for_each(|value| bytes.extend(value.to_le_bytes()));
        self.put(key, 9, &bytes);
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Random numbers that are the same everywhere: a counter through a 64-bit mixing function.
struct Draw {
    state: u64,
}

impl Draw {
    fn uniform(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 40) as f32 / (1_u32 << 24) as f32
    }

    /// Near enough to a standard normal: twelve uniforms, centred.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// Values that keep a unit vector's length about one.
    fn matrix(&mut self, columns: usize, rows: usize) -> Vec<f32> {
        let scale = 1.0 / (columns as f32).sqrt();
        (0..columns * rows).map(|_| self.normal() * scale).collect()
    }

    fn norm(&mut self, width: usize) -> Vec<f32> {
        (0..width).map(|_| 1.0 + 0.1 * self.normal()).collect()
    }
}

/// The level nearest to `value`, from 0 to `top`.
fn level(value: f32, top: u8) -> u8 {
    value.round().clamp(0.0, f32::from(top)) as u8
}

/// Two 4-bit levels to a byte: the first half of the block low, the second half high.
fn put_nibbles(levels: &[u8; BLOCK], out: &mut Vec<u8>) {
    let (low, high) = levels.split_at(BLOCK / 2);
    out.extend(low.iter().zip(high).map(|(low, high)| low | (high << 4)));
}

fn encode_q4_0(block: &[f32], out: &mut Vec<u8>) {
    // The value farthest from zero becomes level 0, which stands for -8 scales.
    let farthest = block
        .iter()
        .copied()
        .fold(0.0_f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let scale = f16::from_f32(farthest / -8.0);
    let inverse = if scale.to_f32() == 0.0 {
        0.0
    } else {
        1.0 / scale.to_f32()
    };
    let mut levels = [0; BLOCK];
    levels
        .iter_mut()
        .zip(block)
        .for_each(|(l, v)| *l = level(v * inverse + 8.0, 15));
    out.extend(scale.to_le_bytes());
    put_nibbles(&levels, out);
}

fn encode_q4_1(block: &[f32], out: &mut Vec<u8>) {
    let least = block.iter().copied().fold(f32::INFINITY, f32::min);
    let most = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (scale, minimum) = (f16::from_f32((most - least) / 15.0), f16::from_f32(least));
    let inverse = if scale.to_f32() == 0.0 {
        0.0
    } else {
        1.0 / scale.to_f32()
    };
    let mut levels = [0; BLOCK];
    levels
        .iter_mut()
        .zip(block)
        .for_each(|(l, v)| *l = level((v - minimum.to_f32()) * inverse, 15));
    out.extend(scale.to_le_bytes());
    out.extend(minimum.to_le_bytes());
    put_nibbles(&levels, out);
}

/// One range for the whole block, at the largest group scale and minimum; group scales differ a little so that
/// mixing them up shows.
fn encode_q4_k(values: &[f32], out: &mut Vec<u8>) {
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(0.0, f32::max);
    let scale = f16::from_f32((high - low) / (15.0 * 56.0));
    let minimum_scale = f16::from_f32(-low / 63.0);
    out.extend(scale.to_le_bytes());
    out.extend(minimum_scale.to_le_bytes());
    let group_scale = |group: usize| 56 + group as u8;
    let packed: [u8; 12] = std::array::from_fn(|at| match at {
        0..4 => group_scale(at) | (group_scale(at + 4) >> 4) << 6,
        4..8 => 63 | 3 << 6,
        _ => (group_scale(at - 4) & 15) | 15 << 4,
    });
    out.extend(packed);
    let level = |index: usize| {
        let step = scale.to_f32() * f32::from(group_scale(index / 32));
        let minimum = minimum_scale.to_f32() * 63.0;
        if step > 0.0 {
            ((values[index] + minimum) / step).round().clamp(0.0, 15.0) as u8
        } else {
            0
        }
    };
    for pair in 0..4 {
        out.extend((0..32).map(|at| level(pair * 64 + at) | level(pair * 64 + 32 + at) << 4));
    }
}

/// One range for the whole block; group scales differ a little so that mixing them up shows.
fn encode_q6_k(values: &[f32], out: &mut Vec<u8>) {
    let largest = values
        .iter()
        .fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / (31.0 * 100.0));
    let group_scale = |group: usize| 100 + group as i8;
    let level = |index: usize| {
        let step = scale.to_f32() * f32::from(group_scale(index / 16));
        if step > 0.0 {
            (values[index] / step + 32.0).round().clamp(0.0, 63.0) as u8
        } else {
            32
        }
    };
    for half in 0..2 {
        for quarter in 0..2 {
            let at = half * 128 + quarter * 32;
            out.extend((0..32).map(|i| (level(at + i) & 15) | (level(at + 64 + i) & 15) << 4));
        }
    }
    for half in 0..2 {
        out.extend((0..32).map(|i| {
            (0..4).fold(0, |bits, quarter| {
                bits | (level(half * 128 + quarter * 32 + i) >> 4) << (2 * quarter)
            })
        }));
    }
    out.extend((0..16).map(|group| group_scale(group) as u8));
    out.extend(scale.to_le_bytes());
}

fn encode_q8_0(block: &[f32], out: &mut Vec<u8>) {
    let farthest = block.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    let scale = f16::from_f32(farthest / 127.0);
    let inverse = if scale.to_f32() == 0.0 {
        0.0
    } else {
        1.0 / scale.to_f32()
    };
    out.extend(scale.to_le_bytes());
    out.extend(
        block
            .iter()
            .map(|v| (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_same_every_time_and_differs_by_seed() {
        let model = TinyModel::default();
        assert_eq!(model.bytes(), model.bytes());
        assert_ne!(model.bytes(), TinyModel { seed: 2, ..model }.bytes());
    }

    #[test]
    fn blocks_decode_to_what_went_in() {
        let values: Vec<f32> = (0..64_u8).map(|i| (f32::from(i) * 0.37).sin()).collect();
        for (kind, block_bytes, error) in [
            (TensorType::Q4_0, 18, 0.126),
            (TensorType::Q4_1, 20, 0.08),
            (TensorType::Q8_0, 34, 0.005),
        ] {
            let mut bytes = Vec::new();
            kind.encode(&values, &mut bytes);
            assert_eq!(bytes.len(), 2 * block_bytes, "{kind:?}");
            for (block, want) in bytes.chunks(block_bytes).zip(values.chunks(BLOCK)) {
                for (index, want) in want.iter().enumerate() {
                    let got = decode(kind, block, index);
                    assert!(
                        (got - want).abs() <= error,
                        "{kind:?} {index}: {got} for {want}"
                    );
                }
            }
        }
    }

    fn decode(kind: TensorType, block: &[u8], index: usize) -> f32 {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let nibble = |at: usize| f32::from((block[at + index % 16] >> (index / 16 * 4)) & 15);
        match kind {
            TensorType::Q4_0 => half(0) * (nibble(2) - 8.0),
            TensorType::Q4_1 => half(0) * nibble(4) + half(2),
            _ => half(0) * f32::from(block[2 + index] as i8),
        }
    }

    #[test]
    fn every_byte_has_its_own_character() {
        let mut characters: Vec<char> = (0..=u8::MAX).map(byte_character).collect();
        assert_eq!(
            (
                byte_character(b' '),
                byte_character(b'\n'),
                byte_character(0xad)
            ),
            ('Ġ', 'Ċ', 'Ń')
        );
        characters.sort_unstable();
        characters.dedup();
        assert_eq!(characters.len(), 256);
    }
}
