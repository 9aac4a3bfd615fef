//! The configuration is read again, and certificates are renewed in each of the ways that systemd/README.md has, and revoked.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use andond::telemetry::Event;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::gateway::{
    CLIENT, GATEWAY_USER, Gateway, PATIENCE, PROMPT, TLS_PORT, example, uncommented,
};
use crate::units::{DAEMON, journal, number, property, systemctl, until, until_journal};

/// What the service sees of its credentials.
const CREDENTIALS: &str = "/run/credentials/andond.service";
/// A broker's listener for clients that have passwords and no certificates.
const PASSWORD_PORT: u16 = TLS_PORT + 1;
/// The gateway's password there.
const PASSWORD: &str = "8c1f5e92-not-to-be-seen";
/// The gateway's certificate that was renewed first.
const FIRST: &str = "first";
/// The one after it.
const SECOND: &str = "second";

/// Tokens of an answer where nobody says how many.
fn unsaid(gateway: &Gateway) -> Result<u64> {
    let body = json!({ "prompt": PROMPT, "temperature": 0 });
    let answer = gateway.http().post("/v1/completions", &body)?.json()?;
    let tokens = answer["usage"]["completion_tokens"].as_u64();
    tokens.with_context(|| format!("{answer} has no tokens"))
}

/// `systemctl reload` has a live key hold, and fails where the file has a problem, which then changes nothing; the process stays.
pub(crate) fn by_the_service_manager(gateway: &mut Gateway) -> Result<String> {
    let process = number(DAEMON, "MainPID")?;
    gateway.configure("[limits]\ntokens-max-default = 3\n[engine]\nparallel-max = 3\n")?;
    systemctl(&["reload", DAEMON])?;
    let tokens = unsaid(gateway)?;
    ensure!(tokens == 3, "{tokens} tokens after a reload to 3");
    let said = journal(&["--unit", DAEMON])?;
    ensure!(
        said.contains("limits.tokens-max-default  live")
            && said.contains("engine.parallel-max  needs a restart"),
        "the journal does not say what became of the keys:\n{said}"
    );
    gateway.configure("[limits]\ntokens-max-default = 5\nno-such-key = 1\n")?;
    ensure!(
        systemctl(&["reload", DAEMON]).is_err(),
        "a reload succeeds with an unknown key"
    );
    let said = journal(&["--unit", DAEMON])?;
    ensure!(
        said.contains("limits.no-such-key"),
        "the journal does not name the key:\n{said}"
    );
    let tokens = unsaid(gateway)?;
    ensure!(tokens == 3, "{tokens} tokens after a reload that failed");
    gateway.configure("")?;
    systemctl(&["reload", DAEMON])?;
    ensure!(
        property(DAEMON, "ActiveState")? == "active" && number(DAEMON, "MainPID")? == process,
        "the daemon was not only reloaded"
    );
    Ok(String::new())
}

/// What is asked over the broker is answered, once the daemon has its session there.
fn is_answered(gateway: &Gateway, id: &str) -> Result<()> {
    until_journal("connected to the broker", PATIENCE)?;
    let asked = json!({ "id": id, "prompt": PROMPT, "tokens_max": 2, "temperature": 0 });
    // An answer that the broker had not confirmed when the daemon was started anew comes once more before this one.
    until(&format!("{id} is answered"), PATIENCE, || {
        let answer = gateway.ask_over_mqtt(CLIENT, &asked, 20)?;
        Ok(answer.is_some_and(|answer| answer["type"] == "answer" && answer["id"] == id))
    })
    .map(drop)
}

/// How often the daemon has connected to the broker.
fn connects(gateway: &Gateway) -> Result<u64> {
    let text = gateway.http().get("/metrics")?.text();
    let figure = text
        .lines()
        .find_map(|line| line.strip_prefix("andon_mqtt_connects_total "));
    Ok(figure.context("no andon_mqtt_connects_total")?.parse()?)
}

/// Credentials are the service's alone, copied when it starts: a renewed certificate is put where the service manager takes
/// it from, and used from the next start.
pub(crate) fn credentials_are_renewed_by_a_restart(gateway: &mut Gateway) -> Result<String> {
    for name in ["mqtt-ca.pem", "mqtt.pem", "mqtt.key", "http.token"] {
        let copy = format!("{CREDENTIALS}/{name}");
        let found = fs::metadata(&copy).with_context(|| copy.clone())?;
        let bits = found.permissions().mode() & 0o7777;
        ensure!(bits & 0o077 == 0, "{copy} is {bits:o}");
        let seen = fs::read(&copy)?;
        ensure!(seen == gateway.handed_over(name)?, "{copy} is another file");
    }
    let (copy, process) = (
        format!("{CREDENTIALS}/mqtt.pem"),
        number(DAEMON, "MainPID")?,
    );
    let before = fs::read(&copy)?;
    gateway.renew_gateway_keys(FIRST)?;
    gateway.give_manager_the_gateways()?;
    systemctl(&["reload", DAEMON])?;
    ensure!(
        fs::read(&copy)? == before && number(DAEMON, "MainPID")? == process,
        "a reload hands credentials over anew: the manual says otherwise"
    );
    gateway.restart()?;
    let after = fs::read(&copy)?;
    ensure!(
        after != before && after == gateway.handed_over("mqtt.pem")?,
        "after a restart {copy} is not the certificate that was renewed"
    );
    is_answered(gateway, "restarted")?;
    Ok("the former copy after a reload, the new one after a restart".to_owned())
}

/// Where the configuration names files of their own for them, a new certificate and its key are in use after a reload.
pub(crate) fn own_files_are_renewed_by_a_reload(gateway: &mut Gateway) -> Result<String> {
    gateway.give_daemon_the_gateways(GATEWAY_USER)?;
    gateway.configure(&gateway.own_keys())?;
    gateway.restart()?;
    is_answered(gateway, "own-files")?;
    let process = number(DAEMON, "MainPID")?;
    let before = connects(gateway)?;
    gateway.renew_gateway_keys(SECOND)?;
    gateway.give_daemon_the_gateways(GATEWAY_USER)?;
    systemctl(&["reload", DAEMON])?;
    let took = until("the broker is connected anew", PATIENCE, || {
        Ok(connects(gateway)? > before)
    })?;
    is_answered(gateway, "renewed")?;
    ensure!(
        number(DAEMON, "MainPID")? == process,
        "the daemon was started anew"
    );
    Ok(format!("in use after {} ms", took.as_millis()))
}

/// What was renewed is revoked: by the former certificate nobody gets in any more, and the daemon that is given it says so and
/// goes on with the one that it has.
pub(crate) fn the_former_certificate_is_refused(gateway: &mut Gateway) -> Result<String> {
    for name in [FIRST, SECOND, GATEWAY_USER] {
        if let Some(said) = gateway.is_turned_away(name)? {
            bail!("{name} is turned away before it is revoked: {said}");
        }
    }
    gateway.revoke(FIRST)?;
    gateway.revoke(SECOND)?;
    for name in [FIRST, SECOND] {
        until("the broker knows the list", PATIENCE, || {
            Ok(gateway.is_turned_away(name)?.is_some())
        })?;
        let said = gateway.is_turned_away(name)?.unwrap_or_default();
        ensure!(
            said.contains("certificate revoked"),
            "{name} is turned away for another reason: {said}"
        );
    }
    if let Some(said) = gateway.is_turned_away(GATEWAY_USER)? {
        bail!("the certificate in use is turned away, too: {said}");
    }
    is_answered(gateway, "revoked")?;

    let (process, before) = (number(DAEMON, "MainPID")?, connects(gateway)?);
    gateway.give_daemon_the_gateways(SECOND)?;
    systemctl(&["reload", DAEMON])?;
    let refused = format!("MESSAGE_ID={}", Event::CredentialsRefused.id());
    until("the daemon says that it is turned away", PATIENCE, || {
        Ok(journal(&["--output", "cat", &refused])?.contains("not used"))
    })?;
    is_answered(gateway, "former-refused")?;
    ensure!(
        number(DAEMON, "MainPID")? == process && connects(gateway)? == before,
        "a certificate that is turned away ends the connection in use"
    );
    gateway.configure("")?;
    gateway.restart()?;
    // The credentials are still those that were renewed once, and revoked since.
    gateway.give_manager_the_gateways()?;
    gateway.restart()?;
    is_answered(gateway, "credentials-again")?;
    Ok("alert: certificate revoked".to_owned())
}

/// A broker that knows the gateway by a password gets the one that the service manager handed over.
pub(crate) fn a_password_is_handed_over(gateway: &mut Gateway) -> Result<String> {
    gateway.add_password_listener(PASSWORD_PORT, PASSWORD)?;
    let shipped = example("credentials.conf")?;
    let named = uncommented(&shipped, "http.token")?;
    gateway.install_credentials(&uncommented(&named, "mqtt-password")?)?;
    let more = format!(
        "[mqtt]\nport = {PASSWORD_PORT}\nusername = \"{GATEWAY_USER}\"\n\
         password-file = \"{CREDENTIALS}/mqtt-password\"\n"
    );
    gateway.hand_over("mqtt-password", "another")?;
    gateway.configure_without_certificate(&more)?;
    gateway.restart()?;
    until("the broker turns a wrong password away", PATIENCE, || {
        let log = gateway.broker_log()?;
        Ok(log.contains("not authorised"))
    })?;
    gateway.hand_over("mqtt-password", PASSWORD)?;
    gateway.restart()?;
    is_answered(gateway, "password")?;
    let said = journal(&["--output", "json", "--all"])?;
    ensure!(!said.contains(PASSWORD), "the journal has the password");
    gateway.install_credentials(&named)?;
    gateway.configure("")?;
    gateway.restart()?;
    is_answered(gateway, "certificate-again")?;
    Ok("a wrong one is turned away".to_owned())
}
