//! Writes a GGUF file with the shape of a real model and random weights, for measurements of sizes that cannot be
//! fetched everywhere.
//!
//! Its text means nothing. Its cost does not depend on that: architecture `llama`, byte-level BPE in which every token
//! beyond the bytes is a pair of them. The same file on every machine.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use andon_engine::gguf::{Value, Writer};
use andon_kernels::Format;
use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::random::Random;

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
    /// Writes random elements, some rows at a time.
    fn draw(&self, seed: u64, out: &mut dyn Write) -> io::Result<()> {
        if self.rows == 1 {
            return out.write_all(&1f32.to_le_bytes().repeat(self.columns));
        }
        // Small enough that the residual stream stays near its size.
        let deviation = 0.7 / (self.columns as f32).sqrt();
        let mut random = Random::new(seed);
        let row_bytes = self.format.bytes(self.columns).unwrap_or_default();
        let mut rows = vec![0; ROWS * row_bytes];
        let mut left = self.rows;
        while left > 0 {
            let taken = left.min(ROWS);
            let rows = &mut rows[..taken * row_bytes];
            random
                .weights(self.format, deviation, rows)
                .map_err(io::Error::other)?;
            out.write_all(rows)?;
            left -= taken;
        }
        Ok(())
    }
}

/// A file of the smallest shape, for tests.
#[cfg(all(test, feature = "draft"))]
pub(crate) fn write_small(path: &Path, format: Format, vocabulary: usize) -> Result<()> {
    let arguments = Arguments {
        out: path.to_owned(),
        shape: SHAPES[0],
        format,
        head: format,
        vocabulary,
        context: 512,
    };
    write(&arguments, path)
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
    let mut writer = metadata(arguments);
    for tensor in &tensors {
        let dimensions: &[usize] = match tensor.rows {
            1 => &[tensor.columns],
            rows => &[tensor.columns, rows],
        };
        let known = writer.tensor(&tensor.name, dimensions, tensor.format);
        known.with_context(|| {
            let format = tensor.format.name();
            format!(
                "rows of {} are not whole blocks of {format}",
                tensor.columns
            )
        })?;
    }
    let mut seeds = 1..;
    writer.write(&mut file, |name, out| {
        let (Some(seed), Some(tensor)) = (
            seeds.next(),
            tensors.iter().find(|tensor| tensor.name == name),
        ) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        tensor.draw(seed, out)
    })?;
    Ok(file.flush()?)
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

fn metadata(arguments: &Arguments) -> Writer {
    let shape = &arguments.shape;
    let mut meta = Writer::new();
    meta.put("general.architecture", &Value::Str("llama"));
    let name = format!("random {} {}", shape.name, arguments.format.name());
    meta.put("general.name", &Value::Str(&name));
    for (key, count) in [
        ("block_count", shape.layers),
        ("context_length", arguments.context as usize),
        ("embedding_length", shape.embedding),
        ("feed_forward_length", shape.feed_forward),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("rope.dimension_count", shape.head_dim),
        ("vocab_size", arguments.vocabulary),
    ] {
        meta.put(&format!("llama.{key}"), &Value::U32(count as u32));
    }
    meta.put("llama.attention.layer_norm_rms_epsilon", &Value::F32(1e-5));
    meta.put("llama.rope.freq_base", &Value::F32(10_000.0));
    vocabulary(&mut meta, arguments.vocabulary);
    meta
}

/// The end of text, every byte, and as many pairs of bytes as there is room for.
fn vocabulary(meta: &mut Writer, count: usize) {
    let bytes: Vec<String> = byte_names().map(String::from).collect();
    let pairs = || {
        let firsts = bytes.iter();
        let all = firsts.flat_map(|first| bytes.iter().map(move |second| (first, second)));
        all.take(count - 257)
    };
    let mut tokens = vec!["<|endoftext|>".to_owned()];
    tokens.extend(bytes.iter().cloned());
    tokens.extend(pairs().map(|(first, second)| format!("{first}{second}")));
    let merges: Vec<String> = pairs()
        .map(|(first, second)| format!("{first} {second}"))
        .collect();
    // 3 is a control token, 1 a normal one.
    let types: Vec<u32> = (0..count)
        .map(|token| if token == 0 { 3 } else { 1 })
        .collect();
    meta.put("tokenizer.ggml.model", &Value::Str("gpt2"));
    meta.put("tokenizer.ggml.pre", &Value::Str("gpt-2"));
    meta.put_texts("tokenizer.ggml.tokens", &tokens);
    meta.put_list("tokenizer.ggml.token_type", &types);
    meta.put_texts("tokenizer.ggml.merges", &merges);
    meta.put("tokenizer.ggml.bos_token_id", &Value::U32(0));
    meta.put("tokenizer.ggml.eos_token_id", &Value::U32(0));
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
