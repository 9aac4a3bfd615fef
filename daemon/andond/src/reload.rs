//! The configuration is read again while the daemon runs: by SIGHUP, by `andonctl reload`, and so by `systemctl reload`.
//!
//! The whole file is read and checked first. Then the values of live keys take the place of those in force, and whoever goes by
//! them does from its next decision on; what is being answered goes on as it began. Keys whose change needs a restart
//! ([`crate::config::change`]) are named and keep their values.
//!
//! Invariant: with any problem, nothing changes. One reload is under way at a time.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;

use crate::access::{Access, Rules};
use crate::check;
use crate::config::change::{Waiting, change};
use crate::config::{Config, Current, Problems};
use crate::confine::{Beyond, Confined};
use crate::frontend::Context;
use crate::registry::Registry;
use crate::spool::Spool;
use crate::telemetry::{Telemetry, journal};
use crate::upstream::Upstreams;
use crate::workers::Workers;

/// What became of the keys that differ from what the daemon goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Those whose new values hold.
    pub live: Vec<String>,
    /// Those whose new values hold from the next start on.
    pub restart: Vec<String>,
}

/// Who has to know.
#[derive(Debug)]
pub struct Parts {
    /// The configuration in force.
    pub current: Current,
    /// Who answers by it.
    pub workers: Workers,
    /// Who keeps models by it.
    pub registry: Arc<Registry>,
    /// Who keeps requests by it.
    pub spool: Spool,
    /// Who is asked elsewhere by it.
    pub upstreams: Upstreams,
    /// What is counted.
    pub telemetry: Arc<Telemetry>,
    /// Who may ask for what.
    pub access: Arc<Access>,
    /// What the daemon can reach.
    pub confined: Arc<Confined>,
}

/// What reads the configuration again.
#[derive(Debug)]
pub struct Reload {
    path: PathBuf,
    parts: Parts,
    /// Whether the service manager has been told that the daemon is ready.
    announced: AtomicBool,
    under_way: Mutex<()>,
}

impl Reload {
    /// One of the file at `path`.
    #[must_use]
    pub fn new(path: PathBuf, parts: Parts) -> Reload {
        Reload {
            path,
            parts,
            announced: AtomicBool::new(false),
            under_way: Mutex::default(),
        }
    }

    /// The service manager is told that the daemon is ready: from now on it hears of reloads.
    pub fn announced(&self) {
        self.announced.store(true, Ordering::Relaxed);
    }

    /// Reads the file again and has what can hold now hold. Blocks: it reads files and asks for groups.
    ///
    /// # Errors
    /// Every problem; then nothing has changed.
    pub fn run(&self) -> Result<Reloaded, Problems> {
        let _under_way = (self.under_way.lock()).unwrap_or_else(PoisonError::into_inner);
        let tells = self.announced.load(Ordering::Relaxed);
        if tells {
            match NotifyState::monotonic_usec_now() {
                Ok(now) => tell(&[NotifyState::Reloading, now]),
                Err(error) => tracing::debug!(%error, "there is no clock"),
            }
        }
        let outcome = self.read().map(|(config, rules, reloaded)| {
            self.apply(&config, rules);
            reloaded
        });
        match &outcome {
            Ok(reloaded) => {
                self.parts.telemetry.reloaded(true, reloaded.restart.len());
                crate::event!(
                    ConfigReloaded,
                    keys = reloaded.live.join(" "),
                    "the configuration was read again"
                );
                if !reloaded.restart.is_empty() {
                    crate::event!(
                        RestartNeeded,
                        keys = reloaded.restart.join(" "),
                        "these keys have other values in the file and need a restart"
                    );
                }
            }
            Err(problems) => {
                self.parts.telemetry.reloaded(false, 0);
                for problem in problems.iter() {
                    let file = self.path.display();
                    crate::event!(ConfigRefused, %file, %problem, "the configuration has a problem");
                }
                tracing::warn!(
                    problems = problems.len(),
                    "the configuration was not read again; the former one holds"
                );
            }
        }
        if tells {
            tell(&[NotifyState::Ready]);
        }
        outcome
    }

    /// Reads every file once, so that what holds is what was looked at.
    fn read(&self) -> Result<(Arc<Config>, Rules, Reloaded), Problems> {
        let (new, mut problems) = Config::read_unchecked(&self.path)?;
        check::small(&new, &mut problems);
        let beyond = self.parts.confined.beyond(&new);
        let waiting = Waiting::of(!beyond.token.is_empty(), !beyond.link.is_empty())
            .and_section("upstream", !beyond.upstream.is_empty());
        // What the sandbox hides is not looked at before a restart.
        if !waiting.link {
            check::link(&new, &mut problems);
        }
        if beyond.upstream.is_empty() {
            check::upstream(&new, &mut problems);
        }
        let mut seen = new.clone();
        if waiting.token {
            seen.http.token_file = None;
        }
        let rules = Rules::resolve(&seen);
        if let Err(found) = &rules {
            problems.extend(found.clone());
        }
        problems.into_result(())?;
        let rules = rules?;
        if beyond != Beyond::default() {
            tracing::warn!(
                places = [beyond.token, beyond.link, beyond.upstream]
                    .concat()
                    .join(", "),
                "the daemon has given up what the new configuration names; it takes a restart"
            );
        }
        let keeps_token = waiting.token;
        let changed = change(&self.parts.current.get(), &new, waiting).map_err(|error| {
            let mut problems = Problems::default();
            problems.add("", error, "start the daemon again");
            problems
        })?;
        let mut problems = Problems::default();
        changed.config.check(&mut problems);
        let config = problems.into_result(Arc::new(changed.config))?;
        let token = |config: &Config| (config.http.enabled, config.http.token_file.clone());
        let rules = if keeps_token || token(&config) != token(&new) {
            rules.with_token_of(&self.parts.access.rules())
        } else {
            rules
        };
        let reloaded = Reloaded {
            live: changed.live,
            restart: changed.restart,
        };
        Ok((config, rules, reloaded))
    }

    fn apply(&self, config: &Arc<Config>, rules: Rules) {
        let parts = &self.parts;
        parts.access.replace(rules);
        journal::set_level(&config.log);
        parts.registry.set_room(&config.models);
        parts.spool.set_times(&config.spool);
        parts.upstreams.reloaded(config);
        parts.current.replace(Arc::clone(config));
        // After the rest: a worker that is started meanwhile goes by the new one, and hears of it again.
        parts.workers.reloaded(config);
    }
}

/// Watches for SIGHUP from this call on, which has to be before the service manager hears that the daemon is ready: it may ask
/// for a reload at once, and what nobody watches for is lost.
///
/// # Errors
///
/// The runtime cannot watch for signals.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Reads the configuration again at each SIGHUP, until the daemon stops.
pub async fn on_hangups(context: Context, mut hangups: Signal) {
    loop {
        tokio::select! {
            () = context.stopping.cancelled() => return,
            _ = hangups.recv() => {}
        }
        let reload = Arc::clone(&context.reload);
        // It has said in the journal what came of it.
        drop(spawn_blocking(move || reload.run().is_ok()).await);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
