//! The model that a draft is made from, as its file has it: sizes, and weights in f32.
//!
//! Invariant: whatever is opened is a graph that `network.rs` computes: an architecture, scaling or tensor that it does
//! not know is refused by name, never left out.

use std::path::Path;

use andon_engine::Files;
use andon_engine::gguf::{Gguf, TensorInfo};
use andon_kernels::block::decode_row;
use anyhow::{Context as _, Result, bail, ensure};

/// Architectures of which drafts are made: one graph, with or without biases and norms of heads.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Parts of a layer's name behind `blk.N.`.
const PARTS: [&str; 14] = [
    "attn_norm.weight",
    "ffn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
    "attn_q.bias",
    "attn_k.bias",
    "attn_v.bias",
    "attn_q_norm.weight",
    "attn_k_norm.weight",
];

/// Sizes of a decoder, and what its steps are like.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Elements between the matrices of a feed-forward part.
    pub(super) neurons: usize,
    /// Whether pairs of a rotation are neighbours.
    pub(super) adjacent: bool,
    /// Radians per position, for each pair.
    pub(super) frequencies: Vec<f64>,
    /// Added to mean squares.
    pub(super) epsilon: f32,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) gguf: Gguf<'a>,
    pub(super) architecture: String,
    pub(super) shape: Shape,
    pub(super) vocabulary: usize,
}

impl<'a> Target<'a> {
    /// Reads the sizes; the model was loaded by the engine before, so what that checks is not checked again.
    pub(super) fn open(files: &'a Files, path: &Path) -> Result<Target<'a>> {
        Target::read(files.gguf()?).with_context(|| format!("`{}`", path.display()))
    }

    fn read(gguf: Gguf<'a>) -> Result<Target<'a>> {
        let architecture = gguf.str("general.architecture")?.to_owned();
        ensure!(
            ARCHITECTURES.contains(&architecture.as_str()),
            "drafts are made of {}, not of {architecture}",
            ARCHITECTURES.join(", ")
        );
        let key = |name: &str| format!("{architecture}.{name}");
        let count = |name: &str| -> Result<usize> { Ok(gguf.u32(&key(name))? as usize) };
        for refused in ["attention.sliding_window", "expert_count"] {
            let value = gguf.get(&key(refused));
            let unset = value.is_none_or(|value| value.as_integer() == Some(0));
            ensure!(
                unset,
                "no draft can be made of a model with `{}`",
                key(refused)
            );
        }
        let scaling = gguf.str_or(&key("rope.scaling.type"), "none")?.to_owned();
        let factor = gguf.f32_or(&key("rope.scaling.factor"), 1.0)?;
        ensure!(
            scaling == "none" || scaling == "linear" && factor == 1.0,
            "no draft can be made of a model whose `{}` is {scaling}",
            key("rope.scaling.type")
        );
        let (width, heads) = (count("embedding_length")?, count("attention.head_count")?);
        ensure!(heads > 0, "`{}` is 0", key("attention.head_count"));
        let head_dim = gguf.u32_or(&key("attention.key_length"), (width / heads) as u32)? as usize;
        let dims = gguf.u32_or(&key("rope.dimension_count"), head_dim as u32)? as usize;
        ensure!(
            dims <= head_dim,
            "`{}` is {dims}, and heads have {head_dim}",
            key("rope.dimension_count")
        );
        let base = f64::from(gguf.f32_or(&key("rope.freq_base"), 10_000.0)?);
        let frequency = |pair: usize| base.powf(-((2 * pair) as f64) / dims as f64);
        let embedding = gguf
            .tensor("token_embd.weight")
            .context("no `token_embd.weight`")?;
        let shape = Shape {
            layers: count("block_count")?,
            width,
            heads,
            kv_heads: gguf
                .u32_or(&key("attention.head_count_kv"), heads as u32)?
                .max(1) as usize,
            head_dim,
            neurons: count("feed_forward_length")?,
            adjacent: architecture == "llama",
            frequencies: (0..dims / 2).map(frequency).collect(),
            epsilon: gguf.f32(&key("attention.layer_norm_rms_epsilon"))?,
        };
        let vocabulary = embedding.dims.row_count();
        let mut target = Target {
            gguf,
            architecture,
            shape,
            vocabulary,
        };
        target.check_tensors()?;
        if let Some(factors) = target.find("rope_freqs.weight")? {
            for (frequency, factor) in target.shape.frequencies.iter_mut().zip(factors) {
                *frequency /= f64::from(factor);
            }
        }
        Ok(target)
    }

    fn check_tensors(&self) -> Result<()> {
        for tensor in self.gguf.tensors() {
            let known = match tensor
                .name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.'))
            {
                Some((_, part)) => PARTS.contains(&part),
                None => [
                    "token_embd.weight",
                    "output.weight",
                    "output_norm.weight",
                    "rope_freqs.weight",
                ]
                .contains(&tensor.name),
            };
            if !known {
                bail!(
                    "no draft can be made of a model with a tensor `{}`",
                    tensor.name
                );
            }
        }
        Ok(())
    }

    /// The name of a hyperparameter's key.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A tensor's elements, row after row.
    pub(super) fn find(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.gguf.tensor(name) else {
            return Ok(None);
        };
        let rows = 0..tensor.dims.row_count() as u32;
        let mut out = vec![0f32; tensor.dims.elements()];
        self.rows_of(tensor, rows, &mut out)?;
        ensure!(
            out.iter().all(|x| x.is_finite()),
            "`{name}` has a value that is not finite"
        );
        Ok(Some(out))
    }

    /// Those of a tensor that must be there.
    pub(super) fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        self.find(name)?
            .with_context(|| format!("no tensor `{name}`"))
    }

    /// Rows of the embedding.
    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.some_rows("token_embd.weight", tokens)
    }

    /// Rows of the output: those of the embedding where the file has no other.
    pub(super) fn head(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        match self.gguf.tensor("output.weight") {
            Some(_) => self.some_rows("output.weight", tokens),
            None => self.embed(tokens),
        }
    }

    fn some_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>> {
        let tensor = self
            .gguf
            .tensor(name)
            .with_context(|| format!("no tensor `{name}`"))?;
        let mut out = vec![0f32; rows.len() * tensor.dims.row_elements()];
        self.rows_of(tensor, rows.iter().copied(), &mut out)?;
        Ok(out)
    }

    fn rows_of(
        &self,
        tensor: &TensorInfo<'_>,
        rows: impl Iterator<Item = u32>,
        out: &mut [f32],
    ) -> Result<()> {
        let format = tensor
            .format
            .with_context(|| format!("`{}` is of an unknown type", tensor.name))?;
        let columns = tensor.dims.row_elements();
        let bytes = format
            .bytes(columns)
            .context("rows that are not whole blocks")?;
        let data = self.gguf.data(tensor);
        for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
            let row = data
                .get(row as usize * bytes..)
                .and_then(|data| data.get(..bytes));
            let row = row.with_context(|| format!("`{}` has no such row", tensor.name))?;
            decode_row(format, row, out);
        }
        Ok(())
    }
}
