//! The vector that an encoder makes of a text.

use andon_engine::embed::{Embedder, EmbedderOptions, shortened};
use andon_engine::models::Pooling;
use andon_engine::tokenizer::Special;
use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use std::io::Write as _;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: crate::Run,
    /// A text; may be given several times, which encodes them together.
    #[arg(long, required_unless_present = "file")]
    text: Vec<String>,
    /// Text file, UTF-8: one more text.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Only the first elements, scaled to length one.
    #[arg(long)]
    dimensions: Option<usize>,
    /// Print JSON: token ids and vectors.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let model = arguments.run.load()?;
    let options = EmbedderOptions {
        threads: arguments.run.threads,
        isa: arguments.run.isa,
        ..EmbedderOptions::default()
    };
    let mut embedder = Embedder::new(model.clone(), &options)?;
    let mut texts = arguments.text.clone();
    if let Some(file) = &arguments.file {
        texts.push(crate::read_text(file)?);
    }
    let ids: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| model.tokenizer().encode_prompt(text, Special::Plain))
        .collect();
    let inputs: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let mut vectors = embedder.embed(&inputs)?;
    if let Some(dimensions) = arguments.dimensions {
        let all = embedder.dimensions();
        for vector in &mut vectors {
            *vector = shortened(vector, dimensions)
                .with_context(|| format!("vectors have 1 to {all} dimensions"))?;
        }
    }
    let mut output = std::io::stdout().lock();
    if arguments.json {
        let report = json!({
            "dimensions": vectors.first().map(Vec::len),
            "pooling": model.info().pooling.map(Pooling::name),
            "ids": ids,
            "embeddings": vectors,
        });
        writeln!(output, "{report}")?;
    } else {
        for vector in &vectors {
            let line: Vec<String> = vector.iter().map(f32::to_string).collect();
            writeln!(output, "{}", line.join(" "))?;
        }
    }
    Ok(output.flush()?)
}
