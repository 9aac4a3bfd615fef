//! How sure an answer must be of itself: the confidence is fitted to answers that are known to be right or wrong, and
//! thresholds are read off for a share of answers that go up, or for a quality.
//!
//! Figures are of answers that the fit had not seen: it is made once for each part of them, on the others. The weights that
//! are printed are then fitted to all.

mod fit;
mod strong;

use std::path::{Path, PathBuf};

use andon_policy::confidence::{Confidence, FEATURE_NAMES, FEATURES, Signals};
use andon_policy::router::{Estimator, Question};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use fit::Logistic;
use serde_json::{Value, json};
use strong::Strong;

use super::curve::{Curve, Interval, Point};
use super::label::{Label, Measured};
use crate::random::Random;
use crate::speculate::share;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Labels that `router label` wrote. May be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    labels: Vec<PathBuf>,
    /// Only questions of this set. May be given several times.
    #[arg(long, value_name = "NAME")]
    set: Vec<String>,
    /// Weights of the estimator, as `router train` writes them, or `shipped` for those that are built in: what it thinks
    /// of each question counts, too, unless the label says what was thought of it.
    #[arg(long, value_name = "FILE|shipped")]
    weights: Option<PathBuf>,
    /// Share of the answers that shall go up.
    #[arg(long, default_value_t = 0.25, value_parser = share, conflicts_with = "quality")]
    share: f64,
    /// Share of the answers that shall be right, those from upstream included: as few go up as reach it.
    #[arg(long, value_parser = share)]
    quality: Option<f64>,
    /// JSON lines with `strong_correct`, what a stronger model got right: of the same `prompt`, else of the same `subject`,
    /// else of all.
    #[arg(long, value_name = "FILE")]
    strong: Option<PathBuf>,
    /// Share that a stronger model gets right, where `--strong` says nothing.
    #[arg(long, value_name = "SHARE", default_value_t = 0.85, value_parser = share, conflicts_with = "strong")]
    strong_share: f64,
    /// Parts that the answers are cut into.
    #[arg(long, default_value_t = 5)]
    folds: usize,
    /// Seed of the parts and of the intervals.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Fewer answers than this give no figures worth having.
const ANSWERS_MIN: usize = 50;
/// Shares for which thresholds are told, beside the one asked for.
const SHARES: [f64; 6] = [0.05, 0.1, 0.15, 0.25, 0.35, 0.5];
/// Times that the answers are drawn anew for an interval.
const DRAWS: usize = 400;

/// What is known of one answer.
struct Row {
    signals: Signals,
    right: bool,
    weight: f64,
    /// How likely upstream is right.
    strong: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.folds >= 2, "--folds must be at least 2");
    let strong = match &arguments.strong {
        Some(path) => Strong::read(path)?,
        None => Strong::of_share(arguments.strong_share),
    };
    let (rows, matched) = rows(arguments, &strong)?;
    let right = rows.iter().filter(|row| row.right).count();
    ensure!(
        rows.len() >= ANSWERS_MIN && right > 0 && right < rows.len(),
        "{} answers, {right} of them right: at least {ANSWERS_MIN} are needed, some right and some wrong",
        rows.len()
    );
    let has_prior = rows.iter().any(|row| row.signals.prior != 0.5);
    let fold = folds(rows.len(), arguments.folds, arguments.seed);
    let mut measures = vec![
        ("confidence", unseen(&rows, &fold, arguments.folds, signals)),
        ("default", defaults(&rows)),
    ];
    if has_prior {
        let prior = rows.iter().map(|row| f64::from(row.signals.prior));
        measures.insert(0, ("estimate", prior.collect()));
        measures.push(("both", unseen(&rows, &fold, arguments.folds, everything)));
    }
    let fitted = fit_all(&rows, if has_prior { everything } else { signals })?;
    let outcomes = || {
        let each = rows.iter().map(|row| (row.right, row.strong, row.weight));
        each.collect::<Vec<_>>()
    };
    let mut report = json!({
        "answers": rows.len(),
        "right": round(right as f64 / rows.len() as f64),
        "strong": round(rows.iter().map(|row| row.strong).sum::<f64>() / rows.len() as f64),
        "strong_by_prompt": matched.by_prompt,
        "strong_by_subject": matched.by_subject,
        "strong_by_mean": matched.by_mean,
    });
    // Whoever knows which answers are wrong.
    let known: Vec<f64> = rows
        .iter()
        .map(|row| f64::from(u8::from(row.right)) - row.strong)
        .collect();
    let best = Curve::new(&known, &outcomes());
    let mut target = arguments.share;
    for (name, scores) in &measures {
        let curve = Curve::new(scores, &outcomes());
        let at = match arguments.quality {
            Some(quality) => curve.share_for(quality),
            None => arguments.share,
        };
        if *name == measures[measures.len() - 1].0 {
            target = at;
        }
        let interval = curve.interval(at, DRAWS, arguments.seed);
        report[*name] = told(&curve, at, interval);
        report["recovered_at_best"] = json!(round(best.at(at).recovered));
    }
    let of_all: Vec<f64> = rows
        .iter()
        .map(|row| f64::from(fitted.of(&row.signals)))
        .collect();
    let curve = Curve::new(&of_all, &outcomes());
    let threshold = curve.at(target).threshold;
    let (bias, weights) = fitted.weights();
    let named = FEATURE_NAMES.iter().zip(weights);
    let cascade: Vec<f64> = [bias]
        .iter()
        .chain(&weights)
        .map(|&w| round(f64::from(w)))
        .collect();
    report["fitted"] = json!({
        "bias": round(f64::from(bias)),
        "cascade-weights": cascade,
        "weights": named.map(|(name, weight)| ((*name).to_owned(), json!(round(f64::from(weight))))).collect::<serde_json::Map<_, _>>(),
        "share": round(target),
        "cascade-threshold": round(threshold),
    });
    if arguments.json {
        println!("{report}");
    } else {
        print(&report);
    }
    Ok(())
}

/// Who is asked for estimates.
fn estimator(weights: &Path) -> Result<Estimator<'static>> {
    if weights == Path::new("shipped") {
        return Ok(Estimator::shipped());
    }
    let context = || format!("`{}` cannot be read", weights.display());
    let bytes = std::fs::read(weights).with_context(context)?;
    Estimator::from_vec(bytes).with_context(|| format!("`{}`", weights.display()))
}

/// The answers of all files.
fn rows(arguments: &Arguments, strong: &Strong) -> Result<(Vec<Row>, strong::Matched)> {
    let mut rows = Vec::new();
    let mut matched = strong::Matched::default();
    let estimator = arguments.weights.as_deref().map(estimator).transpose()?;
    for path in &arguments.labels {
        for (number, line) in (1..).zip(crate::read_text(path)?.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let place = || format!("{}:{number}", path.display());
            let label: Label = serde_json::from_str(line).with_context(place)?;
            ensure!(label.label <= 1, "{}: a label is 0 or 1", place());
            ensure!(
                label.weight.is_finite() && label.weight >= 0.0,
                "{}: the weight is {}",
                place(),
                label.weight
            );
            if !arguments.set.is_empty() && !arguments.set.contains(&label.set) {
                continue;
            }
            let estimate = label.estimate.or_else(|| {
                let estimate = estimator.as_ref()?.estimate(&Question::of(&label.prompt));
                Some(estimate.will_do)
            });
            rows.push(Row {
                signals: of(&label.signals, estimate),
                right: label.label == 1,
                weight: f64::from(label.weight),
                strong: strong.of(&label.prompt, &label.task, &mut matched),
            });
        }
    }
    Ok((rows, matched))
}

fn of(measured: &Measured, estimate: Option<f32>) -> Signals {
    Signals {
        tokens: measured.tokens,
        logprob_mean: measured.logprob_mean,
        logprob_min: measured.logprob_min,
        entropy_mean: measured.entropy_mean,
        entropy_max: measured.entropy_max,
        repetition: measured.repetition,
        retries: measured.retries,
        ended: measured.ended,
        prior: estimate.unwrap_or(0.5),
    }
}

/// Which part each answer belongs to: parts of the same size, drawn.
fn folds(count: usize, folds: usize, seed: u64) -> Vec<usize> {
    let mut fold: Vec<usize> = (0..count).map(|index| index % folds).collect();
    Random::new(seed).shuffle(&mut fold);
    fold
}

/// What the fit sees of an answer: all but the estimate.
fn signals(row: &Row) -> [f64; FEATURES] {
    let mut features = everything(row);
    features[FEATURES - 1] = 0.0;
    features
}

fn everything(row: &Row) -> [f64; FEATURES] {
    row.signals.features().map(f64::from)
}

/// The probability of each answer by a fit to the parts that it is not in.
fn unseen(
    rows: &[Row],
    fold: &[usize],
    folds: usize,
    seen: fn(&Row) -> [f64; FEATURES],
) -> Vec<f64> {
    let mut scores = vec![0.0; rows.len()];
    for part in 0..folds {
        let others = rows.iter().zip(fold).filter(|(_, of)| **of != part);
        let others: Vec<_> = others
            .map(|(row, _)| (seen(row), row.right, row.weight))
            .collect();
        let fit = Logistic::fit(&others);
        for ((score, row), _) in scores
            .iter_mut()
            .zip(rows)
            .zip(fold)
            .filter(|(_, of)| **of == part)
        {
            *score = fit.of(&seen(row));
        }
    }
    scores
}

/// What the daemon makes of them as it is.
fn defaults(rows: &[Row]) -> Vec<f64> {
    let confidence = Confidence::default();
    let each = rows.iter().map(|row| confidence.of(&row.signals));
    each.map(f64::from).collect()
}

/// The fit to all answers. What is the same in all of them, nothing was learnt of: it weighs what it does by default.
fn fit_all(rows: &[Row], seen: fn(&Row) -> [f64; FEATURES]) -> Result<Confidence> {
    let all: Vec<_> = rows
        .iter()
        .map(|row| (seen(row), row.right, row.weight))
        .collect();
    let fit = Logistic::fit(&all);
    let (_, default) = Confidence::default().weights();
    let weight = |index: usize| {
        let varies = all.iter().any(|(row, ..)| row[index] != all[0].0[index]);
        if varies {
            fit.weights[index] as f32
        } else {
            default[index]
        }
    };
    let weights = core::array::from_fn(weight);
    // The same for all: the bias has it.
    let constant: f32 = (0..FEATURES)
        .filter(|&index| all.iter().all(|(row, ..)| row[index] == all[0].0[index]))
        .map(|index| default[index] * all[0].0[index] as f32)
        .sum();
    Confidence::new(fit.bias as f32 - constant, weights)
        .context("the fit did not end: are the labels the same as a signal?")
}

/// Four digits.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn told(curve: &Curve, at: f64, interval: Interval) -> Value {
    let point = |point: Point| {
        json!({
            "share": round(point.share),
            "threshold": round(point.threshold),
            "kept_right": round(point.kept_right),
            "quality": round(point.quality),
            "recovered": round(point.recovered),
        })
    };
    let mut shares: Vec<f64> = SHARES.to_vec();
    if !shares.contains(&at) {
        shares.push(at);
        shares.sort_by(f64::total_cmp);
    }
    json!({
        "auc": round(curve.auc()),
        "calibration_error": round(curve.calibration_error()),
        "recovered": round(curve.at(at).recovered),
        "recovered_95": [round(interval.low), round(interval.high)],
        "shares": shares.into_iter().map(|share| point(curve.at(share))).collect::<Vec<_>>(),
    })
}

fn print(report: &Value) {
    println!(
        "{} answers, {} right here, {} upstream",
        report["answers"], report["right"], report["strong"]
    );
    println!(
        "at best {} of the distance is recovered at the share asked for",
        report["recovered_at_best"]
    );
    println!(
        "{:<12}{:>8}{:>8}{:>8}{:>11}{:>10}{:>10}",
        "", "AUC", "error", "share", "threshold", "quality", "recovered"
    );
    for name in ["estimate", "default", "confidence", "both"] {
        let measure = &report[name];
        for (index, point) in measure["shares"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let (auc, error) = match index {
                0 => (
                    measure["auc"].to_string(),
                    measure["calibration_error"].to_string(),
                ),
                _ => (String::new(), String::new()),
            };
            println!(
                "{:<12}{auc:>8}{error:>8}{:>8}{:>11}{:>10}{:>10}",
                if index == 0 { name } else { "" },
                point["share"].to_string(),
                point["threshold"].to_string(),
                point["quality"].to_string(),
                point["recovered"].to_string(),
            );
        }
    }
    let fitted = &report["fitted"];
    println!(
        "\nfitted: bias {}, weights {}",
        fitted["bias"], fitted["weights"]
    );
    println!(
        "\n# {} of such answers go up\n[router]\ncascade = true\ncascade-threshold = {}\ncascade-weights = {}",
        fitted["share"], fitted["cascade-threshold"], fitted["cascade-weights"]
    );
}
