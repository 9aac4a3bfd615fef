//! What a model is known to make: the tokens that came out when it was added, which it has to make again before it is asked
//! anything.
//!
//! They are kept beside the model's files, in a file that is none of its members. One that cannot be read, or was noted by
//! an engine that computes otherwise, says nothing of the model.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use andon_engine::kv::KvType;
use serde::{Deserialize, Serialize};

use super::{RegistryError, store};

/// Its name; no member of a bundle may be called so.
const FILE: &str = ".known.json";
/// Most bytes of the file.
const BYTES_MAX: u64 = 16 * 1024;
/// To be raised when the engine's results change on purpose, so that tokens may come out otherwise than they were noted.
const NUMERICS: u32 = 1;

/// A prompt and the tokens that follow it, by how keys and values are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    numerics: u32,
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    f16: Vec<u32>,
    q8: Vec<u32>,
}

impl Known {
    pub(super) fn new(prompt: Vec<u32>, f16: Vec<u32>, q8: Vec<u32>) -> Known {
        Known {
            numerics: NUMERICS,
            prompt,
            f16,
            q8,
        }
    }

    /// The tokens that follow the prompt, the most probable ones.
    pub fn tokens(&self, kv_type: KvType) -> &[u32] {
        match kv_type {
            KvType::F16 => &self.f16,
            KvType::Q8 => &self.q8,
        }
    }

    /// Whether it can be asked of a model with such a context and vocabulary.
    pub fn fits(&self, context_tokens_max: usize, vocabulary: usize) -> bool {
        let made = self.f16.len().max(self.q8.len());
        let all = self.prompt.iter().chain(&self.f16).chain(&self.q8);
        !self.prompt.is_empty()
            && self.prompt.len() + made <= context_tokens_max
            && all.into_iter().all(|&token| (token as usize) < vocabulary)
    }

    /// Keeps it in a model's folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), RegistryError> {
        let path = folder.join(FILE);
        let text = serde_json::to_string(self)
            .map_err(|error| RegistryError::Io(path.clone(), "write", error.into()))?;
        File::create(&path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(RegistryError::io(&path, "write"))
    }

    /// What is kept in a model's folder, if it is of use.
    pub fn read(folder: &Path) -> Option<Known> {
        let path = folder.join(FILE);
        if !path.exists() {
            return None;
        }
        let read = store::text(&path, BYTES_MAX)
            .map_err(|error| error.to_string())
            .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        match read {
            Ok(Known { numerics, .. }) if numerics != NUMERICS => None,
            Ok(known) => Some(known),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, error, "what the model is known to make is not compared");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FILE, Known};
    use andon_engine::kv::KvType;
    use std::fs;

    #[test]
    fn what_is_known_is_kept_and_nothing_else_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Known::read(folder.path()), None);
        let known = Known::new(vec![1, 2, 3], vec![4, 5], vec![4, 6]);
        known.write(folder.path()).unwrap();
        assert_eq!(Known::read(folder.path()).as_ref(), Some(&known));
        assert_eq!(known.tokens(KvType::Q8), [4, 6]);
        assert!(known.fits(5, 7));
        assert!(!known.fits(4, 7) && !known.fits(5, 6));
        let path = folder.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"numerics\":1", "\"numerics\":7")).unwrap();
        assert_eq!(Known::read(folder.path()), None);
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(Known::read(folder.path()), None);
    }
}
