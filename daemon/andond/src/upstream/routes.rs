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
use tokio::time::{Instant, sleep, timeout_at};

/// What changes together is told once: when nothing more has changed for so long,
const SETTLE: Duration = Duration::from_millis(500);
/// or after so long, whatever goes on.
const SETTLE_MAX: Duration = Duration::from_secs(3);
/// How often the tables are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Most that is read of a table, in bytes: routers have long ones, of which the beginning does.
const TABLE_BYTES_MAX: u64 = 256 * 1024;
/// Links, addresses and routes of both families: `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`,
/// `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// What tells of changes.
#[derive(Debug)]
pub(super) struct Routes {
    source: Source,
    /// Where the tables are.
    tables: [PathBuf; 2],
    /// Since when there is a change that was not told yet, and when there was the latest.
    pending: Option<(Instant, Instant)>,
}

#[derive(Debug)]
enum Source {
    /// The kernel.
    Told(UnixDatagram),
    /// The tables.
    Seen {
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
            Ok(datagrams) => Routes::told(datagrams, proc),
            Err(error) => {
                tracing::debug!(%error, "no netlink; the tables of routes are looked at instead");
                Routes::look_at(proc, LOOK)
            }
        }
    }

    /// What hears of them in datagrams.
    fn told(datagrams: UnixDatagram, proc: &Path) -> Routes {
        Routes {
            source: Source::Told(datagrams),
            tables: tables(proc),
            pending: None,
        }
    }

    /// What looks at the tables.
    fn look_at(proc: &Path, every: Duration) -> Routes {
        let tables = tables(proc);
        Routes {
            source: Source::Seen {
                digest: digest(&tables),
                every,
            },
            tables,
            pending: None,
        }
    }

    /// Waits for a change, and until no further one follows at once. Nothing is lost where the future is dropped: what was heard
    /// until then is told the next time.
    pub(super) async fn changed(&mut self) {
        loop {
            let Some((since, last)) = self.pending else {
                self.next().await;
                let now = Instant::now();
                self.pending = Some((now, now));
                continue;
            };
            let until = (last + SETTLE).min(since + SETTLE_MAX);
            match timeout_at(until, self.next()).await {
                Ok(()) => self.pending = Some((since, Instant::now())),
                Err(_) => {
                    self.pending = None;
                    return;
                }
            }
        }
    }

    /// Waits for the next change.
    async fn next(&mut self) {
        if let Source::Told(datagrams) = &self.source {
            let Err(error) = heard(datagrams).await else {
                return;
            };
            // What was there last may have changed with the last word.
            tracing::debug!(%error, "netlink says no more; the tables of routes are looked at instead");
            self.source = Source::Seen {
                digest: digest(&self.tables),
                every: LOOK,
            };
            return;
        }
        while let Source::Seen { digest, every } = &mut self.source {
            sleep(*every).await;
            let now = self::digest(&self.tables);
            if std::mem::replace(digest, now) != now {
                return;
            }
        }
    }
}

fn tables(proc: &Path) -> [PathBuf; 2] {
    ["route", "ipv6_route"].map(|name| proc.join("self/net").join(name))
}

/// The socket is had as one of datagrams, which it is; of whose family is of no concern to who only reads.
fn listen() -> std::io::Result<UnixDatagram> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    let datagrams = std::os::unix::net::UnixDatagram::from(fd);
    UnixDatagram::from_std(datagrams)
}

/// Waits for a message and throws away all that there are. Where some were lost there was a change as well.
async fn heard(datagrams: &UnixDatagram) -> std::io::Result<()> {
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
        let soon = SETTLE + Duration::from_millis(300);
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

    /// One that hears what is sent to the other end of a pair.
    fn pair() -> (Routes, UnixDatagram) {
        let (there, here) = UnixDatagram::pair().expect("a pair");
        (Routes::told(here, Path::new("/proc")), there)
    }

    #[tokio::test]
    async fn a_change_is_told_though_nobody_waits_when_it_comes() {
        let (mut routes, kernel) = pair();
        kernel.send(b"route").await.expect("sent");
        // Whoever waits turns to something else while it settles, again and again.
        for _ in 0..20 {
            let short = Duration::from_millis(20);
            if tokio::time::timeout(short, routes.changed()).await.is_ok() {
                return;
            }
            assert!(routes.pending.is_some());
        }
        let rest = tokio::time::timeout(SETTLE, routes.changed()).await;
        assert!(rest.is_ok(), "it was lost");
        // It is told once.
        let again = tokio::time::timeout(2 * SETTLE, routes.changed()).await;
        assert!(again.is_err());
    }

    #[tokio::test]
    async fn changes_without_end_are_told_all_the_same() {
        let (mut routes, kernel) = pair();
        let flapping = tokio::spawn(async move {
            while kernel.send(b"route").await.is_ok() {
                sleep(SETTLE / 5).await;
            }
        });
        let began = Instant::now();
        let told = tokio::time::timeout(2 * SETTLE_MAX, routes.changed()).await;
        assert!(told.is_ok(), "nobody hears of it");
        assert!(began.elapsed() >= SETTLE_MAX, "{:?}", began.elapsed());
        flapping.abort();
    }

    #[tokio::test]
    async fn the_tables_are_looked_at_where_the_kernel_says_no_more() {
        let proc = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(proc.path().join("self/net")).expect("made");
        let (there, here) = UnixDatagram::pair().expect("a pair");
        let mut routes = Routes::told(here, proc.path());
        // An empty datagram is what such a socket reads at its end.
        there.send(&[]).await.expect("sent");
        let told = tokio::time::timeout(2 * SETTLE, routes.changed()).await;
        assert!(told.is_ok(), "what it would have said last is lost");
        assert!(matches!(routes.source, Source::Seen { .. }));
        std::fs::write(proc.path().join("self/net/route"), V4).expect("written");
        let told = tokio::time::timeout(2 * LOOK, routes.changed()).await;
        assert!(told.is_ok());
    }
}
