//! Distillation: steps of AdamW (Loshchilov and Hutter, 2019) towards what the target found likely.
//!
//! A step takes a fixed number of sequences. Each has its gradient by itself, on a thread of its own, and they are added
//! in their order: the same seed gives the same draft on any number of threads. Weights and moments are on the
//! processor; a device has a copy of the weights, in which they may be rounded as the file will have them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use andon_kernels::Format;
use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor, Var};

use super::dataset::{Answer, Record, TOP};
use super::fused::{Wanted, cross_entropy, with_values};
use super::network::{Sequence, Weights, forward};
use super::select::Parameter;
use super::target::{Shape, Target};
use crate::random::Random;

/// How a gradient's mean and mean square are kept.
const BETAS: (f32, f32) = (0.9, 0.95);
/// What matrices shrink by, in parts of the rate.
const DECAY: f32 = 0.01;
/// Longest gradient; a longer one is shortened.
const GRADIENT_MAX: f64 = 1.0;
/// The last step's rate, in parts of the highest.
const RATE_END: f64 = 0.05;

/// A sequence with what its outputs should be.
#[derive(Debug)]
pub(super) struct Lesson {
    pub(super) sequence: Sequence,
    wanted: Arc<Wanted>,
    /// Outputs that something is wanted of.
    count: usize,
    /// Outputs that the target has a token for, be it one that can be guessed or not.
    asked: usize,
}

#[cfg(test)]
impl Trainer<'_> {
    pub(super) fn logits_now(&self, sequence: &Sequence) -> Result<Vec<f32>> {
        let logits = self.logits(&self.weights(Tensor::clone), sequence)?;
        Ok(super::fused::values(&logits)?)
    }
}

#[cfg(test)]
impl Lesson {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn asked(&self) -> usize {
        self.asked
    }
}

/// How to train.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) steps: usize,
    pub(super) lessons_per_step: usize,
    pub(super) rate: f64,
    pub(super) seed: u64,
    pub(super) threads: usize,
    /// What the matrices will be stored as.
    pub(super) format: Format,
}

/// A weight and the moments of its gradient.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trained {
    pub(super) dims: Vec<usize>,
    pub(super) values: Vec<f32>,
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
}

/// All weights, and how many steps were made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct State {
    pub(super) step: usize,
    pub(super) weights: BTreeMap<String, Trained>,
}

impl State {
    pub(super) fn new(weights: BTreeMap<String, Parameter>) -> State {
        let begun = |(dims, values): Parameter| Trained {
            dims,
            first: vec![0.0; values.len()],
            second: vec![0.0; values.len()],
            values,
        };
        State {
            step: 0,
            weights: weights
                .into_iter()
                .map(|(name, weight)| (name, begun(weight)))
                .collect(),
        }
    }

    /// How many numbers are learnt.
    pub(super) fn count(&self) -> usize {
        self.weights
            .values()
            .map(|weight| weight.values.len())
            .sum()
    }
}

/// How many of a record's answers, from the first, a sequence of `tokens_max` tokens has room for behind the prompt.
pub(super) fn fitting(record: &Record, tokens_max: usize) -> usize {
    let mut size = record.prompt.len();
    let fits = |answer: &&Answer| {
        size += answer.tokens.len() + 1;
        size <= tokens_max
    };
    record.answers.iter().take_while(fits).count()
}

/// Packs records into sequences of up to `tokens_max` tokens, each with as many of its answers as are [`fitting`].
pub(super) fn lessons(
    records: &[Record],
    tokens: &[u32],
    vocabulary: usize,
    tokens_max: usize,
    hard: f32,
) -> Vec<Lesson> {
    let mut rows = vec![None; vocabulary];
    for (row, &token) in tokens.iter().enumerate() {
        rows[token as usize] = Some(row as u32);
    }
    let mut lessons = Vec::new();
    let mut open = Open::default();
    for record in records {
        let answers = &record.answers[..fitting(record, tokens_max)];
        if answers.is_empty() {
            continue;
        }
        let texts: Vec<&[u32]> = answers.iter().map(|answer| &answer.tokens[..]).collect();
        let size = record.prompt.len() + texts.iter().map(|text| text.len() + 1).sum::<usize>();
        if open.sequence.tokens.len() + size > tokens_max {
            close(&mut open, &mut lessons);
        }
        open.sequence.add(&record.prompt, &texts);
        for answer in answers {
            for likely in &answer.likely {
                want(&mut open.wanted, likely, &rows, hard);
            }
            let end = answer.end.map(|token| (token, 1.0));
            want(&mut open.wanted, end.as_slice(), &rows, hard);
            open.asked += answer.tokens.len() + usize::from(end.is_some());
        }
    }
    close(&mut open, &mut lessons);
    lessons
}

/// A lesson that there may be room in.
#[derive(Default)]
struct Open {
    sequence: Sequence,
    wanted: Wanted,
    asked: usize,
}

fn close(open: &mut Open, lessons: &mut Vec<Lesson>) {
    let Open {
        sequence,
        mut wanted,
        asked,
    } = std::mem::take(open);
    wanted.tokens_per_row = TOP;
    let count = wanted
        .weights
        .chunks(TOP)
        .filter(|row| row[0] > 0.0)
        .count();
    if count > 0 {
        lessons.push(Lesson {
            sequence,
            wanted: Arc::new(wanted),
            count,
            asked,
        });
    }
}

/// Adds a row: what the target found likely of the tokens that can be guessed, and more of the likeliest, if it is one of
/// them.
fn want(wanted: &mut Wanted, likely: &[(u32, f32)], rows: &[Option<u32>], hard: f32) {
    let row = |token: u32| rows.get(token as usize).copied().flatten();
    let known = || {
        likely
            .iter()
            .filter_map(|&(token, share)| Some((row(token)?, share)))
    };
    let whole: f32 = known().map(|(_, share)| share).sum();
    let start = wanted.tokens.len();
    wanted.tokens.resize(start + TOP, 0);
    wanted.weights.resize(start + TOP, 0.0);
    // What the target would say cannot be guessed: nothing is to be learnt of it.
    let best = likely.first().and_then(|&(token, _)| row(token));
    if best.is_none() || whole <= 0.0 {
        return;
    }
    for (index, (token, share)) in known().take(TOP).enumerate() {
        wanted.tokens[start + index] = token;
        wanted.weights[start + index] = (1.0 - hard) * share / whole;
    }
    wanted.weights[start] += hard;
}

/// What a gradient is multiplied with to be no longer than [`GRADIENT_MAX`]; nothing if a part of it is not finite.
fn shortened(gradient: impl Iterator<Item = f32>) -> Option<f32> {
    let squares = gradient.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let factor = GRADIENT_MAX / squares.sqrt().max(f64::MIN_POSITIVE);
    squares.is_finite().then_some(factor.min(1.0) as f32)
}

/// The rate of a step: up in a straight line, then down along half a cosine.
fn rate(options: &Options, step: usize) -> f64 {
    let warm = (options.steps / 20).clamp(1, 50);
    if step < warm {
        return options.rate * (step + 1) as f64 / warm as f64;
    }
    let way = (step - warm) as f64 / (options.steps - warm).max(1) as f64;
    let wave = 0.5 * (1.0 + (std::f64::consts::PI * way).cos());
    options.rate * (RATE_END + (1.0 - RATE_END) * wave)
}

/// Which lessons a step takes: each once before any comes again, in an order that the seed gives.
fn chosen(options: &Options, lesson_count: usize, step: usize) -> Vec<usize> {
    let (mut order, mut order_round) = (Vec::new(), None);
    (step * options.lessons_per_step..(step + 1) * options.lessons_per_step)
        .map(|index| {
            let (round, place) = (index / lesson_count, index % lesson_count);
            if order_round != Some(round) {
                order = (0..lesson_count).collect();
                Random::new(options.seed.wrapping_add(round as u64 + 1)).shuffle(&mut order);
                order_round = Some(round);
            }
            order[place]
        })
        .collect()
}

/// Trains a draft.
#[derive(Debug)]
pub(super) struct Trainer<'a> {
    pub(super) target: &'a Target<'a>,
    pub(super) shape: &'a Shape,
    pub(super) device: Device,
    pub(super) options: Options,
    live: BTreeMap<String, Var>,
}

impl<'a> Trainer<'a> {
    pub(super) fn new(
        target: &'a Target<'a>,
        shape: &'a Shape,
        device: Device,
        options: Options,
        state: &State,
    ) -> Result<Trainer<'a>> {
        let mut live = BTreeMap::new();
        for (name, weight) in &state.weights {
            let values = rounded(weight, options.format);
            live.insert(
                name.clone(),
                Var::from_vec(values, &weight.dims[..], &device)?,
            );
        }
        Ok(Trainer {
            target,
            shape,
            device,
            options,
            live,
        })
    }

    /// Makes a step. Returns the mean cross-entropy before it, and how many tokens it read.
    pub(super) fn step(&mut self, state: &mut State, lessons: &[Lesson]) -> Result<(f64, usize)> {
        let chosen = chosen(&self.options, lessons.len(), state.step);
        let count: usize = chosen.iter().map(|&lesson| lessons[lesson].count).sum();
        let results = self.in_parallel(chosen.len(), |index| {
            self.gradient(&lessons[chosen[index]], 1.0 / count as f64)
        })?;
        let mut loss = 0.0;
        let mut sums: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for (part, gradients) in results {
            loss += part;
            for (name, gradient) in self.live.keys().zip(gradients) {
                match sums.get_mut(name.as_str()) {
                    None => drop(sums.insert(name, gradient)),
                    Some(sum) => sum.iter_mut().zip(&gradient).for_each(|(sum, x)| *sum += x),
                }
            }
        }
        ensure!(
            loss.is_finite(),
            "step {}: the loss is not finite; try a smaller --rate",
            state.step + 1
        );
        let factor = shortened(sums.values().flatten().copied()).with_context(|| {
            format!(
                "step {}: the gradient is not finite; try a smaller --rate",
                state.step + 1
            )
        })?;
        let rate = rate(&self.options, state.step) as f32;
        state.step += 1;
        for (name, gradient) in sums {
            let weight = state
                .weights
                .get_mut(name)
                .context("a weight that is not there")?;
            update(weight, &gradient, factor, rate, state.step);
            let values = rounded(weight, self.options.format);
            let tensor = Tensor::from_vec(values, &weight.dims[..], &self.device)?;
            self.live
                .get(name)
                .context("a weight that is not there")?
                .set(&tensor)?;
        }
        Ok((
            loss,
            chosen
                .iter()
                .map(|&lesson| lessons[lesson].sequence.tokens.len())
                .sum(),
        ))
    }

    /// The mean cross-entropy of lessons, and how often the likeliest token is the wanted one.
    pub(super) fn judge(&self, lessons: &[Lesson]) -> Result<(f64, f64)> {
        let weights = self.weights(Tensor::detach);
        let results = self.in_parallel(lessons.len(), |index| {
            let lesson = &lessons[index];
            let logits = self.logits(&weights, &lesson.sequence)?;
            let loss = f64::from(cross_entropy(&logits, &lesson.wanted)?.to_scalar::<f32>()?);
            let best: Vec<u32> = logits.argmax(1)?.to_vec1()?;
            let wanted = lesson
                .wanted
                .tokens
                .chunks(TOP)
                .zip(lesson.wanted.weights.chunks(TOP));
            let right = best.iter().zip(wanted);
            let right =
                right.filter(|(best, (tokens, weights))| weights[0] > 0.0 && **best == tokens[0]);
            Ok((loss, right.count()))
        })?;
        let count = lessons
            .iter()
            .map(|lesson| lesson.count)
            .sum::<usize>()
            .max(1) as f64;
        let asked = lessons
            .iter()
            .map(|lesson| lesson.asked)
            .sum::<usize>()
            .max(1);
        let loss: f64 = results.iter().map(|(loss, _)| loss).sum();
        let right: usize = results.iter().map(|(_, right)| right).sum();
        Ok((loss / count, right as f64 / asked as f64))
    }

    fn weights(&self, of: impl Fn(&Tensor) -> Tensor) -> Weights {
        self.live
            .iter()
            .map(|(name, var)| (name.clone(), of(var.as_tensor())))
            .collect()
    }

    fn logits(&self, weights: &Weights, sequence: &Sequence) -> Result<Tensor> {
        let embedded = self.target.embed(&sequence.tokens)?;
        Ok(forward(
            self.shape,
            weights,
            sequence,
            embedded,
            &self.device,
        )?)
    }

    /// The loss of a lesson and its gradients, in the order of the weights' names.
    fn gradient(&self, lesson: &Lesson, scale: f64) -> Result<(f64, Vec<Vec<f32>>)> {
        let weights = self.weights(Tensor::clone);
        let logits = self.logits(&weights, &lesson.sequence)?;
        let loss = (cross_entropy(&logits, &lesson.wanted)? * scale)?;
        let gradients = loss.backward()?;
        let of = |var: &Var| match gradients.get(var) {
            Some(gradient) => Ok(with_values(gradient, <[f32]>::to_vec)?),
            None => Ok(vec![0.0; var.elem_count()]),
        };
        let all = self.live.values().map(of).collect::<Result<_>>()?;
        Ok((f64::from(loss.to_scalar::<f32>()?), all))
    }

    /// Runs `work` for each of `0..count`, each on one thread. The library would share out single products instead, which
    /// leaves the steps between them to one thread.
    fn in_parallel<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        if !self.device.is_cpu() {
            return (0..count).map(work).collect();
        }
        let next = AtomicUsize::new(0);
        let worker = || -> Result<Vec<(usize, T)>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
            pool.install(|| {
                let mut done = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return Ok(done);
                    }
                    done.push((index, work(index)?));
                }
            })
        };
        let parts = std::thread::scope(|scope| {
            let threads = self.options.threads.clamp(1, count.max(1));
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .map(|worker| {
                    worker
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let mut all: Vec<(usize, T)> = parts.into_iter().flatten().collect();
        all.sort_by_key(|&(index, _)| index);
        Ok(all.into_iter().map(|(_, result)| result).collect())
    }
}

fn update(weight: &mut Trained, gradient: &[f32], factor: f32, rate: f32, step: usize) {
    let correct = |beta: f32| 1.0 / (1.0 - beta.powi(i32::try_from(step).unwrap_or(i32::MAX)));
    let (correct_first, correct_second) = (correct(BETAS.0), correct(BETAS.1));
    // Norms and biases are where they are for a reason; only matrices shrink.
    let decay = if weight.dims.len() > 1 {
        rate * DECAY
    } else {
        0.0
    };
    let moments = weight.first.iter_mut().zip(&mut weight.second);
    for ((value, (first, second)), gradient) in weight.values.iter_mut().zip(moments).zip(gradient)
    {
        let gradient = gradient * factor;
        *first = BETAS.0 * *first + (1.0 - BETAS.0) * gradient;
        *second = BETAS.1 * *second + (1.0 - BETAS.1) * gradient * gradient;
        let step = *first * correct_first / ((*second * correct_second).sqrt() + 1e-8);
        *value -= rate * step + decay * *value;
    }
}

/// A weight as the draft's file will have it, near enough: what is learnt is then what is stored. Gradients are taken as
/// if it were not rounded (straight-through: Bengio and others, 2013).
fn rounded(weight: &Trained, format: Format) -> Vec<f32> {
    let mut values = weight.values.clone();
    if weight.dims.len() < 2 {
        return values;
    }
    let columns = weight.dims[1];
    // Blocks run along inputs, which are rows here.
    for block in values.chunks_mut(32 * columns) {
        match format {
            Format::Q4_0 => round_symmetric(block, columns),
            Format::Q4_1 => round_affine(block, columns),
            _ => {}
        }
    }
    values
}

/// Sixteen levels from minus eight steps on, of which the largest value is the end.
fn round_symmetric(block: &mut [f32], columns: usize) {
    let mut largest = vec![0f32; columns];
    for row in block.chunks_exact(columns) {
        for (largest, &x) in largest.iter_mut().zip(row) {
            *largest = if x.abs() > largest.abs() { x } else { *largest };
        }
    }
    for row in block.chunks_exact_mut(columns) {
        for (x, &largest) in row.iter_mut().zip(&largest) {
            let step = largest / -8.0;
            let level = if step == 0.0 {
                0.0
            } else {
                (*x / step).round_ties_even().clamp(-8.0, 7.0)
            };
            *x = level * step;
        }
    }
}

/// Sixteen levels from the least to the largest.
fn round_affine(block: &mut [f32], columns: usize) {
    let mut ends = vec![(f32::INFINITY, f32::NEG_INFINITY); columns];
    for row in block.chunks_exact(columns) {
        for ((least, largest), &x) in ends.iter_mut().zip(row) {
            (*least, *largest) = (least.min(x), largest.max(x));
        }
    }
    for row in block.chunks_exact_mut(columns) {
        for (x, &(least, largest)) in row.iter_mut().zip(&ends) {
            let step = (largest - least) / 15.0;
            let level = if step == 0.0 {
                0.0
            } else {
                ((*x - least) / step).round_ties_even().clamp(0.0, 15.0)
            };
            *x = least + level * step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Options, chosen, shortened};
    use andon_kernels::Format;

    #[test]
    fn gradients_are_shortened_and_those_that_are_not_finite_are_none() {
        assert_eq!(shortened([0.3, 0.4].into_iter()), Some(1.0));
        assert_eq!(shortened([3.0, -4.0].into_iter()), Some(0.2));
        assert_eq!(shortened([0.0].into_iter()), Some(1.0));
        assert_eq!(shortened([1.0, f32::NAN].into_iter()), None);
        assert_eq!(shortened([1.0, f32::NEG_INFINITY].into_iter()), None);
    }

    #[test]
    fn each_lesson_comes_once_before_any_comes_again() {
        let options = Options {
            steps: 10,
            lessons_per_step: 3,
            rate: 1e-3,
            seed: 5,
            threads: 1,
            format: Format::Q8_0,
        };
        let all: Vec<usize> = (0..5).flat_map(|step| chosen(&options, 5, step)).collect();
        for round in all.chunks(5) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2, 3, 4]);
        }
    }
}
