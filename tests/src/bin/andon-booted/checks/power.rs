//! The power goes in the middle of an answer, and comes back.

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::sync;
use serde_json::{Value, json};

use crate::gateway::{CLIENT, Gateway, HTTP_SOCKET, PATIENCE, PROMPT, WIRE_SOCKET, next};
use crate::units::{DAEMON, SOCKETS, output, property, systemctl, until, until_active};

/// Tokens that are still being made when the power goes.
const TOKENS: u32 = 1000;
/// How long an answer that was delivered is watched for again.
const QUIET: Duration = Duration::from_millis(500);
/// Longer than the broker takes to write a change down.
const BROKER_WRITES: Duration = Duration::from_millis(2500);

/// Something is asked that takes long; when the answer has begun, the host is told to cut the power.
pub(crate) fn is_cut_in_mid_answer(gateway: &mut Gateway) -> Result<String> {
    let expected = gateway.ask(TOKENS)?;
    fs::write(gateway.result("expected"), &expected)?;
    systemctl(&["enable", DAEMON, "mosquitto.service"])?;
    // The broker has to know on its disk for whom answers are kept; its acknowledgement does not say that it does.
    drop(gateway.listen()?);
    thread::sleep(BROKER_WRITES);
    // What an operator set up long ago is on the disk; of what comes now, only what the daemon itself puts there.
    sync();
    let asked = json!({ "id": "cut", "prompt": PROMPT, "tokens_max": TOKENS, "temperature": 0, "stream": true });
    let first = gateway
        .ask_over_mqtt(CLIENT, &asked, 20)?
        .context("no answer begins")?;
    ensure!(
        first["type"] == "chunk",
        "no time to cut the power: {first}"
    );
    File::create(gateway.result("cut"))?;
    thread::sleep(PATIENCE);
    bail!("the power was not cut")
}

/// The daemon that the boot started answers what the one before it had accepted, whole and under a higher attempt.
pub(crate) fn what_was_asked_is_answered(gateway: &mut Gateway) -> Result<String> {
    let began = Instant::now();
    until_active(DAEMON, PATIENCE)?;
    let watcher = gateway.listen()?;
    let expected = fs::read_to_string(gateway.result("expected"))?;
    let answer = next(&watcher, |seen| {
        seen.json().is_ok_and(|message| message["type"] != "chunk")
    })
    .context("no answer to what was asked before the power went")?
    .json()?;
    ensure!(
        answer["type"] == "answer" && answer["id"] == "cut",
        "{answer}"
    );
    ensure!(
        answer["answer"] == expected.as_str(),
        "another answer than without a cut: {answer}"
    );
    let attempt = answer["attempt"].as_u64().unwrap_or(0);
    ensure!(
        attempt >= 2,
        "attempt {attempt}: the power was cut after the answer"
    );
    let took = began.elapsed();
    until("the answer counts as delivered", PATIENCE, || {
        let kept = output("andonctl", &["spool", "ls", "--client", CLIENT, "--json"])?;
        let mut kept = kept
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(kept.any(|entry| entry["id"] == "cut" && entry["state"] == "delivered"))
    })?;
    if let Ok(again) = watcher.next(QUIET) {
        bail!("a message after the answer: {again:?}");
    }
    Ok(format!(
        "attempt {attempt}, {} ms after the check began",
        took.as_millis()
    ))
}

/// `systemctl stop` ends the daemon well; its sockets stay for whoever comes, until they are stopped too.
pub(crate) fn stops_cleanly(gateway: &mut Gateway) -> Result<String> {
    gateway.ask(2)?;
    let began = Instant::now();
    systemctl(&["stop", DAEMON])?;
    let took = began.elapsed();
    let ended = |unit: &str| -> Result<()> {
        let (state, result) = (property(unit, "ActiveState")?, property(unit, "Result")?);
        ensure!(
            (state.as_str(), result.as_str()) == ("inactive", "success"),
            "{unit} is {state}, {result}"
        );
        Ok(())
    };
    ended(DAEMON)?;
    // Whatever it is told while the model is being loaded.
    gateway.http().get("/healthz")?;
    until_active(DAEMON, PATIENCE).context("nobody is started for who comes to the sockets")?;
    systemctl(&["stop", SOCKETS, DAEMON])?;
    ended(DAEMON)?;
    ended(SOCKETS)?;
    for socket in [HTTP_SOCKET, WIRE_SOCKET] {
        ensure!(!fs::exists(socket)?, "{socket} is left behind");
    }
    Ok(format!("{} ms", took.as_millis()))
}
