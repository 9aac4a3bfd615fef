//! `andond`: see the crate's README for the command line and its exit codes.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use andond::config::{self, Config, Problems};
use andond::socket::{Passed, SocketError};
use andond::supervise::{self, Failure};
use andond::{check, confine, panics, telemetry};
use clap::{Parser, Subcommand};

/// The configuration or the model file is at fault (`EX_CONFIG`); systemd does not restart on it.
const EXIT_CONFIG: u8 = 78;
/// The machine, or the daemon itself.
const EXIT_RUNTIME: u8 = 1;

/// Serves a language model over Unix sockets and MQTT.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = config::PATH_DEFAULT)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Serve (the default).
    Run,
    /// Check the configuration, the model file and the tasks, report every problem, and exit.
    Check,
}

fn main() -> ExitCode {
    // First of all: unwatched for, it would end the process, and the service manager would call that an orderly end. What reads
    // the configuration again watches for it later.
    if let Err(error) = andon_os::ignore_hangups() {
        eprintln!("SIGHUP cannot be ignored: {error}");
    }
    // Before anything else is opened, and before there is another thread.
    let passed = Passed::take();
    panics::end_the_process();
    andon_os::keep_little();
    let arguments = Arguments::parse();
    let read = Config::read_unchecked(&arguments.config);
    let (config, mut problems) = match read {
        Ok(read) => read,
        Err(problems) => return refuse(&arguments, &problems),
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Check => {
            check::environment(&config, &mut problems);
            match problems.into_result(()) {
                Ok(()) => {
                    println!("{}: good", arguments.config.display());
                    ExitCode::SUCCESS
                }
                Err(problems) => refuse(&arguments, &problems),
            }
        }
        Command::Run => match problems.into_result(config) {
            Ok(config) => run(config, &arguments.config, passed),
            Err(problems) => refuse(&arguments, &problems),
        },
    }
}

fn refuse(arguments: &Arguments, problems: &Problems) -> ExitCode {
    for problem in problems.iter() {
        eprintln!("{}: {problem}", arguments.config.display());
    }
    ExitCode::from(EXIT_CONFIG)
}

fn run(config: Config, path: &Path, passed: Result<Passed, SocketError>) -> ExitCode {
    telemetry::journal::start(&config.log);
    panics::tell_text(config.log.text);
    if !config.gateway.core_dumps
        && let Err(error) = panics::leave_no_core()
    {
        andond::event!(Internal, %error, "core dumps cannot be turned off");
    }
    // Before there is a second thread, which would not be confined.
    let confined = passed.map_err(Failure::from).and_then(|passed| {
        let confined = confine::install(&config, path, &passed)
            .map_err(|refusal| Failure::Operator(refusal.to_string()))?;
        Ok((passed, confined))
    });
    match supervise::run(config, path, confined) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Operator(_)) => ExitCode::from(EXIT_CONFIG),
        Err(Failure::Runtime(_)) => ExitCode::from(EXIT_RUNTIME),
    }
}
