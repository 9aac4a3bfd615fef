//! The configuration is read again, and certificates are renewed, while the unit goes on.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::gateway::{CLIENT, Gateway, PATIENCE, PROMPT};
use crate::units::{DAEMON, journal, number, property, systemctl, until};

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

/// A new certificate of the gateway is in use after a reload, and what is asked over the broker is answered.
pub(crate) fn certificates_are_renewed(gateway: &mut Gateway) -> Result<String> {
    let process = number(DAEMON, "MainPID")?;
    let connects = |gateway: &Gateway| -> Result<u64> {
        let text = gateway.http().get("/metrics")?.text();
        let figure = text
            .lines()
            .find_map(|line| line.strip_prefix("andon_mqtt_connects_total "));
        Ok(figure.context("no andon_mqtt_connects_total")?.parse()?)
    };
    let before = connects(gateway)?;
    gateway.renew_gateway_keys()?;
    systemctl(&["reload", DAEMON])?;
    let took = until("the broker is connected anew", PATIENCE, || {
        Ok(connects(gateway)? > before)
    })?;
    let asked = json!({ "id": "renewed", "prompt": PROMPT, "tokens_max": 2, "temperature": 0 });
    let answer = gateway.ask_over_mqtt(CLIENT, &asked, 20)?;
    ensure!(
        answer
            .as_ref()
            .is_some_and(|answer| answer["id"] == "renewed"),
        "no answer after the certificate was renewed: {answer:?}"
    );
    ensure!(
        number(DAEMON, "MainPID")? == process,
        "the daemon was started anew"
    );
    Ok(format!("in use after {} ms", took.as_millis()))
}
