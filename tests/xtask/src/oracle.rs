//! Cases for the tokenizer tests, made by Hugging Face's `tokenizers` from real vocabularies.

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
pub(crate) fn ensure(python: &Path, model: &Path) -> Result<Vec<PathBuf>> {
    let beside = shell::root().join("../shared/data/vocab");
    let vocabularies = VOCABULARIES
        .iter()
        .map(|name| beside.join(format!("ggml-vocab-{name}.gguf")));
    let folder = shell::target_directory().join("tokenizer-cases");
    fs::create_dir_all(&folder)?;
    let script = shell::root().join("tests/oracle/tokenizer.py");
    let mut cases = Vec::new();
    for vocabulary in std::iter::once(model.to_path_buf())
        .chain(vocabularies)
        .filter(|path| path.is_file())
    {
        let stem = vocabulary.file_stem().unwrap_or_default().to_string_lossy();
        let path = folder.join(format!("{stem}.jsonl"));
        if !(is_newer(&path, &script) && is_newer(&path, &vocabulary)) {
            // Written beside and moved, so that an interrupted run leaves no half a file.
            let half = folder.join("half.jsonl");
            shell::run(
                Command::new(python)
                    .arg(&script)
                    .arg(&vocabulary)
                    .arg(&half),
            )?;
            fs::rename(&half, &path)?;
        }
        cases.push(path);
    }
    Ok(cases)
}

fn is_newer(path: &Path, than: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    matches!((time(path), time(than)), (Some(path), Some(than)) if path > than)
}
