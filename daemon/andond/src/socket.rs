//! Listening Unix sockets that can be bound again after a crash and are never stolen from a live daemon.
//!
//! Invariant: a path is replaced only if it is a socket that refuses connections, and unlinked at the end
//! only if it is still the socket that was bound here.

use std::fs;
use std::io;
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
            SocketError::Io(path, step, error) => {
                write!(f, "cannot {step} {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for SocketError {}

/// A bound socket; unlinks its path when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: StdListener,
    place: Place,
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
                place: Place {
                    path: path.to_owned(),
                    identity,
                },
            }),
            Err(error) => {
                // The first error is the one to report.
                drop(fs::remove_file(&temporary));
                Err(error)
            }
        }
    }

    /// The listener for the running runtime, and the place to keep until the path may go.
    ///
    /// # Errors
    /// What the runtime says when it registers the listener.
    pub fn into_listener(self) -> io::Result<(UnixListener, Place)> {
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

    #[test]
    fn an_unknown_group_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let result = Socket::bind(&path, 0o600, Some("no-such-group-anywhere"));
        assert!(matches!(result, Err(SocketError::UnknownGroup(_))));
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0);
    }
}
