//! Which architecture a file's name for it means.

use super::{Architecture, llama::Llama};
use crate::gguf::Gguf;
use crate::weights::WeightsError;

type Load = fn(&Gguf<'_>) -> Result<Box<dyn Architecture>, WeightsError>;

/// `general.architecture` and what loads it.
const ARCHITECTURES: &[(&str, Load)] = &[("llama", |gguf| Ok(Box::new(Llama::load(gguf)?)))];

/// Names of the architectures that are built in.
pub fn names() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|&(name, _)| name)
}

/// Loads the architecture of a file.
///
/// # Errors
/// If it is not built in, or its hyperparameters or tensors are not what it takes.
pub fn load(gguf: &Gguf<'_>) -> Result<Box<dyn Architecture>, WeightsError> {
    let name = gguf.str("general.architecture")?;
    match ARCHITECTURES.iter().find(|&&(known, _)| known == name) {
        Some((_, load)) => load(gguf),
        None => Err(WeightsError::Architecture {
            architecture: name.to_owned(),
            supported: names().collect::<Vec<_>>().join(", "),
        }),
    }
}
