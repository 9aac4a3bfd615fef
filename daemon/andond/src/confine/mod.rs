//! What the daemon gives up for good, once it has read its configuration: files and ports that it does not name, and calls of
//! the system that the daemon does not make.
//!
//! The unit takes much of this from it before it starts; here it goes without what only the configuration tells, and it does so
//! wherever it is started. Which places a configuration needs is in [`places`], how they are enforced in `andon-confine`.
//!
//! Invariant: this happens while there is one thread. Threads that were there before would not be confined, so where there are
//! some, nothing counts as given up.

pub mod places;

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use andon_confine::files::Places;
use andon_confine::{Unavailable, calls, files, names};

use crate::config::Config;
use crate::config::sandbox::Demand;
use crate::socket::Passed;

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
    /// What Landlock granted: what was not there then cannot be reached.
    granted: Places,
}

/// What a configuration needs for its live keys that was given up: paths and ports, in words. With any of them it takes a new
/// start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beyond {
    /// For the token of the loopback listener.
    pub token: Vec<String>,
    /// For the link to the broker.
    pub link: Vec<String>,
    /// For the upstreams.
    pub upstream: Vec<String>,
}

impl Confined {
    /// What another configuration needs that was given up.
    #[must_use]
    pub fn beyond(&self, config: &Config) -> Beyond {
        if !self.landlock.is_on() {
            return Beyond::default();
        }
        Beyond {
            token: places::token(config).beyond(&self.granted),
            link: places::link(config).beyond(&self.granted),
            upstream: places::upstream(config).beyond(&self.granted),
        }
    }
}

/// Why the daemon does not start: the configuration requires what the system cannot do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The key that requires it.
    pub key: &'static str,
    /// What the system says.
    pub why: Unavailable,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { key, why } = self;
        write!(
            f,
            "{key}: {why}; set it to \"best-effort\" to start without"
        )
    }
}

impl std::error::Error for Refusal {}

/// Gives up what `config`, read from `file`, does not need where these sockets were passed. Folders of the daemon's own that are not there yet are made: only
/// what is there can be granted.
///
/// # Errors
/// [`Refusal`]; the process is to end then.
pub fn install(config: &Config, file: &Path, passed: &Passed) -> Result<Confined, Refusal> {
    let mut granted = Places::default();
    let driver = places::wants_driver(config);
    if driver {
        tracing::info!(
            "the sandbox leaves what an accelerator's driver needs: its devices, and making code"
        );
    }
    let landlock = layer("sandbox.landlock", config.sandbox.landlock, || {
        andon_confine::alone()?;
        for folder in places::kept(config) {
            if let Err(error) = make(folder) {
                tracing::warn!(%error, folder = %folder.display(), "cannot make a folder");
            }
        }
        let places = places::of(config, file, &passed.paths().collect::<Vec<_>>());
        for folder in places.sockets.iter().filter(|path| places::is_shared(path)) {
            tracing::warn!(
                folder = %folder.display(),
                "others keep their files where a socket is to be made, and the daemon can remove them; give it a folder of its own"
            );
        }
        let (version, kept) = files::restrict(&places)?;
        granted = kept;
        Ok(version)
    })?;
    // Last: it takes away what the other is made with.
    let seccomp = layer("sandbox.seccomp", config.sandbox.seccomp, || {
        andon_confine::alone()?;
        names::load();
        calls::restrict(driver).map(|()| 1)
    })?;
    Ok(Confined {
        landlock,
        seccomp,
        granted,
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
        Err(why) if demand == Demand::Require => Err(Refusal { key, why }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_is_looked_for_by_what_needs_it() {
        let read = |text: &str| {
            Config::parse(&format!("[model]\npath = \"/m.gguf\"\n{text}")).expect("in order")
        };
        let link = |more: &str| {
            format!("[mqtt]\nenabled = true\nhost = \"127.0.0.1\"\nusername = \"u\"\n{more}")
        };
        let token =
            |path: &str| format!("[http]\nlisten = \"127.0.0.1:1\"\ntoken-file = {path:?}\n");
        let start = read(&(link("password-file = \"/p/link/a\"\n") + &token("/p/token/a")));
        let confined = |landlock| Confined {
            landlock,
            seccomp: Layer::Off,
            granted: places::of(&start, Path::new("/p/etc/c"), &[]),
        };
        let on = confined(Layer::On(6));
        assert_eq!(on.beyond(&start), Beyond::default());
        let other = read(&(link("password-file = \"/p/link/b\"\n") + &token("/q/token/b")));
        let beyond = on.beyond(&other);
        assert!(
            beyond.link.is_empty() && !beyond.token.is_empty(),
            "{beyond:?}"
        );
        let other = read(&(link("port = 1884\n") + &token("/p/token/b")));
        let beyond = on.beyond(&other);
        assert_eq!(
            (&beyond.link[..], beyond.token.len()),
            (&["port 1884".to_owned()][..], 0)
        );
        assert_eq!(confined(Layer::Off).beyond(&other), Beyond::default());
        let other = read(&format!(
            "{}{}[[upstream]]\nname = \"u\"\nmodel = \"m\"\nurl = \"http://10.0.0.1:99/v1\"\n",
            link("password-file = \"/p/link/a\"\n"),
            token("/p/token/a")
        ));
        let beyond = on.beyond(&other);
        assert_eq!(beyond.upstream, ["port 99"]);
        assert!(beyond.link.is_empty() && beyond.token.is_empty());
        // What only a restart reads is not looked at.
        let text = link("")
            + &token("/p/token/a")
            + "[spool]\nkey-file = \"/q/k\"\n[models]\ndir = \"/q/m\"\n";
        assert_eq!(on.beyond(&read(&text)), Beyond::default());
    }
}
