//! Who is at the other end of a Unix socket, as the kernel remembers it from the moment of the connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Most groups of a process (`NGROUPS_MAX` of Linux): a longer answer is none.
const GROUPS_MAX: usize = 65_536;
/// Groups for which there is room at first: nearly nobody is in more.
const GROUPS_USUAL: usize = 64;

/// A process at the other end of a Unix socket. What it changes of itself after it connected is not seen here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its process, as this process's PID namespace numbers it; 0 if it is in none that is seen from here.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its groups, each once: the effective one, and those beside it.
    pub groups: Vec<u32>,
}

/// Asks who connected the other end of a Unix socket.
///
/// Users and groups are numbers of this process's user namespace: one that it does not map is the overflow id, 65534.
/// Before Linux 4.13 the groups beside the effective one are not told, and left out.
///
/// # Errors
/// What the system says of a socket that is none, or none of a connection.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let fd = socket.as_fd().as_raw_fd();
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: there is room for as many bytes as are said, any of which are whole numbers; the descriptor is open for
    // as long as it is borrowed.
    let asked = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut bytes,
        )
    };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut groups = peer_groups(fd)?;
    groups.insert(0, credentials.gid);
    groups.sort_unstable();
    groups.dedup();
    Ok(Peer {
        pid: u32::try_from(credentials.pid).unwrap_or_default(),
        uid: credentials.uid,
        groups,
    })
}

/// The groups beside the effective one.
fn peer_groups(fd: libc::c_int) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; GROUPS_USUAL];
    loop {
        let room = groups.len().saturating_mul(size_of::<libc::gid_t>());
        let mut bytes = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: there is room for as many bytes as are said, any of which are whole numbers; the caller has borrowed
        // the open descriptor.
        let asked = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if asked == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // The room was too small, and `bytes` says what is needed.
            Some(libc::ERANGE) if count > groups.len() && count <= GROUPS_MAX => {
                groups.resize(count, 0);
            }
            Some(libc::ENOPROTOOPT) => return Ok(Vec::new()),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// The numbers of a line of this process's status.
    fn status(name: &str) -> Vec<u32> {
        let status = fs::read_to_string("/proc/self/status").expect("a process's facts");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let numbers = line.expect("the line").split_ascii_whitespace();
        numbers
            .map(|word| word.parse().expect("a number"))
            .collect()
    }

    #[test]
    fn a_peer_is_who_connected() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let peer = peer(&one).expect("a peer");
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(Some(&peer.uid), status("Uid:").get(1));
        let mut groups = status("Groups:");
        groups.extend(status("Gid:").get(1));
        groups.sort_unstable();
        groups.dedup();
        assert_eq!(peer.groups, groups);
    }

    #[test]
    fn a_socket_without_a_peer_is_an_error() {
        assert!(peer(fs::File::open("/dev/null").expect("it is there")).is_err());
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        // The kernel knows no user of a TCP connection, and says so by ids that nobody has.
        let stream = TcpStream::connect(address).expect("it listens");
        let nobody = peer(&stream).map_or(u32::MAX, |peer| peer.uid);
        assert_eq!(nobody, u32::MAX);
    }
}
