//! The same root booted by user-mode Linux: a kernel of its own, which keeps to limits of memory, and forgets with its
//! power what was not written to its disk. nspawn shows neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::boot::{Ended, Machine};
use crate::shell;

/// Where Debian puts the kernel.
const KERNEL: &str = "linux.uml";
/// Size of the disk; what is not used of it takes no room.
const DISK_BYTES: u64 = 1 << 30;
/// The machine's memory.
const MEMORY: &str = "mem=1024M";

/// Puts the kernel's first process before it, so that all of it ends at once, and bounds the addresses it looks through
/// for a place of its own, which takes minutes otherwise.
const ALONE: [&str; 10] = [
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child=SIGKILL",
    "--mount-proc",
    "sh",
    "-c",
    "ulimit -v 6000000 && exec \"$@\"",
];

/// A machine of which the root lies on a disk of its own.
pub(crate) struct Disk<'a> {
    machine: &'a Machine,
    image: PathBuf,
}

impl<'a> Disk<'a> {
    /// Writes the root of a machine to a disk; the folder of results is the host's own.
    pub(crate) fn new(machine: &'a Machine, folder: &Path) -> Result<Disk<'a>> {
        let root = machine.root();
        let table = format!("none /results hostfs {} 0 0\n", machine.results().display());
        fs::write(root.join("etc/fstab"), table)?;
        fs::create_dir_all(root.join("results"))?;
        let image = folder.join("root.img");
        let file =
            fs::File::create(&image).with_context(|| format!("cannot make {}", image.display()))?;
        file.set_len(DISK_BYTES)?;
        let mut make =
            Command::new(shell::find("mke2fs").context("no mke2fs here (package e2fsprogs)")?);
        make.args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(&root)
            .arg(&image);
        shell::run(&mut make)?;
        Ok(Disk { machine, image })
    }

    /// Boots it and waits for its end, or for it to ask for its power to be cut, and cuts it.
    pub(crate) fn boot(&self, phase: &str) -> Result<Ended> {
        let mut command = shell::mortal(ALONE[0]);
        command
            .args(&ALONE[1..])
            .arg("uml")
            .arg(shell::find(KERNEL).context("no linux.uml here")?);
        command.arg(format!("ubd0={}", self.image.display()));
        command.args([
            MEMORY,
            "root=/dev/ubda",
            "rw",
            "con=null",
            "con0=null,fd:1",
            "ssl=null",
            "panic=-1",
        ]);
        command.stdin(Stdio::null());
        self.machine.watch(command, phase)
    }
}
