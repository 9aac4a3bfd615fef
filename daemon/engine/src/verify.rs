//! A look at every weight of a model: what loading leaves out because it would read the whole file.
//!
//! Invariant: a model that passes has finite scales and values throughout, so what it computes is finite unless the
//! activations overflow.

use std::path::PathBuf;

use andon_kernels::block;

use crate::model::{LoadError, Model};

/// Bytes between two reports of progress.
const PROGRESS_BYTES: usize = 64 << 20;

/// What is wrong with a model's weights.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A scale, a minimum or a value is infinite or not a number.
    #[error(
        "`{}`: byte {offset}: tensor `{tensor}` has a value or a scale that is not a finite number",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Where its block starts in the file.
        offset: usize,
        /// The tensor.
        tensor: String,
    },
    /// The file changed, or cannot be read any more.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl Model {
    /// Reads all weights and looks for scales and values that are infinite or not a number. `progress` is told bytes
    /// read and bytes in all.
    ///
    /// # Errors
    /// [`VerifyError`] for the first that is found, which names the file, the byte and the tensor.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), VerifyError> {
        let files = self.files();
        let gguf = files.gguf()?;
        let total: usize = gguf.tensors().iter().map(|tensor| tensor.range.len()).sum();
        let (mut done, mut said) = (0_usize, 0_usize);
        progress(0, total as u64);
        for tensor in gguf.tensors() {
            // Tensors of other formats were refused when the model was loaded.
            let Some(format) = tensor.format else {
                continue;
            };
            let mut offset = tensor.range.start;
            let piece = PROGRESS_BYTES / format.block_bytes() * format.block_bytes();
            for bytes in gguf.data(tensor).chunks(piece) {
                if let Some(at) = block::first_not_finite(format, bytes) {
                    return Err(VerifyError::NotFinite {
                        path: files.paths().get(tensor.part).cloned().unwrap_or_default(),
                        offset: offset + at,
                        tensor: tensor.name.to_owned(),
                    });
                }
                offset += bytes.len();
                done += bytes.len();
                if done - said >= PROGRESS_BYTES {
                    said = done;
                    progress(done as u64, total as u64);
                }
            }
        }
        if let Some((_, path)) = files.damaged() {
            let path = path.to_owned();
            return Err(LoadError::Changed { path }.into());
        }
        progress(total as u64, total as u64);
        Ok(())
    }
}
