//! What the daemon gives up for good, once it has read its configuration: files and ports that it does not name, and calls of
//! the system that the daemon does not make.
//!
//! The unit takes much of this from it before it starts; here it goes without what only the configuration tells, and it does so
//! wherever it is started. Which places a configuration needs is in [`places`], how they are enforced in `andon-confine`.
//!
//! Invariant: this happens while there is one thread. Threads that were there before would not be confined.

pub mod places;

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use andon_confine::files::Places;
use andon_confine::{Unavailable, calls, files, names};

use crate::config::Config;
use crate::config::sandbox::Demand;

/// How far one of the two is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// The configuration turns it off.
    Off,
    /// It is in force: Landlock with the version of its interface, seccomp as 1.
    On(u8),
    /// The system cannot do it, and why.
    Missing(String),
}

impl Layer {
    /// Whether it is in force.
    #[must_use]
    pub fn is_on(&self) -> bool {
        matches!(self, Layer::On(_))
    }
}

/// What was given up.
#[derive(Debug, Clone)]
pub struct Confined {
    /// Files, ports, signals and abstract sockets.
    pub landlock: Layer,
    /// Calls of the system.
    pub seccomp: Layer,
    file: PathBuf,
    places: Places,
}

impl Confined {
    /// What another configuration of the same file needs that was given up: paths and ports, in words. With any of them it
    /// takes a new start.
    #[must_use]
    pub fn beyond(&self, config: &Config) -> Vec<String> {
        if self.landlock.is_on() {
            places::of(config, &self.file).beyond(&self.places)
        } else {
            Vec::new()
        }
    }
}

/// Why the daemon does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// What the configuration requires the system cannot do.
    Required {
        /// The key that does so.
        key: &'static str,
        /// What the system says.
        why: Unavailable,
    },
    /// There are threads already, which would not be confined.
    Threads(usize),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Required { key, why } => write!(
                f,
                "{key}: {why}; set it to \"best-effort\" to start without"
            ),
            Refusal::Threads(count) => {
                write!(f, "there are {count} threads before the sandbox")
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// Gives up what `config`, read from `file`, does not need. Folders of the daemon's own that are not there yet are made: only
/// what is there can be granted.
///
/// # Errors
/// [`Refusal`]; the process is to end then.
pub fn install(config: &Config, file: &Path) -> Result<Confined, Refusal> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(Refusal::Threads(threads));
    }
    let mut places = Places::default();
    let landlock = layer("sandbox.landlock", config.sandbox.landlock, || {
        for folder in places::kept(config) {
            if let Err(error) = make(folder) {
                tracing::warn!(%error, folder = %folder.display(), "cannot make a folder");
            }
        }
        places = places::of(config, file);
        files::restrict(&places)
    })?;
    // Last: it takes away what the other is made with.
    let seccomp = layer("sandbox.seccomp", config.sandbox.seccomp, || {
        names::load();
        calls::restrict().map(|()| 1)
    })?;
    Ok(Confined {
        landlock,
        seccomp,
        file: file.to_owned(),
        places,
    })
}

fn layer(
    key: &'static str,
    demand: Demand,
    install: impl FnOnce() -> Result<u8, Unavailable>,
) -> Result<Layer, Refusal> {
    if demand == Demand::Off {
        tracing::info!(key, "this part of the sandbox is turned off");
        return Ok(Layer::Off);
    }
    match install() {
        Ok(level) => {
            tracing::info!(key, level, "this part of the sandbox is in force");
            Ok(Layer::On(level))
        }
        Err(why) if demand == Demand::Require => Err(Refusal::Required { key, why }),
        Err(why) => {
            crate::event!(SandboxDegraded, key, %why, "this part of the sandbox is missing");
            Ok(Layer::Missing(why.to_string()))
        }
    }
}

/// Makes a folder that only the daemon's user can enter, and has the disk know of it.
fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    match folder.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
