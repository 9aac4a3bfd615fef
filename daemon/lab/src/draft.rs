//! Makes a small draft from a target: some of its layers, heads and neurons, trained to say what the target says.
//!
//! Four stages, each of which goes on where it was stopped: the target answers prompts (`answers.rs`, kept in
//! `dataset.rs`); what is kept of it is chosen (`select.rs`); the draft learns (`train.rs`, on the graph of `network.rs`
//! and the steps of `fused.rs`); and is written and measured (`export.rs`, `measure.rs`).

mod answers;
mod checkpoint;
mod dataset;
mod export;
mod fused;
mod measure;
mod network;
mod refit;
mod select;
mod target;
#[cfg(test)]
mod tests;
mod train;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_engine::{ExecutorOptions, Files, Model};
use andon_kernels::Format;
use anyhow::{Context as _, Result, bail, ensure};
use candle_core::Device;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use twox_hash::XxHash3_64;

use answers::Prompt;
use dataset::{Log, Record};
use select::{Layers, Plan, Sizes};
use target::{Shape, Target};
use train::{State, Trainer};

/// How often what was learnt is brought to the disk.
const SAVE_EVERY: Duration = Duration::from_secs(120);

/// What training has come to, in its folder.
const CHECKPOINT: &str = "checkpoint.safetensors";

/// Answers to prompts that were kept back, on which training is judged and the draft measured.
const JUDGED_MAX: usize = 32;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: crate::Run,
    /// JSON lines, each with a `prompt` (or `turns`, of which the first is taken), and a `template`, `task` or `category`.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// File to write.
    #[arg(long, value_name = "DRAFT.gguf")]
    output: PathBuf,
    /// Folder for answers and for what training has come to, from which a run that was stopped goes on [default: the
    /// output's name with `.work`].
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Layers to keep: how many, or which, separated by commas [default: two thirds of the target's].
    #[arg(long, value_name = "COUNT|LIST", value_parser = parse_layers)]
    layers: Option<Layers>,
    /// Key/value heads of a layer to keep, each with its queries [default: all].
    #[arg(long, value_name = "COUNT")]
    kv_heads: Option<usize>,
    /// Neurons of a layer to keep, whole blocks of the format [default: all].
    #[arg(long, value_name = "COUNT")]
    neurons: Option<usize>,
    /// Tokens that can be guessed.
    #[arg(long, value_name = "COUNT", default_value_t = 16384)]
    vocabulary: usize,
    /// Begin from what training in the folder of another run came to, for the same target: a draft made from general
    /// prompts learns those of a site in minutes.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["layers", "kv_heads", "neurons"])]
    begin_from: Option<PathBuf>,
    /// Format of the matrices. Those of 4 bits are rounded so while they are trained.
    #[arg(long, default_value = "q4_1", value_parser = crate::synth::parse_format)]
    format: Format,
    /// Most tokens of an answer.
    #[arg(long = "gen", default_value_t = 128)]
    generate: usize,
    /// Longest prompt that is answered, in tokens.
    #[arg(long, default_value_t = 640)]
    prompt_tokens_max: usize,
    /// Answers to each prompt that are drawn, beside the one of the likeliest tokens.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=64))]
    samples: u32,
    /// Temperature at which they are drawn.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Share of the templates whose prompts are not learnt from but measured on.
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = crate::speculate::share)]
    hold_out: f64,
    /// Prompts to measure on, in place of those.
    #[arg(long, value_name = "FILE", conflicts_with = "hold_out")]
    measure_on: Option<PathBuf>,
    /// Tokens on which kept layers are made to do some of the work of those that are left out, before training.
    #[arg(long, value_name = "COUNT", default_value_t = 16384)]
    refit_tokens: u32,
    /// Steps of training. A run with more goes on from what one with fewer came to.
    #[arg(long, default_value_t = 400)]
    steps: usize,
    /// Sequences of a step.
    #[arg(long, default_value_t = 2)]
    sequences: usize,
    /// Most tokens of a sequence: prompts with all their answers.
    #[arg(long, default_value_t = 768)]
    sequence_tokens: usize,
    /// Highest rate of learning.
    #[arg(long, default_value_t = 6e-4)]
    rate: f64,
    /// How much of what is learnt is the target's first choice, rather than how likely it finds each token.
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, value_parser = crate::speculate::share)]
    hard: f64,
    /// Seed of answers and of the order in which they are learnt.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to train: cpu, or cuda in a build that has it.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

fn parse_layers(text: &str) -> Result<Layers, String> {
    let error = |_| "expected a count, or layers separated by commas".to_owned();
    if !text.contains(',') {
        return text.parse().map(Layers::Count).map_err(error);
    }
    let layers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    let mut layers = layers.map_err(error)?;
    layers.sort_unstable();
    layers.dedup();
    Ok(Layers::These(layers))
}

/// How far something long is: a bar on a terminal, lines elsewhere.
#[derive(Debug)]
struct Progress(ProgressBar);

impl Progress {
    fn new(what: &'static str, total: usize) -> Progress {
        let bar = ProgressBar::with_draw_target(
            Some(total as u64),
            ProgressDrawTarget::stderr_with_hz(4),
        );
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
        bar.set_style(
            style
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
        );
        bar.set_message(what);
        Progress(bar)
    }

    fn at(&self, done: usize) {
        self.0.set_position(done as u64);
    }

    fn say(&self, line: &str) {
        if self.0.is_hidden() {
            eprintln!("{line}");
        } else {
            self.0.println(line);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Arguments {
    fn check(&self) -> Result<()> {
        ensure!(self.steps <= 1 << 24, "--steps must be at most {}", 1 << 24);
        ensure!(
            (1..=1024).contains(&self.sequences),
            "--sequences must be between 1 and 1024"
        );
        ensure!(
            (8..=1 << 16).contains(&self.sequence_tokens),
            "--sequence-tokens must be between 8 and {}",
            1 << 16
        );
        ensure!(self.generate > 0, "--gen must be at least 1");
        ensure!(
            self.prompt_tokens_learnt() > 0,
            "--sequence-tokens {} has no room for a prompt and an answer of --gen {}",
            self.sequence_tokens,
            self.generate
        );
        self.check_output()?;
        ensure!(self.vocabulary > 0, "--vocabulary must be at least 1");
        ensure!(
            self.rate > 0.0 && self.rate < 1.0,
            "--rate must be between 0 and 1"
        );
        Ok(())
    }

    /// The longest prompt that is learnt from: one that a sequence has room for, with an answer.
    fn prompt_tokens_learnt(&self) -> usize {
        let answer = self.generate.saturating_add(1);
        self.prompt_tokens_max
            .min(self.sequence_tokens.saturating_sub(answer))
    }

    /// Whether there is a place for the draft, and none that something of the input has.
    fn check_output(&self) -> Result<()> {
        let output = self.output.as_path();
        let folder = match output.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        ensure!(
            folder.is_dir(),
            "--output: there is no folder `{}`",
            folder.display()
        );
        let Ok(there) = output.canonicalize() else {
            return Ok(());
        };
        ensure!(
            there.is_file(),
            "--output: `{}` is not a file",
            output.display()
        );
        let files = Files::open(&self.run.model)?;
        let prompts = [Some(&self.prompts), self.measure_on.as_ref()];
        for input in files.paths().iter().chain(prompts.into_iter().flatten()) {
            ensure!(
                input.canonicalize().ok().as_ref() != Some(&there),
                "--output is `{}`, from which the draft is made",
                input.display()
            );
        }
        Ok(())
    }

    fn sizes(&self, target: &Shape, begun: Option<&Begun>) -> Sizes {
        if let Some(begun) = begun {
            return begun.plan.sizes(self.vocabulary);
        }
        let two_thirds = || Layers::Count((target.layers * 2).div_ceil(3));
        Sizes {
            layers: self.layers.clone().unwrap_or_else(two_thirds),
            kv_heads: self.kv_heads.unwrap_or(target.kv_heads),
            neurons: self.neurons.unwrap_or(target.neurons),
            tokens: self.vocabulary,
        }
    }

    /// What another run came to, if this one is to begin with that.
    fn begun(&self) -> Result<Option<Begun>> {
        let begun = self.begin_from.as_ref().map(|folder| {
            let path = folder.join(CHECKPOINT);
            let found = checkpoint::load(&path, None)?;
            let (purpose, plan, state) =
                found.with_context(|| format!("there is no `{}`", path.display()))?;
            let id = XxHash3_64::oneshot(format!("{} of {purpose}", state.step).as_bytes());
            Ok(Begun { id, plan, state })
        });
        begun.transpose()
    }

    fn device(&self) -> Result<Device> {
        match self.device.as_str() {
            "cpu" => Ok(Device::Cpu),
            "cuda" if cfg!(feature = "cuda") => Ok(Device::new_cuda(0)?),
            "cuda" => bail!("this build has no cuda; build it with `--features cuda`"),
            other => bail!("there is no device `{other}`: cpu and cuda are known"),
        }
    }

    fn threads(&self) -> usize {
        self.run
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn training(&self) -> train::Options {
        train::Options {
            steps: self.steps,
            lessons_per_step: self.sequences,
            rate: self.rate,
            seed: self.seed,
            threads: self.threads(),
            format: self.format,
        }
    }
}

/// What another run came to.
struct Begun {
    /// Tells it from others.
    id: u64,
    plan: Plan,
    state: State,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.check()?;
    let device = arguments.device()?;
    let work = arguments.work.clone().unwrap_or_else(|| {
        let mut name = arguments.output.clone().into_os_string();
        name.push(".work");
        PathBuf::from(name)
    });
    // What the engine loads, it has checked.
    let model = arguments.run.load()?;
    let files = Files::open(&arguments.run.model)?;
    let target = Target::open(&files, &arguments.run.model)?;
    let begun = arguments.begun()?;
    let sizes = arguments.sizes(&target.shape, begun.as_ref());
    let shape = sizes.of(&target.shape)?;
    export::check(&shape, arguments.format)?;
    check_memory(arguments, &target, &shape)?;
    let _lock = lock(&work)?;
    let (learnt, held_out) = answered(arguments, &model, &target, &work)?;
    drop(model);
    let data = (&learnt[..], &held_out[..]);
    let (plan, state) = trained(arguments, &target, &work, device, (&sizes, begun), data)?;
    let shape = select::shape_of(&target.shape, &plan);
    export::export(
        &arguments.output,
        &target,
        &shape,
        &plan,
        &state,
        arguments.format,
    )?;
    report(arguments, &plan, &state, &held_out)
}

/// Makes the folder, for this process alone as long as the file is open.
fn lock(work: &Path) -> Result<File> {
    std::fs::create_dir_all(work).with_context(|| format!("cannot make `{}`", work.display()))?;
    let path = work.join("lock");
    let place = || format!("cannot lock `{}`", path.display());
    let mut options = File::options();
    // Whatever has the name already is left as it is.
    let file = options.write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(place)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another run works in `{}`", work.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(place),
    }
}

/// The answers to learn from, and those that are measured on.
fn answered(
    arguments: &Arguments,
    model: &Arc<Model>,
    target: &Target<'_>,
    work: &Path,
) -> Result<(Vec<Record>, Vec<Record>)> {
    let context = model.info().context_tokens_max;
    let longest = arguments
        .prompt_tokens_max
        .min(context.saturating_sub(arguments.generate));
    let prompts = answers::prompts(&arguments.prompts, model, longest)?;
    let (mut learnt, held_out, measured): (Numbered<'_>, _, _);
    match &arguments.measure_on {
        None => (learnt, held_out) = split(&prompts, arguments.hold_out, arguments.seed),
        Some(path) => {
            measured = answers::prompts(path, model, longest)?;
            learnt = (0..).zip(&prompts).collect();
            held_out = (0..).zip(&measured).collect();
        }
    }
    learnt.retain(|(_, prompt)| prompt.tokens.len() <= arguments.prompt_tokens_learnt());
    ensure!(
        !learnt.is_empty(),
        "there is no prompt to learn from that is short enough"
    );
    let lines: Vec<&str> = held_out
        .iter()
        .map(|(_, prompt)| prompt.line.as_str())
        .collect();
    checkpoint::whole(&work.join("held-out.jsonl"), |path| {
        Ok(std::fs::write(path, lines.join("\n"))?)
    })?;
    let judged = spread(&held_out, JUDGED_MAX);
    let mut results = Vec::new();
    for (name, prompts, samples) in [
        ("answers", &learnt, arguments.samples),
        ("judged", &judged, 0),
    ] {
        let tokens: Vec<&[u32]> = prompts
            .iter()
            .map(|(_, prompt)| &prompt.tokens[..])
            .collect();
        let purpose = json!({
            "target": XxHash3_64::oneshot(target.gguf.bytes()),
            "prompts": XxHash3_64::oneshot(&postcard::to_stdvec(&tokens)?),
            "tokens_max": arguments.generate,
            "samples": samples,
            "temperature": arguments.temperature,
            "seed": arguments.seed,
        });
        let (mut log, mut records) =
            Log::open(&work.join(name), &purpose.to_string(), target.vocabulary)?;
        let options = answers::Options {
            tokens_max: arguments.generate,
            samples,
            temperature: arguments.temperature,
            seed: arguments.seed,
        };
        answers::complete(
            &arguments.run,
            model,
            &mut log,
            &mut records,
            prompts,
            &options,
        )?;
        results.push(records);
    }
    let judged = results.pop().unwrap_or_default();
    let learnt = results.pop().unwrap_or_default();
    eprintln!(
        "{} answers of {} tokens to {} prompts to learn from, {} prompts of {} of other templates to measure on",
        learnt
            .iter()
            .map(|record| record.answers.len())
            .sum::<usize>(),
        learnt.iter().map(Record::answer_tokens).sum::<usize>(),
        learnt.len(),
        judged.len(),
        held_out.len(),
    );
    Ok((learnt, judged))
}

type Numbered<'a> = Vec<(u32, &'a Prompt)>;

/// Prompts to learn from and prompts of other templates, each with its place in the file.
fn split(prompts: &[Prompt], hold_out: f64, seed: u64) -> (Numbered<'_>, Numbered<'_>) {
    let mut templates: Vec<&str> = prompts
        .iter()
        .map(|prompt| prompt.template.as_str())
        .collect();
    templates.sort_unstable();
    templates.dedup();
    templates.sort_by_key(|template| XxHash3_64::oneshot_with_seed(seed, template.as_bytes()));
    let held_out = (templates.len() as f64 * hold_out).round() as usize;
    templates.truncate(held_out);
    (0..)
        .zip(prompts)
        .partition(|(_, prompt)| !templates.contains(&prompt.template.as_str()))
}

/// So many of the prompts, in their order: of each template one, then of each another one, and so on.
fn spread<'a>(prompts: &Numbered<'a>, count: usize) -> Numbered<'a> {
    let mut of_template: BTreeMap<&str, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, usize)> = Vec::new();
    for (place, (_, prompt)) in prompts.iter().enumerate() {
        let turn = of_template.entry(&prompt.template).or_default();
        turns.push((*turn, place));
        *turn += 1;
    }
    turns.sort_unstable();
    turns.truncate(count);
    let mut places: Vec<usize> = turns.into_iter().map(|(_, place)| place).collect();
    places.sort_unstable();
    places.into_iter().map(|place| prompts[place]).collect()
}

/// Chooses what is kept, unless a run before this did, and trains it to the end.
fn trained(
    arguments: &Arguments,
    target: &Target<'_>,
    work: &Path,
    device: Device,
    (sizes, begun): (&Sizes, Option<Begun>),
    (learnt, held_out): (&[Record], &[Record]),
) -> Result<(Plan, State)> {
    let options = arguments.training();
    let purpose = json!({
        "answers": XxHash3_64::oneshot(&postcard::to_stdvec(learnt)?),
        "sizes": format!("{sizes:?}"),
        "begun": begun.as_ref().map(|begun| begun.id),
        "refit_tokens": arguments.refit_tokens,
        "sequences": options.lessons_per_step,
        "sequence_tokens": arguments.sequence_tokens,
        "rate": options.rate,
        "hard": arguments.hard,
        "seed": options.seed,
        "format": options.format.name(),
    });
    let purpose = purpose.to_string();
    let path = work.join(CHECKPOINT);
    let lessons = |plan: &Plan, records: &[Record]| {
        let (hard, tokens) = (arguments.hard as f32, arguments.sequence_tokens);
        train::lessons(records, &plan.tokens, target.vocabulary, tokens, hard)
    };
    let (plan, mut state) = match (checkpoint::load(&path, Some(&purpose))?, begun) {
        (Some((_, plan, state)), _) => (plan, state),
        (None, Some(begun)) => {
            let (plan, weights) = select::again(target, learnt, &begun.plan, &begun.state, sizes)?;
            let state = State::new(weights);
            checkpoint::save(&path, &purpose, &plan, &state)?;
            (plan, state)
        }
        (None, None) => {
            let plan = select::plan(target, learnt, sizes)?;
            let mut weights = select::weights_of(target, &plan)?;
            let lessons = lessons(&plan, learnt);
            let mut tokens = 0;
            let few = lessons
                .iter()
                .map(|lesson| &lesson.sequence)
                .take_while(|sequence| {
                    tokens += sequence.tokens.len();
                    tokens <= arguments.refit_tokens as usize
                });
            refit::refit(target, &plan, &few.collect::<Vec<_>>(), &mut weights)?;
            let state = State::new(weights);
            checkpoint::save(&path, &purpose, &plan, &state)?;
            (plan, state)
        }
    };
    let shape = select::shape_of(&target.shape, &plan);
    eprintln!(
        "layers {:?}, {} weights to learn",
        plan.layers,
        state.count()
    );
    let left_out: usize = learnt
        .iter()
        .map(|record| record.answers.len() - train::fitting(record, arguments.sequence_tokens))
        .sum();
    if left_out > 0 {
        eprintln!(
            "{left_out} answers are left out: with the others to their prompts they do not fit --sequence-tokens {}",
            arguments.sequence_tokens
        );
    }
    let judged = lessons(&plan, held_out);
    let lessons = lessons(&plan, learnt);
    ensure!(
        !lessons.is_empty(),
        "no prompt with its answers fits --sequence-tokens {}",
        arguments.sequence_tokens
    );
    let mut trainer = Trainer::new(target, &shape, device, options, &state)?;
    let progress = Progress::new("learning", arguments.steps);
    progress.at(state.step);
    if state.step == 0 && !judged.is_empty() {
        let (loss, right) = trainer.judge(&judged)?;
        let right = right * 100.0;
        progress.say(&format!(
            "before training; kept back: loss {loss:.3}, {right:.1} % of tokens right"
        ));
    }
    let (mut saved, mut tokens, mut loss, mut steps) = (Instant::now(), 0, 0.0, 0);
    while state.step < arguments.steps {
        let (step_loss, step_tokens) = trainer.step(&mut state, &lessons)?;
        tokens += step_tokens;
        loss += step_loss;
        steps += 1;
        progress.at(state.step);
        if saved.elapsed() >= SAVE_EVERY || state.step == arguments.steps {
            let rate = tokens as f64 / saved.elapsed().as_secs_f64();
            checkpoint::save(&path, &purpose, &plan, &state)?;
            let mut line = format!(
                "step {}: loss {:.3}, {rate:.0} tokens/s",
                state.step,
                loss / f64::from(steps)
            );
            if !judged.is_empty() {
                let (loss, right) = trainer.judge(&judged)?;
                line += &format!(
                    "; kept back: loss {loss:.3}, {:.1} % of tokens right",
                    right * 100.0
                );
            }
            progress.say(&line);
            (saved, tokens, loss, steps) = (Instant::now(), 0, 0.0, 0);
        }
    }
    Ok((plan, state))
}

/// Refuses what there is too little memory for.
fn check_memory(arguments: &Arguments, target: &Target<'_>, shape: &Shape) -> Result<()> {
    let memory = memory_bytes(arguments, target, shape);
    let limits = [
        available_bytes(),
        andon_os::memory_bytes().and_then(|bytes| usize::try_from(bytes).ok()),
    ];
    if let Some(least) = limits.into_iter().flatten().min()
        && least < memory
    {
        bail!(
            "a draft of these sizes takes about {} MiB of memory, and {} are free; take fewer --layers, --neurons, \
             --sequences, --sequence-tokens or --refit-tokens",
            memory >> 20,
            least >> 20
        );
    }
    eprintln!("training takes about {} MiB of memory", memory >> 20);
    Ok(())
}

/// What is taken at most: by training or, before it, by making up for layers that are left out.
fn memory_bytes(arguments: &Arguments, target: &Target<'_>, shape: &Shape) -> usize {
    let vocabulary = arguments.vocabulary.min(target.vocabulary);
    let weights = shape.layers * layer_weights(shape) + shape.width * vocabulary;
    let training = training_bytes(arguments, shape, weights, vocabulary);
    training.max(refit_bytes(arguments, &target.shape, shape, weights))
}

/// Elements of a layer's matrices.
fn layer_weights(shape: &Shape) -> usize {
    let heads = (shape.heads + shape.kv_heads) * 2 * shape.head_dim;
    shape.width * (heads + 3 * shape.neurons)
}

/// Weights with their moments, copies and gradients, and what lies between the steps of the sequences that are computed
/// at a time.
fn training_bytes(
    arguments: &Arguments,
    shape: &Shape,
    weights: usize,
    vocabulary: usize,
) -> usize {
    let threads = arguments.threads().min(arguments.sequences);
    let copies = 6 + arguments.sequences + 2 * threads;
    let heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    let layer = 12 * shape.width + 5 * heads + 8 * shape.neurons;
    let between = arguments.sequence_tokens * (shape.layers * layer + 4 * vocabulary);
    // Scores of a group of heads and what they become, for a prompt or for an answer behind it.
    let prompt = arguments.prompt_tokens_learnt();
    let answer = arguments.generate + 1;
    let scores = (prompt * prompt).max(answer * (prompt + answer));
    let scores = 4 * shape.heads / shape.kv_heads * scores;
    4 * (weights * copies + threads * (between + scores))
}

/// Weights, the streams and activations of all tokens, what is solved of a layer, and a layer of the target.
fn refit_bytes(arguments: &Arguments, target: &Shape, shape: &Shape, weights: usize) -> usize {
    let tokens = arguments.refit_tokens as usize * (3 * shape.width + shape.neurons);
    // Squares in f32 and, to solve them, in f64; products likewise.
    let solved = shape.neurons * (5 * shape.neurons + 5 * shape.width);
    4 * (weights + tokens + solved + 2 * layer_weights(target))
}

fn available_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<usize>()
        .ok()?
        .checked_mul(1024)
}

fn report(arguments: &Arguments, plan: &Plan, state: &State, held_out: &[Record]) -> Result<()> {
    let model = arguments.run.load()?;
    let longest = held_out
        .iter()
        .map(|record| record.prompt.len() + record.answer_tokens())
        .max();
    let worth = match longest {
        None => None,
        Some(longest) => {
            let tokens = longest + 64;
            let mut executor = arguments.run.executor(&model, tokens)?;
            let draft = arguments.run.load_draft(&arguments.output)?;
            let options = ExecutorOptions {
                kv_tokens_max: executor.kv_tokens_max(),
                kv_type: arguments.run.kv,
                ..ExecutorOptions::default()
            };
            measure::worth(&mut executor, draft, &options, held_out)?
        }
    };
    let mut stdout = std::io::stdout().lock();
    if arguments.json {
        let report = json!({
            "draft": arguments.output,
            "layers": plan.layers,
            "weights": state.count(),
            "tokens_guessed": plan.tokens.len(),
            "steps": state.step,
            "worth": worth,
        });
        return Ok(writeln!(stdout, "{report}")?);
    }
    writeln!(
        stdout,
        "{}: {} weights in layers {:?}",
        arguments.output.display(),
        state.count(),
        plan.layers
    )?;
    let Some(worth) = worth else {
        writeln!(
            stdout,
            "there are no answers that are long enough to measure on"
        )?;
        return Ok(());
    };
    writeln!(
        stdout,
        "a guess costs {:.3} of a pass; on {} prompts that were kept back:",
        worth.cost, worth.prompts
    )?;
    writeln!(
        stdout,
        "{:>7} {:>9} {:>9} {:>11} {:>10}",
        "guesses", "accepted", "pass", "break-even", "speed-up"
    )?;
    for of in &worth.lengths {
        writeln!(
            stdout,
            "{:>7} {:>8.1}% {:>9.2} {:>10.1}% {:>9.2}x",
            of.length,
            of.acceptance * 100.0,
            of.pass_cost,
            of.break_even * 100.0,
            of.speedup
        )?;
    }
    Ok(())
}
