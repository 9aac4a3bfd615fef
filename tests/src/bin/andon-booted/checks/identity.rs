//! Who may do what on this machine.

use anyhow::{Result, ensure};

use crate::gateway::Gateway;

/// Exit status of `andonctl` when no daemon answers it.
const NO_DAEMON: i32 = 3;

/// Members of the daemon's group may ask, others not.
pub(crate) fn users_have_different_rights(gateway: &mut Gateway) -> Result<String> {
    let ask = ["ask", "--tokens-max", "2", "Why?"];
    let member = gateway.andonctl_as("fitter", &ask)?;
    ensure!(
        member.status.success(),
        "a member of the group may not ask: {}",
        String::from_utf8_lossy(&member.stderr)
    );
    let other = gateway.andonctl_as("visitor", &ask)?;
    let said = String::from_utf8_lossy(&other.stderr);
    ensure!(
        other.status.code() == Some(NO_DAEMON),
        "somebody who is no member may ask: {} {said}",
        other.status
    );
    ensure!(said.contains("ermission denied"), "{said}");
    Ok(String::new())
}
