//! Whole models: logits and greedy tokens against the processor's, and tokens per second.
//!
//! The device does the processor's arithmetic, so the bound on logits is none: every byte is the same, however a prompt is cut
//! and however many columns a pass has. A token that differs is told with what was between it and the next best.

use andon_engine::backend::Backend;
use andon_engine::kv::KvType;
use andon_engine::tokenizer::Special;
use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model, Sequence};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What is read before tokens are generated.
const PROMPT: &str = "The conveyor stopped at 06:42. Sensor B3 read 71 degrees, four above its limit, and the drive's \
    current had risen since five. The shift wrote down what it saw, in order, and asked what to look at first. ";

/// Tokens of a prompt whose time is taken.
const PREFILL: usize = 512;

fn executor(
    model: &Arc<Model>,
    backend: Backend,
    kv_type: KvType,
    tokens: usize,
) -> Result<Executor> {
    let options = ExecutorOptions {
        backend,
        batch_tokens_max: PREFILL,
        output_rows_max: 16,
        kv_tokens_max: tokens,
        kv_type,
        ..ExecutorOptions::default()
    };
    Executor::new(Arc::clone(model), &options).with_context(|| format!("no executor on {backend}"))
}

/// Logits of all of `tokens`, read `each` at a time.
fn logits(executor: &mut Executor, tokens: &[u32], each: usize) -> Result<Vec<f32>> {
    let mut sequence = executor.sequence();
    let mut all = Vec::new();
    for tokens in tokens.chunks(each) {
        let chunk = Chunk {
            sequence: &mut sequence,
            tokens,
            logits: LogitsFor::All,
        };
        let logits = executor.forward(&mut [chunk])?;
        for row in 0..logits.row_count() {
            all.extend_from_slice(logits.row(row));
        }
    }
    Ok(all)
}

/// Appends tokens; logits of the last.
fn append(executor: &mut Executor, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
    let chunk = Chunk {
        sequence,
        tokens,
        logits: LogitsFor::Last,
    };
    let logits = executor.forward(&mut [chunk])?;
    Ok(logits.row(0).to_vec())
}

/// The largest of the logits, of equal ones the first, and how much less the next is.
fn best(logits: &[f32]) -> (u32, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    let others = (0..)
        .zip(logits)
        .filter(|&(token, _): &(u32, _)| token != best.0);
    let next = others.fold(f32::NEG_INFINITY, |next, (_, &logit)| next.max(logit));
    (best.0, best.1 - next)
}

/// Fails unless both are the same bytes.
fn same(device: &[f32], host: &[f32], what: &str) -> Result<()> {
    ensure!(
        device.len() == host.len(),
        "{what}: {} logits for {}",
        device.len(),
        host.len()
    );
    let pairs = device.iter().zip(host);
    let differing = pairs
        .clone()
        .filter(|(a, b)| a.to_bits() != b.to_bits())
        .count();
    let largest = pairs.fold(0.0f32, |largest, (a, b)| largest.max((a - b).abs()));
    ensure!(
        differing == 0,
        "{what}: {differing} of {} logits differ, by up to {largest:e}",
        host.len()
    );
    Ok(())
}

/// The greedy continuation of both, token by token.
fn greedy(device: &mut Executor, host: &mut Executor, prompt: &[u32], count: usize) -> Result<()> {
    let (mut on_device, mut on_host) = (device.sequence(), host.sequence());
    let mut next = prompt.to_vec();
    for index in 0..count {
        let ours = append(device, &mut on_device, &next)?;
        let expected = append(host, &mut on_host, &next)?;
        let ((token, lead), (expected_token, expected_lead)) = (best(&ours), best(&expected));
        if token != expected_token {
            bail!(
                "token {index} is {token} (by {lead:e}) and on the processor {expected_token} (by {expected_lead:e})"
            );
        }
        next = vec![token];
    }
    Ok(())
}

/// Seconds that `count` passes of `columns` tokens take, one after the other.
fn decode_seconds(
    executor: &mut Executor,
    prompt: &[u32],
    columns: usize,
    count: usize,
) -> Result<f64> {
    let mut sequence = executor.sequence();
    append(executor, &mut sequence, prompt)?;
    let step: Vec<u32> = prompt.iter().cycle().take(columns).copied().collect();
    append(executor, &mut sequence, &step)?;
    let began = Instant::now();
    for _ in 0..count {
        append(executor, &mut sequence, &step)?;
    }
    Ok(began.elapsed().as_secs_f64() / count as f64)
}

/// Compares a model's logits and `count` greedy tokens, and says how fast the device is unless `timed` is false.
///
/// # Errors
/// When something differs, or the model or the device cannot be used.
pub(crate) fn check(path: &Path, count: usize, timed: bool) -> Result<String> {
    let model = Arc::new(Model::load(path)?);
    let tokenizer = model.tokenizer();
    let prompt = tokenizer.encode_prompt(PROMPT, Special::Plain);
    let tokens_max = (PREFILL + prompt.len() + count).max(PREFILL + 16 * 64);
    let mut said = String::new();
    for kv_type in KvType::ALL {
        let mut device = executor(&model, Backend::Cuda, kv_type, tokens_max)?;
        let mut host = executor(&model, Backend::Cpu, kv_type, tokens_max)?;
        let read = &prompt[..prompt.len().min(count)];
        let expected = logits(&mut host, read, read.len())?;
        for each in [1, 3, 8, 16, 17, read.len()] {
            let ours = logits(&mut device, read, each)?;
            same(
                &ours,
                &expected,
                &format!("{kv_type:?}, {each} tokens at a time"),
            )?;
        }
        greedy(&mut device, &mut host, &prompt, count)?;
        write!(
            said,
            "{}{kv_type:?}: logits of {} tokens and {count} greedy tokens are the processor's",
            if said.is_empty() { "" } else { "; " },
            read.len()
        )?;
        if timed {
            let whole: Vec<u32> = prompt.iter().cycle().take(PREFILL).copied().collect();
            let mut prefill = f64::INFINITY;
            for _ in 0..3 {
                let mut sequence = device.sequence();
                let began = Instant::now();
                append(&mut device, &mut sequence, &whole)?;
                prefill = prefill.min(began.elapsed().as_secs_f64());
            }
            let one = decode_seconds(&mut device, &prompt, 1, 64)?;
            write!(
                said,
                "; {:.1} tokens/s, prompts {:.0} tokens/s",
                1.0 / one,
                PREFILL as f64 / prefill
            )?;
            for columns in [8, 16] {
                let seconds = decode_seconds(&mut device, &prompt, columns, 24)?;
                write!(said, ", T({columns})/T(1) {:.2}", seconds / one)?;
            }
        }
    }
    Ok(said)
}
