//! The machine under test as its operator leaves it: model, configuration, broker, users; and how it is asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
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

use crate::units::{DAEMON, journal, output, systemctl};

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
/// Another.
pub(crate) const OTHER: &str = "press5";
/// Where the daemon listens for HTTP besides its socket.
pub(crate) const HTTP_PORT: u16 = 8311;
/// What it asks of those who come there.
pub(crate) const TOKEN: &str = "f3b1a6d27c9048e5b2d4f6a8c0e1537d9b";
/// Exit status of mosquitto's clients when nothing came in time.
const MOSQUITTO_TIMED_OUT: i32 = 27;
/// Tokens that another model keeps at most, over all requests: enough for the longest check, on a machine with little memory.
const KV_TOKENS_MAX: u32 = 4096;
/// Where the broker listens for TLS.
pub(crate) const TLS_PORT: u16 = 8883;
/// Longest wait for the daemon to start or to end, in debug builds on busy machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Where the checks keep what must outlive the power.
const STATE: &str = "/var/lib/andon-booted";
/// Where the host leaves a real model, if there is one.
const REAL_MODEL: &str = "/usr/libexec/andon-booted.gguf";
/// The daemon's own folder.
const DAEMON_STATE: &str = "/var/lib/andon";
/// The model that is served.
pub(crate) const MODEL: &str = "/var/lib/andon/model.gguf";
/// Where an operator keeps the gateway's keys for the service manager to hand over.
const CREDENTIALS: &str = "/etc/andon/credentials";
/// Where they lie when they are to be renewed without a restart.
const KEYS: &str = "/etc/andon/mqtt";
/// What is shipped for an operator to copy.
const EXAMPLES: &str = "/usr/share/doc/andon/examples";
/// The broker's certificates.
const CERTIFICATES: &str = "/etc/mosquitto/certs";
/// The broker's log.
const BROKER_LOG: &str = "/var/log/mosquitto/mosquitto.log";
/// The daemon's configuration.
pub(crate) const CONFIG: &str = "/etc/andon/andond.toml";
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
        let mut said = journal(&["--output", "short-monotonic"])?;
        // What a failure was is in the fields.
        said += &journal(&["--priority", "err", "--output", "verbose"])?;
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

    /// Puts the model that the host brought along in place; returns where.
    pub(crate) fn install_real_model(&self) -> Result<String> {
        let path = format!("{DAEMON_STATE}/real.gguf");
        fs::rename(REAL_MODEL, &path).with_context(|| format!("no model in {REAL_MODEL}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// Writes the configuration: the model, the broker as the shipped example for credentials has it, who may ask what,
    /// and `more` in TOML laid over it.
    pub(crate) fn configure(&self, more: &str) -> Result<()> {
        write_config(&Gateway::config(more)?)
    }

    /// The same for a broker that is shown no certificate.
    pub(crate) fn configure_without_certificate(&self, more: &str) -> Result<()> {
        let mut config = Gateway::config(more)?;
        let link = config.get_mut("mqtt").and_then(toml::Value::as_table_mut);
        let link = link.context("no broker is configured")?;
        for key in ["certificate-file", "key-file"] {
            link.remove(key)
                .with_context(|| format!("no {key} is configured"))?;
        }
        write_config(&config)
    }

    fn config(more: &str) -> Result<Table> {
        let text = format!(
            "[gateway]\nname = \"{GATEWAY}\"\n[model]\npath = \"{MODEL}\"\nname = \"tiny\"\n\
             [mqtt]\nport = {TLS_PORT}\nreconnect-max-s = 1\n\
             [http]\nlisten = \"127.0.0.1:{HTTP_PORT}\"\ntoken-file = \"/run/credentials/{DAEMON}/http.token\"\n\
             [[access]]\nusers = [\"root\", \"fitter\"]\n\
             [[access]]\nusers = [\"visitor\"]\npriority-max = \"batch\"\n\
             [[access]]\nloopback = true\n\
             [[access]]\nclients = [\"{CLIENT}\", \"{OTHER}\"]\n"
        );
        let mut config: Table = text.parse()?;
        merge(&mut config, documented(&example("credentials.conf")?)?);
        merge(&mut config, "[mqtt]\nhost = \"localhost\"\n".parse()?);
        merge(&mut config, more.parse()?);
        Ok(config)
    }

    /// Serves another model, to whoever may use the sockets, and nothing else.
    pub(crate) fn configure_model(&self, path: &str, name: &str) -> Result<()> {
        let lines = format!(
            "[model]\npath = \"{path}\"\nname = \"{name}\"\nkv-tokens-max = {KV_TOKENS_MAX}\n"
        );
        write_config(&lines.parse()?)
    }

    /// Makes the keys of the plant, and gives the broker and the service manager theirs, as the shipped example has it.
    pub(crate) fn install_keys(&self) -> Result<()> {
        let authority = Authority::at(&self.state.join("keys"))?;
        authority.sign_host("broker")?;
        for name in [GATEWAY_USER, CLIENT, OTHER] {
            authority.sign(name)?;
        }
        self.give_manager("ca.pem", "mqtt-ca.pem")?;
        self.give_manager_the_gateways()?;
        for (from, to) in [
            ("ca.pem", "plant-ca.pem"),
            ("broker.pem", "broker.pem"),
            ("broker.key", "broker.key"),
        ] {
            self.give_broker(from, to)?;
        }
        self.give_broker_the_revoked()?;
        self.hand_over("http.token", TOKEN)?;
        let shipped = example("credentials.conf")?;
        let named = uncommented(&shipped, "http.token")?;
        self.install_credentials(&named)
    }

    /// Lays a file of an operator's over the daemon's unit: which credentials it is handed over.
    pub(crate) fn install_credentials(&self, text: &str) -> Result<()> {
        let folder = format!("/etc/systemd/system/{DAEMON}.d");
        fs::create_dir_all(&folder)?;
        fs::write(format!("{folder}/credentials.conf"), text)?;
        systemctl(&["daemon-reload"]).map(drop)
    }

    /// Puts a secret where the service manager takes it from.
    pub(crate) fn hand_over(&self, name: &str, secret: &str) -> Result<()> {
        put(
            &Path::new(CREDENTIALS).join(name),
            secret.as_bytes(),
            "root",
            0o600,
        )
    }

    /// A file that the service manager hands over, as it was put there.
    pub(crate) fn handed_over(&self, name: &str) -> Result<Vec<u8>> {
        let path = Path::new(CREDENTIALS).join(name);
        fs::read(&path).with_context(|| path.display().to_string())
    }

    /// Puts the certificate that was last signed for the gateway, and its key, where the service manager takes them from.
    pub(crate) fn give_manager_the_gateways(&self) -> Result<()> {
        for ending in ["key", "pem"] {
            self.give_manager(
                &format!("{GATEWAY_USER}.{ending}"),
                &format!("mqtt.{ending}"),
            )?;
        }
        Ok(())
    }

    /// Puts a certificate of the gateway, the last one unless another is named, and its key where the daemon reads them itself.
    pub(crate) fn give_daemon_the_gateways(&self, name: &str) -> Result<()> {
        for ending in ["key", "pem"] {
            let bytes = fs::read(self.key(&format!("{name}.{ending}")))?;
            let to = Path::new(KEYS).join(format!("{GATEWAY_USER}.{ending}"));
            put(&to, &bytes, "andon", 0o640)?;
        }
        Ok(())
    }

    /// Has another certificate signed for the gateway, with another key; the former are kept under `former`.
    pub(crate) fn renew_gateway_keys(&self, former: &str) -> Result<()> {
        for ending in ["key", "pem"] {
            fs::rename(
                self.key(&format!("{GATEWAY_USER}.{ending}")),
                self.key(&format!("{former}.{ending}")),
            )?;
        }
        Ok(Authority::open(&self.state.join("keys")).sign(GATEWAY_USER)?)
    }

    /// Has the plant's authority revoke a certificate, and the broker know it; as its operator does, without a restart.
    pub(crate) fn revoke(&self, name: &str) -> Result<()> {
        Authority::open(&self.state.join("keys")).revoke(name)?;
        self.give_broker_the_revoked()?;
        // What reloading it does; the program that its unit does it with is not in this root.
        systemctl(&["kill", "--signal=HUP", "mosquitto.service"]).map(drop)
    }

    /// What the broker says to a certificate in a handshake, if it does not take it.
    pub(crate) fn is_turned_away(&self, name: &str) -> Result<Option<String>> {
        let mut command = Command::new("openssl");
        // With TLS 1.3 a client is not told before it has read something.
        command.args(["s_client", "-tls1_2", "-verify_return_error", "-connect"]);
        command.arg(format!("localhost:{TLS_PORT}"));
        for (option, file) in [
            ("-CAfile", "ca.pem".to_owned()),
            ("-cert", format!("{name}.pem")),
            ("-key", format!("{name}.key")),
        ] {
            command.arg(option).arg(self.key(&file));
        }
        let said = command.stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        Ok((!said.status.success()).then_some(text))
    }

    /// Lines for the configuration by which the daemon reads its certificate and key itself.
    pub(crate) fn own_keys(&self) -> String {
        format!(
            "[mqtt]\ncertificate-file = \"{KEYS}/{GATEWAY_USER}.pem\"\n\
             key-file = \"{KEYS}/{GATEWAY_USER}.key\"\n"
        )
    }

    /// A file of the plant's authority.
    fn key(&self, file: &str) -> PathBuf {
        self.state.join("keys").join(file)
    }

    fn give_manager(&self, from: &str, to: &str) -> Result<()> {
        let bytes = fs::read(self.key(from))?;
        put(&Path::new(CREDENTIALS).join(to), &bytes, "root", 0o600)
    }

    fn give_broker(&self, from: &str, to: &str) -> Result<()> {
        let to = Path::new(CERTIFICATES).join(to);
        put(&to, &fs::read(self.key(from))?, "mosquitto", 0o640)
    }

    fn give_broker_the_revoked(&self) -> Result<()> {
        self.give_broker("ca.crl", "plant.crl")
    }

    /// Sets mosquitto up by the files that are shipped as examples, and has it keep its state on the disk.
    pub(crate) fn install_broker(&self) -> Result<()> {
        let folder = Path::new("/etc/mosquitto");
        fs::write(folder.join("conf.d/andon.conf"), example("mosquitto.conf")?)?;
        fs::write(folder.join("andon.acl"), example("mosquitto.acl")?)?;
        // What it turns away is in its log only if all is.
        let kept = "autosave_interval 1\nautosave_on_changes true\nlog_type all\n";
        fs::write(folder.join("conf.d/kept.conf"), kept)?;
        systemctl(&["restart", "mosquitto.service"]).map(drop)
    }

    /// Has the broker listen on another port for clients that have a password, and none but the gateway.
    pub(crate) fn add_password_listener(&self, port: u16, password: &str) -> Result<()> {
        let folder = Path::new("/etc/mosquitto");
        let passwords = folder.join("passwords");
        let file = passwords.display().to_string();
        output(
            "mosquitto_passwd",
            &["-b", "-c", &file, GATEWAY_USER, password],
        )?;
        let bytes = fs::read(&passwords)?;
        put(&passwords, &bytes, "mosquitto", 0o640)?;
        let lines = format!(
            "password_file {file}\nlistener {port}\ncafile {CERTIFICATES}/plant-ca.pem\n\
             certfile {CERTIFICATES}/broker.pem\nkeyfile {CERTIFICATES}/broker.key\n"
        );
        // After the others, of which each goes on where the last left a listener.
        fs::write(folder.join("conf.d/password.conf"), lines)?;
        systemctl(&["restart", "mosquitto.service"]).map(drop)
    }

    /// What the broker has said.
    pub(crate) fn broker_log(&self) -> Result<String> {
        fs::read_to_string(BROKER_LOG).with_context(|| BROKER_LOG.to_owned())
    }

    /// How often the broker has denied `client` to publish to a topic.
    pub(crate) fn denied(&self, client: &str, topic: &str) -> Result<usize> {
        let log = self.broker_log()?;
        let begin = format!("Denied PUBLISH from {client} ");
        let lines = log
            .lines()
            .filter(|line| line.contains(&begin) && line.contains(&format!("'{topic}'")));
        Ok(lines.count())
    }

    /// Arguments that make one of mosquitto's clients a client of the floor, in a session that outlives its connections.
    pub(crate) fn floor_arguments(&self, client: &str) -> Vec<String> {
        let at = |name: &str| self.key(name).display().to_string();
        let port = TLS_PORT.to_string();
        let words = [
            ("-h", "localhost".to_owned()),
            ("-p", port),
            ("-i", client.to_owned()),
            ("-x", "3600".to_owned()),
            ("--cafile", at("ca.pem")),
            ("--cert", at(&format!("{client}.pem"))),
            ("--key", at(&format!("{client}.key"))),
        ];
        let words = words.into_iter();
        let mut all: Vec<String> = words
            .flat_map(|(option, value)| [option.to_owned(), value])
            .collect();
        all.push("-c".to_owned());
        all
    }

    /// Asks over the broker by the certificate of a client and in its name; the first message that comes of it, if one comes in
    /// time.
    pub(crate) fn ask_over_mqtt(
        &self,
        client: &str,
        request: &Value,
        seconds: u32,
    ) -> Result<Option<Value>> {
        self.ask_in_the_name(client, client, request, seconds)
    }

    /// The same in the name of `named`, whoever that is.
    pub(crate) fn ask_in_the_name(
        &self,
        named: &str,
        client: &str,
        request: &Value,
        seconds: u32,
    ) -> Result<Option<Value>> {
        let mut command = Command::new("mosquitto_rr");
        command
            .args(self.floor_arguments(client))
            .args(["-V", "mqttv5", "-q", "1"]);
        command.args(["-t", &request_topic(named)]);
        command.args(["-e", &answers(client), "-W", &seconds.to_string()]);
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
        let arguments = self.floor_arguments(CLIENT);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok(Watcher::start_with(
            TLS_PORT,
            &answers(CLIENT),
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

/// The topic that requests in the name of a client are published to.
pub(crate) fn request_topic(client: &str) -> String {
    format!("andon/{GATEWAY}/request/{client}")
}

/// The topic that a client of the floor has its answers on.
fn answers(client: &str) -> String {
    format!("andon/{GATEWAY}/response/{client}/display")
}

/// What is shipped as an example, by its name.
pub(crate) fn example(name: &str) -> Result<String> {
    let path = Path::new(EXAMPLES).join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The configuration that stands in an example's comments.
fn documented(example: &str) -> Result<Table> {
    let lines: Vec<&str> = example
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .collect();
    ensure!(!lines.is_empty(), "the example has no configuration");
    Ok(lines.join("\n").parse()?)
}

/// An example with the credential `name` handed over, too.
pub(crate) fn uncommented(example: &str, name: &str) -> Result<String> {
    let line = format!("#LoadCredential={name}:");
    ensure!(
        example.contains(&line),
        "the example does not know the credential {name}"
    );
    Ok(example.replace(&line, line.trim_start_matches('#')))
}

fn write_config(config: &Table) -> Result<()> {
    fs::write(CONFIG, config.to_string()).with_context(|| format!("cannot write {CONFIG}"))
}

/// Writes a file that one group may read; in one step, as whoever renews certificates does.
fn put(to: &Path, bytes: &[u8], group: &str, mode: u32) -> Result<()> {
    let folder = to.parent().context("a file has a folder")?;
    fs::create_dir_all(folder)?;
    let group = Group::from_name(group)?.with_context(|| format!("no group {group}"))?;
    let new = to.with_extension("new");
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    chown(&new, None, Some(group.gid.as_raw()))?;
    Ok(fs::rename(&new, to)?)
}

/// The number of a user.
pub(crate) fn user_id(name: &str) -> Result<u32> {
    let user = User::from_name(name)?.with_context(|| format!("no user {name}"))?;
    Ok(user.uid.as_raw())
}
