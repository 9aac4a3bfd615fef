//! From what is seen of a question to a probability.
//!
//! The estimate is a sum of what each figure and each gram is worth, which a calibration turns into a probability. What
//! holds for English words only counts as far as the text is made of words that were seen in training: another language
//! is judged by its length, its form and the site's vocabulary.
//!
//! Invariant: an [`Estimator`] has been checked whole; nothing it is asked can fail.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::features::{self, COUNT, FIGURES, Figures, Gram, GramKind, Question};
use super::names::is_same_model;
use super::weights::{self, KNOTS, Layout, Profile, WeightsError};

/// Up to this share of known words a text is not taken for English.
const ENGLISH_FROM: f32 = 0.35;
/// And from this share on it is, entirely.
const ENGLISH_AT: f32 = 0.65;
/// Most grams that an explanation names.
const GRAMS_NAMED_MAX: usize = 4096;

static SHIPPED: &[u8] = include_bytes!("../../weights/router.weights");

/// What is expected of the local model's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Probability that it will do.
    pub will_do: f32,
    /// Probability that a stronger model's answer does where the local one does not. By the answers of models that were
    /// compared when the weights were made; 1 if none were.
    pub rescue: f32,
    /// The sum behind `will_do`, before calibration; larger is likelier.
    pub logit: f32,
    /// How far words counted, from 0 (by length, form and coverage alone) to 1.
    pub english: f32,
    /// Share of the words that the weights know.
    pub known: f32,
    /// Share of the words that the site's vocabulary has; `None` without one.
    pub coverage: Option<f32>,
}

impl Estimate {
    /// What sending it up gains on average: the probability that a stronger model's answer would do and the local one will
    /// not.
    #[must_use]
    pub fn gain(&self) -> f32 {
        (1.0 - self.will_do) * self.rescue
    }

    /// Probability that the local answer is as good as a stronger model's: that it will do, or that neither will. By this
    /// requests are routed: those that gain the most by going up have the least of it.
    #[must_use]
    pub fn as_good(&self) -> f32 {
        1.0 - self.gain()
    }
}

/// One reason for an estimate.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<'a> {
    /// The figure's name, or what of the text it is; of pieces of a word, the word.
    pub what: &'a str,
    /// The figure's value; of a gram, how often it counts.
    pub value: f32,
    /// What kind of gram it is; `None` for a figure.
    pub kind: Option<GramKind>,
    /// How far it moved the sum from that of an average question; below 0, towards a stronger model.
    pub moved: f32,
}

/// An estimate and the reasons for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation<'a> {
    /// The estimate.
    pub estimate: Estimate,
    /// The sum for an average question.
    pub average: f32,
    /// The reasons, the strongest first. They add up to the sum's distance from the average.
    pub parts: Vec<Part<'a>>,
}

/// A file's content, which copies of an estimator have in common.
#[derive(Clone, Debug)]
enum Bytes<'a> {
    Borrowed(&'a [u8]),
    Shared(Arc<[u8]>),
}

impl core::ops::Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// Weights, ready to be asked, for one model's answers. A copy has the file's content in common with the first.
#[derive(Clone, Debug)]
pub struct Estimator<'a> {
    bytes: Bytes<'a>,
    layout: Layout,
    knots: [[f32; KNOTS]; COUNT],
    profile: Profile,
    rescue: Option<Profile>,
    name_index: usize,
}

impl Estimator<'static> {
    /// The weights that this program comes with.
    ///
    /// # Panics
    ///
    /// If they are damaged, which a test excludes.
    #[must_use]
    pub fn shipped() -> Self {
        match Self::from_bytes(SHIPPED) {
            Ok(estimator) => estimator,
            Err(error) => panic!("the weights in this program: {error}"),
        }
    }

    /// Weights from a file's content.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and where.
    pub fn from_vec(bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::new(Bytes::Shared(bytes.into()))
    }
}

impl<'a> Estimator<'a> {
    /// Weights from a file's content, which is not copied.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and where.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, WeightsError> {
        Self::new(Bytes::Borrowed(bytes))
    }

    fn new(bytes: Bytes<'a>) -> Result<Self, WeightsError> {
        let layout = weights::check(&bytes)?;
        let knots = weights::knots(&bytes)?;
        let profile = weights::profile(&bytes, &layout, 0)?;
        let rescue = match layout.rescue {
            true => Some(weights::profile(&bytes, &layout, layout.profiles)?),
            false => None,
        };
        Ok(Self {
            bytes,
            layout,
            knots,
            profile,
            rescue,
            name_index: 0,
        })
    }

    /// Names of the models that the weights have an entry for. The first stands for any model.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        (0..self.layout.profiles).map(|index| weights::name(&self.bytes, &self.layout, index))
    }

    /// The name of the entry in use.
    #[must_use]
    pub fn model(&self) -> &str {
        weights::name(&self.bytes, &self.layout, self.name_index)
    }

    /// The same weights with the entry of this very name, if they have it.
    #[must_use]
    pub fn for_model(self, name: &str) -> Option<Self> {
        let index = self.models().position(|model| model == name)?;
        self.with_entry(index)
    }

    /// The same weights with the entry for a model that goes by these names, the surest first, as files and servers name models
    /// ([`is_same_model`]): with that of the first which has one, else that for any model.
    #[must_use]
    pub fn for_any_of<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Self {
        let entry = |name: &str| {
            let mut models = self.models();
            models.position(|model| is_same_model(model, name))
        };
        let found = names.into_iter().find_map(entry);
        let of_model = self.clone().with_entry(found.unwrap_or(0));
        of_model.unwrap_or_else(|| self.clone())
    }

    fn with_entry(mut self, index: usize) -> Option<Self> {
        self.profile = weights::profile(&self.bytes, &self.layout, index).ok()?;
        self.name_index = index;
        Some(self)
    }

    /// How likely the local answer to this question will do.
    #[must_use]
    pub fn estimate(&self, question: &Question<'_>) -> Estimate {
        let mut lexical = Lexical::default();
        let figures = features::read(
            question,
            |word| self.knows(word),
            |gram| self.count(&gram, &mut lexical),
        );
        self.judge(question, &figures, lexical)
    }

    /// The estimate, with what moved it. Allocates, and takes longer.
    #[must_use]
    pub fn explain<'q>(&self, question: &Question<'q>) -> Explanation<'q> {
        let mut grams: Vec<(Gram, i32, u32)> = Vec::new();
        let mut lexical = Lexical::default();
        let text = question.text;
        let figures = features::read(
            question,
            |word| self.knows(word),
            |gram| {
                self.count(&gram, &mut lexical);
                let weight = self.weight(&gram, 0);
                if weight == 0 {
                    return;
                }
                let same = |known: &Gram| {
                    known.kind == gram.kind
                        && text[known.start..known.end] == text[gram.start..gram.end]
                };
                if let Some((_, sum, count)) = grams.iter_mut().find(|(known, ..)| same(known)) {
                    *sum += weight;
                    *count += 1;
                } else if grams.len() < GRAMS_NAMED_MAX {
                    grams.push((gram, weight, 1));
                }
            },
        );
        let estimate = self.judge(question, &figures, lexical);
        let mut parts = Vec::with_capacity(COUNT + grams.len());
        for (index, (what, value)) in FIGURES.iter().zip(figures.values).enumerate() {
            parts.push(Part {
                what,
                value,
                kind: None,
                moved: self.figure(&self.profile, index, value, estimate.english),
            });
        }
        let each = estimate.english * self.lexical_unit(&self.profile, figures.grams);
        parts.extend(grams.iter().map(|(gram, sum, count)| Part {
            what: match gram.kind {
                GramKind::Task => question.task.unwrap_or_default(),
                _ => &text[gram.start..gram.end],
            },
            value: *count as f32,
            kind: Some(gram.kind),
            moved: *sum as f32 * each,
        }));
        parts.retain(|part| part.moved != 0.0);
        parts.sort_by(|one, other| other.moved.abs().total_cmp(&one.moved.abs()));
        Explanation {
            estimate,
            average: self.profile.bias + estimate.english * self.profile.english_bias,
            parts,
        }
    }

    fn judge(&self, question: &Question<'_>, figures: &Figures, lexical: Lexical) -> Estimate {
        let english = english(figures);
        let logit = self.sum(&self.profile, figures, english, lexical.will_do);
        let will_do = calibrated(&self.profile, logit);
        let rescue = self.rescue.as_ref().map_or(1.0, |profile| {
            calibrated(profile, self.sum(profile, figures, english, lexical.rescue))
        });
        Estimate {
            will_do,
            rescue,
            logit,
            english,
            known: figures.known_share(),
            coverage: question
                .vocabulary
                .map(|_| figures.values[features::COVERAGE]),
        }
    }

    fn sum(&self, profile: &Profile, figures: &Figures, english: f32, lexical: i64) -> f32 {
        let values = figures.values.iter().enumerate();
        let figures_sum: f32 = values
            .map(|(index, value)| self.figure(profile, index, *value, english))
            .sum();
        let lexical = self.lexical_unit(profile, figures.grams) * lexical as f32;
        profile.bias + figures_sum + english * (profile.english_bias + lexical)
    }

    /// What a figure of this value is worth.
    fn figure(&self, profile: &Profile, index: usize, value: f32, english: f32) -> f32 {
        let (below, above, part) = place(&self.knots[index], value);
        let of = |weights: &[f32; KNOTS]| weights[below] + (weights[above] - weights[below]) * part;
        let general = profile.general.get(index).map_or(0.0, of);
        general + english * of(&profile.english[index])
    }

    /// What one step of a lexical weight is worth in a text of so many grams.
    fn lexical_unit(&self, profile: &Profile, grams: u32) -> f32 {
        profile.factor * self.layout.lexical_scale / libm::sqrtf(grams.max(1) as f32)
    }

    fn count(&self, gram: &Gram, sums: &mut Lexical) {
        sums.will_do += i64::from(self.weight(gram, 0));
        if self.rescue.is_some() {
            sums.rescue += i64::from(self.weight(gram, 1));
        }
    }

    /// The weight of a gram in the table of this number.
    fn weight(&self, gram: &Gram, table: usize) -> i32 {
        let count = self.layout.lexical_count;
        if count == 0 {
            return 0;
        }
        let index = gram.hash as usize & (count - 1);
        i32::from(self.bytes[self.layout.lexical_at + table * count + index] as i8)
    }

    /// Whether the word with this hash was seen in training. Of unseen words a few are taken for known.
    fn knows(&self, word: u32) -> bool {
        let filter =
            &self.bytes[self.layout.filter_at..self.layout.filter_at + self.layout.filter_bytes];
        weights::filter_bits(word, filter.len()).all(|(byte, mask)| filter[byte] & mask != 0)
    }
}

/// Sums of the weights of a text's grams.
#[derive(Clone, Copy, Default)]
struct Lexical {
    will_do: i64,
    rescue: i64,
}

/// The probability of a sum.
fn calibrated(profile: &Profile, sum: f32) -> f32 {
    let points = &profile.calibration;
    let above = points.partition_point(|(x, _)| *x < sum);
    match (
        above.checked_sub(1).map(|below| points[below]),
        points.get(above),
    ) {
        (Some((x0, p0)), Some((x1, p1))) => p0 + (p1 - p0) * (sum - x0) / (x1 - x0),
        (Some((_, last)), None) => last,
        (None, _) => points[0].1,
    }
}

/// How far a text counts as English, by the words that are known.
#[must_use]
pub fn english(figures: &Figures) -> f32 {
    let share = (figures.known_share() - ENGLISH_FROM) / (ENGLISH_AT - ENGLISH_FROM);
    share.clamp(0.0, 1.0) * (1.0 - figures.values[features::FOREIGN])
}

/// The knots below and above a value, and how far it is between them.
#[must_use]
pub fn place(knots: &[f32; KNOTS], value: f32) -> (usize, usize, f32) {
    let above = knots.partition_point(|knot| *knot < value);
    if above == 0 {
        return (0, 0, 0.0);
    }
    if above == KNOTS {
        return (KNOTS - 1, KNOTS - 1, 0.0);
    }
    let (low, high) = (knots[above - 1], knots[above]);
    (above - 1, above, (value - low) / (high - low))
}
