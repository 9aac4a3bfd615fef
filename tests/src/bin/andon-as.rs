//! Connects to a Unix socket as another user of this machine, and carries bytes between it and the pipes that it was
//! started with: what a test says here, that user says there.
//!
//! It becomes the user before it connects, for good, so it has to be started by root.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

/// Connects as another user.
#[derive(Debug, Parser)]
struct Arguments {
    /// The user's number.
    #[arg(long)]
    user: u32,
    /// The numbers of its groups, the effective one first.
    #[arg(long, required = true, value_delimiter = ',')]
    groups: Vec<u32>,
    /// The socket; one without a folder in its path is that of the current folder, which alone the user has to reach.
    socket: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let groups: Vec<Gid> = arguments
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let first = *groups.first().context("no group")?;
    // The user last: afterwards nothing of it can be changed.
    setgroups(&groups).context("the groups")?;
    setgid(first).context("the group")?;
    setuid(Uid::from_raw(arguments.user)).context("the user")?;
    let socket = UnixStream::connect(&arguments.socket).context("the socket")?;
    let writer = socket.try_clone()?;
    // Ends with the process: a client that says nothing more may still be told something.
    thread::spawn(move || carry(io::stdin().lock(), writer));
    carry(socket, io::stdout().lock()).context("from the socket")
}

fn carry(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut piece = [0; 4096];
    loop {
        let bytes = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        to.write_all(piece.get(..bytes).unwrap_or_default())?;
        to.flush()?;
    }
}
