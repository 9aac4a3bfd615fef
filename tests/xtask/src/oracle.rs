//! Cases for tests, made by other people's programs: `tokenizers` for tokens, `gguf` for blocks of tensors, Jinja2 for
//! chat templates.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::shell;

/// Vocabularies that may lie beside the checkout, with no model to them.
const VOCABULARIES: [&str; 3] = ["gpt-2", "llama-bpe", "qwen2"];

/// Files of cases: for the model, and for every vocabulary that is there. Made anew when the script or
/// the vocabulary is newer.
///
/// # Errors
/// When the script fails.
pub(crate) fn tokens(python: &Path, model: &Path) -> Result<Vec<PathBuf>> {
    let beside = shell::root().join("../shared/data/vocab");
    let vocabularies = VOCABULARIES
        .iter()
        .map(|name| beside.join(format!("ggml-vocab-{name}.gguf")));
    let mut cases = Vec::new();
    for vocabulary in std::iter::once(model.to_path_buf())
        .chain(vocabularies)
        .filter(|path| path.is_file())
    {
        let stem = vocabulary.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("tokenizer-cases/{stem}.jsonl");
        cases.push(write(python, "tokenizer.py", &name, &vocabulary, |half| {
            vec![vocabulary.clone().into(), half.into()]
        })?);
    }
    Ok(cases)
}

/// A file of blocks and their values, and of rows of the model.
///
/// # Errors
/// When the script fails.
pub(crate) fn formats(python: &Path, model: &Path) -> Result<PathBuf> {
    write(python, "formats.py", "format-cases.txt", model, |half| {
        vec!["cases".into(), half.into(), "--model".into(), model.into()]
    })
}

/// A file of chat templates, the model's among them, and the prompts they make.
///
/// # Errors
/// When the script fails.
pub(crate) fn chat_templates(python: &Path, model: &Path) -> Result<PathBuf> {
    write(
        python,
        "chat_template.py",
        "chat-template-cases.jsonl",
        model,
        |half| vec![half.into(), model.into()],
    )
}

/// Runs a script that writes the file whose path it is given. Not if the file is newer than the script and the input.
fn write(
    python: &Path,
    script: &str,
    name: &str,
    input: &Path,
    arguments: impl Fn(&Path) -> Vec<OsString>,
) -> Result<PathBuf> {
    let script = shell::root().join("tests/oracle").join(script);
    let path = shell::target_directory().join(name);
    if !(is_newer(&path, &script) && is_newer(&path, input)) {
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        // Written beside and moved, so that an interrupted run leaves no half a file.
        let half = path.with_extension("half");
        shell::run(Command::new(python).arg(&script).args(arguments(&half)))?;
        fs::rename(&half, &path)?;
    }
    Ok(path)
}

fn is_newer(path: &Path, than: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    matches!((time(path), time(than)), (Some(path), Some(than)) if path > than)
}
