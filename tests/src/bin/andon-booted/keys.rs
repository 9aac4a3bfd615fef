//! Keys and certificates for one run, made by openssl when they are needed, and worth nothing afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::units::output;

/// How long a certificate is good; longer than any run.
const DAYS: &str = "2";

/// An authority that signs certificates.
pub(crate) struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Makes one in a folder of its own.
    pub(crate) fn new(folder: &Path) -> Result<Authority> {
        fs::create_dir_all(folder)?;
        let authority = Authority {
            folder: folder.to_path_buf(),
        };
        authority.make(
            "ca",
            "/CN=floor",
            &["-addext", "keyUsage=critical,keyCertSign"],
        )?;
        Ok(authority)
    }

    /// The certificate that vouches for all others.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate of this machine under its names and address.
    pub(crate) fn server(&self, name: &str) -> Result<Pair> {
        self.signed(
            name,
            &["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        )
    }

    /// A certificate that names a client.
    pub(crate) fn client(&self, name: &str) -> Result<Pair> {
        self.signed(name, &["-addext", "extendedKeyUsage=clientAuth"])
    }

    fn signed(&self, name: &str, more: &[&str]) -> Result<Pair> {
        let (ca, key) = (self.folder.join("ca.pem"), self.folder.join("ca.key"));
        let (ca, key) = (ca.display().to_string(), key.display().to_string());
        let mut all = vec!["-CA", ca.as_str(), "-CAkey", key.as_str()];
        all.extend_from_slice(more);
        all.extend_from_slice(&["-addext", "basicConstraints=critical,CA:FALSE"]);
        self.make(name, &format!("/CN={name}"), &all)
    }

    fn make(&self, name: &str, subject: &str, more: &[&str]) -> Result<Pair> {
        let at = |ending: &str| self.folder.join(format!("{name}.{ending}"));
        let pair = Pair {
            certificate: at("pem"),
            key: at("key"),
        };
        let (certificate, key) = (
            pair.certificate.display().to_string(),
            pair.key.display().to_string(),
        );
        let mut all = vec![
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-noenc",
        ];
        all.extend_from_slice(&[
            "-days",
            DAYS,
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &certificate,
        ]);
        all.extend_from_slice(more);
        output("openssl", &all)?;
        Ok(pair)
    }
}

/// A certificate and its key.
#[derive(Clone)]
pub(crate) struct Pair {
    /// The certificate, PEM.
    pub(crate) certificate: PathBuf,
    /// Its key, PEM.
    pub(crate) key: PathBuf,
}
