//! Certificates of an authority of the test's own, made while it runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::broker::succeed;

/// A new key on the curve that every TLS library takes.
const NEW: &str = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// What `openssl ca` goes by when it revokes.
const REVOKE: &str = "[ca]\ndefault_ca = plant\n[plant]\ndatabase = revoked.txt\ndefault_md = sha256\n\
    default_crl_days = 2\n";

/// An authority, with a folder for what it signs.
#[derive(Debug)]
pub struct Authority {
    path: PathBuf,
    /// Removes the folder, where that is ours.
    _folder: Option<TempDir>,
}

impl Authority {
    /// A new one; `None` where openssl is not installed.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn new() -> io::Result<Option<Authority>> {
        if Command::new("openssl").arg("version").output().is_err() {
            return Ok(None);
        }
        let folder = tempfile::Builder::new().prefix("andon-ca-").tempdir()?;
        let authority = Authority {
            path: folder.path().to_path_buf(),
            _folder: Some(folder),
        };
        authority.found()?;
        Ok(Some(authority))
    }

    /// A new one in a folder that stays.
    ///
    /// # Errors
    /// When openssl fails or is not installed.
    pub fn at(folder: &Path) -> io::Result<Authority> {
        fs::create_dir_all(folder)?;
        let authority = Authority {
            path: folder.to_path_buf(),
            _folder: None,
        };
        authority.found()?;
        Ok(authority)
    }

    /// The one that was made in a folder before.
    #[must_use]
    pub fn open(folder: &Path) -> Authority {
        Authority {
            path: folder.to_path_buf(),
            _folder: None,
        }
    }

    fn found(&self) -> io::Result<()> {
        fs::write(self.path("of-client"), "extendedKeyUsage=clientAuth")?;
        let host = "extendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost";
        fs::write(self.path("of-host"), host)?;
        self.openssl(&format!(
            "{NEW} -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"
        ))?;
        fs::write(self.path("revoke.cnf"), REVOKE)?;
        fs::write(self.path("revoked.txt"), "")?;
        self.list_revoked()
    }

    /// Signs a certificate of a client with this common name, which passes for no host's: `NAME.pem`, with its key `NAME.key`.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn sign(&self, name: &str) -> io::Result<()> {
        self.sign_as("of-client", name)
    }

    /// Signs a certificate of the host `localhost` with this common name, likewise.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn sign_host(&self, name: &str) -> io::Result<()> {
        self.sign_as("of-host", name)
    }

    /// Revokes the certificate `NAME.pem`: from now on `ca.crl` has it.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn revoke(&self, name: &str) -> io::Result<()> {
        self.revoking(&format!("-revoke {name}.pem"))?;
        self.list_revoked()
    }

    fn list_revoked(&self) -> io::Result<()> {
        self.revoking("-gencrl -out ca.crl")
    }

    fn revoking(&self, what: &str) -> io::Result<()> {
        self.openssl(&format!(
            "ca -config revoke.cnf -cert ca.pem -keyfile ca.key {what}"
        ))
    }

    fn sign_as(&self, extensions: &str, name: &str) -> io::Result<()> {
        self.openssl(&format!(
            "{NEW} -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ))?;
        self.openssl(&format!(
            "x509 -req -days 2 -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile {extensions} -out {name}.pem"
        ))
    }

    /// The path of a file: `ca.pem`, `ca.crl`, or of what was signed.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// The folder with everything.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    fn openssl(&self, arguments: &str) -> io::Result<()> {
        let mut command = Command::new("openssl");
        command.current_dir(&self.path);
        succeed(command.args(arguments.split(' '))).map(drop)
    }
}
