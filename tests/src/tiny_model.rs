//! A GGUF file of any architecture, small enough for any test and the same on every machine.
//!
//! Its text means nothing, but everything about it is real: byte-level BPE with merges and special
//! tokens, grouped-query attention, a chat template. Greedy decoding of it never ends by itself and
//! yields printable ASCII only, because the embedding rows of every other token are next to zero.

use std::io;
use std::path::Path;

/// How the matrices are stored; the K types and IQ4_XS need widths in whole blocks of 256.
pub use andon_kernels::Format as TensorType;

mod architecture;
mod encode;
mod key;

pub use architecture::{Architecture, Biases, QueryKeyNorm, Scaling};
pub use key::Key;

/// Every tensor starts at a multiple of this.
pub(crate) const ALIGNMENT: usize = 32;

const END_OF_TEXT: u32 = 0;
const START_OF_TURN: u32 = 1;
const END_OF_TURN: u32 = 2;
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const GAP: [&str; 5] = [
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

/// Pairs joined in this order, as many of them as a vocabulary has; `Ġ` is the space of byte-level BPE.
pub(crate) const MERGES: [(&str, &str); 16] = [
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

/// The shape of a tiny model; every field may be changed before [`TinyModel::bytes`].
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// What `general.name` says.
    pub name: String,
    /// What the file is.
    pub architecture: Architecture,
    /// Layers.
    pub layer_count: usize,
    /// Layers behind those that add nothing: the model says what it would say without them, and takes longer.
    pub idle_layer_count: usize,
    /// Width of the residual stream; whole blocks of the weights' type.
    pub embedding: usize,
    /// Width of the feed-forward; whole blocks of the weights' type.
    pub feed_forward: usize,
    /// Query heads.
    pub head_count: usize,
    /// Key and value heads; divides `head_count`.
    pub head_count_kv: usize,
    /// Dimensions of a head; `None` for `embedding` shared out over the heads, of which the file says nothing.
    pub head_dim: Option<usize>,
    /// Longest context the file claims.
    pub context_tokens_max: usize,
    /// Type of the layers' matrices; norms are F32.
    pub weights: TensorType,
    /// Type of the embedding and the output; `None` for Q8_0 under a quantized type, and else the layers'.
    pub vocabulary: Option<TensorType>,
    /// Whether the embedding is the output matrix too.
    pub tied: bool,
    /// Whether the vocabulary has the tokens of filling in the middle, behind all others.
    pub fills_gaps: bool,
    /// How many of its merges the vocabulary has; with fewer than all, text becomes other tokens, and their ids are others, too.
    pub merge_count: usize,
    /// The tokens that the output matrix has rows for, ascending, if it is a draft's; see `andon.draft.token_ids`.
    pub draft_tokens: Option<Vec<u32>>,
    /// What the weights are drawn from.
    pub seed: u64,
    /// Keys, without the name of the architecture before them, that say something else than all this makes the file say.
    pub keys: Vec<(&'static str, Key)>,
}

impl Default for TinyModel {
    fn default() -> TinyModel {
        TinyModel {
            name: "tiny".to_owned(),
            architecture: Architecture::LLAMA,
            layer_count: 2,
            idle_layer_count: 0,
            embedding: 128,
            feed_forward: 256,
            head_count: 4,
            head_count_kv: 2,
            head_dim: None,
            context_tokens_max: 512,
            weights: TensorType::Q4_0,
            vocabulary: None,
            tied: false,
            fills_gaps: false,
            merge_count: MERGES.len(),
            draft_tokens: None,
            seed: 1,
            keys: Vec::new(),
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
        assert!(
            self.head_dim.is_some() || self.embedding.is_multiple_of(self.head_count),
            "embedding in whole heads"
        );
        assert_eq!(
            self.head_count % self.head_count_kv,
            0,
            "whole groups of heads"
        );
        file(&self.metadata(), &self.tensors())
    }

    /// The model split into several files, each with at most `tensors_max` tensors and the first with the metadata.
    ///
    /// # Panics
    /// When `tensors_max` is 0.
    #[must_use]
    pub fn parts(&self, tensors_max: usize) -> Vec<Vec<u8>> {
        let tensors = self.tensors();
        let parts = tensors.chunks(tensors_max);
        let count = parts.len() as u16;
        (0..count)
            .zip(parts)
            .map(|(number, part)| {
                let mut metadata = match number {
                    0 => self.metadata(),
                    _ => Metadata::default(),
                };
                metadata.u16("split.no", number);
                metadata.u16("split.count", count);
                metadata.i32("split.tensors.count", tensors.len() as i32);
                file(&metadata, part)
            })
            .collect()
    }

    /// Dimensions of a head.
    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.embedding / self.head_count)
    }

    fn metadata(&self) -> Metadata {
        let key = |name: &str| format!("{}.{name}", self.architecture.name);
        let mut meta = Metadata {
            replaced: self.keys.iter().map(|(name, _)| key(name)).collect(),
            ..Metadata::default()
        };
        architecture::metadata(self, &mut meta);
        meta.replaced.clear();
        for (name, value) in &self.keys {
            value.write(&key(name), &mut meta);
        }
        let vocabulary = self.vocabulary();
        let vocabulary_key = format!("{}.vocab_size", self.architecture.name);
        meta.u32(&vocabulary_key, vocabulary.len() as u32);
        byte_level(&mut meta, &vocabulary, self.merge_count);
        meta.str("tokenizer.chat_template", CHAT_TEMPLATE);
        if let Some(tokens) = &self.draft_tokens {
            meta.u32s("andon.draft.token_ids", tokens);
        }
        meta
    }

    fn vocabulary(&self) -> Vec<Token> {
        let mut tokens = vocabulary(self.merge_count);
        if self.fills_gaps {
            tokens.extend(GAP.iter().map(|text| Token::control(text)));
        }
        tokens
    }

    fn tensors(&self) -> Vec<Tensor> {
        let mut draw = Draw { state: self.seed };
        let outer = self.vocabulary.unwrap_or(match self.weights {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => self.weights,
            _ => TensorType::Q8_0,
        });
        let mut tensors = vec![self.vocabulary_matrix(&mut draw, "token_embd.weight", outer, None)];
        architecture::layers(self, &mut draw, &mut tensors);
        let norm = draw.norm(self.embedding);
        tensors.push(Tensor::new(
            "output_norm.weight".to_owned(),
            &[self.embedding],
            TensorType::F32,
            &norm,
        ));
        if !self.tied {
            let rows = self.draft_tokens.as_deref();
            let output = self.vocabulary_matrix(&mut draw, "output.weight", outer, rows);
            let rows = output.dims[1];
            tensors.push(output);
            if self.architecture.biases.of("output") {
                let bias: Vec<f32> = (0..rows).map(|_| draw.normal() * 0.5).collect();
                let name = "output.bias".to_owned();
                tensors.push(Tensor::new(name, &[rows], TensorType::F32, &bias));
            }
        }
        tensors
    }

    /// One row a token, or those of `rows` of them; rows of tokens that are not printable are next to zero.
    fn vocabulary_matrix(
        &self,
        draw: &mut Draw,
        name: &str,
        kind: TensorType,
        rows: Option<&[u32]>,
    ) -> Tensor {
        let vocabulary = self.vocabulary();
        let mut values = Vec::with_capacity(vocabulary.len() * self.embedding);
        for token in &vocabulary {
            let scale = if token.printable { 0.25 } else { 0.001 };
            values.extend((0..self.embedding).map(|_| draw.normal() * scale));
        }
        if let Some(rows) = rows {
            // Ids that no vocabulary has are some test's; what is said of them comes before the rows.
            let index = |token: u32| token as usize % vocabulary.len() * self.embedding;
            let row = |&token: &u32| &values[index(token)..][..self.embedding];
            values = rows.iter().flat_map(row).copied().collect();
        }
        Tensor::new(
            name.to_owned(),
            &[self.embedding, values.len() / self.embedding],
            kind,
            &values,
        )
    }
}

/// A file of version 3.
pub(crate) fn file(metadata: &Metadata, tensors: &[Tensor]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.count).to_le_bytes());
    out.extend(&metadata.bytes);
    let mut offset = 0_usize;
    for tensor in tensors {
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
    for tensor in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(&tensor.bytes);
    }
    out
}

pub(crate) struct Token {
    text: String,
    printable: bool,
    control: bool,
}

impl Token {
    fn control(text: &str) -> Token {
        Token {
            text: text.to_owned(),
            printable: false,
            control: true,
        }
    }
}

/// The keys of a byte-level vocabulary with so many merges.
pub(crate) fn byte_level(meta: &mut Metadata, vocabulary: &[Token], merge_count: usize) {
    meta.str("tokenizer.ggml.model", "gpt2");
    meta.str("tokenizer.ggml.pre", "smollm");
    let texts: Vec<&str> = vocabulary.iter().map(|token| token.text.as_str()).collect();
    meta.strs("tokenizer.ggml.tokens", &texts);
    // 1 is an ordinary token, 3 a control token.
    let kinds: Vec<i32> = vocabulary
        .iter()
        .map(|token| if token.control { 3 } else { 1 })
        .collect();
    meta.i32s("tokenizer.ggml.token_type", &kinds);
    let merges: Vec<String> = MERGES[..merge_count]
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
}

/// Special tokens, the 256 bytes, and what so many merges make: behind the bytes if those are all.
pub(crate) fn vocabulary(merge_count: usize) -> Vec<Token> {
    let special = SPECIAL.iter().map(|text| Token::control(text));
    let bytes = (0..=u8::MAX).map(|byte| Token {
        text: byte_character(byte).to_string(),
        printable: byte == b' ' || byte.is_ascii_graphic(),
        control: false,
    });
    let merged = MERGES[..merge_count].iter().map(|(left, right)| Token {
        text: format!("{left}{right}"),
        printable: true,
        control: false,
    });
    if merge_count < MERGES.len() {
        special.chain(merged).chain(bytes).collect()
    } else {
        special.chain(bytes).chain(merged).collect()
    }
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

pub(crate) struct Tensor {
    pub(crate) name: String,
    dims: Vec<usize>,
    kind: TensorType,
    bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(name: String, dims: &[usize], kind: TensorType, values: &[f32]) -> Tensor {
        Tensor {
            name,
            dims: dims.to_vec(),
            kind,
            bytes: encode::rows(kind, dims[0], values),
        }
    }
}

#[derive(Default)]
pub(crate) struct Metadata {
    count: u64,
    bytes: Vec<u8>,
    /// Keys that are not written, since they are said otherwise.
    replaced: Vec<String>,
}

impl Metadata {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        if self.replaced.iter().any(|replaced| replaced == key) {
            return;
        }
        self.count += 1;
        put_str(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
    }

    fn u16(&mut self, key: &str, value: u16) {
        self.put(key, 2, &value.to_le_bytes());
    }

    fn i32(&mut self, key: &str, value: i32) {
        self.put(key, 5, &value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.put(key, 4, &value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.put(key, 6, &value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.put(key, 7, &[u8::from(value)]);
    }

    pub(crate) fn str(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_str(&mut bytes, value);
        self.put(key, 8, &bytes);
    }

    /// `count` elements of a type, whose bytes are `elements`.
    fn list(&mut self, key: &str, kind: u32, count: usize, elements: &[u8]) {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend(elements);
        self.put(key, 9, &bytes);
    }

    pub(crate) fn strs(&mut self, key: &str, values: &[&str]) {
        let mut bytes = Vec::new();
        values.iter().for_each(|value| put_str(&mut bytes, value));
        self.list(key, 8, values.len(), &bytes);
    }

    fn u32s(&mut self, key: &str, values: &[u32]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.list(key, 4, values.len(), &bytes);
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.list(key, 5, values.len(), &bytes);
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Random numbers that are the same everywhere: a counter through a 64-bit mixing function.
pub(crate) struct Draw {
    pub(crate) state: u64,
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
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// Values that keep a unit vector's length about one.
    pub(crate) fn matrix(&mut self, columns: usize, rows: usize) -> Vec<f32> {
        let scale = 1.0 / (columns as f32).sqrt();
        (0..columns * rows).map(|_| self.normal() * scale).collect()
    }

    pub(crate) fn norm(&mut self, width: usize) -> Vec<f32> {
        (0..width).map(|_| 1.0 + 0.1 * self.normal()).collect()
    }
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
