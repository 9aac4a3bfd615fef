//! Fits the estimator's weights to records.
//!
//! What is learned is a logistic regression with a penalty on the square of its weights, found by AdaGrad, one record at a
//! time, in an order that the seed gives. First what holds for every language is fitted alone, so that it stands by
//! itself where words count for nothing; then, with that held, what English words add. A figure counts by its distance
//! from the mean, with a deviation from the straight line at each knot that is penalised more. Models share all weights but a
//! bias and small differences of their own for each figure.
//!
//! Invariant: the same records in the same order, with the same seed, give the same weights.

use std::collections::HashMap;

use andon_policy::router::features::{self, COUNT, GENERAL, Question};
use andon_policy::router::weights::KNOTS;
use andon_policy::router::{Vocabulary, english, place};

use super::records::Record;
use crate::random::Random;

/// Lexical weights of a table, as `log2`.
pub(super) const LEXICAL_BITS: u8 = 20;
/// Bytes of the filter of known words.
const FILTER_BYTES: usize = 1 << 16;
/// A word is known when so many records have it.
const KNOWN_FROM: u32 = 2;
/// A gram counts when so many records have it: rarer ones say more of the record than of questions.
const GRAM_FROM: u32 = 2;
/// Records of a group count together by the power of their number that this leaves: half of it.
const BALANCE: f64 = 0.5;

/// Figures that records without a site and tasks cannot teach, what is taken of them where nothing is known, and how far
/// one more of them moves the sum: a judgement, in force until records of a site say better.
const JUDGED: [(usize, f32, f32); 2] = [
    (features::COVERAGE, features::UNKNOWN_COVERAGE, 1.2),
    (features::TASK_KNOWN, 0.0, 0.3),
];

/// How strongly weights are held at zero, as multiples of a record's weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Penalty {
    /// On the slope of a figure.
    pub(super) figures: f64,
    /// On its deviations from a straight line.
    pub(super) knots: f64,
    /// On what a model has of its own.
    pub(super) own: f64,
    /// On lexical weights.
    pub(super) lexical: f64,
}

/// How it is fitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) passes: usize,
    pub(super) penalty: Penalty,
    /// Whether the name of a record's task counts.
    pub(super) task_names: bool,
}

/// What a row is fitted to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// From 0 to 1.
    pub(super) label: f64,
    pub(super) weight: f64,
    /// Index of the model.
    pub(super) model: usize,
}

/// What is seen of a record.
#[derive(Debug, Clone)]
struct Row {
    values: [f32; COUNT],
    english: f32,
    /// Index of a lexical weight, and how much it counts.
    grams: Vec<(u32, f32)>,
}

/// Words that count as known, by the hash that features ask with.
#[derive(Debug, Clone)]
pub(super) struct Known {
    counts: HashMap<u32, u32>,
}

impl Known {
    fn of(records: &[&Record]) -> Known {
        let mut counts = HashMap::new();
        for record in records {
            let mut words = words(&record.prompt);
            words.sort_unstable();
            words.dedup();
            for word in words {
                *counts.entry(word).or_insert(0) += 1;
            }
        }
        Known { counts }
    }

    /// Whether so many records have it.
    fn has(&self, word: u32, records: u32) -> bool {
        self.counts
            .get(&word)
            .is_some_and(|count| *count >= records)
    }

    /// The filter that a file of weights has of them.
    pub(super) fn filter(&self) -> Vec<u8> {
        let mut filter = vec![0; FILTER_BYTES];
        let known = self
            .counts
            .iter()
            .filter(|(_, count)| **count >= KNOWN_FROM);
        for (word, _) in known {
            andon_policy::router::weights::Content::teach(&mut filter, *word);
        }
        filter
    }
}

fn words(text: &str) -> Vec<u32> {
    let words = std::cell::RefCell::new(Vec::new());
    features::read(
        &Question::of(text),
        |word| {
            words.borrow_mut().push(word);
            false
        },
        |_| {},
    );
    words.into_inner()
}

/// What was fitted.
#[derive(Debug, Clone)]
pub(super) struct Fit {
    pub(super) known: Known,
    pub(super) knots: [[f32; KNOTS]; COUNT],
    mean: [f32; COUNT],
    deviation: [f32; COUNT],
    /// By model.
    bias: Vec<f64>,
    english_bias: Vec<f64>,
    /// Slopes in every language, and in English beyond that.
    general: [f64; GENERAL],
    slopes: [f64; COUNT],
    own: Vec<[f64; COUNT]>,
    bends: [[f64; KNOTS]; COUNT],
    pub(super) lexical: Vec<f32>,
    /// Means of what each figure is worth over the records, by model: explanations tell the distance from them.
    centres: Vec<Centre>,
}

#[derive(Debug, Clone)]
struct Centre {
    general: [f64; GENERAL],
    english: [f64; COUNT],
}

/// What one model, or the mean of all, makes of the figures.
pub(super) struct Shape {
    pub(super) bias: f32,
    pub(super) english_bias: f32,
    pub(super) general: [[f32; KNOTS]; GENERAL],
    pub(super) english: [[f32; KNOTS]; COUNT],
}

/// Steps of AdaGrad for a weight.
struct Steps {
    squares: Vec<f64>,
    rate: f64,
}

impl Steps {
    fn new(count: usize, rate: f64) -> Steps {
        Steps {
            squares: vec![1e-6; count],
            rate,
        }
    }

    /// How far to go against this gradient.
    fn step(&mut self, index: usize, gradient: f64) -> f64 {
        self.squares[index] += gradient * gradient;
        self.rate * gradient / self.squares[index].sqrt()
    }
}

fn sigmoid(sum: f64) -> f64 {
    1.0 / (1.0 + (-sum).exp())
}

impl Fit {
    /// Fits to records and what each is to give; `models` of them are told apart. With `frame`, what counts as known and
    /// where the knots are is taken from that fit.
    pub(super) fn of(
        records: &[&Record],
        targets: &[Target],
        models: usize,
        site: Option<&Vocabulary>,
        settings: &Settings,
        frame: Option<&Fit>,
    ) -> Fit {
        let known = frame.map_or_else(|| Known::of(records), |frame| frame.known.clone());
        let rows: Vec<Row> = records
            .iter()
            // A record does not make its own words known.
            .map(|record| row(record, &known, KNOWN_FROM + 1, site, settings.task_names))
            .collect();
        let weights = balanced(records, targets);
        let mut fit = Fit::empty(known, &rows, &weights, models, frame);
        fit.fit_general(&rows, targets, &weights, settings);
        fit.fit_english(&rows, targets, &weights, settings);
        fit.centre(&rows, targets, &weights);
        fit
    }

    fn empty(
        known: Known,
        rows: &[Row],
        weights: &[f64],
        models: usize,
        frame: Option<&Fit>,
    ) -> Fit {
        let mut fit = Fit {
            known,
            knots: [[0.0; KNOTS]; COUNT],
            mean: [0.0; COUNT],
            deviation: [0.0; COUNT],
            bias: vec![0.0; models],
            english_bias: vec![0.0; models],
            general: [0.0; GENERAL],
            slopes: [0.0; COUNT],
            own: vec![[0.0; COUNT]; models],
            bends: [[0.0; KNOTS]; COUNT],
            lexical: vec![0.0; 1 << LEXICAL_BITS],
            centres: Vec::new(),
        };
        let total: f64 = weights.iter().sum();
        for figure in 0..COUNT {
            let mut values: Vec<f32> = rows.iter().map(|row| row.values[figure]).collect();
            values.sort_by(f32::total_cmp);
            fit.knots[figure] = knots(&values);
            if values.first() == values.last() && JUDGED.iter().any(|judged| judged.0 == figure) {
                fit.knots[figure] = std::array::from_fn(|knot| knot as f32 / (KNOTS - 1) as f32);
            }
            if let Some(frame) = frame {
                fit.knots[figure] = frame.knots[figure];
            }
            let clamped = |row: &Row| f64::from(fit.clamped(figure, row.values[figure]));
            let weighted = || rows.iter().zip(weights);
            let mean = weighted()
                .map(|(row, weight)| weight * clamped(row))
                .sum::<f64>()
                / total;
            let square = weighted()
                .map(|(row, weight)| weight * (clamped(row) - mean).powi(2))
                .sum::<f64>()
                / total;
            fit.mean[figure] = mean as f32;
            // A figure that is the same everywhere says nothing.
            fit.deviation[figure] = if square > 1e-9 {
                square.sqrt() as f32
            } else {
                f32::INFINITY
            };
        }
        fit
    }

    /// Beyond the outer knots a figure is worth what it is there.
    fn clamped(&self, figure: usize, value: f32) -> f32 {
        value.clamp(self.knots[figure][0], self.knots[figure][KNOTS - 1])
    }

    /// Distance from the mean in deviations.
    fn distance(&self, figure: usize, value: f32) -> f64 {
        f64::from((self.clamped(figure, value) - self.mean[figure]) / self.deviation[figure])
    }

    fn fit_general(
        &mut self,
        rows: &[Row],
        targets: &[Target],
        weights: &[f64],
        settings: &Settings,
    ) {
        let mut steps = Steps::new(GENERAL, 0.1);
        let mut bias_steps = Steps::new(self.bias.len(), 0.1);
        let total: f64 = weights.iter().sum();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let mut random = Random::new(settings.seed);
        for _ in 0..settings.passes {
            random.shuffle(&mut order);
            for &index in &order {
                let (row, target, weight) = (&rows[index], &targets[index], weights[index]);
                let sum = self.general_sum(row, target.model);
                let pull = weight * (sigmoid(sum) - target.label);
                self.bias[target.model] -= bias_steps.step(target.model, pull);
                for figure in 0..GENERAL {
                    let held = settings.penalty.figures * weight / total * self.general[figure];
                    let gradient = pull * self.distance(figure, row.values[figure]) + held;
                    self.general[figure] -= steps.step(figure, gradient);
                }
            }
        }
    }

    fn general_sum(&self, row: &Row, model: usize) -> f64 {
        let figures = (0..GENERAL)
            .map(|figure| self.general[figure] * self.distance(figure, row.values[figure]));
        self.bias[model] + figures.sum::<f64>()
    }

    fn english_sum(&self, row: &Row, model: usize) -> f64 {
        let mut sum = self.english_bias[model];
        for figure in 0..COUNT {
            let value = row.values[figure];
            let slope = self.slopes[figure] + self.own[model][figure];
            sum += slope * self.distance(figure, value);
            let (below, above, part) = place(&self.knots[figure], value);
            let bends = &self.bends[figure];
            sum += bends[below] + (bends[above] - bends[below]) * f64::from(part);
        }
        let grams = row.grams.iter();
        sum + grams
            .map(|(index, value)| f64::from(self.lexical[*index as usize] * value))
            .sum::<f64>()
    }

    fn fit_english(
        &mut self,
        rows: &[Row],
        targets: &[Target],
        weights: &[f64],
        settings: &Settings,
    ) {
        let models = self.bias.len();
        let total: f64 = weights.iter().sum();
        let mut bias_steps = Steps::new(models, 0.1);
        let mut slope_steps = Steps::new(COUNT, 0.1);
        let mut own_steps = Steps::new(COUNT * models, 0.1);
        let mut bend_steps = Steps::new(COUNT * KNOTS, 0.05);
        let mut lexical_steps = Steps::new(self.lexical.len(), 0.1);
        // In how many records a gram is, and the weight of those: the penalty of a whole pass comes in that many parts.
        let mut seen = vec![0_u32; self.lexical.len()];
        for row in rows {
            for (index, _) in &row.grams {
                seen[*index as usize] += 1;
            }
        }
        let penalty = settings.penalty;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let mut random = Random::new(settings.seed.wrapping_add(1));
        for _ in 0..settings.passes {
            random.shuffle(&mut order);
            for &index in &order {
                let (row, target, weight) = (&rows[index], &targets[index], weights[index]);
                let english = f64::from(row.english);
                let model = target.model;
                let sum = self.general_sum(row, model) + english * self.english_sum(row, model);
                let pull = weight * (sigmoid(sum) - target.label) * english;
                if english == 0.0 {
                    continue;
                }
                let part = weight / total;
                self.english_bias[model] -= bias_steps.step(model, pull);
                for figure in 0..COUNT {
                    let value = row.values[figure];
                    let gradient = pull * self.distance(figure, value);
                    let slope = &mut self.slopes[figure];
                    *slope -= slope_steps.step(figure, gradient + penalty.figures * part * *slope);
                    let own = &mut self.own[model][figure];
                    let held = penalty.own * part * *own;
                    *own -= own_steps.step(model * COUNT + figure, gradient + held);
                    let (below, above, between) = place(&self.knots[figure], value);
                    for (knot, share) in [(below, 1.0 - between), (above, between)] {
                        if share > 0.0 && self.deviation[figure].is_finite() {
                            let bend = &mut self.bends[figure][knot];
                            let gradient = pull * f64::from(share) + penalty.knots * part * *bend;
                            *bend -= bend_steps.step(figure * KNOTS + knot, gradient);
                        }
                    }
                }
                for (index, value) in &row.grams {
                    let index = *index as usize;
                    if seen[index] < GRAM_FROM {
                        continue;
                    }
                    let gram = &mut self.lexical[index];
                    let held = penalty.lexical * f64::from(*gram) / f64::from(seen[index]);
                    let gradient = pull * f64::from(*value) + held;
                    *gram -= lexical_steps.step(index, gradient) as f32;
                }
            }
        }
    }

    /// Means of what each figure is worth.
    fn centre(&mut self, rows: &[Row], targets: &[Target], weights: &[f64]) {
        let models = self.bias.len();
        let mut centres = Vec::with_capacity(models + 1);
        for model in 0..=models {
            let mut centre = Centre {
                general: [0.0; GENERAL],
                english: [0.0; COUNT],
            };
            let mut total = 0.0;
            for ((row, target), weight) in rows.iter().zip(targets).zip(weights) {
                if model < models && target.model != model {
                    continue;
                }
                total += weight;
                for figure in 0..COUNT {
                    let value = row.values[figure];
                    if let Some(general) = centre.general.get_mut(figure) {
                        *general += weight * self.general[figure] * self.distance(figure, value);
                    }
                    centre.english[figure] += weight * self.worth(figure, value, model);
                }
            }
            let all = centre.general.iter_mut().chain(&mut centre.english);
            all.for_each(|value| *value /= f64::max(total, f64::MIN_POSITIVE));
            centres.push(centre);
        }
        self.centres = centres;
    }

    /// What a model has of its own; for an index beyond the models the mean of all, in which each counts alike: how often
    /// a model was measured says nothing of how like it others are.
    fn mean_of(&self, index: usize, of: impl Fn(usize) -> f64) -> f64 {
        if index < self.bias.len() {
            return of(index);
        }
        (0..self.bias.len()).map(of).sum::<f64>() / self.bias.len().max(1) as f64
    }

    /// What a figure of this value adds in English.
    fn worth(&self, figure: usize, value: f32, model: usize) -> f64 {
        let slope = self.slopes[figure] + self.mean_of(model, |model| self.own[model][figure]);
        let (below, above, part) = place(&self.knots[figure], value);
        let bends = &self.bends[figure];
        slope * self.distance(figure, value)
            + bends[below]
            + (bends[above] - bends[below]) * f64::from(part)
    }

    /// What a model makes of the figures; `None` is for any.
    pub(super) fn shape(&self, model: Option<usize>) -> Shape {
        let index = model.unwrap_or(self.bias.len());
        let centre = &self.centres[index];
        let mut shape = Shape {
            bias: 0.0,
            english_bias: 0.0,
            general: [[0.0; KNOTS]; GENERAL],
            english: [[0.0; KNOTS]; COUNT],
        };
        let bias =
            self.mean_of(index, |model| self.bias[model]) + centre.general.iter().sum::<f64>();
        let english_bias = self.mean_of(index, |model| self.english_bias[model])
            + centre.english.iter().sum::<f64>();
        shape.bias = bias as f32;
        shape.english_bias = english_bias as f32;
        for (figure, unknown, slope) in JUDGED {
            if self.is_constant(figure) {
                shape.general[figure] = self.knots[figure].map(|value| slope * (value - unknown));
            }
        }
        for figure in 0..COUNT {
            for knot in 0..KNOTS {
                let value = self.knots[figure][knot];
                if !self.is_constant(figure)
                    && let Some(general) = shape.general.get_mut(figure)
                {
                    let worth = self.general[figure] * self.distance(figure, value);
                    general[knot] = (worth - centre.general[figure]) as f32;
                }
                let worth = self.worth(figure, value, index);
                shape.english[figure][knot] = (worth - centre.english[figure]) as f32;
            }
        }
        shape
    }

    /// The sum for a record that the fit has not seen; `None` is for any model.
    pub(super) fn sum(
        &self,
        record: &Record,
        model: Option<usize>,
        site: Option<&Vocabulary>,
        task_names: bool,
    ) -> f64 {
        let row = row(record, &self.known, KNOWN_FROM, site, task_names);
        let index = model.unwrap_or(self.bias.len());
        let general = (0..GENERAL)
            .map(|figure| self.general[figure] * self.distance(figure, row.values[figure]));
        let bias = self.mean_of(index, |model| self.bias[model]);
        let english_bias = self.mean_of(index, |model| self.english_bias[model]);
        let figures = (0..COUNT).map(|figure| self.worth(figure, row.values[figure], index));
        let grams = row.grams.iter();
        let lexical = grams.map(|(index, value)| f64::from(self.lexical[*index as usize] * value));
        let english = english_bias + figures.sum::<f64>() + lexical.sum::<f64>();
        bias + general.sum::<f64>() + f64::from(row.english) * english
    }

    /// Whether a figure was the same in all records.
    fn is_constant(&self, figure: usize) -> bool {
        self.deviation[figure].is_infinite()
    }
}

fn row(
    record: &Record,
    known: &Known,
    records: u32,
    site: Option<&Vocabulary>,
    task_names: bool,
) -> Row {
    let question = Question {
        text: &record.prompt,
        task: Some(record.task.as_str()).filter(|task| task_names && !task.is_empty()),
        vocabulary: site,
    };
    let mut indices = Vec::new();
    let figures = features::read(
        &question,
        |word| known.has(word, records),
        |gram| indices.push(gram.hash & ((1 << LEXICAL_BITS) - 1)),
    );
    let scale = 1.0 / (indices.len().max(1) as f32).sqrt();
    indices.sort_unstable();
    let grams = indices
        .chunk_by(|one, other| one == other)
        .map(|equal| (equal[0], equal.len() as f32 * scale))
        .collect();
    Row {
        values: figures.values,
        english: english(&figures),
        grams,
    }
}

/// Weights under which a group of many records does not outvote all others.
fn balanced(records: &[&Record], targets: &[Target]) -> Vec<f64> {
    let group =
        |record: &Record, target: &Target| (record.set.clone(), record.task.clone(), target.model);
    let mut sizes = HashMap::new();
    let both = || records.iter().zip(targets);
    for (record, target) in both() {
        *sizes.entry(group(record, target)).or_insert(0.0) += target.weight;
    }
    let mut weights: Vec<f64> = both()
        .map(|(record, target)| target.weight / f64::powf(sizes[&group(record, target)], BALANCE))
        .collect();
    let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
    weights.iter_mut().for_each(|weight| *weight /= mean);
    weights
}

/// Points of a figure: quantiles of its values, sorted, with others between them where these are equal.
fn knots(sorted: &[f32]) -> [f32; KNOTS] {
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    let (low, high) = (at(0.01), at(0.99).max(at(0.01) + 1e-3));
    let mut points: Vec<f32> = (0..KNOTS)
        .map(|index| at(0.01 + 0.98 * index as f64 / (KNOTS - 1) as f64))
        .collect();
    points[KNOTS - 1] = high;
    points.dedup();
    let apart = |points: &[f32], point: f32| {
        let near = (high - low) * 1e-3;
        points.iter().all(|other| (other - point).abs() > near)
    };
    // Ever finer even parts, until there are enough.
    let mut parts = KNOTS;
    while points.len() < KNOTS {
        for index in 1..parts {
            let point = low + (high - low) * index as f32 / parts as f32;
            if points.len() < KNOTS && apart(&points, point) {
                points.push(point);
            }
        }
        parts += 1;
    }
    points.sort_by(f32::total_cmp);
    let mut knots = [0.0; KNOTS];
    knots.copy_from_slice(&points[..KNOTS]);
    knots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knots_rise_whatever_the_values() {
        let even: Vec<f32> = (0..100).map(|value| value as f32).collect();
        let mut rare = vec![0.0; 999];
        rare.push(5.0);
        for values in [
            even,
            rare,
            vec![0.0],
            vec![7.0; 50],
            vec![0.0, 0.0, 1.0, 1.0],
            vec![0.0, 0.0001],
        ] {
            let knots = knots(&values);
            assert!(
                knots.is_sorted_by(|one, other| one < other),
                "{values:?}: {knots:?}"
            );
        }
    }
}
