//! `cargo xtask bench`: andon beside llama.cpp on the same files, round by round, and a record of it.
//!
//! A machine that is shared is slower at times, for both. So the programs take turns, the machine's streaming read is
//! measured before and after each round, and a round counts only if both are near the best that was seen. A definition
//! is run again until it has its rounds, up to a limit. What is reported are medians over the rounds that count.

mod broker;
mod daemon;
mod definition;
mod first_token;
mod llama_server;
mod load;
mod machine;
mod parallel;
mod prompts;
mod record;
mod rival;
mod service;
mod sides;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::shell;
use definition::{Build, Definition, Kind, Origin};
use rival::Variant;

/// Share of the best streaming read that a round must have, before and after.
const QUIET: f64 = 0.9;

/// Rounds tried for each that is wanted.
const TRIES: usize = 3;

/// A setting of the rival that stays this far behind its best in everything is not tried again.
const HOPELESS: f64 = 0.93;

/// Fits neither a processor nor a memory that there is.
const READ_MAX: f64 = 10_000.0;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Benchmarks by name (the files of tests/bench/definitions); all whose models may be fetched unasked when none is
    /// named.
    names: Vec<String>,
    /// Only those of this model; may be given several times.
    #[arg(long, value_name = "MODEL")]
    only: Vec<String>,
    /// Rounds that count.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The best streaming read known of this machine in GB/s, where it is better than any of this run.
    #[arg(long, value_name = "GB_S", default_value_t = 0.0)]
    best_read: f64,
    /// Without llama.cpp.
    #[arg(long)]
    alone: bool,
    /// An interpreter that has llama-cpp-python built for this processor, in place of building it.
    #[arg(long, value_name = "PATH")]
    llama_python: Option<PathBuf>,
    /// A llama-server built for this processor, in place of building it.
    #[arg(long, value_name = "PATH")]
    llama_server: Option<PathBuf>,
    /// Prompts for what asks servers: JSON lines, each with a `prompt`.
    #[arg(long, value_name = "PATH")]
    prompts: Option<PathBuf>,
    /// Ask servers no more prompts in a run than this.
    #[arg(long, value_name = "COUNT")]
    requests: Option<usize>,
    /// Do not write a record.
    #[arg(long)]
    no_record: bool,
    /// Say which benchmarks there are.
    #[arg(long)]
    list: bool,
}

/// The programs under test, and what their builds are for.
struct Programs {
    folder: PathBuf,
    interpreters: BTreeMap<Build, PathBuf>,
    server: Option<PathBuf>,
    /// What servers are asked.
    prompts: Vec<String>,
}

impl Programs {
    fn lab(&self) -> PathBuf {
        self.folder.join("andon-lab")
    }
}

/// One turn of everybody.
struct Round {
    /// The lesser streaming read of before and after, in GB/s.
    read: f64,
    /// Figures by the name of whoever they are of.
    figures: BTreeMap<String, Value>,
}

/// Measures, reports, and writes the record.
///
/// # Errors
/// When a benchmark is not known, or a program does not do what it should.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.rounds == 0 || !(0.0..READ_MAX).contains(&options.best_read) {
        bail!("--rounds must be at least 1, --best-read a figure in GB/s");
    }
    let models = definition::models()?;
    let mut definitions = chosen(options, &models)?;
    if let Some(requests) = options.requests {
        let served = definitions.iter_mut().filter(|one| one.kind.is_served());
        served.for_each(|one| one.requests = requests);
    }
    if options.list {
        for definition in &definitions {
            println!("{:<20} {}", definition.name, definition.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    println!("== build");
    let programs = build(options, &definitions)?;
    let mut best = options.best_read;
    let mut measured = Vec::new();
    for definition in &definitions {
        println!("== {}: {}", definition.name, definition.title);
        let model = models[&definition.model].ensure(&definition.model, &programs.lab())?;
        let (rounds, notes) = measure(options, &programs, definition, &model, &mut best)?;
        measured.push((definition, rounds, notes));
    }
    // Only now is the best read known that the rounds are held against.
    let mut results = Vec::new();
    let (mut quiet, mut reached) = (true, true);
    println!("== results (best streaming read {best:.1} GB/s)");
    for (definition, rounds, notes) in &measured {
        let counted: Vec<&Round> = rounds
            .iter()
            .filter(|round| round.read >= QUIET * best)
            .collect();
        quiet &= counted.len() >= options.rounds;
        // Where none was quiet, what they all say is kept, but held against no bar.
        let used = if counted.is_empty() {
            rounds.iter().collect()
        } else {
            counted.clone()
        };
        let mut result = summary(definition, &used, rounds.len(), notes);
        result["rounds"] = counted.len().into();
        reached &= record::print(definition, &result);
        results.push(result);
    }
    let record = json!({
        "date": shell::output(std::process::Command::new("date").args(["-u", "+%F"]))?.trim(),
        "machine": machine::describe()?,
        "best_read_gb_s": record::round(best),
        "scratch": daemon::scratch()?,
        "results": results,
    });
    if !options.no_record {
        println!("  written: {}", record::write(&record)?.display());
    }
    if !quiet {
        println!("some benchmarks have too few rounds in which the machine was quiet");
    }
    if !reached {
        println!("some bars were missed or not measured");
    }
    Ok(if quiet && reached {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The definitions that were asked for.
fn chosen(options: &Options, models: &BTreeMap<String, Origin>) -> Result<Vec<Definition>> {
    let mut definitions = definition::definitions(models)?;
    for name in &options.names {
        if !definitions.iter().any(|one| one.name == *name) {
            bail!("there is no benchmark {name}; --list says which there are");
        }
    }
    for model in &options.only {
        if !models.contains_key(model) {
            let known: Vec<&str> = models.keys().map(String::as_str).collect();
            bail!("there is no model {model}; there are {}", known.join(", "));
        }
    }
    let named = |definition: &Definition| {
        options.names.contains(&definition.name) || options.only.contains(&definition.model)
    };
    definitions.retain(|definition| {
        if options.names.is_empty() && options.only.is_empty() {
            let leave = models[&definition.model].has_terms() && !options.list;
            if leave {
                println!(
                    "  {}: its model has terms of its own; name it",
                    definition.name
                );
            }
            return !leave;
        }
        (options.names.is_empty() || options.names.contains(&definition.name))
            && (options.only.is_empty() || options.only.contains(&definition.model))
            && named(definition)
    });
    Ok(definitions)
}

/// Builds our programs, and llama.cpp for what the definitions compare with.
fn build(options: &Options, definitions: &[Definition]) -> Result<Programs> {
    let packages = ["--package", "andon-lab", "--package", "andond"];
    shell::run(shell::cargo(&["build", "--release"]).args(packages))?;
    let (mut prompts, mut server) = (Vec::new(), None);
    if definitions.iter().any(|one| one.kind.is_served()) {
        let (read, from) = prompts::read(options.prompts.as_deref())?;
        println!("  {from}");
        prompts = read;
        if !options.alone {
            let given = options.llama_server.clone();
            server = Some(given.map_or_else(llama_server::ensure, Ok)?);
        }
    }
    let mut interpreters = BTreeMap::new();
    let measured = definitions.iter().filter(|one| !one.kind.is_served());
    let rivals = measured.filter_map(|one| one.rival.as_ref());
    for build in rivals.map(|rival| rival.build) {
        if options.alone || build.missing().is_some() || interpreters.contains_key(&build) {
            continue;
        }
        let python = match (&options.llama_python, build) {
            (Some(python), Build::Native) => python.clone(),
            _ => rival::ensure(build)?,
        };
        interpreters.insert(build, python);
    }
    Ok(Programs {
        folder: shell::target_directory().join("release"),
        interpreters,
        server,
        prompts,
    })
}

/// Runs rounds of a definition until enough of them were quiet, and says what could not be done.
fn measure(
    options: &Options,
    programs: &Programs,
    definition: &Definition,
    model: &Path,
    best: &mut f64,
) -> Result<(Vec<Round>, Vec<String>)> {
    let mut notes = Vec::new();
    let mut variants = Vec::new();
    if let Some(rival) = definition.rival.as_ref().filter(|_| !options.alone) {
        let program = if definition.kind.is_served() {
            programs.server.as_ref()
        } else {
            programs.interpreters.get(&rival.build)
        };
        match program {
            Some(program) => variants = rival::variants(rival, program),
            None => notes.extend(rival.build.missing().map(str::to_owned)),
        }
    }
    for note in &notes {
        println!("  {note}");
    }
    let lab = programs.lab();
    let mut rounds: Vec<Round> = Vec::new();
    let mut before = sides::read_gb_s(&lab, definition.threads)?;
    for number in 1..=options.rounds * TRIES {
        let mut figures = BTreeMap::new();
        // Servers are asked in turns within their measurement.
        let served = definition.kind.is_served();
        let (servers, alone) = if served {
            (variants.as_slice(), 0)
        } else {
            (&[][..], variants.len())
        };
        for turn in turns(number, alone) {
            match turn {
                Turn::Andon => {
                    figures.extend(sides::andon(programs, definition, model, servers)?);
                }
                Turn::Rival(index) => {
                    let measured = variants[index].measure(definition, model)?;
                    figures.insert(variants[index].name(), measured);
                }
            }
        }
        let after = sides::read_gb_s(&lab, definition.threads)?;
        let read = before.min(after);
        *best = best.max(before).max(after);
        before = after;
        let mark = if read >= QUIET * *best {
            ""
        } else {
            ", busy: does not count"
        };
        println!("  round {number}: {read:.1} GB/s{mark}");
        for (name, values) in &figures {
            println!("    {name}: {}", record::short(values));
        }
        // A busy moment must not cost the rival its best setting.
        if mark.is_empty() {
            variants.retain(|variant| is_hopeful(definition.kind, variant, &figures));
        }
        rounds.push(Round { read, figures });
        let counted = rounds.iter().filter(|round| round.read >= QUIET * *best);
        if counted.count() >= options.rounds {
            break;
        }
    }
    Ok((rounds, notes))
}

/// Who measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Andon,
    /// The rival with a setting, by its index.
    Rival(usize),
}

/// The order within a round: it turns round from one to the next, so that what wears off or warms up in a round, a
/// processor's clock or what the machine's other guests do, is nobody's advantage.
fn turns(round: usize, rivals: usize) -> Vec<Turn> {
    let rivals = (0..rivals).map(Turn::Rival);
    let mut turns: Vec<Turn> = std::iter::once(Turn::Andon).chain(rivals).collect();
    if round.is_multiple_of(2) {
        turns.reverse();
    }
    turns
}

/// Whether a setting of the rival was near its best in anything.
fn is_hopeful(kind: Kind, variant: &Variant, figures: &BTreeMap<String, Value>) -> bool {
    let own = &figures[&variant.name()];
    let keys: &[&str] = match kind {
        Kind::FirstToken => &[
            "short-p50-ms",
            "short-p95-ms",
            "long-p50-ms",
            "task-p50-ms",
            "task-p95-ms",
        ],
        Kind::Parallel => &["aggregate_tok_s"],
        _ => &["prefill_tok_s", "decode_tok_s"],
    };
    keys.iter().any(|key| {
        let speed = |values: &Value| {
            let figure = values[*key].as_f64()?;
            Some(if key.ends_with("-ms") {
                1.0 / figure
            } else {
                figure
            })
        };
        let rivals = figures.iter().filter(|(name, _)| !sides::is_ours(name));
        let best = rivals.filter_map(|(_, values)| speed(values));
        let best = best.fold(0.0, f64::max);
        speed(own).is_some_and(|own| own >= HOPELESS * best)
    })
}

/// What a definition came to: medians of every figure over the rounds that count, and ratios of these.
fn summary(definition: &Definition, counted: &[&Round], tried: usize, notes: &[String]) -> Value {
    let mut sides: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for round in counted {
        for (name, values) in &round.figures {
            sides.entry(name).or_default();
            for (key, value) in values.as_object().into_iter().flatten() {
                if value.is_number() || value.is_array() {
                    sides
                        .entry(name)
                        .or_default()
                        .insert(key.clone(), Value::Null);
                }
            }
        }
    }
    for (name, values) in &mut sides {
        let of = |key: &str| -> Vec<&Value> {
            let found = counted
                .iter()
                .filter_map(|round| round.figures.get(*name)?.get(key));
            found.collect()
        };
        let keys: Vec<String> = values.keys().cloned().collect();
        for key in keys {
            let lists = of(&key);
            let numbers: Vec<f64> = lists.iter().filter_map(|value| value.as_f64()).collect();
            let value = if numbers.is_empty() {
                let length = lists
                    .first()
                    .and_then(|list| list.as_array())
                    .map_or(0, Vec::len);
                let at = |index: usize| {
                    let each = lists.iter().filter_map(|list| list[index].as_f64());
                    record::round(median(&each.collect::<Vec<_>>()))
                };
                json!((0..length).map(at).collect::<Vec<_>>())
            } else {
                json!(record::round(median(&numbers)))
            };
            values.insert(key, value);
        }
    }
    let mut ratios = Map::new();
    for (key, theirs, name) in RATIOS {
        let own = sides
            .get(sides::ANDON)
            .and_then(|values| values.get(key)?.as_f64());
        let rivals = sides.iter().filter(|(name, _)| !sides::is_ours(name));
        let best = rivals.filter_map(|(_, values)| values.get(theirs)?.as_f64());
        let best = if key.ends_with("-ms") {
            best.reduce(f64::min)
        } else {
            best.reduce(f64::max)
        };
        if let (Some(own), Some(best)) = (own, best.filter(|best| *best > 0.0)) {
            ratios.insert(name.to_owned(), json!(record::round(own / best)));
        }
    }
    let reads: Vec<f64> = counted.iter().map(|round| round.read).collect();
    json!({
        "name": definition.name,
        "kind": definition.kind,
        "model": definition.model,
        "threads": definition.threads,
        "prompt": definition.prompt,
        "gen": definition.generate,
        "depth": definition.depth,
        "kv": definition.kv,
        "rounds": counted.len(),
        "rounds_tried": tried,
        "read_gb_s": reads.iter().copied().map(record::round).collect::<Vec<_>>(),
        "sides": sides,
        "ratios": ratios,
        "bar": definition.bar,
        "notes": notes,
    })
}

/// Our figure, the rival's, and the name of the one by the best of the others.
const RATIOS: [(&str, &str, &str); 11] = [
    ("prefill_tok_s", "prefill_tok_s", "prefill-ratio"),
    ("decode_tok_s", "decode_tok_s", "decode-ratio"),
    ("aggregate_tok_s", "aggregate_tok_s", "aggregate-ratio"),
    ("http-short-p50-ms", "short-p50-ms", "http-short-p50-ratio"),
    ("http-short-p95-ms", "short-p95-ms", "http-short-p95-ratio"),
    ("mqtt-short-p50-ms", "short-p50-ms", "mqtt-short-p50-ratio"),
    ("mqtt-short-p95-ms", "short-p95-ms", "mqtt-short-p95-ratio"),
    (
        "http-long-p50-ms",
        "long-p50-ms",
        "http-long-p50-rival-ratio",
    ),
    (
        "mqtt-long-p50-ms",
        "long-p50-ms",
        "mqtt-long-p50-rival-ratio",
    ),
    ("http-task-p95-ms", "task-p95-ms", "http-task-p95-ratio"),
    ("mqtt-task-p95-ms", "task-p95-ms", "mqtt-task-p95-ratio"),
];

/// Whether a figure is one of ours by a rival's.
fn needs_rival(name: &str) -> bool {
    RATIOS.iter().any(|(.., ratio)| *ratio == name)
}

/// The value that `percent` of all are no greater than.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(index).copied().unwrap_or(f64::NAN)
}

/// The middle one of several values.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::{Round, Turn, definition, median, needs_rival, percentile, sides, summary, turns};
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn the_first_of_a_round_is_the_last_of_the_next() {
        let first = [Turn::Andon, Turn::Rival(0), Turn::Rival(1)];
        let next = [Turn::Rival(1), Turn::Rival(0), Turn::Andon];
        assert_eq!(turns(1, 2), first);
        assert_eq!(turns(2, 2), next);
        assert_eq!(turns(3, 2), first);
        assert_eq!(turns(2, 0), [Turn::Andon]);
    }

    #[test]
    fn bars_are_of_figures_that_there_are() {
        let models = definition::models().expect("models");
        for definition in definition::definitions(&models).expect("definitions") {
            for name in definition.bar.keys() {
                let is_figure = definition.kind.figures().contains(&name.as_str());
                let is_ratio = needs_rival(name) && definition.rival.is_some();
                assert!(is_figure || is_ratio, "{}: no {name}", definition.name);
            }
        }
    }

    #[test]
    fn percentiles_are_of_the_values_given() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 99), 99.0);
        assert_eq!(percentile(&values, 50), 50.0);
        assert_eq!(percentile(&[2.0, 1.0], 99), 2.0);
    }

    #[test]
    fn medians_and_ratios_are_of_the_rounds_given() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        let models = definition::models().expect("models");
        let definitions = definition::definitions(&models).expect("definitions");
        let round = |decode: f64, rival: f64| Round {
            read: 40.0,
            figures: BTreeMap::from([
                (
                    sides::ANDON.to_owned(),
                    json!({"decode_tok_s": decode, "isa": "x"}),
                ),
                (
                    "repacked".to_owned(),
                    json!({"decode_tok_s": rival, "costs": [1.0, rival]}),
                ),
            ]),
        };
        let rounds = [round(20.0, 8.0), round(30.0, 10.0), round(25.0, 12.0)];
        let counted: Vec<&Round> = rounds.iter().collect();
        let result = summary(&definitions[0], &counted, 4, &[]);
        assert_eq!(result["sides"][sides::ANDON]["decode_tok_s"], 25.0);
        assert_eq!(result["sides"]["repacked"]["costs"], json!([1.0, 10.0]));
        assert_eq!(result["ratios"]["decode-ratio"], 2.5);
        assert_eq!(result["rounds_tried"], 4);
    }
}
