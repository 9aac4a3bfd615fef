//! What the daemon leaves to its operator: the journal's fields and explanations, and the audit stream.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use andond::telemetry::Event;
use anyhow::{Context, Result, ensure};
use nix::unistd::User;
use serde_json::Value;

use crate::gateway::{Gateway, PATIENCE, PROMPT};
use crate::units::{DAEMON, journal, output, property, until};

/// The tokens of an answer.
const TOKENS: u32 = 4;
/// Where the unit keeps the audit stream.
const AUDIT: &str = "/var/lib/andon/audit";

/// Through the sandbox of its unit the daemon sends fields to the journal, and the catalog explains events.
pub(crate) fn has_fields_and_explains(gateway: &mut Gateway) -> Result<String> {
    output("journalctl", &["--update-catalog"])?;
    gateway.ask(TOKENS)?;
    output("journalctl", &["--sync"])?;
    let unit = format!("_SYSTEMD_UNIT={DAEMON}");
    let entries = |of: &str| -> Result<Vec<Value>> {
        let said = journal(&["--output", "json", "--all", &unit, of])?;
        let parse = |line| serde_json::from_str(line).context("an entry is no JSON");
        said.lines().map(parse).collect()
    };
    let ready = format!("MESSAGE_ID={}", Event::Ready.id());
    let first = entries(&ready)?;
    let first = first.first().context("nobody says that it is ready")?;
    ensure!(first["MODEL"] == "tiny", "{first}");
    let explained = journal(&["--catalog", &unit, &ready])?;
    ensure!(
        explained.contains("andond answers requests with tiny"),
        "the catalog explains nothing:\n{explained}"
    );
    let answered = entries("MESSAGE=answered")?;
    let answered = answered.last().context("no answer is logged")?;
    let uid = User::from_name("andon")?.context("there is no user andon")?;
    for (field, value) in [
        ("CLIENT", "uid-0".to_owned()),
        ("ORIGIN", "http".to_owned()),
        ("MODEL", "tiny".to_owned()),
        ("ROUTE", "local".to_owned()),
        ("COMPLETION_TOKENS", TOKENS.to_string()),
        ("_UID", uid.uid.to_string()),
    ] {
        ensure!(answered[field] == value, "{field} in {answered}");
    }
    let id = answered["REQUEST_ID"].as_str().context("no REQUEST_ID")?;
    let all = journal(&["--output", "json", "--all", &unit])?;
    ensure!(!all.contains(PROMPT), "the journal has what was asked");
    let core = property(DAEMON, "LimitCORE")?;
    ensure!(core == "0", "core dumps may have {core} bytes");
    Ok(format!("{} entries, the last of {id}", all.lines().count()))
}

/// In the unit's state directory every answer is recorded, for the daemon's user only.
pub(crate) fn answers_are_recorded(gateway: &mut Gateway) -> Result<String> {
    gateway.configure("[audit]\nenabled = true\n")?;
    gateway.restart()?;
    gateway.ask(TOKENS)?;
    let read = || -> Result<String> {
        let mut text = String::new();
        for entry in fs::read_dir(AUDIT)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "jsonl") {
                text.push_str(&fs::read_to_string(path)?);
            }
        }
        Ok(text)
    };
    until("an answer is recorded", PATIENCE, || {
        Ok(read().is_ok_and(|text| text.ends_with('\n')))
    })?;
    let text = read()?;
    let record: Value = serde_json::from_str(text.lines().last().context("no record")?)?;
    for (field, value) in [
        ("model", Value::from("tiny")),
        ("uid", Value::from(0)),
        ("completion_tokens", Value::from(TOKENS)),
    ] {
        ensure!(record[field] == value, "{field} in {record}");
    }
    ensure!(!text.contains(PROMPT), "the records have what was asked");
    let mode = fs::metadata(Path::new(AUDIT))?.mode();
    ensure!(mode & 0o077 == 0, "others may look into {AUDIT}: {mode:o}");
    gateway.configure("")?;
    gateway.restart()?;
    Ok(format!("{} records", text.lines().count()))
}
