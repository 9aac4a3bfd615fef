//! The minimal root: Debian's, with systemd, a broker and nothing that is not needed; made once and kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{cache, shell};

/// What is in it beside what Debian calls essential.
const PACKAGES: [&str; 12] = [
    "systemd",
    "systemd-sysv",
    "udev",
    "kmod",
    "iproute2",
    "dbus",
    "libpam-systemd",
    "passwd",
    "mosquitto",
    "mosquitto-clients",
    "openssl",
    "libsqlite3-0",
];
/// What nobody reads in there.
const LEFT_OUT: [&str; 4] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];
/// A root as it was made; it is copied, never booted.
pub(crate) struct Base {
    folder: PathBuf,
}

impl Base {
    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Copies it.
    pub(crate) fn copy(&self, to: &Path) -> Result<()> {
        shell::run(
            Command::new("cp")
                .args(["--archive", "--reflink=auto"])
                .arg(&self.folder)
                .arg(to),
        )
    }
}

/// The root of this system's own release, since the programs are linked with its C library.
///
/// # Errors
/// When this is no Debian, or mmdebstrap fails.
pub(crate) fn base() -> Result<Base> {
    let suite = suite()?;
    let mut hash = Sha256::new();
    for word in PACKAGES.iter().chain(&LEFT_OUT) {
        hash.update(word);
        hash.update("\n");
    }
    let key: String = hash
        .finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = cache::folder()?.join(format!("root-{suite}-{key}"));
    if folder.is_dir() {
        return Ok(Base { folder });
    }
    println!("  making a root in {}", folder.display());
    // Beside its place, and moved there when it is whole.
    let new = folder.with_extension(format!("new-{}", process::id()));
    let mut make = shell::mortal("nice");
    make.args(["-n", "19", "mmdebstrap", "--quiet", "--variant=essential"]);
    make.arg(format!("--include={}", PACKAGES.join(",")));
    make.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    let made = shell::output(make.arg(&suite).arg(&new)).and_then(|_| {
        // Somebody else may have been faster; one is as good as the other.
        fs::rename(&new, &folder)
            .or_else(|error| if folder.is_dir() { Ok(()) } else { Err(error) })?;
        Ok(())
    });
    super::remove(&new)?;
    made.map(|()| Base { folder })
}

/// The name of this Debian's release.
fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(suite)) => Ok(suite),
        (id, _) => bail!(
            "the programs run on this system's C library only, and this is {}, not Debian",
            id.unwrap_or("nothing known")
        ),
    }
}
