//! What the estimator expects of the answer to a question, and why.

use std::path::PathBuf;

use andon_policy::router::features::{GramKind, Question};
use andon_policy::router::{Estimator, Part};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;

use super::train::vocabulary;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The question.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    text: Option<String>,
    /// A file with the question.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    weights: Weights,
    /// The task that it belongs to.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// A text of the site, such as its tasks and the names of its assets. May be given several times.
    #[arg(long, value_name = "FILE")]
    vocabulary: Vec<PathBuf>,
    /// So many reasons.
    #[arg(long, default_value_t = 12)]
    top: usize,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Which weights, and for whose answers.
#[derive(Debug, Clone, Args)]
pub(super) struct Weights {
    /// Weights that `router train` wrote [default: those that this program has].
    #[arg(long, value_name = "FILE")]
    pub(super) weights: Option<PathBuf>,
    /// The model whose answers are meant, by its name in the weights [default: any].
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,
}

impl Weights {
    /// The weights, for the model that was asked for.
    pub(super) fn load(&self) -> Result<Estimator<'static>> {
        let estimator = match &self.weights {
            None => Estimator::shipped(),
            Some(path) => {
                let of = || format!("cannot use `{}`", path.display());
                Estimator::from_vec(std::fs::read(path).with_context(of)?).with_context(of)?
            }
        };
        let Some(model) = &self.model else {
            return Ok(estimator);
        };
        let known = estimator.models().collect::<Vec<_>>().join(", ");
        match estimator.for_model(model) {
            Some(estimator) => Ok(estimator),
            None => bail!("the weights know no model `{model}`; they know {known}"),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let estimator = arguments.weights.load()?;
    let site = vocabulary(&arguments.vocabulary)?;
    let text = match (&arguments.text, &arguments.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => crate::read_text(path)?,
        (None, None) => bail!("there is no question"),
    };
    let question = Question {
        text: &text,
        task: arguments.task.as_deref(),
        vocabulary: site.as_ref(),
    };
    let explained = estimator.explain(&question);
    let estimate = explained.estimate;
    let parts = explained.parts.iter().take(arguments.top);
    if arguments.json {
        let parts: Vec<_> = parts
            .map(|part| json!({"what": part.what, "kind": kind(part), "value": part.value, "moved": part.moved}))
            .collect();
        let line = json!({
            "model": estimator.model(),
            "will_do": estimate.will_do,
            "rescue": estimate.rescue,
            "gain": estimate.gain(),
            "as_good": estimate.as_good(),
            "logit": estimate.logit,
            "average": explained.average,
            "english": estimate.english,
            "known": estimate.known,
            "coverage": estimate.coverage,
            "parts": parts,
        });
        println!("{line}");
        return Ok(());
    }
    println!(
        "the local answer will do  {:.1} %   (for {})",
        estimate.will_do * 100.0,
        estimator.model()
    );
    println!("where not, a stronger's   {:.1} %", estimate.rescue * 100.0);
    println!(
        "it is as good as that     {:.1} %",
        estimate.as_good() * 100.0
    );
    println!(
        "words known               {:.0} %, taken for English by {:.0} %",
        estimate.known * 100.0,
        estimate.english * 100.0
    );
    if let Some(coverage) = estimate.coverage {
        println!("covered by the site       {:.0} %", coverage * 100.0);
    }
    println!(
        "sum {:+.2}, of an average question {:+.2}; moved by",
        estimate.logit, explained.average
    );
    for part in parts {
        println!(
            "  {:+.2}  {:<22} {:?}  {:.2}",
            part.moved,
            kind(part),
            part.what,
            part.value
        );
    }
    Ok(())
}

/// What a reason is, in a word.
fn kind(part: &Part<'_>) -> &'static str {
    match part.kind {
        None => "figure",
        Some(GramKind::Word) => "word",
        Some(GramKind::Pair) => "words",
        Some(GramKind::Opening) => "first word",
        Some(GramKind::Piece) => "pieces of",
        Some(GramKind::Task) => "task",
    }
}
