//! Tells when the ways of the network change: by the kernel's word over netlink, or where that socket is not allowed (the unit
//! leaves it out) by looking at the tables of `/proc`.
//!
//! Invariant: what is read is bounded, and nothing of what it says is believed but that there was a change.

use std::hash::{DefaultHasher, Hasher as _};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::net::UnixDatagram;
use tokio::time::sleep;

/// What changes together is told once.
const SETTLE: Duration = Duration::from_millis(500);
/// How often the tables are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Most that is read of a table, in bytes: routers have long ones, of which the beginning does.
const TABLE_BYTES_MAX: u64 = 256 * 1024;
/// Links, addresses and routes of both families: `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`,
/// `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// What tells of changes.
#[derive(Debug)]
pub(super) enum Routes {
    /// The kernel.
    Told(UnixDatagram),
    /// The tables, as they were.
    Seen {
        /// Where they are.
        tables: [PathBuf; 2],
        /// What they held.
        digest: u64,
        /// How often they are looked at.
        every: Duration,
    },
}

impl Routes {
    /// What tells of changes from now on. `proc` is where the system shows its processes.
    pub(super) fn watch(proc: &Path) -> Routes {
        match listen() {
            Ok(routes) => routes,
            Err(error) => {
                tracing::debug!(%error, "no netlink; the tables of routes are looked at instead");
                Routes::look_at(proc, LOOK)
            }
        }
    }

    /// What looks at the tables.
    fn look_at(proc: &Path, every: Duration) -> Routes {
        let tables = ["route", "ipv6_route"].map(|name| proc.join("self/net").join(name));
        let digest = digest(&tables);
        Routes::Seen {
            tables,
            digest,
            every,
        }
    }

    /// Waits for a change, and until no further one follows at once. Nothing is lost where the future is dropped.
    pub(super) async fn changed(&mut self) {
        match self {
            Routes::Told(fd) => {
                if wait(fd).await.is_err() {
                    // It says no more; a minute without is better than a loop.
                    sleep(Duration::from_secs(60)).await;
                    return;
                }
                while tokio::time::timeout(SETTLE, wait(fd))
                    .await
                    .is_ok_and(|said| said.is_ok())
                {}
            }
            Routes::Seen {
                tables,
                digest,
                every,
            } => loop {
                sleep(*every).await;
                let now = self::digest(tables);
                if std::mem::replace(digest, now) != now {
                    return;
                }
            },
        }
    }
}

/// The socket is had as one of datagrams, which it is; of whose family is of no concern to who only reads.
fn listen() -> std::io::Result<Routes> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    let datagrams = std::os::unix::net::UnixDatagram::from(fd);
    Ok(Routes::Told(UnixDatagram::from_std(datagrams)?))
}

/// Waits for a message and throws away all that there are. Where some were lost there was a change as well.
async fn wait(datagrams: &UnixDatagram) -> std::io::Result<()> {
    let mut buffer = [0; 8192];
    datagrams.readable().await?;
    loop {
        match datagrams.try_recv(&mut buffer) {
            Ok(1..) => {}
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What the tables hold, but for how much they are used, in a number.
fn digest(tables: &[PathBuf; 2]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for table in tables {
        let mut text = String::new();
        let file = std::fs::File::open(table);
        let read = file.and_then(|file| file.take(TABLE_BYTES_MAX).read_to_string(&mut text));
        // One that is not there is an empty one: the family is off.
        if read.is_err() {
            text.clear();
        }
        for line in text.lines() {
            hasher.write(way(line).as_bytes());
            hasher.write_u8(b'\n');
        }
    }
    hasher.finish()
}

/// The columns of a line that say where it leads. Of IPv6's (ten, without a head) numbers 6 and 7 count its users and uses, of
/// IPv4's (eleven) numbers 4 and 5.
fn way(line: &str) -> String {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let counters = if columns.len() == 10 { 6..8 } else { 4..6 };
    let kept = columns
        .iter()
        .enumerate()
        .filter(|(at, _)| !counters.contains(at));
    kept.map(|(_, column)| *column)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010011AC\t0003\t0\t5\t0\t00000000\t0\t0\t0\n";
    const V6: &str = "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 \
        00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n";

    #[tokio::test]
    async fn a_table_that_says_another_way_is_a_change_and_one_that_counts_is_not() {
        let proc = tempfile::tempdir().expect("a folder");
        let net = proc.path().join("self/net");
        std::fs::create_dir_all(&net).expect("made");
        let put = |name: &str, text: &str| std::fs::write(net.join(name), text).expect("written");
        put("route", V4);
        put("ipv6_route", V6);
        let mut routes = Routes::look_at(proc.path(), Duration::from_millis(10));
        let soon = Duration::from_millis(300);
        put("route", &V4.replace("\t0\t5\t", "\t3\t99\t"));
        put(
            "ipv6_route",
            &V6.replace("00000001 00000000 ", "00000009 00000007 "),
        );
        assert!(tokio::time::timeout(soon, routes.changed()).await.is_err());
        put("route", &V4.replace("010011AC", "020011AC"));
        assert!(tokio::time::timeout(soon, routes.changed()).await.is_ok());
        assert!(tokio::time::timeout(soon, routes.changed()).await.is_err());
        std::fs::remove_file(net.join("ipv6_route")).expect("it was there");
        assert!(tokio::time::timeout(soon, routes.changed()).await.is_ok());
    }
}
