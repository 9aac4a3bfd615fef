//! What the installation left, and what the operator does next.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Context, Result, ensure};

use crate::gateway::{Gateway, user_id};
use crate::units::{DAEMON, SOCKETS, output, property, systemctl};

/// The highest exposure that `systemd-analyze security` may give the unit.
const EXPOSURE_MAX: f64 = 1.3;

/// The boot has made the user, and everything that was installed is where the system looks for it.
pub(crate) fn is_complete(_: &mut Gateway) -> Result<String> {
    let id = user_id("andon")?;
    ensure!(id < 1000, "andon is {id}, not a system user");
    for path in ["/usr/bin/andond", "/usr/bin/andonctl"] {
        let found = fs::metadata(path).with_context(|| path.to_owned())?;
        ensure!(
            found.uid() == 0 && found.permissions().mode() & 0o7777 == 0o755,
            "{path} is {:o} of {}",
            found.mode(),
            found.uid()
        );
    }
    for (path, owner, mode) in [
        ("/etc/andon", "root", 0o750),
        ("/etc/andon/andond.toml", "root", 0o640),
        ("/etc/andon/credentials", "root", 0o700),
        ("/var/lib/andon", "andon", 0o750),
    ] {
        let found = fs::metadata(path).with_context(|| path.to_owned())?;
        let (uid, bits) = (found.uid(), found.mode() & 0o7777);
        ensure!(
            uid == user_id(owner)? && bits == mode,
            "{path} is {bits:o} of {uid}"
        );
    }
    let socket = property(SOCKETS, "ActiveState")?;
    ensure!(socket == "active", "after the boot {SOCKETS} is {socket}");
    let failed = systemctl(&["--failed", "--no-legend", "--plain"])?;
    ensure!(
        failed.trim().is_empty(),
        "units failed at the boot: {failed}"
    );
    Ok(format!("andon is user {id}"))
}

/// systemd has nothing to say against the units, and gives them a low exposure.
pub(crate) fn verifies(_: &mut Gateway) -> Result<String> {
    let path = format!("/usr/lib/systemd/system/{DAEMON}");
    let said = output(
        "systemd-analyze",
        &["verify", "--man=no", "--recursive-errors=no", &path],
    )?;
    ensure!(said.trim().is_empty(), "systemd-analyze verify: {said}");
    let security = output("systemd-analyze", &["security", "--no-pager", DAEMON])?;
    let line = security
        .lines()
        .find(|line| line.contains("Overall exposure level"))
        .context("no exposure")?;
    let figure = line
        .split_whitespace()
        .find_map(|word| word.parse::<f64>().ok())
        .with_context(|| line.to_owned())?;
    ensure!(
        figure <= EXPOSURE_MAX,
        "an exposure of {figure}, which is more than {EXPOSURE_MAX}"
    );
    Ok(format!("exposure {figure}"))
}

/// What the operator does: people, a model, keys, a broker, the configuration.
pub(crate) fn set_up(gateway: &mut Gateway) -> Result<String> {
    output("useradd", &["--create-home", "--groups", "andon", "fitter"])?;
    output(
        "useradd",
        &["--create-home", "--groups", "andon", "visitor"],
    )?;
    output("useradd", &["--create-home", "passer-by"])?;
    gateway.install_model()?;
    gateway.install_keys()?;
    gateway.install_broker()?;
    gateway.configure("")?;
    Ok(String::new())
}

/// The operator adds a real model, which is served from then on.
pub(crate) fn serve_a_real_model(gateway: &mut Gateway) -> Result<String> {
    let model = gateway.install_real_model()?;
    gateway.configure_model(&model, "real")?;
    gateway.restart()?;
    gateway.ask(8)
}
