//! Who may do what on this machine.

use anyhow::{Result, ensure};

use crate::gateway::Gateway;

/// Exit status of `andonctl` when it was refused.
const REFUSED: i32 = 1;
/// Exit status of `andonctl` when no daemon answers it.
const NO_DAEMON: i32 = 3;

/// What a user may ask is what the rule for that user says, by the word of the kernel; who is no member of the sockets' group does
/// not come so far.
pub(crate) fn users_have_different_rights(gateway: &mut Gateway) -> Result<String> {
    let ask = |user: &str, class: &str| {
        gateway.andonctl_as(
            user,
            &["ask", "--tokens-max", "2", "--priority", class, "Why?"],
        )
    };
    for (user, class, allowed) in [
        ("fitter", "alarm", true),
        ("fitter", "batch", true),
        ("visitor", "batch", true),
        ("visitor", "interactive", false),
        ("visitor", "alarm", false),
    ] {
        let done = ask(user, class)?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(
            done.status.success() == allowed,
            "{user} asks with the class {class}: {} {said}",
            done.status
        );
        ensure!(
            allowed || done.status.code() == Some(REFUSED),
            "{user} is not refused but {}: {said}",
            done.status
        );
    }
    let other = ask("passer-by", "batch")?;
    let said = String::from_utf8_lossy(&other.stderr);
    ensure!(
        other.status.code() == Some(NO_DAEMON),
        "somebody who is no member may ask: {} {said}",
        other.status
    );
    ensure!(said.contains("ermission denied"), "{said}");
    Ok(String::new())
}
