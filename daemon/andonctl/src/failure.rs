//! What can go wrong, what the user should do about it, and the exit status that says so.
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done; also when the reader of the output went away, who had what he wanted |
//! | 1 | the request was refused or failed, or not all of it was done; a file or model cannot be used |
//! | 2 | the command line or the request is wrong; nothing was sent |
//! | 3 | no daemon or hub answered: cannot connect, or the connection broke |
//! | 4 | cancelled, or the deadline passed |
//! | 5 | busy or not ready: the same request may succeed later |
//!
//! A program that Ctrl-C ends while it has nothing to cancel exits with 130, as shells expect.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use andon_wire::{AskError, ErrorCode, Fault, RequestId};

use crate::output::printable;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line is wrong in a way that only shows when it is used.
    #[error("{0}")]
    Usage(String),
    /// The request breaks a limit.
    #[error("the request was not sent: {0}")]
    Request(#[from] AskError),
    /// No connection.
    #[error("cannot connect to {}: {error}", path.display())]
    Connect { path: PathBuf, error: io::Error },
    /// The connection, or the sense in it, was lost.
    #[error("the connection to andond broke: {0}")]
    Lost(String),
    /// The daemon said no.
    #[error("{} ({})", printable(.0.message.as_str()), .0.code.as_str())]
    Refused(Refusal),
    /// The user cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The request to cancel is not there.
    #[error("there is no open request {0} of yours; it may have ended already")]
    NotFound(RequestId),
    /// Answers of one client were to be erased that are not told apart from others'.
    #[error(
        "answers of all clients to {} are kept together; those of this client among them are not told apart, and stay",
        tasks(.0)
    )]
    Shared(u32),
    /// Standard input cannot be read.
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
    /// The hub does not have, or does not give, what was asked for.
    #[error("{}", printable(.0))]
    Hub(String),
    /// The hub cannot be reached, or stopped answering.
    #[error("{}", printable(.0))]
    Network(String),
    /// A model or bundle is not what it should be.
    #[error("{}", printable(.0))]
    Damaged(String),
    /// A file cannot be used.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// Nobody reads standard output any more.
    #[error("the reader of the output went away")]
    OutputClosed,
    /// Standard output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

/// So many tasks.
fn tasks(count: &u32) -> String {
    let word = if *count == 1 { "task" } else { "tasks" };
    format!("{count} {word}")
}

/// A fault that the daemon reported.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) retry_after_ms: Option<u32>,
}

impl From<&Fault<'_>> for Failure {
    fn from(fault: &Fault<'_>) -> Self {
        Self::Refused(Refusal {
            code: fault.code,
            message: fault.message.to_owned(),
            retry_after_ms: fault.retry_after_ms,
        })
    }
}

impl Failure {
    /// `action` on a file failed.
    pub(crate) fn file(action: &'static str, path: &Path, error: io::Error) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            error,
        }
    }

    /// The exit status.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::NotFound(_)
            | Self::Shared(_)
            | Self::Input(_)
            | Self::Output(_)
            | Self::Hub(_)
            | Self::Damaged(_)
            | Self::File { .. } => 1,
            Self::Usage(_) | Self::Request(_) => 2,
            Self::Connect { .. } | Self::Lost(_) | Self::Network(_) => 3,
            Self::Cancelled => 4,
            Self::Refused(refusal) => match refusal.code {
                ErrorCode::Cancelled | ErrorCode::DeadlineExceeded => 4,
                code if code.may_retry() => 5,
                _ => 1,
            },
        }
    }

    /// What to do next, if there is something.
    fn advice(&self) -> Option<String> {
        let advice = match self {
            Self::Usage(_) => "see `andonctl --help`",
            Self::Request(AskError::TooManyMessages { .. }) => {
                "in a conversation, /reset begins anew"
            }
            Self::Connect { error, .. } => match error.kind() {
                io::ErrorKind::NotFound => {
                    "is andond running (`systemctl status andond`)? Another socket is named with \
                     --socket or ANDON_SOCKET"
                }
                io::ErrorKind::PermissionDenied => {
                    "this user may not use the socket; its group may (`ls -l` shows which)"
                }
                io::ErrorKind::ConnectionRefused => {
                    "nobody listens there: start andond (`systemctl start andond`)"
                }
                _ => return None,
            },
            Self::File { error, .. } if error.kind() == io::ErrorKind::StorageFull => {
                "the disk is full: make room; a download continues where it ended"
            }
            Self::Shared(_) => {
                "`andonctl corpus erase --task NAME` erases those of all clients to a task"
            }
            Self::Network(_) => "another hub is named with --endpoint or HF_ENDPOINT",
            Self::Lost(_) => "`journalctl -u andond` may say more",
            Self::Refused(refusal) => return refusal.advice(),
            _ => return None,
        };
        Some(advice.to_owned())
    }

    /// Says on standard error what happened and what to do.
    pub(crate) fn say(&self) {
        if matches!(self, Self::OutputClosed) {
            return;
        }
        eprintln!("andonctl: {self}");
        if let Some(advice) = self.advice() {
            eprintln!("andonctl: {advice}");
        }
    }

    /// Says it and turns it into the program's exit status.
    pub(crate) fn report(&self) -> ExitCode {
        self.say();
        ExitCode::from(self.status())
    }
}

impl Refusal {
    fn advice(&self) -> Option<String> {
        if let Some(ms) = self.retry_after_ms {
            return Some(format!("try again in {:.1} s", f64::from(ms) / 1000.0));
        }
        let advice = match self.code {
            ErrorCode::UnknownModel => {
                "`andonctl models` shows those that are served, `andonctl model ls` those that are kept"
            }
            ErrorCode::UnknownTask => "tasks are configured as [task.<name>] in andond.toml",
            ErrorCode::ContextFull => "send less text, or ask a model with a longer context",
            ErrorCode::DuplicateId => "give another --id, or cancel the first request",
            ErrorCode::UnsupportedVersion => "andonctl and andond must be of the same release",
            ErrorCode::DeadlineExceeded => "allow more time with --deadline-ms",
            ErrorCode::Busy | ErrorCode::Unavailable => "try again in a moment",
            ErrorCode::Conflict => "`andonctl model ls` shows those that are kept",
            ErrorCode::NoSpace => "`andonctl model rm` makes room",
            ErrorCode::Internal => "`journalctl -u andond` may say more",
            _ => return None,
        };
        Some(advice.to_owned())
    }
}
