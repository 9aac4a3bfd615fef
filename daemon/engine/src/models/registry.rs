//! Which architecture a file's name for it means.

use super::bert::{Bert, Member};
use super::encoder::{self, Encoder, Pooling};
use super::modern_bert::ModernBert;
use super::{
    Architecture, gemma, gemma2, gemma3, granite, llama, mistral3, olmo2, phi3, qwen2, qwen3,
    smollm3,
};
use crate::gguf::Gguf;
use crate::layer::{Decoder, Design, Hyperparameters};
use crate::weights::{Source, WeightsError};

type Load = fn(&Gguf<'_>) -> Result<Box<dyn Architecture>, WeightsError>;

/// What a decoder's file says of it.
type Describe = fn(&Hyperparameters<'_, '_>, &mut Source<'_, '_>) -> Result<Design, WeightsError>;

/// A loader of the decoder that `$describe` designs.
macro_rules! decoder {
    ($describe:path) => {
        |gguf| decoder(gguf, $describe)
    };
}

/// `general.architecture` and what loads it.
const ARCHITECTURES: &[(&str, Load)] = &[
    ("gemma", decoder!(gemma::design)),
    ("gemma2", decoder!(gemma2::design)),
    ("gemma3", decoder!(gemma3::design)),
    ("granite", decoder!(granite::design)),
    ("llama", decoder!(llama::design)),
    ("mistral3", decoder!(mistral3::design)),
    ("olmo2", decoder!(olmo2::design)),
    ("phi3", decoder!(phi3::design)),
    ("qwen2", decoder!(qwen2::design)),
    ("qwen3", decoder!(qwen3::design)),
    ("smollm3", decoder!(smollm3::design)),
];

fn decoder(gguf: &Gguf<'_>, describe: Describe) -> Result<Box<dyn Architecture>, WeightsError> {
    let keys = Hyperparameters::new(gguf)?;
    // Files of embedding models that were made from a decoder.
    let causal = keys.key("attention.causal");
    if !gguf.bool_or(&causal, true)? {
        return Err(WeightsError::Unsupported {
            what: format!("attention to later positions (`{causal}` is false)"),
        });
    }
    let pooling = keys.key("pooling_type");
    match gguf.u32_or(&pooling, 0)? {
        0 => {}
        // It could predict tokens, but nobody trained it to do so well.
        kind => {
            return Err(WeightsError::Unsupported {
                what: format!("a decoder that makes embeddings (`{pooling}` is {kind})"),
            });
        }
    }
    let mut source = Source::new(gguf);
    let design = describe(&keys, &mut source)?;
    Ok(Box::new(Decoder::load(
        source,
        design,
        keys.architecture(),
    )?))
}

/// An encoder, and how its vectors are pooled.
pub type PooledEncoder = (Box<dyn Encoder>, Pooling);

type LoadEncoder = fn(&Gguf<'_>) -> Result<Box<dyn Encoder>, WeightsError>;

/// The same for encoders, which make embeddings only.
const ENCODERS: &[(&str, LoadEncoder)] = &[
    ("bert", |gguf| Ok(Box::new(Bert::load(gguf, Member::Bert)?))),
    ("jina-bert-v2", |gguf| {
        Ok(Box::new(Bert::load(gguf, Member::JinaV2)?))
    }),
    ("modern-bert", |gguf| Ok(Box::new(ModernBert::load(gguf)?))),
    ("nomic-bert", |gguf| {
        Ok(Box::new(Bert::load(gguf, Member::Nomic)?))
    }),
];

/// Names of the architectures that are built in.
pub fn names() -> impl Iterator<Item = &'static str> {
    let encoders = ENCODERS.iter().map(|&(name, _)| name);
    ARCHITECTURES.iter().map(|&(name, _)| name).chain(encoders)
}

/// Loads the encoder of a file; `None` if the file's architecture is no encoder.
///
/// # Errors
/// If its hyperparameters or tensors are not what it takes.
pub fn load_encoder(gguf: &Gguf<'_>) -> Result<Option<PooledEncoder>, WeightsError> {
    let name = gguf.str("general.architecture")?;
    let Some((_, load)) = ENCODERS.iter().find(|&&(known, _)| known == name) else {
        return Ok(None);
    };
    // The mean is what most encoders were trained with, and no pooling at all would not be an embedding.
    let pooling = encoder::pooling(&Hyperparameters::new(gguf)?)?.unwrap_or(Pooling::Mean);
    Ok(Some((load(gguf)?, pooling)))
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
