//! The trained weights as a file that the engine runs: the target's metadata with other sizes, its embedding as it is,
//! and under [`TOKEN_IDS`] which of its tokens the rows of the output stand for.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use andon_engine::gguf::{Value, Writer};
use andon_kernels::Format;
use andon_kernels::encode::encode_row;
use anyhow::{Context as _, Result, bail};

use super::checkpoint::whole;
use super::network::turned;
use super::select::Plan;
use super::target::{Shape, Target};
use super::train::State;

/// Ids of the target's vocabulary, ascending: the token of each row of the output.
const TOKEN_IDS: &str = "andon.draft.token_ids";

const EMBEDDING: &str = "token_embd.weight";
const FREQUENCIES: &str = "rope_freqs.weight";

/// Whether matrices of a draft of `shape` can be written in `format`.
pub(super) fn check(shape: &Shape, format: Format) -> Result<()> {
    for (what, columns) in [
        ("the model's width", shape.width),
        (
            "the heads that are kept, together",
            shape.heads * shape.head_dim,
        ),
        ("the neurons that are kept", shape.neurons),
    ] {
        let bytes = format.bytes(columns).with_context(|| {
            format!(
                "{what}, {columns}, are not whole blocks of --format {}",
                format.name()
            )
        })?;
        encode_row(format, &vec![0.0; columns], &mut vec![0; bytes])
            .with_context(|| format!("--format {}", format.name()))?;
    }
    Ok(())
}

pub(super) fn export(
    path: &Path,
    target: &Target<'_>,
    shape: &Shape,
    plan: &Plan,
    state: &State,
    format: Format,
) -> Result<()> {
    let mut writer = metadata(target, shape, plan)?;
    for name in [EMBEDDING, FREQUENCIES] {
        if let Some(tensor) = target.gguf.tensor(name) {
            let format = tensor
                .format
                .with_context(|| format!("`{name}` is of an unknown type"))?;
            writer
                .tensor(name, &tensor.dims, format)
                .with_context(|| name.to_owned())?;
        }
    }
    for (name, weight) in &state.weights {
        let known = match weight.dims[..] {
            [columns, rows] => writer.tensor(name, &[columns, rows], format),
            [columns] => writer.tensor(name, &[columns], Format::F32),
            _ => bail!("`{name}` is neither a matrix nor a vector"),
        };
        known.with_context(|| {
            format!(
                "rows of `{name}`, {} long, are not whole blocks of {}",
                weight.dims[0],
                format.name()
            )
        })?;
    }
    let data = |name: &str, out: &mut dyn io::Write| match state.weights.get(name) {
        Some(weight) => match weight.dims[..] {
            [columns, rows] => encode(&turned(&weight.values, columns), rows, format, out),
            _ => weight
                .values
                .iter()
                .try_for_each(|x| out.write_all(&x.to_le_bytes())),
        },
        None => {
            let tensor = target.gguf.tensor(name).ok_or(io::ErrorKind::NotFound)?;
            out.write_all(target.gguf.data(tensor))
        }
    };
    whole(path, |path| {
        let mut file = BufWriter::new(File::create(path)?);
        writer.write(&mut file, data)?;
        Ok(file.flush()?)
    })
}

fn encode(matrix: &[f32], rows: usize, format: Format, out: &mut dyn io::Write) -> io::Result<()> {
    let columns = matrix.len() / rows.max(1);
    let mut bytes = vec![0; format.bytes(columns).ok_or(io::ErrorKind::InvalidData)?];
    for row in matrix.chunks_exact(columns.max(1)) {
        encode_row(format, row, &mut bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn metadata(target: &Target<'_>, shape: &Shape, plan: &Plan) -> Result<Writer> {
    let sizes = [
        ("block_count", shape.layers),
        ("feed_forward_length", shape.neurons),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("attention.key_length", shape.head_dim),
        ("attention.value_length", shape.head_dim),
        ("rope.dimension_count", shape.frequencies.len() * 2),
    ]
    .map(|(name, size)| (target.key(name), size));
    let mut writer = Writer::new();
    for key in target.gguf.keys() {
        let replaced = sizes.iter().any(|(name, _)| name == key)
            || key.starts_with("split.")
            || [
                "general.name",
                "general.alignment",
                "general.file_type",
                "general.size_label",
                TOKEN_IDS,
            ]
            .contains(&key);
        if let Some(value) = target.gguf.get(key).filter(|_| !replaced) {
            writer.put(key, &value);
        }
    }
    let name = target.gguf.str_or("general.name", &target.architecture)?;
    writer.put("general.name", &Value::Str(&format!("{name} draft")));
    for (key, size) in sizes {
        writer.put(&key, &Value::U32(u32::try_from(size)?));
    }
    if plan.tokens.len() < target.vocabulary {
        writer.put_list(TOKEN_IDS, &plan.tokens);
    }
    Ok(writer)
}
