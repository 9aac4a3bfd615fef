//! Files, ports, abstract sockets and signals, by Landlock.
//!
//! A place is granted as what it is when it is granted: a folder that is later replaced by another of its name is not granted
//! any more, what comes and goes within it is. Nothing may be executed, no device node made, and nothing is said of connecting
//! to Unix sockets by path and of UDP, which the kernels of today do not confine.
//!
//! Invariant: what is not among the places cannot be opened, by whatever name.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    NetPort, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, Scope,
};

use crate::Unavailable;

/// The oldest Landlock that is of use: without [`AccessFs::Refer`] nothing could be moved from one folder to another.
const OLDEST: ABI = ABI::V2;
/// The newest of whose file accesses all were tried: devices are told apart.
const NEWEST_FILES: ABI = ABI::V5;
/// The same of network accesses.
const NEWEST_PORTS: ABI = ABI::V4;
/// The same of scopes.
const NEWEST_SCOPES: ABI = ABI::V6;

/// What stays open to a process. All of it is granted beneath what is named, and paths that are not there are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Files, and folders with what is in them, that are read.
    pub read: BTreeSet<PathBuf>,
    /// Folders in which files and folders are read, made, changed, moved and removed.
    pub keep: BTreeSet<PathBuf>,
    /// Folders in which Unix sockets are made, renamed and removed.
    pub sockets: BTreeSet<PathBuf>,
    /// Nodes of devices, and folders with such, that are read, written and told things.
    pub devices: BTreeSet<PathBuf>,
    /// TCP ports that are listened on; 0 is any that the kernel chooses.
    pub listen: BTreeSet<u16>,
    /// TCP ports that are connected to, of whatever host.
    pub connect: BTreeSet<u16>,
    /// Whether abstract Unix sockets of other processes may be connected to.
    pub abstract_sockets: bool,
}

impl Places {
    /// What of `self` is not in `other`, in words; none if `other` grants it all.
    #[must_use]
    pub fn beyond(&self, other: &Places) -> Vec<String> {
        let beneath = |path: &PathBuf, roots: &[&BTreeSet<PathBuf>]| {
            roots
                .iter()
                .any(|set| set.iter().any(|root| path.starts_with(root)))
        };
        let mut beyond = Vec::new();
        for (mine, theirs) in [
            (&self.read, &[&other.read, &other.keep][..]),
            (&self.keep, &[&other.keep][..]),
            (&self.sockets, &[&other.sockets][..]),
            (&self.devices, &[&other.devices][..]),
        ] {
            let missing = mine.iter().filter(|path| !beneath(path, theirs));
            beyond.extend(missing.map(|path| path.display().to_string()));
        }
        for (mine, theirs, what) in [
            (&self.listen, &other.listen, "listening on port"),
            (&self.connect, &other.connect, "port"),
        ] {
            beyond.extend(mine.difference(theirs).map(|port| format!("{what} {port}")));
        }
        beyond
    }
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

fn keeping() -> BitFlags<AccessFs> {
    reading()
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer
}

fn driving() -> BitFlags<AccessFs> {
    reading() | AccessFs::WriteFile | AccessFs::IoctlDev
}

fn binding() -> BitFlags<AccessFs> {
    AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile
}

fn cannot(error: &RulesetError) -> Unavailable {
    Unavailable(format!("Landlock: {error}"))
}

/// A set of rules without a rule, if the kernel's Landlock is new enough.
fn rules(abstract_sockets: bool) -> Result<RulesetCreated, Unavailable> {
    let old = |_| {
        Unavailable(
            "the kernel has no Landlock, has it turned off (lsm=), or has that of before Linux 5.19"
                .to_owned(),
        )
    };
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(OLDEST))
        .map_err(old)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST_FILES))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST_PORTS)))
        .and_then(|rules| {
            let mut scope = Scope::from_all(NEWEST_SCOPES);
            if abstract_sockets {
                scope &= !BitFlags::from(Scope::AbstractUnixSocket);
            }
            rules.scope(scope)
        })
        .map_err(|error| cannot(&error))?;
    rules.create().map_err(|error| cannot(&error))
}

/// Whether the kernel can do it.
///
/// # Errors
/// Why it cannot.
pub fn available() -> Result<(), Unavailable> {
    rules(true).map(drop)
}

/// Confines the calling thread, and what it starts, to `places`. Says by which version of Landlock: from 4 on ports are
/// confined, from 5 on what devices are told, from 6 on signals and abstract sockets. Says what was granted, too: the places
/// but for those that are not there or may not be looked at.
///
/// # Errors
/// The kernel cannot do it, or a path cannot be looked at for another reason than that it is not there or not allowed; nothing
/// is confined then.
pub fn restrict(places: &Places) -> Result<(u8, Places), Unavailable> {
    let mut rules = rules(places.abstract_sockets)?;
    let mut granted = places.clone();
    for (paths, granted, access) in [
        (&places.read, &mut granted.read, reading()),
        (&places.keep, &mut granted.keep, keeping()),
        (&places.sockets, &mut granted.sockets, binding()),
        (&places.devices, &mut granted.devices, driving()),
    ] {
        for path in paths {
            let Some(fd) = open(path)? else {
                granted.remove(path);
                continue;
            };
            // Of a file only what a file can have may be granted.
            let access = if path.is_dir() {
                access
            } else {
                access & AccessFs::from_file(NEWEST_FILES)
            };
            rules = rules
                .add_rule(PathBeneath::new(fd, access))
                .map_err(|error| cannot(&error))?;
        }
    }
    for (ports, access) in [
        (&places.listen, AccessNet::BindTcp),
        (&places.connect, AccessNet::ConnectTcp),
    ] {
        for &port in ports {
            rules = rules
                .add_rule(NetPort::new(port, access))
                .map_err(|error| cannot(&error))?;
        }
    }
    let status = rules.restrict_self().map_err(|error| cannot(&error))?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => {
            let version = u8::try_from(effective_abi as i32).unwrap_or(u8::MAX);
            Ok((version, granted))
        }
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => {
            Err(Unavailable("Landlock: it went away".to_owned()))
        }
    }
}

/// What `path` is now; none if it is not there or may not be looked at, and so cannot be used either.
fn open(path: &PathBuf) -> Result<Option<PathFd>, Unavailable> {
    match PathFd::new(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(PathFdError::OpenCall { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Unavailable(format!("Landlock: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn set(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
        paths.iter().cloned().collect()
    }

    /// In a thread of its own, which alone is confined.
    fn confined<T: Send>(places: &Places, f: impl FnOnce(u8) -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| f(restrict(places).expect("a kernel with Landlock").0));
            inside.join().expect("no panic")
        })
    }

    fn denied<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn files_are_read_and_kept_where_they_may_be_and_nowhere_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["read", "keep", "keep/from", "keep/to", "run", "other"] {
            fs::create_dir(at(name)).expect("made");
        }
        for name in ["read/a", "keep/from/a", "other/a", "file"] {
            fs::write(at(name), "text").expect("written");
        }
        let places = Places {
            read: set(&[at("read"), at("file"), at("absent")]),
            keep: set(&[at("keep")]),
            sockets: set(&[at("run")]),
            ..Places::default()
        };
        confined(&places, |_| {
            for name in ["read/a", "file", "keep/from/a"] {
                fs::read(at(name)).expect("it may be read");
            }
            fs::rename(at("keep/from/a"), at("keep/to/b")).expect("moved within");
            fs::write(at("keep/new"), "text").expect("made");
            fs::remove_dir(at("keep/from")).expect("removed");
            let socket = UnixListener::bind(at("run/s~")).expect("bound");
            fs::rename(at("run/s~"), at("run/s")).expect("renamed");
            fs::remove_file(at("run/s")).expect("removed");
            drop(socket);

            assert!(denied(fs::read(at("other/a"))));
            assert!(denied(fs::read_dir(folder.path())));
            assert!(denied(fs::write(at("read/a"), "other")));
            assert!(denied(fs::write(at("file"), "other")));
            assert!(denied(fs::remove_file(at("read/a"))));
            assert!(denied(fs::write(at("run/file"), "text")));
            assert!(denied(UnixListener::bind(at("keep/s"))));
            assert!(denied(std::os::unix::fs::symlink("a", at("keep/link"))));
            let moved = fs::rename(at("keep/to/b"), at("other/b"));
            assert!(moved.is_err(), "moved out");
        });
        // The thread alone is confined.
        fs::read(at("other/a")).expect("it may be read");
    }

    #[test]
    fn what_is_not_there_is_not_granted() {
        let folder = tempfile::tempdir().expect("a folder");
        let (there, absent) = (folder.path().to_owned(), folder.path().join("absent"));
        let places = Places {
            read: set(&[there.clone(), absent.clone(), "/no/such/folder".into()]),
            keep: set(std::slice::from_ref(&absent)),
            sockets: set(&[absent]),
            ..Places::default()
        };
        let granted = std::thread::scope(|scope| {
            let inside = scope.spawn(|| restrict(&places).expect("a kernel with Landlock").1);
            inside.join().expect("no panic")
        });
        assert_eq!(granted.read, set(&[there]));
        assert!(granted.keep.is_empty() && granted.sockets.is_empty());
        // What appears within a folder that was there can be reached.
        assert_eq!(places.beyond(&granted).len(), 3);
    }

    #[test]
    fn ports_are_those_that_were_named() {
        let there = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let allowed = there.local_addr().expect("its address");
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let forbidden = other.local_addr().expect("its address");
        let places = Places {
            connect: BTreeSet::from([allowed.port()]),
            ..Places::default()
        };
        confined(&places, |abi| {
            TcpStream::connect(allowed).expect("it may be connected to");
            let (connected, bound) = (
                TcpStream::connect(forbidden),
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)),
            );
            if abi >= 4 {
                assert!(denied(connected) && denied(bound));
            }
        });
    }

    #[test]
    fn abstract_sockets_of_others_are_closed_unless_they_are_needed() {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::{SocketAddr, UnixStream};
        let name = format!("andon-confine-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let _listener = UnixListener::bind_addr(&address).expect("bound");
        let with = |abstract_sockets| {
            let places = Places {
                abstract_sockets,
                ..Places::default()
            };
            confined(&places, |abi| (abi, UnixStream::connect_addr(&address)))
        };
        assert!(with(true).1.is_ok());
        let (abi, connected) = with(false);
        assert!(abi < 6 || denied(connected));
    }

    #[test]
    fn what_is_beyond_is_named() {
        let places = |read: &[&str], keep: &[&str], connect: &[u16]| Places {
            read: read.iter().map(PathBuf::from).collect(),
            keep: keep.iter().map(PathBuf::from).collect(),
            connect: connect.iter().copied().collect(),
            ..Places::default()
        };
        let now = places(&["/etc"], &["/var/a"], &[53, 1883]);
        assert!(now.beyond(&now).is_empty());
        let inside = places(&["/etc/x", "/var/a/b"], &["/var/a/c"], &[53]);
        assert!(inside.beyond(&now).is_empty());
        let outside = places(&["/srv"], &["/etc"], &[8883]);
        assert_eq!(outside.beyond(&now), ["/srv", "/etc", "port 8883"]);
        // A name that begins alike is another.
        assert_eq!(places(&["/etcetera"], &[], &[]).beyond(&now).len(), 1);
    }
}
