//! A look at every weight of a file.

use andon_engine::Model;
use anyhow::Result;
use clap::Args;
use std::io::Write as _;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// GGUF file, or any part of a model in several.
    model: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let model = Model::load(&arguments.model)?;
    model.verify(&mut |_, _| {})?;
    let info = model.info();
    Ok(writeln!(
        std::io::stdout(),
        "{}: {} bytes, every scale and value is finite",
        info.name,
        info.file_bytes
    )?)
}
