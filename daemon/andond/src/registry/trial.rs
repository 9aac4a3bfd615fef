//! Whether a model can be served: loaded as it would be, its tasks compiled, and computed with.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use andon_engine::embed::{Embedder, EmbedderError, EmbedderOptions};
use andon_engine::kv::KvType;
use andon_engine::tokenizer::Special;
use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model};
use andon_wire::ModelStage;
use andon_wire::manifest::Manifest;

use super::known::Known;
use super::{RegistryError, serve};
use crate::config::models::SignaturePolicy;

/// What the model is asked. Any text would do; it is the same for every model.
const PROMPT: &str = "The hydraulic press stops in the middle of its stroke because";
/// Most tokens of it that are used.
const PROMPT_TOKENS_MAX: usize = 16;
/// Tokens that are made.
const TOKENS: usize = 8;
/// One thread: whoever is being served has the others.
const THREADS: usize = 1;

/// Tries the model whose files are in `folder`, and hands it out.
pub(super) fn run(
    folder: &Path,
    manifest: &Manifest,
    progress: &mut dyn FnMut(ModelStage, u64, u64),
) -> Result<(Arc<Model>, Option<Known>), RegistryError> {
    progress(ModelStage::Checking, 0, 0);
    // All were compared as they came.
    serve::tasks_in(folder, manifest, SignaturePolicy::Off)?;
    // What is no model to be served may still guess for one.
    let options = serve::load_options(folder, manifest, SignaturePolicy::Off)?.for_draft();
    let weights = manifest
        .weights()
        .next()
        .map(|member| folder.join(member.path.as_str()))
        .unwrap_or_default();
    // Where it lies for the moment is nobody's affair.
    let hidden = format!("{}/", folder.display());
    let unsound = |error: &dyn Display| rejected(&error.to_string().replace(&hidden, ""));
    let model = Model::load_with(&weights, &options).map_err(|error| unsound(&error))?;
    let architecture = &model.info().architecture;
    if *architecture != manifest.architecture.as_str() {
        return Err(rejected(&format!(
            "the weights are of the architecture {architecture}, the manifest says {}",
            manifest.architecture
        )));
    }
    model
        .verify(&mut |done, total| progress(ModelStage::Checking, done, total))
        .map_err(|error| unsound(&error))?;
    let model = Arc::new(model);
    let mut prompt = model.tokenizer().encode_prompt(PROMPT, Special::Plain);
    prompt.truncate(PROMPT_TOKENS_MAX.min(model.info().context_tokens_max.saturating_sub(TOKENS)));
    if prompt.is_empty() {
        // A vocabulary without these letters still has a first token.
        prompt.push(0);
    }
    let options = EmbedderOptions {
        threads: Some(THREADS),
        context_tokens_max: Some(PROMPT_TOKENS_MAX),
        ..EmbedderOptions::default()
    };
    let known = match Embedder::new(Arc::clone(&model), &options) {
        Ok(embedder) => embed(embedder, &prompt, progress).map(|()| None)?,
        Err(EmbedderError::NoEncoder { .. }) => Some(decode(&model, prompt, progress)?),
        Err(error) => return Err(rejected(&error)),
    };
    Ok((model, known))
}

fn rejected(why: &dyn Display) -> RegistryError {
    RegistryError::Rejected(why.to_string())
}

/// Has an encoder embed the prompt twice.
fn embed(
    mut embedder: Embedder,
    prompt: &[u32],
    progress: &mut dyn FnMut(ModelStage, u64, u64),
) -> Result<(), RegistryError> {
    let mut bits = Vec::new();
    for run in 0..2 {
        progress(ModelStage::Testing, run, 2);
        // That the vector is finite the engine sees to.
        let vectors = embedder
            .embed(&[prompt])
            .map_err(|error| rejected(&format!("it cannot be computed with: {error}")))?;
        bits.push(vectors.first().map(|vector| checksum(vector)));
    }
    same(&bits)
}

/// Has a decoder make the same tokens twice, and once with keys and values in 8 bits.
fn decode(
    model: &Arc<Model>,
    prompt: Vec<u32>,
    progress: &mut dyn FnMut(ModelStage, u64, u64),
) -> Result<Known, RegistryError> {
    let (mut runs, mut made) = (Vec::new(), Vec::new());
    let kinds = [KvType::F16, KvType::F16, KvType::Q8];
    for (run, kv_type) in (0..).zip(kinds) {
        let options = ExecutorOptions {
            threads: Some(THREADS),
            batch_tokens_max: PROMPT_TOKENS_MAX,
            kv_tokens_max: 4 * (PROMPT_TOKENS_MAX + TOKENS),
            kv_type,
            ..ExecutorOptions::default()
        };
        let executor =
            Executor::new(Arc::clone(model), &options).map_err(|error| rejected(&error))?;
        let (checksums, tokens) = tokens(executor, &prompt, &mut |step| {
            let steps = kinds.len() * TOKENS;
            progress(
                ModelStage::Testing,
                run * TOKENS as u64 + step,
                steps as u64,
            );
        })?;
        runs.push(checksums);
        made.push(tokens);
    }
    same(runs.get(..2).unwrap_or_default())?;
    let q8 = made.pop().unwrap_or_default();
    let f16 = made.pop().unwrap_or_default();
    Ok(Known::new(prompt, f16, q8))
}

/// What follows a prompt: a number for each row of logits, and the most probable tokens.
fn tokens(
    mut executor: Executor,
    prompt: &[u32],
    progress: &mut dyn FnMut(u64),
) -> Result<(Vec<u64>, Vec<u32>), RegistryError> {
    let mut next = prompt.to_vec();
    let mut sequence = executor.sequence();
    let (mut checksums, mut made) = (Vec::new(), Vec::new());
    for step in 0..TOKENS {
        progress(step as u64);
        let logits = executor
            .forward(&mut [Chunk {
                sequence: &mut sequence,
                tokens: &next,
                logits: LogitsFor::Last,
            }])
            .map_err(|error| rejected(&format!("it cannot be computed with: {error}")))?;
        let row = logits.row(0);
        if let Some(at) = row.iter().position(|value| !value.is_finite()) {
            return Err(rejected(&format!(
                "its weights give a result that is no number (token {at} of step {step}): the file is damaged"
            )));
        }
        checksums.push(checksum(row));
        let place = greatest(row);
        let token = token_of(executor.model(), place);
        made.push(token);
        next = vec![token];
    }
    Ok((checksums, made))
}

fn same<T: PartialEq>(runs: &[T]) -> Result<(), RegistryError> {
    if runs.windows(2).all(|pair| pair.first() == pair.last()) {
        Ok(())
    } else {
        Err(rejected(&"two runs of it gave two results"))
    }
}

/// The token of a place in a row of logits.
fn token_of(model: &Model, place: u32) -> u32 {
    let tokens = model.draft_tokens();
    let token = tokens.and_then(|tokens| tokens.get(usize::try_from(place).ok()?));
    token.copied().unwrap_or(place)
}

/// The index of the greatest value, of the first if there are several.
fn greatest(row: &[f32]) -> u32 {
    let mut best = (0u32, f32::NEG_INFINITY);
    for (index, &value) in (0u32..).zip(row) {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// A number that differs, but for an accident, if any bit of the row does.
fn checksum(row: &[f32]) -> u64 {
    row.iter().fold(0xcbf2_9ce4_8422_2325, |sum, value| {
        (sum ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
    })
}
