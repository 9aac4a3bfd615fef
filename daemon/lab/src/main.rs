//! `andon-lab`: offline tools around the engine. One file a subcommand.

#![forbid(unsafe_code)]

mod answer;
mod bench;
mod calibrate;
#[cfg(feature = "draft")]
mod draft;
#[cfg(not(feature = "draft"))]
#[path = "draft_not_built.rs"]
mod draft;
mod embed;
mod generate;
mod kernels;
mod limits;
mod packed;
mod ppl;
mod random;
mod router;
mod speculate;
mod synth;
mod tokenize;
mod verify;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use andon_engine::kv::KvType;
use andon_engine::tokenizer::TemplateChoice;
use andon_engine::{Executor, ExecutorOptions, LoadOptions, Model};
use andon_kernels::Isa;
use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

/// Measure and try models without the daemon.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure prefill and decode speed, and what share of the machine's limits they reach.
    Bench(bench::Arguments),
    /// Measure those limits alone: streaming read, and multiply-adds of each instruction set.
    Limits(limits::Arguments),
    /// Measure what the daemon measures of the machine, on a model's weights.
    Calibrate(calibrate::Arguments),
    /// Measure each matrix product kernel beside those limits.
    Kernels(kernels::Arguments),
    /// Write a GGUF file with the shape of a real model and random weights.
    Synth(synth::Arguments),
    /// Measure the perplexity of a text.
    Ppl(ppl::Arguments),
    /// Print the token ids of a text, special tokens neither added nor recognized.
    Tokenize(tokenize::Arguments),
    /// Make a small draft model from a target: some of its layers, trained to say what it says.
    Draft(draft::Arguments),
    /// Print the vector that an embedding model makes of a text.
    Embed(embed::Arguments),
    /// Continue a text.
    Generate(generate::Arguments),
    /// Make and measure what routing learns from.
    Router(router::Arguments),
    /// Measure what guessing tokens ahead gains, with the answers compared.
    Speculate(speculate::Arguments),
    /// Look at every weight for scales and values that are infinite or not a number.
    Verify(verify::Arguments),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual page of each command into a directory.
    #[command(hide = true)]
    Man {
        /// Where to write the pages.
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
}

/// A model and how to run it.
#[derive(Debug, Args)]
struct Run {
    /// GGUF file.
    model: PathBuf,
    /// Compute threads [default: as many as this process may keep busy].
    #[arg(long)]
    threads: Option<usize>,
    /// Instruction set to force: scalar, avx2, avx-vnni, avx512-vnni, neon, neon-dotprod, neon-i8mm [default: the best of
    /// this machine].
    #[arg(long, value_parser = parse_isa)]
    isa: Option<Isa>,
    /// How the KV cache keeps keys and values: f16 or q8.
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_kv)]
    kv: KvType,
    /// Run from the weights as the file has them, rather than packed.
    #[arg(long)]
    raw: bool,
    /// Where packed weights are kept [default: andon/packs in the user's cache folder].
    #[arg(long, value_name = "DIR")]
    pack_dir: Option<PathBuf>,
    /// Pre-tokenizer, in place of the one the file names.
    #[arg(long, value_name = "NAME")]
    pre_tokenizer: Option<String>,
    /// Chat template, in place of the one in the file: chatml, llama3, gemma, phi3, mistral, plain, or a path.
    #[arg(long, value_name = "NAME|FILE", value_parser = TemplateChoice::parse)]
    chat_template: Option<TemplateChoice>,
}

fn parse_isa(name: &str) -> Result<Isa, String> {
    Isa::from_name(name).ok_or_else(|| {
        let known = Isa::ALL.map(Isa::name).join(", ");
        format!("there is no instruction set of this name; known are {known}")
    })
}

fn parse_kv(name: &str) -> Result<KvType, String> {
    KvType::from_name(name).ok_or_else(|| {
        let known = KvType::ALL.map(KvType::name).join(", ");
        format!("there is no type of this name; known are {known}")
    })
}

impl Run {
    /// The model, with its weights packed unless `--raw` says otherwise. That takes its time once for every file.
    fn load(&self) -> Result<Arc<Model>> {
        self.load_from(&self.model, LoadOptions::default())
    }

    /// Another model to guess for it, with the same options.
    fn load_draft(&self, path: &Path) -> Result<Arc<Model>> {
        self.load_from(path, LoadOptions::default().for_draft())
    }

    fn load_from(&self, path: &Path, options: LoadOptions) -> Result<Arc<Model>> {
        let options = options
            .with_pre_tokenizer(self.pre_tokenizer.clone())
            .with_chat_template(self.chat_template.clone());
        let model = Model::load_with(path, &options)?;
        for warning in &model.info().warnings {
            eprintln!("andon-lab: {}: {warning}", path.display());
        }
        if !self.raw
            && let Err(error) = packed::attach(&model, self.pack_dir.as_deref(), self.threads)
        {
            eprintln!(
                "andon-lab: {}: the weights are not packed: {error:#}",
                path.display()
            );
        }
        Ok(Arc::new(model))
    }

    /// An executor whose KV cache holds `tokens` tokens.
    fn executor(&self, model: &Arc<Model>, tokens: usize) -> Result<Executor> {
        let options = ExecutorOptions {
            threads: self.threads,
            isa: self.isa,
            kv_tokens_max: tokens,
            kv_type: self.kv,
            ..ExecutorOptions::default()
        };
        Ok(Executor::new(Arc::clone(model), &options)?)
    }
}

/// Reads a text file.
fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Limits(arguments) => limits::run(&arguments),
        Command::Calibrate(arguments) => calibrate::run(&arguments),
        Command::Kernels(arguments) => kernels::run(&arguments),
        Command::Synth(arguments) => synth::run(&arguments),
        Command::Ppl(arguments) => ppl::run(&arguments),
        Command::Tokenize(arguments) => tokenize::run(&arguments),
        Command::Draft(arguments) => draft::run(&arguments),
        Command::Embed(arguments) => embed::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Router(arguments) => router::run(&arguments),
        Command::Speculate(arguments) => speculate::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Completions { shell } => completions(shell),
        Command::Man { directory } => clap_mangen::generate_to(Cli::command(), &directory)
            .with_context(|| format!("cannot write pages into `{}`", directory.display())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do if standard error is gone, too.
            let _ = writeln!(std::io::stderr(), "andon-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what `shell` needs to complete our command line.
fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "andon-lab", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
