//! Labels that are measured: a model is run over questions whose answers are known, and each line of the output says
//! whether it was right and how sure it was of itself.
//!
//! What was written is never measured again: a run that was stopped goes on where it was, and the same command twice adds
//! nothing.

mod answering;
mod judge;
mod likelihood;
mod question;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use andon_engine::Model;
use andon_policy::confidence::Signals;
use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use question::Question;
use serde::{Deserialize, Serialize};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: crate::Run,
    /// JSON lines, each with a question and its answer: `question` (or `prompt`) with `choices` and the `answer`,
    /// or with a text or number `answer`, or with a `json_schema` and a `reference` of the fields that must come; `context`
    /// and the `continuation` it must have. May be given several times; a file's name is that of its set.
    #[arg(long, value_name = "FILE", required = true)]
    questions: Vec<PathBuf>,
    /// JSON lines that the labels are added to.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What counts as the model's answer: what it writes, asked as a client asks; or, of choices, the one whose text is the
    /// likeliest for its length.
    #[arg(long, value_enum, default_value_t = Scoring::Answer)]
    scoring: Scoring,
    /// Most questions of a set, spread over its file.
    #[arg(long)]
    limit: Option<usize>,
    /// Most tokens of an answer; of a choice's letter, 24 at most.
    #[arg(long = "gen", default_value_t = 256)]
    generate: usize,
    /// Longest question, in tokens; longer ones are left out.
    #[arg(long, default_value_t = 1024)]
    prompt_tokens_max: usize,
    /// Answers made side by side.
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Ask without the chat template, as a text to be continued: for a model that was not taught to answer.
    #[arg(long)]
    plain: bool,
}

/// How an answer is had of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Scoring {
    Answer,
    Likelihood,
}

/// One line of the output. Training reads `prompt`, `label` and `weight`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Label {
    pub(super) set: String,
    pub(super) id: String,
    pub(super) task: String,
    /// What was asked, choices with it.
    pub(super) prompt: String,
    /// What was asked, without choices and what form the answer is to have.
    pub(super) question: String,
    /// 1 if the answer was right, else 0.
    pub(super) label: u8,
    pub(super) weight: f32,
    /// The file of the model.
    pub(super) model: String,
    pub(super) scoring: Scoring,
    pub(super) answer: String,
    pub(super) expected: String,
    pub(super) signals: Measured,
    /// What was thought of it beforehand, if that was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) estimate: Option<f32>,
    /// The likelihood of each choice for its length, in nats a byte.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) scores: Vec<f64>,
}

/// [`Signals`] as a line has them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) tokens: u32,
    pub(super) logprob_mean: f32,
    pub(super) logprob_min: f32,
    pub(super) entropy_mean: f32,
    pub(super) entropy_max: f32,
    pub(super) repetition: f32,
    pub(super) retries: u32,
    pub(super) ended: bool,
}

impl From<&Signals> for Measured {
    fn from(signals: &Signals) -> Measured {
        Measured {
            tokens: signals.tokens,
            logprob_mean: signals.logprob_mean,
            logprob_min: signals.logprob_min,
            entropy_mean: signals.entropy_mean,
            entropy_max: signals.entropy_max,
            repetition: signals.repetition,
            retries: signals.retries,
            ended: signals.ended,
        }
    }
}

/// What a model made of a question.
struct Outcome {
    answer: String,
    right: bool,
    signals: Signals,
    scores: Vec<f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.parallel > 0, "--parallel must be at least 1");
    ensure!(arguments.generate > 0, "--gen must be at least 1");
    let name = arguments.run.model.file_stem();
    let name = name.context("the model has no name")?.to_string_lossy();
    let mut output = Output::open(&arguments.output, &name, arguments.scoring)?;
    let questions = questions(arguments, &output)?;
    if questions.is_empty() {
        eprintln!("andon-lab: nothing is left to measure");
        return Ok(());
    }
    let model = arguments.run.load()?;
    match arguments.scoring {
        Scoring::Answer => answering::measure(arguments, &model, &questions, &mut output)?,
        Scoring::Likelihood => likelihood::measure(arguments, &model, &questions, &mut output)?,
    }
    output.report();
    Ok(())
}

/// The questions that are still to be measured, of each set those that `--limit` leaves.
fn questions(arguments: &Arguments, output: &Output) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for path in &arguments.questions {
        let (mut of_set, unknown) = question::read(path, arguments.scoring)?;
        if unknown > 0 {
            eprintln!(
                "andon-lab: {}: {unknown} lines have no answer that this scoring can check",
                path.display()
            );
        }
        if let Some(limit) = arguments.limit
            && of_set.len() > limit
        {
            let count = of_set.len();
            let mut index = 0;
            of_set.retain(|_| {
                // One where the share that is taken passes a whole number.
                let taken = (index + 1) * limit / count > index * limit / count;
                index += 1;
                taken
            });
        }
        of_set.retain(|question| !output.has(question));
        questions.extend(of_set);
    }
    Ok(questions)
}

/// The file of labels: whole lines, each question once.
struct Output {
    file: File,
    model: String,
    scoring: Scoring,
    measured: HashSet<(String, String)>,
    /// Questions and right answers of this run, by set.
    counts: BTreeMap<String, (usize, usize)>,
    left_out: usize,
}

impl Output {
    /// The file, with what is in it read; a line that was cut off in the middle is taken away.
    fn open(path: &Path, model: &str, scoring: Scoring) -> Result<Output> {
        let context = || format!("`{}` cannot be opened", path.display());
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(context)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(context)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n');
        let whole = whole.map_or(0, |last| last + 1);
        let mut measured = HashSet::new();
        for (number, line) in (1..).zip(bytes[..whole].split(|&byte| byte == b'\n')) {
            if line.is_empty() {
                continue;
            }
            let place = || format!("{}:{number}", path.display());
            let label: Label = serde_json::from_slice(line).with_context(place)?;
            ensure!(
                label.model == model && label.scoring == scoring,
                "{}: labels of another model or scoring; each needs a file of its own",
                place()
            );
            measured.insert((label.set, label.id));
        }
        file.set_len(whole as u64).with_context(context)?;
        file.seek(SeekFrom::Start(whole as u64))
            .with_context(context)?;
        Ok(Output {
            file,
            model: model.to_owned(),
            scoring,
            measured,
            counts: BTreeMap::new(),
            left_out: 0,
        })
    }

    fn has(&self, question: &Question) -> bool {
        self.measured
            .contains(&(question.set.clone(), question.id.clone()))
    }

    /// A question is too long.
    fn leave_out(&mut self) {
        self.left_out += 1;
    }

    fn add(&mut self, question: &Question, outcome: Outcome) -> Result<()> {
        let label = Label {
            set: question.set.clone(),
            id: question.id.clone(),
            task: question.task.clone(),
            prompt: question.prompt.clone(),
            question: question.question.clone(),
            label: u8::from(outcome.right),
            weight: 1.0,
            model: self.model.clone(),
            scoring: self.scoring,
            answer: outcome.answer,
            expected: question.truth.expected(),
            signals: Measured::from(&outcome.signals),
            estimate: None,
            scores: outcome.scores,
        };
        let mut line = serde_json::to_vec(&label)?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .context("the labels cannot be written")?;
        let count = self.counts.entry(label.set).or_default();
        count.0 += 1;
        count.1 += usize::from(outcome.right);
        Ok(())
    }

    fn report(&self) {
        for (set, (questions, right)) in &self.counts {
            let share = *right as f64 / *questions as f64 * 100.0;
            eprintln!("{set}: {right} of {questions} right ({share:.1} %)");
        }
        if self.left_out > 0 {
            eprintln!("{} questions are too long", self.left_out);
        }
    }
}

/// The tokens of what `model` is asked.
fn asked(arguments: &Arguments, model: &Arc<Model>, prompt: &str) -> Result<Vec<u32>> {
    let chat = if arguments.plain {
        None
    } else {
        crate::answer::question(model, prompt)?
    };
    Ok(chat.unwrap_or_else(|| {
        let text = format!("Question: {prompt}\nAnswer:");
        let special = andon_engine::tokenizer::Special::Plain;
        model.tokenizer().encode_prompt(&text, special)
    }))
}
