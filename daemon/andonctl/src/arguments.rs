//! The command line.

pub(crate) mod models;

use std::path::PathBuf;

use andon_wire::{Egress, ModelName, Priority, RequestId, Sampling, TaskName};
use clap::{Args, Parser, Subcommand, ValueEnum};

use self::models::{BundleCommand, KeyCommand, ModelCommand, PullOptions};

const EXIT_STATUS: &str = "Exit status:
  0  done; also when the reader of the output went away
  1  the request was refused or failed, or not all of it was done; a file or model cannot be used
  2  the command line or the request is wrong; nothing was sent
  3  no daemon or hub answered: cannot connect, or the connection broke
  4  cancelled, or the deadline passed
  5  busy or not ready: try again later";

/// Ask the language model of this gateway.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_STATUS, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The daemon's compact socket.
    #[arg(
        long,
        global = true,
        env = "ANDON_SOCKET",
        default_value = "/run/andon/wire.sock",
        value_name = "PATH"
    )]
    pub(crate) socket: PathBuf,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask once and print the answer as it is made.
    Ask(Box<AskOptions>),
    /// Talk: each line is a message, the conversation is kept.
    ///
    /// `/reset` begins anew, `/quit` or the end of input ends. Ctrl-C ends an answer that is being
    /// made, and otherwise the program.
    Chat(ChatOptions),
    /// Print the vector that an embedding model makes of each text, as a line of JSON each.
    Embed(EmbedOptions),
    /// Show how the daemon is.
    Status(StatusOptions),
    /// Show the models that are served.
    Models(ModelsOptions),
    /// Show what could compute models: whether it is built, available and chosen, and why not.
    Backends(BackendsOptions),
    /// Look after the models that the daemon keeps: add, list, show, remove, verify.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Get a model from the Hugging Face hub or a mirror of it.
    ///
    /// A download that broke off is continued by the same command. What comes is compared with the hub's
    /// SHA-256 digest.
    Pull(Box<PullOptions>),
    /// Pack models for gateways without a network.
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Make keys that sign models.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Look after the earlier answers to tasks that the daemon guesses from.
    #[command(subcommand)]
    Corpus(CorpusCommand),
    /// Look after the requests that the daemon keeps until their answers are delivered.
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// Look after what the daemon keeps on the disk of prompts, so that it need not read them anew.
    #[command(subcommand)]
    Kv(KvCommand),
    /// Have the daemon read its configuration again.
    ///
    /// Prints each key that differs from what the daemon goes by, and whether its new value holds now or needs a
    /// restart. With any problem nothing changes; the problems are printed and the exit status is not 0.
    Reload(ReloadOptions),
    /// Look at where requests are answered: here or upstream.
    #[command(subcommand)]
    Route(RouteCommand),
    /// Cancel one of your own requests.
    Cancel(CancelOptions),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them into a directory.
    #[command(hide = true)]
    Man {
        /// Where to write the pages.
        #[arg(value_name = "DIRECTORY")]
        directory: Option<PathBuf>,
    },
}

/// The commands of `route`.
#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// Show where a text would be answered now, and why; nothing is computed for it and nothing leaves.
    Explain(ExplainOptions),
}

/// The options of `route explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainOptions {
    /// The text, or the JSON of a task's input.
    #[arg(value_name = "TEXT")]
    pub(crate) text: String,

    /// The task that it is for.
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<TaskName>,

    /// Where the text may go; without it, as the task says, and without a task anywhere.
    #[arg(long, value_name = "WHERE")]
    pub(crate) egress: Option<EgressWord>,

    /// Time until the answer would be worthless, in milliseconds.
    #[arg(long, value_name = "MS")]
    pub(crate) deadline_ms: Option<u32>,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `ask` and `chat` have in common.
#[derive(Args, Debug)]
pub(crate) struct AnswerOptions {
    /// The model to ask instead of the default one.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<ModelName>,

    /// Instructions that the conversation stands under.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    /// Most tokens in the answer.
    #[arg(long, value_name = "N")]
    pub(crate) tokens_max: Option<u32>,

    /// A text that ends the answer; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// How urgent it is.
    #[arg(long, value_name = "CLASS")]
    pub(crate) priority: Option<PriorityWord>,

    /// Give up on the answer after this many milliseconds.
    #[arg(long, value_name = "MS")]
    pub(crate) deadline_ms: Option<u32>,

    /// Where the text may go.
    #[arg(long, value_name = "WHERE")]
    pub(crate) egress: Option<EgressWord>,

    /// Say how long it took, on standard error. On a terminal this is said anyway.
    #[arg(long)]
    pub(crate) stats: bool,

    #[command(flatten)]
    pub(crate) sampling: SamplingOptions,
}

/// How tokens are drawn.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingOptions {
    /// 0 takes the likeliest token, higher is more varied.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,

    /// Keep the likeliest tokens that have this share of probability together.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,

    /// Keep this many of the likeliest tokens; 0 keeps all.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,

    /// Keep tokens at least this fraction as likely as the likeliest.
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,

    /// Divide the score of tokens seen lately.
    #[arg(long, value_name = "X")]
    repeat_penalty: Option<f32>,

    /// How many of the last tokens the penalties look at.
    #[arg(long, value_name = "N")]
    repeat_last_n: Option<u32>,

    /// Lower the score of a token seen lately, once.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,

    /// Lower the score of a token for every time it was seen lately.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,

    /// The same seed and request give the same answer.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingOptions {
    pub(crate) const fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct AskOptions {
    /// What to ask; several words are joined by spaces. `-`, or nothing when input is piped in,
    /// reads standard input.
    #[arg(value_name = "TEXT", conflicts_with_all = ["task", "input"])]
    pub(crate) text: Vec<String>,

    /// Run a task of the daemon's configuration.
    #[arg(long, value_name = "NAME", requires = "input", conflicts_with_all = ["system", "raw"])]
    pub(crate) task: Option<TaskName>,

    /// The task's input, a JSON object; `-` reads standard input.
    #[arg(long, value_name = "JSON", requires = "task")]
    pub(crate) input: Option<String>,

    /// Give the text to the model as it is, to be continued, without its chat template.
    #[arg(long, conflicts_with = "system")]
    pub(crate) raw: bool,

    /// Id of the request, by which it can be cancelled; made up if not given.
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<RequestId>,

    /// Print one JSON object with the answer, or the error, and the figures, at the end.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the answer when it is complete.
    #[arg(long)]
    pub(crate) no_stream: bool,

    #[command(flatten)]
    pub(crate) answer: AnswerOptions,
}

#[derive(Args, Debug)]
pub(crate) struct ChatOptions {
    #[command(flatten)]
    pub(crate) answer: AnswerOptions,
}

#[derive(Args, Debug)]
pub(crate) struct EmbedOptions {
    /// A text; may be given several times. `-` reads one from standard input.
    #[arg(value_name = "TEXT", required = true)]
    pub(crate) text: Vec<String>,

    /// The model to ask instead of the default one.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<ModelName>,

    /// Only the first N elements, scaled to length one: for models trained to be cut.
    #[arg(long, value_name = "N")]
    pub(crate) dimensions: Option<u32>,

    /// How urgent it is.
    #[arg(long, value_name = "CLASS")]
    pub(crate) priority: Option<PriorityWord>,

    /// Give up on a vector after this many milliseconds.
    #[arg(long, value_name = "MS")]
    pub(crate) deadline_ms: Option<u32>,

    /// Print an object with the vector and the figures for each text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StatusOptions {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,

    /// Show it again every so many seconds, until Ctrl-C.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub(crate) watch: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct BackendsOptions {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ModelsOptions {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ReloadOptions {
    /// Print JSON: the keys that are live, those that need a restart, and the problems.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Show how much there is.
    Show(ModelsOptions),
    /// Erase all of it, on the disk and in memory.
    ///
    /// Of prompts that are being answered nothing is kept then, either. Whose the prompts were is not known, so they cannot
    /// be erased one by one.
    Erase,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CorpusCommand {
    /// List whose earlier answers are kept, and to which tasks.
    Ls(ModelsOptions),
    /// Erase earlier answers, in memory and on the disk.
    ///
    /// Those to a task, or of a client, or to a task of a client, or all. Answers that are being made are not kept for
    /// later ones then, either.
    Erase(CorpusErase),
}

#[derive(Args, Debug)]
#[group(id = "which", required = true, multiple = true)]
pub(crate) struct CorpusErase {
    /// Those to this task.
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<TaskName>,

    /// Those of this client: its name over MQTT, or uid-1000 for user 1000 of this machine. Those that are kept together with
    /// other clients' stay, which is an error.
    #[arg(long, value_name = "NAME")]
    pub(crate) client: Option<String>,

    /// All that are kept.
    #[arg(long, conflicts_with_all = ["task", "client"])]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SpoolCommand {
    /// List the requests that are kept, in the order in which they came.
    ///
    /// A request is accepted, running, answered or delivered; delivered ones are kept for a while, so that one that comes
    /// again is answered and not computed again.
    Ls(SpoolList),
    /// Show what was asked and answered.
    Show(SpoolOne),
    /// Have a request that has failed answered once more, or an answer delivered once more.
    Retry(SpoolOne),
    /// Drop a request, whatever its state; who asked is not told.
    Drop(SpoolOne),
    /// Drop requests, and write the file anew, so that nothing of them is left in it.
    ///
    /// Those to a task, or of a client, or to a task of a client, or all, whatever their state.
    Erase(CorpusErase),
}

#[derive(Args, Debug)]
pub(crate) struct SpoolList {
    /// Those to this task.
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<TaskName>,

    /// Those of this client: its name over MQTT, or uid-1000 for user 1000 of this machine.
    #[arg(long, value_name = "NAME")]
    pub(crate) client: Option<String>,

    /// Print JSON, a line for each.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct SpoolOne {
    /// Its number, as `ls` shows it.
    #[arg(value_name = "NUMBER")]
    pub(crate) number: u64,

    /// Print JSON, where there is something to print.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CancelOptions {
    /// Id of the request.
    #[arg(value_name = "ID")]
    pub(crate) id: RequestId,
}

/// A priority on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PriorityWord {
    /// Before everything else.
    Alarm,
    /// Somebody waits for the answer.
    Interactive,
    /// Nobody waits.
    Batch,
}

impl From<PriorityWord> for Priority {
    fn from(word: PriorityWord) -> Self {
        match word {
            PriorityWord::Alarm => Self::Alarm,
            PriorityWord::Interactive => Self::Interactive,
            PriorityWord::Batch => Self::Batch,
        }
    }
}

/// A choice of egress on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum EgressWord {
    /// Never leaves the gateway.
    Local,
    /// May be passed upstream.
    Any,
}

impl From<EgressWord> for Egress {
    fn from(word: EgressWord) -> Self {
        match word {
            EgressWord::Local => Self::Local,
            EgressWord::Any => Self::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
