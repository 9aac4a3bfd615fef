//! The daemon is started, and asked over everything it listens on.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use andon_tests::broker::succeed;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::gateway::{
    CLIENT, Gateway, HTTP_PORT, OTHER, PATIENCE, PROMPT, TOKEN, WIRE_SOCKET, request, request_topic,
};
use crate::units::{DAEMON, property, systemctl, until, until_journal};

/// What a start by a socket may take at most in a debug build on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(5);
/// What it may take at most in a build as it is shipped, with the model that tests know.
const START_PROMISED: Duration = Duration::from_millis(500);
/// How often such a start is measured: less often than makes the socket unit give up (`TriggerLimitBurst=`).
const STARTS: usize = 10;
/// Tokens of a short answer.
const TOKENS: u32 = 12;

/// Nothing runs but the sockets; who connects first is answered, and the service runs.
pub(crate) fn the_first_client_starts_the_daemon(gateway: &mut Gateway) -> Result<String> {
    started_by_socket(gateway, START_LIMIT)
}

/// The same where pages come slowly.
pub(crate) fn the_first_client_starts_the_daemon_slowly(gateway: &mut Gateway) -> Result<String> {
    started_by_socket(gateway, 2 * PATIENCE)
}

fn started_by_socket(gateway: &Gateway, limit: Duration) -> Result<String> {
    let took = start_by_socket(gateway)?;
    ensure!(
        took < limit,
        "{} ms from the connection to the first byte of the answer",
        took.as_millis()
    );
    Ok(format!(
        "{} ms from the connection to the first byte of the answer",
        took.as_millis()
    ))
}

/// Time from the connection of a first client to the first byte of the answer, which is the first token.
fn start_by_socket(gateway: &Gateway) -> Result<Duration> {
    let before = property(DAEMON, "ActiveState")?;
    ensure!(
        before == "inactive",
        "{DAEMON} is {before} before anybody asks"
    );
    let mut asked = request(TOKENS);
    asked["stream"] = Value::Bool(true);
    let mut events = gateway.http().events("/v1/completions", &asked)?;
    ensure!(events.status == 200, "status {}", events.status);
    let took = events.next().context("no event")??.after;
    let after = property(DAEMON, "ActiveState")?;
    ensure!(after == "active", "{DAEMON} is {after} and answers");
    events.rest()?;
    Ok(took)
}

/// As shipped and with a real model, every start by a socket keeps what is promised, but for the first of a new model, which
/// has its weights packed.
pub(crate) fn every_start_is_as_fast_as_promised(gateway: &mut Gateway) -> Result<String> {
    let stop = || systemctl(&["stop", DAEMON]);
    stop()?;
    let packing = start_by_socket(gateway)?;
    let mut took = Vec::new();
    for _ in 0..STARTS {
        stop()?;
        took.push(start_by_socket(gateway)?);
    }
    took.sort();
    let (least, middle) = (took[0], took[STARTS / 2]);
    let most = took[STARTS - 1];
    let figures = format!(
        "{STARTS} starts: {} to {} ms from the connection to the first byte of the answer, half of them within {} ms; the first \
         of the model {} ms",
        least.as_millis(),
        most.as_millis(),
        middle.as_millis(),
        packing.as_millis()
    );
    ensure!(most < START_PROMISED, "{figures}");
    Ok(figures)
}

/// The same question has the same answer, over HTTP.
pub(crate) fn over_http(gateway: &mut Gateway) -> Result<String> {
    let (first, second) = (gateway.ask(TOKENS)?, gateway.ask(TOKENS)?);
    ensure!(
        !first.is_empty() && first == second,
        "{first:?} and then {second:?}"
    );
    Ok(format!("{TOKENS} tokens"))
}

/// `andonctl` gets the answer that HTTP gets.
pub(crate) fn over_the_compact_socket(gateway: &mut Gateway) -> Result<String> {
    let expected = gateway.ask(TOKENS)?;
    let mut command = Command::new("andonctl");
    command.args([
        "--socket",
        WIRE_SOCKET,
        "ask",
        "--raw",
        "--json",
        "--temperature",
        "0",
    ]);
    command.args(["--tokens-max", &TOKENS.to_string(), PROMPT]);
    let said = succeed(&mut command)?;
    let answer: Value = serde_json::from_slice(&said.stdout).context("the answer is no JSON")?;
    ensure!(
        answer["text"] == expected.as_str(),
        "{answer} instead of {expected:?}"
    );
    Ok(format!("{TOKENS} tokens"))
}

/// A client of the floor asks over the broker, with a certificate, and so does the daemon answer.
pub(crate) fn over_mqtt(gateway: &mut Gateway) -> Result<String> {
    let expected = gateway.ask(TOKENS)?;
    // What is published before the daemon's session is there, no broker keeps.
    until_journal("connected to the broker", PATIENCE)?;
    let began = Instant::now();
    let answer = gateway.ask_over_mqtt(CLIENT, &asked("1"), 20)?;
    let took = began.elapsed();
    let answer = answer.context("no answer")?;
    ensure!(
        answer["type"] == "answer" && answer["answer"] == expected.as_str(),
        "{answer} instead of {expected:?}"
    );
    Ok(format!("answered after {} ms", took.as_millis()))
}

/// Without a certificate nobody gets in, and one client's certificate does not ask in another's name.
pub(crate) fn the_broker_turns_strangers_away(gateway: &mut Gateway) -> Result<String> {
    let mut stranger = Command::new("mosquitto_pub");
    let arguments = gateway.floor_arguments(CLIENT);
    // All but the certificate and its key.
    let certificate = arguments
        .iter()
        .position(|word| word == "--cert")
        .context("no certificate")?;
    stranger.args(&arguments[..certificate]);
    stranger.args([
        "-V",
        "mqttv5",
        "-q",
        "1",
        "-t",
        "andon/press-3/status",
        "-m",
        "{}",
    ]);
    if succeed(&mut stranger).is_ok() {
        bail!("the broker takes messages from clients without a certificate");
    }
    // The daemon takes what it is asked in the other's name; the broker is what keeps it from whoever else says it.
    let theirs = request_topic(OTHER);
    let denied = gateway.denied(CLIENT, &theirs)?;
    if let Some(answer) = gateway.ask_in_the_name(OTHER, CLIENT, &asked("stolen"), 1)? {
        bail!("an answer to what {CLIENT} asked as {OTHER}: {answer}");
    }
    until(
        "the broker says that it denied a request in another's name",
        PATIENCE,
        || Ok(gateway.denied(CLIENT, &theirs)? == denied + 1),
    )?;
    for client in [OTHER, CLIENT] {
        let own = gateway.ask_over_mqtt(client, &asked("own"), 20)?;
        ensure!(
            own.is_some_and(|answer| answer["id"] == "own"),
            "no answer to {client}, who asks in its own name"
        );
    }
    ensure!(
        gateway.denied(OTHER, &theirs)? == 0,
        "the broker denies {OTHER} its own name"
    );
    Ok(format!("denied to {CLIENT}, answered to {OTHER}: {theirs}"))
}

fn asked(id: &str) -> Value {
    json!({ "id": id, "prompt": PROMPT, "tokens_max": TOKENS, "temperature": 0 })
}

/// On the loopback listener nobody is answered without the token that the service manager handed over.
pub(crate) fn over_loopback_with_a_token(_: &mut Gateway) -> Result<String> {
    let ask = |header: Option<&str>| -> Result<String> {
        let mut link = TcpStream::connect((Ipv4Addr::LOCALHOST, HTTP_PORT))?;
        let header = header.map_or_else(String::new, |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        write!(
            link,
            "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n"
        )?;
        let mut reply = String::new();
        link.read_to_string(&mut reply)?;
        Ok(reply.lines().next().unwrap_or_default().to_owned())
    };
    let (without, wrong, right) = (ask(None)?, ask(Some("0123"))?, ask(Some(TOKEN))?);
    ensure!(
        without.contains(" 401 ") && wrong.contains(" 401 "),
        "without a token {without:?}, with a wrong one {wrong:?}"
    );
    ensure!(right.contains(" 200 "), "with the token {right:?}");
    let copy = format!("/run/credentials/{DAEMON}/http.token");
    let bits = std::fs::metadata(&copy)
        .with_context(|| copy.clone())?
        .permissions()
        .mode()
        & 0o7777;
    ensure!(bits & 0o077 == 0, "{copy} is {bits:o}");
    Ok(String::new())
}
