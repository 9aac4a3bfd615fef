//! A file system of a test's own, as small as it needs it.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A mounted tmpfs; unmounted when it is dropped.
#[derive(Debug)]
pub struct Mount(TempDir);

impl Mount {
    /// Mounts one with these options. `None` where nothing may be mounted.
    ///
    /// # Panics
    /// When there is no folder to mount it on.
    #[must_use]
    pub fn make(options: &str) -> Option<Mount> {
        let mount = Mount(TempDir::new().expect("a folder"));
        mount
            .run(&["-t", "tmpfs", "-o", options, "tmpfs"])
            .then_some(mount)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs `mount` with these arguments on it.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> bool {
        let mut command = Command::new("mount");
        let status = command.args(arguments).arg(self.path()).status();
        status.is_ok_and(|status| status.success())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.path()).status());
    }
}
