//! The machine under test as its operator leaves it: model, configuration, broker, users; and how it is asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use andon_tests::broker::{self, Seen, Watcher, succeed};
use andon_tests::daemon::merge;
use andon_tests::http;
use andon_tests::tiny_model::TinyModel;
use anyhow::{Context, Result, bail};
use nix::unistd::{Group, User};
use serde_json::{Value, json};
use toml::Table;

use crate::keys::{Authority, Pair};
use crate::units::{DAEMON, journal, systemctl};

/// The OpenAI API.
pub(crate) const HTTP_SOCKET: &str = "/run/andon/andon.sock";
/// The compact socket.
pub(crate) const WIRE_SOCKET: &str = "/run/andon/wire.sock";
/// The gateway's name, which stands in topics and in its certificate.
pub(crate) const GATEWAY: &str = "gw1";
/// A client of the floor, by the name in its certificate.
pub(crate) const CLIENT: &str = "press4";
/// Where the broker listens for TLS.
pub(crate) const TLS_PORT: u16 = 8883;
/// Longest wait for the daemon to start or to end, in debug builds on busy machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Where the checks keep what must outlive the power.
const STATE: &str = "/var/lib/andon-booted";
/// Where models lie that are served by their path.
const MODELS: &str = "/srv/models";
/// The model that is served.
const MODEL: &str = "/srv/models/tiny.gguf";
/// The daemon's keys for the broker.
const KEYS: &str = "/etc/andon/mqtt";
/// The daemon's configuration.
const CONFIG: &str = "/etc/andon/andond.toml";
/// The prompt that is asked.
pub(crate) const PROMPT: &str = "The machine";

/// The machine.
pub(crate) struct Gateway {
    results: PathBuf,
    state: PathBuf,
}

impl Gateway {
    /// The machine as it was booted.
    pub(crate) fn new(results: &Path) -> Gateway {
        Gateway {
            results: results.to_path_buf(),
            state: PathBuf::from(STATE),
        }
    }

    /// A file beside the results, for the host or a later phase.
    pub(crate) fn result(&self, name: &str) -> PathBuf {
        self.results.join(name)
    }

    /// Keeps what the journal has, for whoever looks into a failure.
    pub(crate) fn keep_journal(&self, name: &str) -> Result<()> {
        let said = journal(&["--output", "short-monotonic"])?;
        fs::write(self.result(&format!("journal-{name}.txt")), said)?;
        Ok(())
    }

    /// Puts a model in place that takes its time over long answers.
    pub(crate) fn install_model(&self) -> Result<()> {
        fs::create_dir_all(MODELS)?;
        let model = TinyModel {
            context_tokens_max: 2048,
            idle_layer_count: 30,
            ..TinyModel::default()
        };
        model.write(Path::new(MODEL))?;
        Ok(())
    }

    /// Writes the configuration: the model, the broker with TLS, and `more` in TOML laid over it.
    pub(crate) fn configure(&self, more: &str) -> Result<()> {
        let text = format!(
            "[gateway]\nname = \"{GATEWAY}\"\n[model]\npath = \"{MODEL}\"\nname = \"tiny\"\n\
             [mqtt]\nenabled = true\nhost = \"localhost\"\nport = {TLS_PORT}\nreconnect-max-s = 1\ntls = true\n\
             ca-file = \"{KEYS}/ca.pem\"\ncertificate-file = \"{KEYS}/client.pem\"\nkey-file = \"{KEYS}/client.key\"\n"
        );
        let mut config: Table = text.parse()?;
        merge(&mut config, more.parse()?);
        fs::write(CONFIG, config.to_string()).with_context(|| format!("cannot write {CONFIG}"))
    }

    /// Makes the keys of the floor, and gives the daemon and the broker theirs.
    pub(crate) fn install_keys(&self) -> Result<()> {
        let authority = Authority::new(&self.state.join("keys"))?;
        let broker = authority.server("broker")?;
        let daemon = authority.client(GATEWAY)?;
        authority.client(CLIENT)?;
        self.give("andon", Path::new(KEYS), &authority, &daemon, "client")?;
        self.give(
            "mosquitto",
            Path::new("/etc/mosquitto/keys"),
            &authority,
            &broker,
            "broker",
        )
    }

    /// Copies a pair to where one group may read it.
    fn give(
        &self,
        group: &str,
        folder: &Path,
        authority: &Authority,
        pair: &Pair,
        name: &str,
    ) -> Result<()> {
        fs::create_dir_all(folder)?;
        let id = group_id(group)?;
        for (from, to, mode) in [
            (&authority.certificate(), "ca.pem".to_owned(), 0o644),
            (&pair.certificate, format!("{name}.pem"), 0o644),
            (&pair.key, format!("{name}.key"), 0o640),
        ] {
            // In one step, as whoever renews certificates does: the daemon never sees half of one.
            let (to, new) = (folder.join(&to), folder.join(format!(".{to}")));
            fs::copy(from, &new)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
            chown(&new, None, Some(id))?;
            fs::rename(&new, &to)?;
        }
        Ok(())
    }

    /// Has mosquitto take clients with certificates only, name them by those, and keep its state.
    pub(crate) fn install_broker(&self) -> Result<()> {
        let keys = "/etc/mosquitto/keys";
        let config = format!(
            "listener {TLS_PORT} 127.0.0.1\ncafile {keys}/ca.pem\ncertfile {keys}/broker.pem\nkeyfile {keys}/broker.key\n\
             require_certificate true\nuse_identity_as_username true\nacl_file /etc/mosquitto/andon.acl\n\
             autosave_interval 1\nautosave_on_changes true\n"
        );
        fs::write("/etc/mosquitto/conf.d/andon.conf", config)?;
        let acl = format!(
            "user {GATEWAY}\ntopic readwrite andon/{GATEWAY}/#\n\
             pattern write andon/{GATEWAY}/request/%u/#\npattern read andon/{GATEWAY}/response/%u/#\n\
             pattern write andon/{GATEWAY}/cancel/%u\npattern read andon/{GATEWAY}/status\n"
        );
        fs::write("/etc/mosquitto/andon.acl", acl)?;
        systemctl(&["restart", "mosquitto.service"]).map(drop)
    }

    /// Arguments that make one of mosquitto's clients a client of the floor.
    pub(crate) fn floor_arguments(&self) -> Vec<String> {
        let keys = self.state.join("keys");
        let at = |name: &str| keys.join(name).display().to_string();
        let words = [
            ("--cafile", "ca.pem".to_owned()),
            ("--cert", format!("{CLIENT}.pem")),
            ("--key", format!("{CLIENT}.key")),
        ];
        words
            .iter()
            .flat_map(|(option, name)| [(*option).to_owned(), at(name)])
            .collect()
    }

    /// Listens to the answers of the floor's client; with a name, in a session that outlives the connection.
    pub(crate) fn listen(&self, session: Option<&str>) -> Result<Watcher> {
        let mut arguments = self.floor_arguments();
        if let Some(name) = session {
            arguments.extend(["-c", "-x", "3600", "-i", name].map(str::to_owned));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let filter = format!("andon/{GATEWAY}/response/{CLIENT}/#");
        Ok(Watcher::start_with(
            TLS_PORT, &filter, "mqttv5", &arguments,
        )?)
    }

    /// Publishes a request of the floor's client.
    pub(crate) fn publish(&self, request: &Value) -> Result<()> {
        let mut command = broker::client("mosquitto_pub", TLS_PORT);
        command
            .args(self.floor_arguments())
            .args(["-V", "mqttv5", "-q", "1"]);
        command.args([
            "-t",
            &format!("andon/{GATEWAY}/request/{CLIENT}"),
            "-m",
            &request.to_string(),
        ]);
        succeed(&mut command).map(drop)?;
        Ok(())
    }

    /// A client of the HTTP socket.
    pub(crate) fn http(&self) -> http::Client {
        http::Client::new(Path::new(HTTP_SOCKET))
    }

    /// The likeliest continuation of the prompt, over HTTP.
    pub(crate) fn ask(&self, tokens: u32) -> Result<String> {
        let reply = self.http().post("/v1/completions", &request(tokens))?;
        if reply.status != 200 {
            bail!("{} {}", reply.status, reply.text());
        }
        let answer = reply.json()?;
        let text = answer["choices"][0]["text"]
            .as_str()
            .context("an answer without a text")?;
        Ok(text.to_owned())
    }

    /// `andonctl` with these arguments as a user of this machine.
    pub(crate) fn andonctl_as(&self, user: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            user,
            "--regid",
            user,
            "--init-groups",
            "andonctl",
        ]);
        Ok(command.args(arguments).output()?)
    }

    /// Starts the daemon anew with what is configured now.
    pub(crate) fn restart(&self) -> Result<()> {
        systemctl(&["restart", DAEMON]).map(drop)
    }
}

/// The first message for which `wanted` holds.
pub(crate) fn next(watcher: &Watcher, wanted: impl Fn(&Seen) -> bool) -> Result<Seen> {
    let began = Instant::now();
    loop {
        let seen = watcher.next(PATIENCE.saturating_sub(began.elapsed()))?;
        if wanted(&seen) {
            return Ok(seen);
        }
    }
}

/// A request of the OpenAI API for the likeliest continuation.
pub(crate) fn request(tokens: u32) -> Value {
    json!({ "prompt": PROMPT, "max_tokens": tokens, "temperature": 0 })
}

/// The number of a group.
fn group_id(name: &str) -> Result<u32> {
    let group = Group::from_name(name)?.with_context(|| format!("no group {name}"))?;
    Ok(group.gid.as_raw())
}

/// The number of a user.
pub(crate) fn user_id(name: &str) -> Result<u32> {
    let user = User::from_name(name)?.with_context(|| format!("no user {name}"))?;
    Ok(user.uid.as_raw())
}
