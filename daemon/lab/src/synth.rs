//! Writes a GGUF file with the shape of a real model and random weights, for measurements of sizes that cannot be
//! fetched everywhere.
//!
//! Its text means nothing. Its cost does not depend on that: architecture `llama`, byte-level BPE in which every token
//! beyond the bytes is a pair of them. The same file on every machine.

use std::fs::File;
use std::io::{BufWriter, Seek as _, Write};
use std::path::{Path, PathBuf};

use andon_kernels::Format;
use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::random::Random;

/// Where tensors start: multiples of this.
const ALIGNMENT: u64 = 32;

/// Bytes of tokens: those of the end of text, of every byte, and of every pair of bytes.
const VOCABULARY_MAX: usize = 1 + 256 + 256 * 256;

/// Rows that are drawn at a time.
const ROWS: usize = 64;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// File to write.
    out: PathBuf,
    /// Shape: 25m, 135m, 360m, 1b, 3b or 8b.
    #[arg(long, default_value = "1b", value_parser = parse_shape)]
    shape: Shape,
    /// Format of the layers' matrices.
    #[arg(long, default_value = "q4_k", value_parser = parse_format)]
    format: Format,
    /// Format of the embedding and of the output.
    #[arg(long, default_value = "q6_k", value_parser = parse_format)]
    head: Format,
    /// Tokens in the vocabulary.
    #[arg(long, default_value_t = 49_152)]
    vocabulary: usize,
    /// Positions.
    #[arg(long, default_value_t = 8192)]
    context: u32,
}

/// Sizes of a decoder of the llama family.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    layers: usize,
    embedding: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

const fn shape(name: &'static str, sizes: [usize; 6]) -> Shape {
    let [layers, embedding, feed_forward, heads, kv_heads, head_dim] = sizes;
    Shape {
        name,
        layers,
        embedding,
        feed_forward,
        heads,
        kv_heads,
        head_dim,
    }
}

const SHAPES: [Shape; 6] = [
    shape("25m", [4, 256, 768, 4, 2, 64]),
    shape("135m", [30, 576, 1536, 9, 3, 64]),
    shape("360m", [32, 960, 2560, 15, 5, 64]),
    shape("1b", [16, 2048, 8192, 32, 8, 64]),
    shape("3b", [28, 3072, 8192, 24, 8, 128]),
    shape("8b", [32, 4096, 14336, 32, 8, 128]),
];

fn parse_shape(name: &str) -> Result<Shape, String> {
    SHAPES
        .into_iter()
        .find(|shape| shape.name == name)
        .ok_or_else(|| format!("shapes are {}", SHAPES.map(|shape| shape.name).join(", ")))
}

/// The format of a name, in capitals or not.
pub(crate) fn parse_format(name: &str) -> Result<Format, String> {
    Format::ALL
        .into_iter()
        .find(|format| format.name().eq_ignore_ascii_case(name))
        .ok_or_else(|| format!("formats are {}", Format::ALL.map(Format::name).join(", ")))
}

/// A matrix, or a vector of ones if it has a single row.
struct Tensor {
    name: String,
    format: Format,
    columns: usize,
    rows: usize,
}

impl Tensor {
    fn bytes(&self) -> Result<u64> {
        let row = self.format.bytes(self.columns).with_context(|| {
            let format = self.format.name();
            format!("rows of {} are not whole blocks of {format}", self.columns)
        })?;
        Ok(row as u64 * self.rows as u64)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        (257..=VOCABULARY_MAX).contains(&arguments.vocabulary),
        "--vocabulary must be between 257 and {VOCABULARY_MAX}"
    );
    // Written beside and moved, so that an interrupted run leaves no half a file.
    let mut half = arguments.out.clone().into_os_string();
    half.push(".half");
    let half = PathBuf::from(half);
    write(arguments, &half).inspect_err(|_| drop(std::fs::remove_file(&half)))?;
    std::fs::rename(&half, &arguments.out)
        .with_context(|| format!("cannot put `{}`", arguments.out.display()))
}

fn write(arguments: &Arguments, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write `{}`", path.display()))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let tensors = tensors(arguments);
    let metadata = metadata(arguments);
    file.write_all(b"GGUF")?;
    file.write_all(&3u32.to_le_bytes())?;
    file.write_all(&(tensors.len() as u64).to_le_bytes())?;
    file.write_all(&metadata.count.to_le_bytes())?;
    file.write_all(&metadata.bytes)?;
    let mut offset = 0u64;
    for tensor in &tensors {
        let mut info = Vec::new();
        put_text(&mut info, &tensor.name);
        let dimensions: &[usize] = match tensor.rows {
            1 => &[tensor.columns],
            rows => &[tensor.columns, rows],
        };
        info.extend((dimensions.len() as u32).to_le_bytes());
        for &dimension in dimensions {
            info.extend((dimension as u64).to_le_bytes());
        }
        info.extend(tensor.format.ggml_id().to_le_bytes());
        info.extend(offset.to_le_bytes());
        file.write_all(&info)?;
        offset += tensor.bytes()?.next_multiple_of(ALIGNMENT);
    }
    pad(&mut file)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let row_bytes = (tensor.bytes()? / tensor.rows as u64) as usize;
        if tensor.rows == 1 {
            file.write_all(&1f32.to_le_bytes().repeat(tensor.columns))?;
        } else {
            // Small enough that the residual stream stays near its size.
            let deviation = 0.7 / (tensor.columns as f32).sqrt();
            let mut random = Random::new(index as u64 + 1);
            let mut rows = vec![0; ROWS * row_bytes];
            let mut left = tensor.rows;
            while left > 0 {
                let taken = left.min(ROWS);
                let rows = &mut rows[..taken * row_bytes];
                random.weights(tensor.format, deviation, rows)?;
                file.write_all(rows)?;
                left -= taken;
            }
        }
        pad(&mut file)?;
    }
    Ok(file.flush()?)
}

fn pad(file: &mut BufWriter<File>) -> Result<()> {
    let at = file.stream_position()?;
    let missing = at.next_multiple_of(ALIGNMENT) - at;
    Ok(file.write_all(&[0; ALIGNMENT as usize][..missing as usize])?)
}

fn tensors(arguments: &Arguments) -> Vec<Tensor> {
    let shape = &arguments.shape;
    let mut tensors = Vec::new();
    let mut add = |name: String, format, columns, rows| {
        let name = format!("{name}.weight");
        tensors.push(Tensor {
            name,
            format,
            columns,
            rows,
        });
    };
    let (width, inner) = (shape.embedding, shape.feed_forward);
    let (queries, keys) = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    );
    let (layers, head) = (arguments.format, arguments.head);
    add("token_embd".to_owned(), head, width, arguments.vocabulary);
    add("output".to_owned(), head, width, arguments.vocabulary);
    add("output_norm".to_owned(), Format::F32, width, 1);
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        add(name("attn_norm"), Format::F32, width, 1);
        add(name("ffn_norm"), Format::F32, width, 1);
        add(name("attn_q"), layers, width, queries);
        add(name("attn_k"), layers, width, keys);
        add(name("attn_v"), layers, width, keys);
        add(name("attn_output"), layers, queries, width);
        add(name("ffn_gate"), layers, width, inner);
        add(name("ffn_up"), layers, width, inner);
        add(name("ffn_down"), layers, inner, width);
    }
    tensors
}

/// Key-value pairs as a file has them.
#[derive(Default)]
struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
    }

    fn u32(&mut self, key: &str, value: usize) {
        self.put(key, 4, &(value as u32).to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.put(key, 6, &value.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.put(key, 8, &bytes);
    }

    fn list(&mut self, key: &str, kind: u32, count: usize, elements: &[u8]) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend(elements);
        self.put(key, 9, &bytes);
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn metadata(arguments: &Arguments) -> Metadata {
    let shape = &arguments.shape;
    let mut meta = Metadata::default();
    meta.text("general.architecture", "llama");
    let format = arguments.format.name();
    meta.text("general.name", &format!("random {} {format}", shape.name));
    meta.u32("general.alignment", ALIGNMENT as usize);
    meta.u32("llama.block_count", shape.layers);
    meta.u32("llama.context_length", arguments.context as usize);
    meta.u32("llama.embedding_length", shape.embedding);
    meta.u32("llama.feed_forward_length", shape.feed_forward);
    meta.u32("llama.attention.head_count", shape.heads);
    meta.u32("llama.attention.head_count_kv", shape.kv_heads);
    meta.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    meta.u32("llama.rope.dimension_count", shape.head_dim);
    meta.f32("llama.rope.freq_base", 10_000.0);
    meta.u32("llama.vocab_size", arguments.vocabulary);
    vocabulary(&mut meta, arguments.vocabulary);
    meta
}

/// The end of text, every byte, and as many pairs of bytes as there is room for.
fn vocabulary(meta: &mut Metadata, count: usize) {
    let bytes: Vec<String> = byte_names().map(String::from).collect();
    let pairs = || {
        let firsts = bytes.iter();
        let all = firsts.flat_map(|first| bytes.iter().map(move |second| (first, second)));
        all.take(count - 257)
    };
    let (mut tokens, mut merges) = (Vec::new(), Vec::new());
    put_text(&mut tokens, "<|endoftext|>");
    for byte in &bytes {
        put_text(&mut tokens, byte);
    }
    for (first, second) in pairs() {
        put_text(&mut tokens, &format!("{first}{second}"));
        put_text(&mut merges, &format!("{first} {second}"));
    }
    // 3 is a control token, 1 a normal one.
    let types = (0..count).map(|token| if token == 0 { 3u32 } else { 1 });
    let types: Vec<u8> = types.flat_map(u32::to_le_bytes).collect();
    meta.text("tokenizer.ggml.model", "gpt2");
    meta.text("tokenizer.ggml.pre", "gpt-2");
    meta.list("tokenizer.ggml.tokens", 8, count, &tokens);
    meta.list("tokenizer.ggml.token_type", 5, count, &types);
    meta.list("tokenizer.ggml.merges", 8, count - 257, &merges);
    meta.u32("tokenizer.ggml.bos_token_id", 0);
    meta.u32("tokenizer.ggml.eos_token_id", 0);
}

/// The letters that byte-level BPE writes bytes as: themselves where they are printable, else letters from 256 on.
fn byte_names() -> impl Iterator<Item = char> {
    let mut next = 256;
    (0..=255u32).filter_map(move |byte| {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        if printable {
            return char::from_u32(byte);
        }
        next += 1;
        char::from_u32(next - 1)
    })
}
