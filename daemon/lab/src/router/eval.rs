//! Measures the estimator on records that it has not learned from: all of them with `--weights`, else each part of them by
//! weights learned from the others, as `train` learns and writes them.
//!
//! What a share that goes up gives is by the daemon's own rule: in the order of how likely the local answer is as good as a stronger
//! model's, and once by the threshold that follows a target, one request after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use andon_policy::route::{Purse, Share, is_hard};
use andon_policy::router::{Estimator, Question, Vocabulary};
use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::curve::Curve;
use super::plot::{Line, chart};
use super::records::{self, Record};
use super::train::{Learning, learn, part_of};
use crate::random::Random;

/// What the parts are that are left out of learning, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LeaveOut {
    /// Every fifth question, whatever its task.
    Questions,
    /// All of one task.
    Task,
    /// All of one set.
    Set,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// JSON lines as for `train`.
    #[arg(required = true, value_name = "FILE")]
    records: Vec<PathBuf>,
    /// Weights that have learned from none of them.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Without weights: what is left out of learning, to be measured on.
    #[arg(long, value_enum, default_value_t = LeaveOut::Questions, conflicts_with = "weights")]
    leave_out: LeaveOut,
    /// Measure only answers of this model; all are learned from. May be given several times.
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// Write `calibration.svg` and `curve.svg` into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    learning: Learning,
}

/// Parts that questions are cut into.
const PARTS: u64 = 5;
/// Times that records are drawn anew for an interval.
const DRAWS: usize = 1000;
/// Fewer records than this, or all with one label, give no figures of their own.
const RECORDS_MIN: usize = 30;
/// Requests before and while what follows a target is measured.
const SETTLING: usize = 1000;
const FOLLOWED: usize = 20_000;
/// Share that goes up where one is told.
const SHARE: f64 = 0.25;
/// Bins of the calibration chart, of as many records each.
const BINS: usize = 10;

/// A record, with what was expected of it.
struct Judged<'a> {
    record: &'a Record,
    will_do: f64,
    /// What the daemon goes by.
    as_good: f32,
    /// How long that took, in microseconds.
    took_us: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let records = records::read(&arguments.records)?;
    let site = arguments.learning.site()?;
    let judged = judge(arguments, &records, site.as_ref())?;
    ensure!(!judged.is_empty(), "there is no record of this model");
    let mut groups: BTreeMap<(&str, &str), Vec<&Judged<'_>>> = BTreeMap::new();
    for one in &judged {
        let (model, set) = (one.record.model.as_str(), one.record.set.as_str());
        groups.entry((model, set)).or_default().push(one);
        groups.entry((model, "")).or_default().push(one);
    }
    let models: BTreeSet<&str> = groups.keys().map(|(model, _)| *model).collect();
    if models.len() > 1 {
        groups.insert(("", ""), judged.iter().collect());
    }
    let mut report = Vec::new();
    for ((model, set), of) in &groups {
        let right = of.iter().filter(|one| one.record.label > 0.5).count();
        if of.len() >= RECORDS_MIN && right > 0 && right < of.len() {
            report.push(measured(model, set, of, arguments.learning.seed));
        }
    }
    let mut took: Vec<f64> = judged.iter().map(|one| one.took_us).collect();
    took.sort_by(f64::total_cmp);
    let took_us = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let (median, p99) = (took_us(0.5), took_us(0.99));
    if arguments.json {
        let estimate_us = json!({ "median": median, "p99": p99 });
        let line = json!({ "records": judged.len(), "estimate_us": estimate_us, "groups": report });
        println!("{line}");
    } else {
        print(&report);
        println!(
            "{} records, each estimated in {median:.0} µs, 99 of 100 within {p99:.0} µs",
            judged.len()
        );
    }
    if let Some(directory) = &arguments.plots {
        let whole: Vec<_> = groups
            .iter()
            .filter(|((_, set), _)| set.is_empty())
            .collect();
        let write = |name: &str, svg: String| {
            let path = directory.join(name);
            std::fs::write(&path, svg).with_context(|| format!("cannot write `{}`", path.display()))
        };
        let named = |model: &str| if model.is_empty() { "all" } else { model }.to_owned();
        let lines: Vec<Line> = whole
            .iter()
            .map(|((model, _), of)| reliability(named(model), of))
            .collect();
        let title = "Answers that did, by the probability given";
        write(
            "calibration.svg",
            chart(
                title,
                "probability given",
                "share that did",
                "as given",
                &lines,
            ),
        )?;
        let lines: Vec<Line> = whole
            .iter()
            .map(|((model, _), of)| gained(named(model), of))
            .collect();
        let title = "Quality gained, by the share that goes up";
        let up = "share of the distance to the stronger model";
        write(
            "curve.svg",
            chart(title, "share that goes up", up, "at random", &lines),
        )?;
    }
    Ok(())
}

/// What is expected of each record of the models that were asked for.
fn judge<'a>(
    arguments: &Arguments,
    records: &'a [Record],
    site: Option<&Vocabulary>,
) -> Result<Vec<Judged<'a>>> {
    let wanted =
        |record: &Record| arguments.model.is_empty() || arguments.model.contains(&record.model);
    let task_names = arguments.learning.task_names();
    let learning = &arguments.learning;
    if let Some(path) = &arguments.weights {
        let of = || format!("cannot use `{}`", path.display());
        let bytes = std::fs::read(path).with_context(of)?;
        let of_these: Vec<&Record> = records.iter().filter(|record| wanted(record)).collect();
        return judged_by(&bytes, &of_these, site, task_names).with_context(of);
    }
    let part = |record: &Record| match arguments.leave_out {
        LeaveOut::Questions => {
            part_of(&record.prompt, learning.seed.wrapping_add(1), PARTS).to_string()
        }
        LeaveOut::Task => record.task.clone(),
        LeaveOut::Set => record.set.clone(),
    };
    let parts: BTreeSet<String> = records
        .iter()
        .filter(|record| wanted(record))
        .map(part)
        .collect();
    ensure!(parts.len() > 1, "there is only one part to leave out");
    let mut judged = Vec::new();
    for (index, left_out) in parts.iter().enumerate() {
        eprintln!("learning without part {} of {}", index + 1, parts.len());
        let (out, others): (Vec<&Record>, Vec<&Record>) =
            records.iter().partition(|record| part(record) == *left_out);
        let bytes = learn(&others, site, learning)?;
        let out: Vec<&Record> = out.into_iter().filter(|record| wanted(record)).collect();
        judged.extend(judged_by(&bytes, &out, site, task_names)?);
    }
    Ok(judged)
}

/// By these weights, each record with the entry of its model if they have one.
fn judged_by<'a>(
    bytes: &[u8],
    records: &[&'a Record],
    site: Option<&Vocabulary>,
    task_names: bool,
) -> Result<Vec<Judged<'a>>> {
    let any = Estimator::from_bytes(bytes)?;
    let mut estimators: BTreeMap<&str, Estimator<'_>> = BTreeMap::new();
    let mut judged = Vec::with_capacity(records.len());
    for &record in records {
        let estimator = estimators.entry(record.model.as_str()).or_insert_with(|| {
            any.clone()
                .for_model(&record.model)
                .unwrap_or_else(|| any.clone())
        });
        let since = Instant::now();
        let estimate = estimator.estimate(&Question {
            text: &record.prompt,
            task: Some(record.task.as_str()).filter(|task| task_names && !task.is_empty()),
            vocabulary: site,
        });
        judged.push(Judged {
            record,
            will_do: f64::from(estimate.will_do),
            as_good: estimate.as_good(),
            took_us: since.elapsed().as_secs_f64() * 1e6,
        });
    }
    Ok(judged)
}

/// Scores with what came of each: a record that did in part counts as both.
fn curve<'a>(of: impl Iterator<Item = (f64, &'a Record)>) -> Curve {
    let mut scores = Vec::new();
    let mut outcomes = Vec::new();
    for (score, record) in of {
        let strong = record.strong.unwrap_or(1.0);
        for (right, share) in [(true, record.label), (false, 1.0 - record.label)] {
            if share > 0.0 {
                scores.push(score);
                outcomes.push((right, strong, record.weight * share));
            }
        }
    }
    Curve::new(&scores, &outcomes)
}

fn by_estimate(of: &[&Judged<'_>]) -> Curve {
    curve(of.iter().map(|one| (one.will_do, one.record)))
}

fn by_length(of: &[&Judged<'_>]) -> Curve {
    curve(
        of.iter()
            .map(|one| (-(one.record.prompt.len() as f64), one.record)),
    )
}

/// Those whose stronger answer is known, if these are enough; else all, the stronger model being always right.
fn compared<'a, 'b>(of: &[&'b Judged<'a>]) -> (bool, Vec<&'b Judged<'a>>) {
    let known = of.iter().filter(|one| one.record.strong.is_some());
    let known: Vec<_> = known.copied().collect();
    if known.len() >= RECORDS_MIN {
        (true, known)
    } else {
        (false, of.to_vec())
    }
}

/// As the daemon ranks them.
fn as_routed(of: &[&Judged<'_>]) -> Curve {
    curve(of.iter().map(|one| (f64::from(one.as_good), one.record)))
}

/// How likely a stronger model is to gain, with whether it did.
fn gains(of: &[&Judged<'_>]) -> Curve {
    let mut scores = Vec::new();
    let mut outcomes = Vec::new();
    for one in of {
        let record = one.record;
        let gained = record.strong.unwrap_or(1.0) * (1.0 - record.label);
        for (gains, share) in [(true, gained), (false, 1.0 - gained)] {
            if share > 0.0 {
                scores.push(1.0 - f64::from(one.as_good));
                outcomes.push((gains, 1.0, record.weight * share));
            }
        }
    }
    Curve::new(&scores, &outcomes)
}

/// What goes up, and what that makes good, where requests come in this order and the threshold follows a target. Those that
/// come while it settles do not count.
fn followed(of: &[&Judged<'_>], target: f64, seed: u64) -> (f64, f64) {
    let mut random = Random::new(seed.wrapping_add(2));
    let mut share = Share::new(0.5, Some(target as f32));
    let (mut all, mut sent, mut gap, mut gained) = (0.0, 0.0, 0.0, 0.0);
    for turn in 0..SETTLING + FOLLOWED {
        let one = of[random.below(of.len())];
        let hard = is_hard(one.as_good, share.threshold(), Purse::Open);
        share.note(hard);
        if turn < SETTLING {
            continue;
        }
        let record = one.record;
        let gain = record.weight * (record.strong.unwrap_or(1.0) - record.label);
        all += record.weight;
        gap += gain;
        if hard {
            sent += record.weight;
            gained += gain;
        }
    }
    (sent / all, gained / gap)
}

/// The least that is gained more than at random over all shares, in hundredths.
fn least_above_random(curve: &Curve) -> f64 {
    let shares = (1..100).map(|share| f64::from(share) / 100.0);
    shares
        .map(|share| curve.at(share).recovered - share)
        .fold(f64::INFINITY, f64::min)
}

fn measured(model: &str, set: &str, of: &[&Judged<'_>], seed: u64) -> Value {
    let (estimate, length) = (by_estimate(of), by_length(of));
    let (is_compared, compared) = compared(of);
    let routed = as_routed(&compared);
    let mut random = Random::new(seed.wrapping_add(1));
    let mut differences = Vec::with_capacity(DRAWS);
    let mut recoveries = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        let drawn: Vec<&Judged<'_>> = (0..of.len()).map(|_| of[random.below(of.len())]).collect();
        differences.push(by_estimate(&drawn).auc() - by_length(&drawn).auc());
        let drawn: Vec<&Judged<'_>> = (0..compared.len())
            .map(|_| compared[random.below(compared.len())])
            .collect();
        recoveries.push(as_routed(&drawn).at(SHARE).recovered);
    }
    let mut line = json!({
        "model": model,
        "set": set,
        "records": of.len(),
        "did": of.iter().map(|one| one.record.label).sum::<f64>() / of.len() as f64,
        "auc": estimate.auc(),
        "auc_length": length.auc(),
        "better_by": interval(&mut differences),
        "calibration_error": estimate.calibration_error(),
        "recovered_25": routed.at(SHARE).recovered,
        "recovered_25_interval": interval(&mut recoveries),
        "recovered_25_by_will_do": by_estimate(&compared).at(SHARE).recovered,
        "share_for_half": (0..=100)
            .map(|share| f64::from(share) / 100.0)
            .find(|share| routed.at(*share).recovered >= 0.5),
        "least_above_random": least_above_random(&routed),
    });
    let (sent, recovered) = followed(&compared, SHARE, seed);
    line["followed_25"] = json!({ "sent": sent, "recovered": recovered });
    if is_compared {
        line["gain_calibration_error"] = gains(&compared).calibration_error().into();
    }
    line
}

/// What 95 of 100 draws are within.
fn interval(drawn: &mut [f64]) -> [f64; 2] {
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| {
        drawn
            .get((share * drawn.len() as f64) as usize)
            .copied()
            .unwrap_or(f64::NAN)
    };
    [at(0.025), at(0.975)]
}

fn print(report: &[Value]) {
    println!(
        "{:<28} {:<18} {:>6} {:>5} {:>6} {:>6} {:>17} {:>6} {:>6} {:>7} {:>7}",
        "model",
        "set",
        "n",
        "did",
        "AUC",
        "length",
        "better by (95 %)",
        "ECE",
        "r25",
        "will_do",
        "> random"
    );
    for line in report {
        let number = |of: &Value| of.as_f64().unwrap_or(f64::NAN);
        let name = |key: &str| match line[key].as_str() {
            None | Some("") => "all".to_owned(),
            Some(name) => name.to_owned(),
        };
        println!(
            "{:<28} {:<18} {:>6} {:>5.2} {:>6.3} {:>6.3} {:>+8.3} {:>+8.3} {:>6.3} {:>6.3} {:>8.3} {:>+8.3}",
            name("model"),
            name("set"),
            line["records"],
            number(&line["did"]),
            number(&line["auc"]),
            number(&line["auc_length"]),
            number(&line["better_by"][0]),
            number(&line["better_by"][1]),
            number(&line["calibration_error"]),
            number(&line["recovered_25"]),
            number(&line["recovered_25_by_will_do"]),
            number(&line["least_above_random"]),
        );
    }
}

/// How many did in each tenth of the records, by the probability given.
fn reliability(name: String, of: &[&Judged<'_>]) -> Line {
    let mut sorted = of.to_vec();
    sorted.sort_by(|one, other| one.will_do.total_cmp(&other.will_do));
    let mean = |bin: &[&Judged<'_>], what: fn(&Judged<'_>) -> f64| {
        bin.iter().map(|one| what(one)).sum::<f64>() / bin.len() as f64
    };
    let bins = sorted.chunks(sorted.len().div_ceil(BINS).max(1));
    Line {
        name,
        points: bins
            .map(|bin| {
                (
                    mean(bin, |one| one.will_do),
                    mean(bin, |one| one.record.label),
                )
            })
            .collect(),
        marked: true,
    }
}

/// What is gained at each share.
fn gained(name: String, of: &[&Judged<'_>]) -> Line {
    let curve = as_routed(&compared(of).1);
    let shares = (0..=50).map(|share| f64::from(share) / 50.0);
    Line {
        name,
        points: shares
            .map(|share| (share, curve.at(share).recovered))
            .collect(),
        marked: false,
    }
}
