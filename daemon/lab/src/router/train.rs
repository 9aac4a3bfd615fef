//! Learns the estimator's weights from records.
//!
//! The calibration is fitted to sums of records that the fit behind them had not seen, one part of the records after the
//! other; the weights that are written are then fitted to all. A question is in one part however often it was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use andon_policy::router::weights::{CALIBRATION_POINTS, Content, Profile, checksum};
use andon_policy::router::{Estimator, Vocabulary};
use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::fit::{Fit, Penalty, Settings, Shape, Target};
use super::records::{self, Record};

/// How weights are learned; `eval` learns them in the same way.
#[derive(Debug, Clone, Args)]
pub(super) struct Learning {
    /// Seed of the order in which records are learned from.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// How often all records are gone through.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=1000))]
    passes: u16,
    /// How strongly the weights of figures are held at zero.
    #[arg(long, default_value_t = 3.0, value_name = "PENALTY")]
    hold_figures: f64,
    /// How strongly their deviations from a straight line are.
    #[arg(long, default_value_t = 30.0, value_name = "PENALTY")]
    hold_bends: f64,
    /// How strongly what one model has of its own is.
    #[arg(long, default_value_t = 10.0, value_name = "PENALTY")]
    hold_own: f64,
    /// How strongly the weights of words and pieces of words are.
    #[arg(long, default_value_t = 2.0, value_name = "PENALTY")]
    hold_lexical: f64,
    /// Let the name of a record's `task` count, where these are the tasks of the site.
    #[arg(long)]
    task_names: bool,
    /// A text of the site, such as its tasks and the names of its assets. May be given several times.
    #[arg(long, value_name = "FILE")]
    vocabulary: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// JSON lines with `prompt`, `label` (1 where the local answer did), and, if wanted, `weight`, `model` (whose answer),
    /// `set`, `task`, and `strong` (1 where a stronger model's did).
    #[arg(required = true, value_name = "FILE")]
    records: Vec<PathBuf>,
    /// Where to write the weights.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    learning: Learning,
}

/// Parts of the records, for the calibration.
const PARTS: u64 = 5;
/// Fewer records than this say nothing.
const RECORDS_MIN: usize = 50;
/// Among stronger answers, those where the local one does not do.
const RESCUED: usize = 0;
/// Name of the entry that stands for any model.
const ANY: &str = "any";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let records = records::read(&arguments.records)?;
    let site = arguments.learning.site()?;
    let bytes = learn(
        &records.iter().collect::<Vec<_>>(),
        site.as_ref(),
        &arguments.learning,
    )?;
    std::fs::write(&arguments.output, &bytes)
        .with_context(|| format!("cannot write `{}`", arguments.output.display()))?;
    let estimator = Estimator::from_bytes(&bytes)?;
    let models: Vec<&str> = estimator.models().collect();
    println!(
        "{} records, models {}: {} bytes in {}",
        records.len(),
        models.join(", "),
        bytes.len(),
        arguments.output.display()
    );
    Ok(())
}

impl Learning {
    /// The words of the site, if texts of it were named.
    pub(super) fn site(&self) -> Result<Option<Vocabulary>> {
        vocabulary(&self.vocabulary)
    }

    /// Whether the names of tasks count.
    pub(super) fn task_names(&self) -> bool {
        self.task_names
    }

    fn settings(&self) -> Settings {
        Settings {
            seed: self.seed,
            passes: usize::from(self.passes),
            penalty: Penalty {
                figures: self.hold_figures,
                knots: self.hold_bends,
                own: self.hold_own,
                lexical: self.hold_lexical,
            },
            task_names: self.task_names,
        }
    }
}

/// The words of these files.
pub(super) fn vocabulary(paths: &[PathBuf]) -> Result<Option<Vocabulary>> {
    if paths.is_empty() {
        return Ok(None);
    }
    let texts = paths
        .iter()
        .map(|path| crate::read_text(path))
        .collect::<Result<Vec<_>>>()?;
    Ok(Some(Vocabulary::of(texts.iter().map(String::as_str))))
}

/// A number for a question, the same wherever and however often it is asked.
pub(super) fn part_of(prompt: &str, seed: u64, parts: u64) -> u64 {
    let hash = checksum(prompt.as_bytes()) ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (hash.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 32) % parts
}

/// Weights from records, as a file has them.
pub(super) fn learn(
    records: &[&Record],
    site: Option<&Vocabulary>,
    learning: &Learning,
) -> Result<Vec<u8>> {
    ensure!(
        records.len() >= RECORDS_MIN,
        "{} records say too little: at least {RECORDS_MIN} are needed",
        records.len()
    );
    let names: Vec<&str> = records
        .iter()
        .map(|record| record.model.as_str())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let targets: Vec<Target> = records
        .iter()
        .map(|record| Target {
            label: record.label,
            weight: record.weight,
            model: names
                .iter()
                .position(|name| *name == record.model)
                .unwrap_or_default(),
        })
        .collect();
    let here = Learned::of(records, &targets, names.len(), site, learning, None);
    let (compared, strong) = compared(records);
    let rescue = (compared.len() >= RECORDS_MIN)
        .then(|| Learned::of(&compared, &strong, 2, site, learning, Some(&here.fit)));
    write(&names, &here, rescue.as_ref())
}

/// What a stronger model's answers do, where that is known: apart where the local answer does not, and where it does. A
/// record that did in part is both. Where it did, the stronger model is not needed, but what it finds hard shows there, too.
fn compared<'a>(records: &[&'a Record]) -> (Vec<&'a Record>, Vec<Target>) {
    let known = records
        .iter()
        .filter_map(|record| Some((*record, record.strong?)));
    let both = known.flat_map(|(record, strong)| {
        [(RESCUED, 1.0 - record.label), (1, record.label)].map(|(model, share)| {
            let target = Target {
                label: strong,
                weight: record.weight * share,
                model,
            };
            (record, target)
        })
    });
    both.filter(|(_, target)| target.weight > 0.0).unzip()
}

/// A fit, and sums of the same records by fits that had not seen them: by their own model's and by any model's entry.
struct Learned {
    fit: Fit,
    own: Vec<f64>,
    any: Vec<f64>,
    targets: Vec<Target>,
}

impl Learned {
    fn of(
        records: &[&Record],
        targets: &[Target],
        models: usize,
        site: Option<&Vocabulary>,
        learning: &Learning,
        frame: Option<&Fit>,
    ) -> Learned {
        let settings = learning.settings();
        let part = |record: &Record| part_of(&record.prompt, learning.seed, PARTS);
        let pick = |wanted: &dyn Fn(u64) -> bool| -> (Vec<&Record>, Vec<Target>) {
            let both = records.iter().copied().zip(targets.iter().copied());
            both.filter(|(record, _)| wanted(part(record))).unzip()
        };
        // `PARTS` stands for no part left out.
        let fits: Vec<Fit> = std::thread::scope(|scope| {
            let (settings, pick) = (&settings, &pick);
            let running: Vec<_> = (0..=PARTS)
                .map(|left_out| {
                    let (records, targets) = pick(&|part| part != left_out);
                    scope.spawn(move || Fit::of(&records, &targets, models, site, settings, frame))
                })
                .collect();
            running
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let sum = |record: &Record, model| {
            fits[part(record) as usize].sum(record, model, site, learning.task_names)
        };
        let both = || records.iter().zip(targets);
        let own = both()
            .map(|(record, target)| sum(record, Some(target.model)))
            .collect();
        let any = both().map(|(record, _)| sum(record, None)).collect();
        let fit = fits
            .into_iter()
            .next_back()
            .unwrap_or_else(|| Fit::of(records, targets, models, site, &settings, frame));
        Learned {
            fit,
            own,
            any,
            targets: targets.to_vec(),
        }
    }

    /// The entry of a model, `None` for any.
    fn profile(&self, model: Option<usize>, factor: f32) -> Profile {
        let Shape {
            bias,
            english_bias,
            general,
            english,
        } = self.fit.shape(model);
        let sums = if model.is_some() {
            &self.own
        } else {
            &self.any
        };
        let pairs = sums.iter().zip(&self.targets);
        let pairs: Vec<(f64, Target)> = pairs
            .filter(|(_, target)| model.is_none_or(|model| target.model == model))
            .map(|(sum, target)| (*sum, *target))
            .collect();
        let pairs = if model.is_some() { pairs } else { alike(pairs) };
        Profile {
            bias,
            english_bias,
            general,
            english,
            factor,
            calibration: calibration(&pairs),
        }
    }
}

/// The same pairs, with as much weight for each model.
fn alike(mut pairs: Vec<(f64, Target)>) -> Vec<(f64, Target)> {
    let mut weights = BTreeMap::new();
    for (_, target) in &pairs {
        *weights.entry(target.model).or_insert(0.0) += target.weight;
    }
    let each = weights.values().sum::<f64>() / weights.len().max(1) as f64;
    for (_, target) in &mut pairs {
        target.weight *= each / weights[&target.model];
    }
    pairs
}

/// Points of `1 / (1 + exp(-(slope * sum + shift)))`, with slope and shift fitted to what sums of unseen records came to.
fn calibration(pairs: &[(f64, Target)]) -> [(f32, f32); CALIBRATION_POINTS] {
    // As if so many records had said that the sum is right as it is.
    const TRUST: f64 = 5.0;
    let (mut slope, mut shift) = (1.0_f64, 0.0_f64);
    for _ in 0..50 {
        let (mut by_slope, mut by_shift) = (TRUST * (slope - 1.0), TRUST * 0.1 * shift);
        let (mut slope_slope, mut slope_shift, mut shift_shift) = (TRUST, 0.0, TRUST * 0.1);
        for (sum, target) in pairs {
            let probability = 1.0 / (1.0 + (-(slope * sum + shift)).exp());
            let far = target.weight * (probability - target.label);
            let steep = target.weight * (probability * (1.0 - probability)).max(1e-6);
            by_slope += far * sum;
            by_shift += far;
            slope_slope += steep * sum * sum;
            slope_shift += steep * sum;
            shift_shift += steep;
        }
        let determinant = slope_slope * shift_shift - slope_shift * slope_shift;
        let step_slope = (shift_shift * by_slope - slope_shift * by_shift) / determinant;
        let step_shift = (slope_slope * by_shift - slope_shift * by_slope) / determinant;
        // Sums that mislead are worth nothing, never their opposite.
        slope = (slope - step_slope.clamp(-1.0, 1.0)).max(0.01);
        shift -= step_shift.clamp(-1.0, 1.0);
        if step_slope.abs() + step_shift.abs() < 1e-9 {
            break;
        }
    }
    let far = pairs.iter().map(|(sum, _)| sum.abs()).fold(1.0, f64::max) + 1.0;
    std::array::from_fn(|point| {
        let sum = far * (2.0 * point as f64 / (CALIBRATION_POINTS - 1) as f64 - 1.0);
        let probability = 1.0 / (1.0 + (-(slope * sum + shift)).exp());
        (sum as f32, probability as f32)
    })
}

/// Lexical weights in 8 bits, and what a step of them is worth.
fn in_bytes(weights: &[f32]) -> (Vec<i8>, f32) {
    let largest = weights
        .iter()
        .fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    let step = if largest > 0.0 { largest / 127.0 } else { 1.0 };
    (
        weights
            .iter()
            .map(|weight| (weight / step).round() as i8)
            .collect(),
        step,
    )
}

fn write(names: &[&str], here: &Learned, rescue: Option<&Learned>) -> Result<Vec<u8>> {
    let (lexical, step) = in_bytes(&here.fit.lexical);
    let mut profiles = vec![(ANY, here.profile(None, 1.0))];
    for (index, name) in names.iter().enumerate() {
        ensure!(*name != ANY, "a model cannot be called `{ANY}`");
        profiles.push((*name, here.profile(Some(index), 1.0)));
    }
    let rescue = rescue.map(|rescue| {
        let (lexical, own_step) = in_bytes(&rescue.fit.lexical);
        (rescue.profile(Some(RESCUED), own_step / step), lexical)
    });
    let content = Content {
        knots: here.fit.knots,
        profiles,
        filter: here.fit.known.filter(),
        lexical,
        rescue,
        lexical_scale: step,
    };
    Ok(content.to_bytes()?)
}
