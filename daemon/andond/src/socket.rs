//! Listening Unix sockets: those that the service manager passes, and others that can be bound again after a crash and are
//! never stolen from a live daemon.
//!
//! Invariant: a path is replaced only if it is a socket that refuses connections, and unlinked at the end
//! only if it is still the socket that was bound here. What was passed is the manager's: its path is left alone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why a socket cannot be listened on.
#[derive(Debug)]
pub enum SocketError {
    /// Another process answers on the path.
    InUse(PathBuf),
    /// The path is taken by something that is not a socket.
    NotASocket(PathBuf),
    /// The configured group does not exist.
    UnknownGroup(String),
    /// What the service manager says that it passed cannot be taken.
    NotPassed(io::Error),
    /// A descriptor that the service manager passed, counted from 0, is no listening Unix socket with a path.
    NotListening(usize),
    /// The service manager passed a socket that the configuration does not name.
    Foreign(PathBuf),
    /// The system refused; the text names the step.
    Io(PathBuf, &'static str, io::Error),
}

impl std::fmt::Display for SocketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SocketError::InUse(path) => {
                write!(f, "another process listens on {}", path.display())
            }
            SocketError::NotASocket(path) => {
                write!(f, "{} exists and is not a socket", path.display())
            }
            SocketError::UnknownGroup(name) => write!(f, "there is no group {name}"),
            SocketError::NotPassed(error) => {
                write!(
                    f,
                    "the sockets of the service manager cannot be taken: {error}"
                )
            }
            SocketError::NotListening(index) => write!(
                f,
                "descriptor {index} of those that the service manager passed is no listening Unix stream socket with a path"
            ),
            SocketError::Foreign(path) => write!(
                f,
                "the service manager listens on {}, which the configuration does not name once as the socket of [http] or \
                 [wire], enabled",
                path.display()
            ),
            SocketError::Io(path, step, error) => {
                write!(f, "cannot {step} {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for SocketError {}

/// The sockets that the service manager listens on for the daemon, as long as nobody serves them.
#[derive(Debug, Default)]
pub struct Passed(Vec<(PathBuf, StdListener)>);

impl Passed {
    /// Those that were passed to this process; none the second time. To be called first of all in it.
    ///
    /// # Errors
    /// [`SocketError`], if one of them is of another kind.
    pub fn take() -> Result<Passed, SocketError> {
        Passed::of(andon_os::take_passed().map_err(SocketError::NotPassed)?)
    }

    fn of(descriptors: Vec<OwnedFd>) -> Result<Passed, SocketError> {
        let listener = |(index, descriptor): (usize, OwnedFd)| {
            let unfit = || SocketError::NotListening(index);
            if !andon_os::listens_for_streams(&descriptor).unwrap_or(false) {
                return Err(unfit());
            }
            let listener = StdListener::from(descriptor);
            // One of another family has no such address.
            let address = listener.local_addr().map_err(|_| unfit())?;
            let path = address.as_pathname().ok_or_else(unfit)?.to_owned();
            Ok((path, listener))
        };
        let all = descriptors.into_iter().enumerate().map(listener);
        Ok(Passed(all.collect::<Result<_, _>>()?))
    }

    /// Where they are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }

    /// A front end's socket: the one that was passed for its path, else one bound there as [`Socket::bind`] does.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn obtain(
        &mut self,
        path: &Path,
        mode: u32,
        group: Option<&str>,
    ) -> Result<Socket, SocketError> {
        let Some(index) = self.0.iter().position(|(passed, _)| passed == path) else {
            return Socket::bind(path, mode, group);
        };
        let (path, listener) = self.0.swap_remove(index);
        listener
            .set_nonblocking(true)
            .map_err(|error| SocketError::Io(path.clone(), "listen on", error))?;
        if let Some(how) = differs(&path, mode, group) {
            tracing::warn!(
                socket = %path.display(),
                "the socket of the service manager {how}; who may connect is for its unit to say (SocketMode=, SocketGroup=)"
            );
        }
        Ok(Socket {
            listener,
            place: None,
        })
    }

    /// Sees that each was asked for.
    ///
    /// # Errors
    /// [`SocketError::Foreign`]: clients of it would wait for ever.
    pub fn finish(self) -> Result<(), SocketError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((path, _)) => Err(SocketError::Foreign(path)),
        }
    }
}

/// How a socket that is there differs from what the configuration says of it.
fn differs(path: &Path, mode: u32, group: Option<&str>) -> Option<String> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Some(format!("cannot be found by clients ({error})")),
    };
    let is = metadata.permissions().mode() & 0o777;
    if is != mode {
        return Some(format!("has the mode {is:04o}, not socket-mode {mode:04o}"));
    }
    let group = group?;
    let named = nix::unistd::Group::from_name(group).ok().flatten();
    let same = named.is_some_and(|named| named.gid.as_raw() == metadata.gid());
    (!same).then(|| format!("has the group {}, not socket-group {group}", metadata.gid()))
}

/// A listening socket; one that was bound here unlinks its path when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: StdListener,
    place: Option<Place>,
}

/// Where a socket was bound; unlinks the path when dropped.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Binds `path` with the given permission bits and group.
    ///
    /// The socket is made under a temporary name and renamed into place once its mode and group are set,
    /// so nobody can connect in between.
    ///
    /// # Errors
    /// [`SocketError`], with nothing left behind.
    pub fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<Socket, SocketError> {
        let io = |step| move |error| SocketError::Io(path.to_owned(), step, error);
        let gid = match group {
            None => None,
            Some(name) => match nix::unistd::Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid),
                _ => return Err(SocketError::UnknownGroup(name.to_owned())),
            },
        };
        check_free(path)?;
        let mut temporary = path.as_os_str().to_owned();
        // Short enough that a path the kernel takes still fits with it; see `SOCKET_PATH_BYTES_MAX`.
        temporary.push("~");
        let temporary = PathBuf::from(temporary);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("replace")(error));
            }
            _ => {}
        }
        let listener = StdListener::bind(&temporary).map_err(io("bind"))?;
        let finish = || -> Result<(u64, u64), SocketError> {
            fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))
                .map_err(io("set the mode of"))?;
            if let Some(gid) = gid {
                nix::unistd::chown(&temporary, None, Some(gid))
                    .map_err(|error| io("set the group of")(error.into()))?;
            }
            listener.set_nonblocking(true).map_err(io("listen on"))?;
            let metadata = fs::symlink_metadata(&temporary).map_err(io("bind"))?;
            fs::rename(&temporary, path).map_err(io("bind"))?;
            Ok((metadata.dev(), metadata.ino()))
        };
        match finish() {
            Ok(identity) => Ok(Socket {
                listener,
                place: Some(Place {
                    path: path.to_owned(),
                    identity,
                }),
            }),
            Err(error) => {
                // The first error is the one to report.
                drop(fs::remove_file(&temporary));
                Err(error)
            }
        }
    }

    /// Whether the service manager listens on it, too, and goes on when the daemon has ended.
    #[must_use]
    pub fn is_passed(&self) -> bool {
        self.place.is_none()
    }

    /// The listener for the running runtime, and the place to keep until the path may go, if it is ours to unlink.
    ///
    /// # Errors
    /// What the runtime says when it registers the listener.
    pub fn into_listener(self) -> io::Result<(UnixListener, Option<Place>)> {
        Ok((UnixListener::from_std(self.listener)?, self.place))
    }
}

/// Fails unless `path` can be bound: absent, or a socket nobody answers on.
fn check_free(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::Io(path.to_owned(), "look at", error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog is a live daemon too.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::InUse(path.to_owned()))
        }
        Err(error) => Err(SocketError::Io(path.to_owned(), "try", error)),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            // Nothing can be done about a failure at the end; the next start replaces the path.
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_mode_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let socket = Socket::bind(&path, 0o600, None).expect("a free path");
        let mode = fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            Socket::bind(&path, 0o600, None),
            Err(SocketError::InUse(_))
        ));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        drop(StdListener::bind(&path).expect("a free path"));
        assert!(
            path.exists(),
            "the standard listener leaves its path behind"
        );
        let first = Socket::bind(&path, 0o600, None).expect("stale sockets are replaced");
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "precious").expect("writable");
        assert!(matches!(
            Socket::bind(&path, 0o600, None),
            Err(SocketError::NotASocket(_))
        ));
        drop(first);
        assert_eq!(fs::read(&path).expect("kept"), b"precious");
    }

    /// What a service manager has listened on, passed.
    fn passed(listeners: impl IntoIterator<Item = StdListener>) -> Passed {
        let descriptors = listeners.into_iter().map(OwnedFd::from).collect();
        Passed::of(descriptors).expect("listening sockets")
    }

    #[test]
    fn what_was_passed_is_served_and_its_path_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let (first, second) = (
            StdListener::bind(path("first")).expect("a free path"),
            StdListener::bind(path("second")).expect("a free path"),
        );
        let mut passed = passed([second, first.try_clone().expect("a copy")]);
        let obtain = |passed: &mut Passed, name: &str| {
            passed
                .obtain(&path(name), 0o600, None)
                .expect("passed, or a free path")
        };
        let ours = obtain(&mut passed, "third");
        assert!(!ours.is_passed());
        let socket = obtain(&mut passed, "first");
        assert!(socket.is_passed());
        assert_eq!(
            socket
                .listener
                .local_addr()
                .expect("an address")
                .as_pathname(),
            Some(&*path("first"))
        );
        drop((ours, socket));
        assert!(path("first").exists() && !path("third").exists());
        assert!(matches!(
            passed.finish(),
            Err(SocketError::Foreign(foreign)) if foreign == path("second")
        ));
        // The manager's own still takes connections.
        std::os::unix::net::UnixStream::connect(path("first")).expect("it listens");
        drop(first);
    }

    #[test]
    fn the_same_socket_twice_is_one_too_many() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = StdListener::bind(&path).expect("a free path");
        let mut passed = passed([listener.try_clone().expect("a copy"), listener]);
        passed.obtain(&path, 0o600, None).expect("passed");
        assert!(matches!(passed.finish(), Err(SocketError::Foreign(_))));
        assert!(Passed::default().finish().is_ok());
    }

    #[test]
    fn what_cannot_be_listened_on_by_its_path_is_refused() {
        use std::os::linux::net::SocketAddrExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let listener = StdListener::bind(directory.path().join("s")).expect("a free path");
        let name = format!("andon-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
        let no_path = StdListener::bind_addr(&address).expect("a free name");
        let datagram = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let file = fs::File::open("/dev/null").expect("a file");
        let unfit: [OwnedFd; 4] = [no_path.into(), datagram.into(), tcp.into(), file.into()];
        for descriptor in unfit {
            let first = listener.try_clone().expect("a copy").into();
            assert!(matches!(
                Passed::of(vec![first, descriptor]),
                Err(SocketError::NotListening(1))
            ));
        }
    }

    #[test]
    fn a_socket_that_lets_others_in_than_the_configuration_says_is_told_of() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let _socket = Socket::bind(&path, 0o600, None).expect("a free path");
        assert_eq!(differs(&path, 0o600, None), None);
        assert!(differs(&path, 0o660, None).is_some_and(|how| how.contains("0600")));
        assert!(differs(&path, 0o600, Some("no-such-group-anywhere")).is_some());
        assert!(differs(&directory.path().join("gone"), 0o600, None).is_some());
    }

    #[test]
    fn an_unknown_group_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let result = Socket::bind(&path, 0o600, Some("no-such-group-anywhere"));
        assert!(matches!(result, Err(SocketError::UnknownGroup(_))));
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0);
    }
}
