//! Token ids of texts. Needs a vocabulary only, so files without weights will do.

use andon_engine::Files;
use andon_engine::tokenizer::{Special, Tokenizer};
use anyhow::{Context as _, Result};
use clap::Args;
use std::io::Write as _;
use std::path::PathBuf;

/// Between the texts of an `.inp` file, as llama.cpp's tokenizer tests write them.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// GGUF file; its vocabulary is enough.
    model: PathBuf,
    /// Text file, UTF-8.
    #[arg(long)]
    file: PathBuf,
    /// The file holds several texts, separated by lines `__ggml_vocab_test__`; print one line for each.
    #[arg(long)]
    inp: bool,
    /// Pre-tokenizer, in place of the one the file names.
    #[arg(long, value_name = "NAME")]
    pre_tokenizer: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let path = arguments.model.display();
    let files = Files::open(&arguments.model)?;
    let gguf = files.gguf()?;
    let tokenizer = Tokenizer::from_gguf_with(&gguf, arguments.pre_tokenizer.as_deref())
        .with_context(|| format!("the tokenizer of `{path}` cannot be used"))?;
    for warning in tokenizer.warnings() {
        eprintln!("andon-lab: {path}: {warning}");
    }
    let text = crate::read_text(&arguments.file)?;
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = |text: &str| -> Result<()> {
        let ids = tokenizer.encode(text, Special::Plain);
        let line: Vec<String> = ids.iter().map(u32::to_string).collect();
        Ok(writeln!(output, "{}", line.join(" "))?)
    };
    if arguments.inp {
        // The last text ends with a separator, too.
        let texts = text.strip_suffix(SEPARATOR).unwrap_or(&text);
        texts.split(SEPARATOR).try_for_each(&mut print)?;
    } else {
        print(&text)?;
    }
    Ok(output.flush()?)
}
