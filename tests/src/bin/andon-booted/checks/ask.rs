//! The daemon is started, and asked over everything it listens on.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{self, succeed};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::gateway::{
    CLIENT, GATEWAY, Gateway, PATIENCE, PROMPT, TLS_PORT, WIRE_SOCKET, next, request,
};
use crate::units::{DAEMON, property};

/// What a start by a socket may take at most in a debug build on a busy machine. The bar for a release build is 500 ms.
const START_LIMIT: Duration = Duration::from_secs(5);
/// How soon who was told to come again does.
const AGAIN: Duration = Duration::from_millis(5);
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
    let before = property(DAEMON, "ActiveState")?;
    ensure!(
        before == "inactive",
        "{DAEMON} is {before} before anybody asks"
    );
    let mut asked = request(TOKENS);
    asked["stream"] = Value::Bool(true);
    let began = Instant::now();
    let mut events = loop {
        let events = gateway.http().events("/v1/completions", &asked)?;
        // While the model is loaded.
        if events.status != 503 || began.elapsed() > limit {
            break events;
        }
        thread::sleep(AGAIN);
    };
    ensure!(events.status == 200, "status {}", events.status);
    events.next().context("no event")??;
    let took = began.elapsed();
    let after = property(DAEMON, "ActiveState")?;
    ensure!(after == "active", "{DAEMON} is {after} and answers");
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
    let watcher = gateway.listen(None)?;
    let began = Instant::now();
    gateway
        .publish(&json!({ "id": "1", "prompt": PROMPT, "tokens_max": TOKENS, "temperature": 0 }))?;
    let seen = next(&watcher, |seen| seen.topic.ends_with("/1"))?;
    let took = began.elapsed();
    let answer = seen.json()?;
    ensure!(
        answer["type"] == "answer" && answer["answer"] == expected.as_str(),
        "{answer} instead of {expected:?}"
    );
    Ok(format!("answered after {} ms", took.as_millis()))
}

/// Without a certificate nobody gets in, and one client's certificate does not ask in another's name.
pub(crate) fn the_broker_turns_strangers_away(gateway: &mut Gateway) -> Result<String> {
    let topic = format!("andon/{GATEWAY}/request/{CLIENT}");
    let arguments = gateway.floor_arguments();
    let mut stranger = broker::client("mosquitto_pub", TLS_PORT);
    stranger
        .args(&arguments[..2])
        .args(["-V", "mqttv5", "-q", "1", "-t", &topic, "-m", "{}"]);
    if succeed(&mut stranger).is_ok() {
        bail!("the broker takes requests from clients without a certificate");
    }
    let watcher = gateway.listen(None)?;
    let mut thief = broker::client("mosquitto_pub", TLS_PORT);
    thief.args(&arguments).args([
        "-V",
        "mqttv5",
        "-q",
        "1",
        "-t",
        &format!("andon/{GATEWAY}/request/press5"),
    ]);
    let asked = json!({ "id": "stolen", "prompt": PROMPT, "tokens_max": 1 });
    thief.args(["-m", &asked.to_string(), "-D", "publish", "response-topic"]);
    thief.arg(format!("andon/{GATEWAY}/response/{CLIENT}/stolen"));
    // Mosquitto's client takes a refusal (reason 135) for a success: what counts is that nothing comes of it.
    succeed(&mut thief)?;
    gateway.publish(&json!({ "id": "own", "prompt": PROMPT, "tokens_max": 1 }))?;
    let first = next(&watcher, |_| true)?;
    ensure!(
        first.topic.ends_with("/own"),
        "an answer to what {CLIENT} asked as press5: {first:?}"
    );
    Ok(String::new())
}
