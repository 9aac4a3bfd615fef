//! Whole models: logits and greedy tokens against the processor's, and tokens per second.
//!
//! The device does the processor's arithmetic, so the bound on logits is none: every byte is the same, however a prompt is cut
//! and however many columns a pass has. A token that differs is told with what was between it and the next best.

use crate::Run;
use andon_cuda_check::figures::median;
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

/// Tokens of a prompt whose time is taken, and the most of a pass.
const PREFILL: usize = 512;

fn executor(
    model: &Arc<Model>,
    (backend, graphs): (Backend, bool),
    kv_type: KvType,
    tokens: usize,
) -> Result<Executor> {
    let options = ExecutorOptions {
        backend,
        graphs,
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

/// Appends tokens; logits of the last. Where the device says which is the best of them, it has to be.
fn append(executor: &mut Executor, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
    let chunk = Chunk {
        sequence,
        tokens,
        logits: LogitsFor::Last,
    };
    let outputs = executor.forward_unless(&mut [chunk], &|| false)?;
    let row = outputs.row(0);
    let all = row.all().context("logits cannot be read")?.to_vec();
    if let Some(&(token, logit)) = row.best().first() {
        let (expected, _) = best(&all);
        ensure!(
            token == expected && logit.to_bits() == all[expected as usize].to_bits(),
            "the device takes token {token} for the best, which is {expected}"
        );
    }
    Ok(all)
}

/// Appends tokens as an answer does: to the best token behind them, which the device says by itself.
fn append_answer(executor: &mut Executor, sequence: &mut Sequence, tokens: &[u32]) -> Result<()> {
    let chunk = Chunk {
        sequence,
        tokens,
        logits: LogitsFor::Last,
    };
    let outputs = executor.forward_unless(&mut [chunk], &|| false)?;
    ensure!(
        !outputs.row(0).best().is_empty(),
        "the device does not say which token is the best"
    );
    Ok(())
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

/// Compares a model's logits and `count` greedy tokens.
///
/// # Errors
/// When something differs, or the model or the device cannot be used.
pub(crate) fn compare(path: &Path, count: usize) -> Result<String> {
    let model = Arc::new(Model::load(path)?);
    let tokenizer = model.tokenizer();
    let mut prompt = tokenizer.encode_prompt(PROMPT, Special::Plain);
    // Vocabularies without words make a token of each letter.
    prompt.truncate(100);
    let tokens_max = PREFILL + prompt.len() + count;
    let mut said = String::new();
    for kv_type in KvType::ALL {
        let mut device = executor(&model, (Backend::Cuda, true), kv_type, tokens_max)?;
        let mut host = executor(&model, (Backend::Cpu, true), kv_type, tokens_max)?;
        let read = &prompt[..prompt.len().min(count)];
        let expected = logits(&mut host, read, read.len())?;
        for each in (1..=17).chain([read.len()]) {
            let ours = logits(&mut device, read, each)?;
            let what = format!("{kv_type:?}, {each} tokens at a time");
            same(&ours, &expected, &what)?;
        }
        let mut plain = executor(&model, (Backend::Cuda, false), kv_type, tokens_max)?;
        let ours = logits(&mut plain, read, 3)?;
        same(&ours, &expected, &format!("{kv_type:?}, without graphs"))?;
        drop(plain);
        greedy(&mut device, &mut host, &prompt, count)?;
        write!(
            said,
            "{}{kv_type:?}: logits of {} tokens, 1 to 17 and all at a time, and {count} greedy tokens are the processor's",
            if said.is_empty() { "" } else { "; " },
            read.len()
        )?;
    }
    Ok(said)
}

/// Passes of a model on the device, to be timed.
pub(crate) struct Timed {
    executor: Executor,
    tokens: Vec<u32>,
    answer: usize,
}

impl Timed {
    /// For prompts of so many tokens, and answers.
    pub(crate) fn new(path: &Path, prompt: usize, answer: usize) -> Result<Timed> {
        Timed::of(&Arc::new(Model::load(path)?), true, (prompt, answer))
    }

    fn of(model: &Arc<Model>, graphs: bool, (prompt, answer): (usize, usize)) -> Result<Timed> {
        let vocabulary = model.info().vocabulary_count;
        let tokens = |at: usize| (at * 7919 % vocabulary.max(1)) as u32;
        let room = prompt + 17 * answer;
        Ok(Timed {
            executor: executor(model, (Backend::Cuda, graphs), KvType::F16, room)?,
            tokens: (1..=prompt).map(tokens).collect(),
            answer,
        })
    }

    /// Seconds until the prompt is read.
    fn prompt(&mut self) -> Result<f64> {
        let mut sequence = self.executor.sequence();
        let began = Instant::now();
        append_answer(&mut self.executor, &mut sequence, &self.tokens)?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Seconds of a pass of so many tokens, in an answer from an empty context.
    fn pass(&mut self, columns: usize) -> Result<f64> {
        let mut sequence = self.executor.sequence();
        let step = self.tokens[..columns].to_vec();
        // What is made for passes like these is made by the first of them.
        append_answer(&mut self.executor, &mut sequence, &step)?;
        let began = Instant::now();
        for _ in 0..self.answer {
            append_answer(&mut self.executor, &mut sequence, &step)?;
        }
        Ok(began.elapsed().as_secs_f64() / self.answer as f64)
    }

    /// Tokens per second of a prompt, and of an answer.
    pub(crate) fn rates(&mut self) -> Result<(f64, f64)> {
        let prompt = self.tokens.len() as f64 / self.prompt()?;
        Ok((prompt, 1.0 / self.pass(1)?))
    }
}

/// How fast a model reads and writes.
pub(crate) fn tokens(run: &Run<'_>, name: &str, path: &Path) -> Result<String> {
    let (prompt, answer, columns_max) = if run.small {
        (24, 2, 3)
    } else {
        (PREFILL, 64, 16)
    };
    let model = Arc::new(Model::load(path)?);
    let mut timed = Timed::of(&model, true, (prompt, answer))?;
    let figures = run.figures;
    let seconds = (0..3).map(|_| timed.prompt());
    let seconds = median(&seconds.collect::<Result<Vec<f64>>>()?);
    let prompts = prompt as f64 / seconds;
    figures.note(format!("{name}: prompts"), prompts, "tokens/s");
    let one = timed.pass(1)?;
    figures.note(format!("{name}: answers"), 1.0 / one, "tokens/s");
    let mut said = format!(
        "{name}: {:.1} tokens/s, prompts of {prompt} tokens {prompts:.0} tokens/s, T(M)/T(1)",
        1.0 / one
    );
    for columns in 2..=columns_max {
        let ratio = timed.pass(columns)? / one;
        figures.note(format!("{name}: T({columns})/T(1)"), ratio, "");
        write!(said, " {columns}: {ratio:.2}")?;
    }
    drop(timed);
    let mut plain = Timed::of(&model, false, (prompt, answer))?;
    let rate = 1.0 / plain.pass(1)?;
    figures.note(format!("{name}: answers without graphs"), rate, "tokens/s");
    write!(said, "; without graphs {rate:.1} tokens/s")?;
    Ok(said)
}
