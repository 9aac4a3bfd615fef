//! systemd's own opinion of the units in `systemd/`: every key known, every directive well-formed, also with each drop-in that widens
//! the service; and how exposed the service is without them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;
use crate::stages::Outcome;

/// A key that no systemd knows; the check must complain about it, or it checks nothing.
const CONTROL: &str = "[Service]\nExecStart=/usr/bin/andond\nNoSuchDirective=yes\n";

/// How exposed the service may be, by `systemd-analyze security`, in tenths.
const EXPOSURE_TENTHS_MAX: u32 = 13;
/// The service.
const SERVICE: &str = "andond.service";
/// What keeps it below that; without, the check must find it above.
const STRICT: &str = "\nRootDirectory=";

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
    let dropped = drop_ins(&root, &units)?;
    let tenths = exposure(&units.join(SERVICE))?;
    if tenths > EXPOSURE_TENTHS_MAX {
        bail!(
            "systemd-analyze security: {SERVICE} is exposed by {}",
            figure(tenths)
        );
    }
    let strict = fs::read_to_string(units.join(SERVICE))?;
    let control = units.join("exposed.service");
    fs::write(&control, strict.replacen(STRICT, "\n#", 1))?;
    if exposure(&control)? <= EXPOSURE_TENTHS_MAX {
        bail!(
            "systemd-analyze security does not miss what a weaker unit lacks: the check is broken"
        );
    }
    Ok(Outcome::Passed(format!(
        "{}, with {}; exposed by {}",
        names.join(", "),
        dropped.join(", "),
        figure(tenths)
    )))
}

/// Verifies the service with each of the drop-ins that widen it, and with one that has an unknown key, of which it must complain.
fn drop_ins(root: &Path, units: &Path) -> Result<Vec<String>> {
    let folder = units.join(format!("{SERVICE}.d"));
    fs::create_dir_all(&folder)?;
    let place = folder.join("widened.conf");
    let mut names = Vec::new();
    for entry in fs::read_dir(shell::root().join("systemd/accelerators"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        fs::copy(entry.path(), &place)?;
        if let Some(complaint) = complaint(root, &[SERVICE.to_owned()])? {
            bail!("systemd-analyze verify with {name}: {complaint}");
        }
        names.push(name);
    }
    fs::write(&place, "[Service]\nNoSuchDirective=yes\n")?;
    if complaint(root, &[SERVICE.to_owned()])?.is_none() {
        bail!("systemd-analyze verify does not look at drop-ins: the check is broken");
    }
    fs::remove_dir_all(folder)?;
    names.sort();
    Ok(names)
}

/// How exposed a unit is, in tenths of what systemd counts.
fn exposure(unit: &Path) -> Result<u32> {
    let mut security = Command::new("systemd-analyze");
    security
        .args(["security", "--offline=true", "--no-pager"])
        .arg(unit)
        .env("LC_ALL", "C");
    println!("  $ {}", shell::line(&security));
    let output = security
        .stdin(Stdio::null())
        .output()
        .context("cannot run systemd-analyze")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let tenths = said
        .lines()
        .find_map(|line| line.split_once("Overall exposure level for "))
        .and_then(|(_, rest)| rest.split_once(": "))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|figure| {
            let (whole, tenth) = figure.split_once('.')?;
            Some(whole.parse::<u32>().ok()? * 10 + tenth.parse::<u32>().ok()?)
        });
    tenths.with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!(
            "systemd-analyze security says nothing of {}: {said}",
            unit.display()
        )
    })
}

fn figure(tenths: u32) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// What systemd says against `units`; an unknown key is a complaint with exit status 0.
pub(crate) fn complaint(root: &Path, units: &[String]) -> Result<Option<String>> {
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
