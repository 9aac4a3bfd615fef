//! The machine under test as its operator leaves it: model, configuration, broker, users; and how it is asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use andon_tests::broker::{Seen, Watcher};
use andon_tests::certificates::Authority;
use andon_tests::daemon::merge;
use andon_tests::http;
use andon_tests::tiny_model::TinyModel;
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Group, User};
use serde_json::{Value, json};
use toml::Table;

use crate::units::{DAEMON, journal, systemctl};

/// The OpenAI API.
pub(crate) const HTTP_SOCKET: &str = "/run/andon/andon.sock";
/// The compact socket.
pub(crate) const WIRE_SOCKET: &str = "/run/andon/wire.sock";
/// The gateway's name in topics, as the shipped access list has it.
const GATEWAY: &str = "press-3";
/// The gateway's name in its certificate.
pub(crate) const GATEWAY_USER: &str = "gateway-press-3";
/// A client of the floor, by the name in its certificate.
pub(crate) const CLIENT: &str = "press4";
/// Where the daemon listens for HTTP besides its socket.
pub(crate) const HTTP_PORT: u16 = 8311;
/// What it asks of those who come there.
pub(crate) const TOKEN: &str = "f3b1a6d27c9048e5b2d4f6a8c0e1537d9b";
/// Exit status of mosquitto's clients when nothing came in time.
const MOSQUITTO_TIMED_OUT: i32 = 27;
/// Where the broker listens for TLS.
const TLS_PORT: u16 = 8883;
/// Longest wait for the daemon to start or to end, in debug builds on busy machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Where the checks keep what must outlive the power.
const STATE: &str = "/var/lib/andon-booted";
/// The model that is served.
const MODEL: &str = "/var/lib/andon/model.gguf";
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
        let model = TinyModel {
            context_tokens_max: 2048,
            idle_layer_count: 30,
            ..TinyModel::default()
        };
        model.write(Path::new(MODEL))?;
        Ok(())
    }

    /// Writes the configuration: the model, the broker with TLS, who may ask what, and `more` in TOML laid over it.
    pub(crate) fn configure(&self, more: &str) -> Result<()> {
        let text = format!(
            "[gateway]\nname = \"{GATEWAY}\"\n[model]\npath = \"{MODEL}\"\nname = \"tiny\"\n\
             [mqtt]\nenabled = true\nhost = \"localhost\"\nport = {TLS_PORT}\nreconnect-max-s = 1\ntls = true\n\
             ca-file = \"{KEYS}/ca.pem\"\ncertificate-file = \"{KEYS}/{GATEWAY_USER}.pem\"\n\
             key-file = \"{KEYS}/{GATEWAY_USER}.key\"\n\
             [http]\nlisten = \"127.0.0.1:{HTTP_PORT}\"\ntoken-file = \"/run/credentials/{DAEMON}/http.token\"\n\
             [[access]]\nusers = [\"root\", \"fitter\"]\n\
             [[access]]\nusers = [\"visitor\"]\npriority-max = \"batch\"\n\
             [[access]]\nloopback = true\n\
             [[access]]\nclients = [\"{CLIENT}\"]\n"
        );
        let mut config: Table = text.parse()?;
        merge(&mut config, more.parse()?);
        fs::write(CONFIG, config.to_string()).with_context(|| format!("cannot write {CONFIG}"))
    }

    /// Makes the keys of the plant, and gives the daemon, the broker and the service manager theirs.
    pub(crate) fn install_keys(&self) -> Result<()> {
        let authority = Authority::at(&self.state.join("keys"))?;
        authority.sign_host("broker")?;
        for name in [GATEWAY_USER, CLIENT] {
            authority.sign(name)?;
        }
        let (keys, certs) = (Path::new(KEYS), Path::new("/etc/mosquitto/certs"));
        self.give("andon", keys, "ca.pem", "ca.pem")?;
        self.give_gateway_its_keys()?;
        for (from, to) in [
            ("ca.pem", "plant-ca.pem"),
            ("broker.pem", "broker.pem"),
            ("broker.key", "broker.key"),
        ] {
            self.give("mosquitto", certs, from, to)?;
        }
        fs::write("/etc/andon/credentials/http.token", TOKEN)?;
        let folder = format!("/etc/systemd/system/{DAEMON}.d");
        fs::create_dir_all(&folder)?;
        let lines = "[Service]\nLoadCredential=http.token:/etc/andon/credentials/http.token\n";
        fs::write(format!("{folder}/credentials.conf"), lines)?;
        systemctl(&["daemon-reload"]).map(drop)
    }

    /// Puts the certificate that was last signed for the gateway, and its key, where the daemon reads them.
    pub(crate) fn give_gateway_its_keys(&self) -> Result<()> {
        for ending in ["key", "pem"] {
            let name = format!("{GATEWAY_USER}.{ending}");
            self.give("andon", Path::new(KEYS), &name, &name)?;
        }
        Ok(())
    }

    /// Has another certificate signed for the gateway, with another key, and puts both where the daemon reads them.
    pub(crate) fn renew_gateway_keys(&self) -> Result<()> {
        Authority::open(&self.state.join("keys")).sign(GATEWAY_USER)?;
        self.give_gateway_its_keys()
    }

    /// Copies a file of the plant's authority to where one group may read it; in one step, as whoever renews certificates does.
    fn give(&self, group: &str, folder: &Path, from: &str, to: &str) -> Result<()> {
        fs::create_dir_all(folder)?;
        let group = Group::from_name(group)?.with_context(|| format!("no group {group}"))?;
        let new = folder.join(format!(".{to}"));
        fs::copy(self.state.join("keys").join(from), &new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o640))?;
        chown(&new, None, Some(group.gid.as_raw()))?;
        Ok(fs::rename(&new, folder.join(to))?)
    }

    /// Sets mosquitto up by the files that are shipped as examples, and has it keep its state on the disk.
    pub(crate) fn install_broker(&self) -> Result<()> {
        let folder = Path::new("/etc/mosquitto");
        fs::copy(
            self.result("mosquitto.conf"),
            folder.join("conf.d/andon.conf"),
        )?;
        fs::copy(self.result("mosquitto.acl"), folder.join("andon.acl"))?;
        let kept = "autosave_interval 1\nautosave_on_changes true\n";
        fs::write(folder.join("conf.d/kept.conf"), kept)?;
        systemctl(&["restart", "mosquitto.service"]).map(drop)
    }

    /// Arguments that make one of mosquitto's clients the client of the floor, in a session that outlives its connections.
    pub(crate) fn floor_arguments(&self) -> Vec<String> {
        let keys = self.state.join("keys");
        let at = |name: &str| keys.join(name).display().to_string();
        let port = TLS_PORT.to_string();
        let words = [
            ("-h", "localhost".to_owned()),
            ("-p", port),
            ("-i", CLIENT.to_owned()),
            ("-x", "3600".to_owned()),
            ("--cafile", at("ca.pem")),
            ("--cert", at(&format!("{CLIENT}.pem"))),
            ("--key", at(&format!("{CLIENT}.key"))),
        ];
        let words = words.into_iter();
        let mut all: Vec<String> = words
            .flat_map(|(option, value)| [option.to_owned(), value])
            .collect();
        all.push("-c".to_owned());
        all
    }

    /// Asks over the broker in the name of `client`, by the certificate of the floor's one; the first message that comes of it,
    /// if one comes in time.
    pub(crate) fn ask_over_mqtt(
        &self,
        client: &str,
        request: &Value,
        seconds: u32,
    ) -> Result<Option<Value>> {
        let mut command = Command::new("mosquitto_rr");
        command
            .args(self.floor_arguments())
            .args(["-V", "mqttv5", "-q", "1"]);
        command.args(["-t", &format!("andon/{GATEWAY}/request/{client}")]);
        command.args(["-e", &answers(), "-W", &seconds.to_string()]);
        let output = command.args(["-m", &request.to_string()]).output()?;
        if output.status.code() == Some(MOSQUITTO_TIMED_OUT) {
            return Ok(None);
        }
        ensure!(
            output.status.success(),
            "mosquitto_rr: {}, {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let message =
            serde_json::from_str(&text).with_context(|| format!("{text:?} is no JSON"))?;
        Ok(Some(message))
    }

    /// Goes on with the session of the floor's client.
    pub(crate) fn listen(&self) -> Result<Watcher> {
        let arguments = self.floor_arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok(Watcher::start_with(
            TLS_PORT,
            &answers(),
            "mqttv5",
            &arguments,
        )?)
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

/// The topic that the floor's client has its answers on.
fn answers() -> String {
    format!("andon/{GATEWAY}/response/{CLIENT}/display")
}

/// The number of a user.
pub(crate) fn user_id(name: &str) -> Result<u32> {
    let user = User::from_name(name)?.with_context(|| format!("no user {name}"))?;
    Ok(user.uid.as_raw())
}
