//! systemd's own opinion of the units in `systemd/`: every key known, every directive well-formed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;
use crate::stages::Outcome;

/// A key that no systemd knows; the check must complain about it, or it checks nothing.
const CONTROL: &str = "[Service]\nExecStart=/usr/bin/andond\nNoSuchDirective=yes\n";

/// Verifies every service and socket in a root of their own, where the programs exist.
pub(crate) fn check() -> Result<Outcome> {
    if shell::find("systemd-analyze").is_none() {
        return Ok(Outcome::Skipped("no systemd-analyze here".to_owned()));
    }
    let root = shell::target_directory().join("units");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let (units, programs) = (root.join("etc/systemd/system"), root.join("usr/bin"));
    fs::create_dir_all(&units)?;
    fs::create_dir_all(&programs)?;
    for program in ["andond", "andonctl"] {
        let path = programs.join(program);
        fs::write(&path, "#!/bin/sh\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(shell::root().join("systemd"))? {
        let path: PathBuf = entry?.path();
        let unit = path
            .extension()
            .is_some_and(|extension| extension == "service" || extension == "socket");
        if let (true, Some(name)) = (unit, path.file_name().and_then(|name| name.to_str())) {
            fs::copy(&path, units.join(name))?;
            names.push(name.to_owned());
        }
    }
    if let Some(complaint) = complaint(&root, &names)? {
        bail!("systemd-analyze verify: {complaint}");
    }
    fs::write(units.join("control.service"), CONTROL)?;
    if complaint(&root, &["control.service".to_owned()])?.is_none() {
        bail!("systemd-analyze verify takes an unknown key: the check is broken");
    }
    Ok(Outcome::Passed(names.join(", ")))
}

/// What systemd says against `units`; an unknown key is a complaint with exit status 0.
fn complaint(root: &Path, units: &[String]) -> Result<Option<String>> {
    let mut verify = Command::new("systemd-analyze");
    verify
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(format!("--root={}", root.display()));
    verify.args(units);
    println!("  $ {}", shell::line(&verify));
    let output = verify
        .stdin(Stdio::null())
        .output()
        .context("cannot run systemd-analyze")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() && said.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!("{}: {said}", output.status)))
}
