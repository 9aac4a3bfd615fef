//! Files that hold who we are and whom we trust, towards a broker and upstream servers: read within bounds, and made into TLS.
//!
//! What becomes of files that are replaced, broken or turned away is decided by who uses them.
//!
//! Invariant: nothing of what a file holds is in what is said of it.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

/// Most certificates in one file; the systems' own authorities are fewer than two hundred.
const CERTIFICATES_MAX: usize = 1024;

/// Why a file is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// The key that names it.
    pub(crate) key: &'static str,
    /// What is wrong with it. Nothing of what it holds.
    pub(crate) what: String,
}

impl Unusable {
    pub(crate) fn new(key: &'static str, what: &dyn std::fmt::Display) -> Unusable {
        Unusable {
            key,
            what: what.to_string(),
        }
    }
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// Reads a file of bounded size. Blocks as long as it takes.
///
/// # Errors
/// When it cannot be read or is too large.
pub(crate) fn read(
    key: &'static str,
    path: &Path,
    bytes_max: u64,
) -> Result<Zeroizing<Vec<u8>>, Unusable> {
    let failed = |error: std::io::Error| {
        Unusable::new(key, &format!("cannot read {}: {error}", path.display()))
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        let what = format!("{} has more than {bytes_max} bytes", path.display());
        return Err(Unusable::new(key, &what));
    }
    Ok(bytes)
}

/// Which file there is, as far as that is known without reading it: device, number, size, and when it was changed.
pub(crate) type Stamp = (u64, u64, u64, i64, i64);

/// The stamp of a file; `None` where there is none.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let facts = std::fs::metadata(path).ok()?;
    // The time of the last change of the file's entry cannot be set by whoever copies it with its old time.
    Some((
        facts.dev(),
        facts.ino(),
        facts.size(),
        facts.ctime(),
        facts.ctime_nsec(),
    ))
}

/// Authorities as PEM.
///
/// # Errors
/// When there is none, or one that is none.
pub(crate) fn authorities(key: &'static str, text: &[u8]) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(key, text)? {
        roots
            .add(certificate)
            .map_err(|error| Unusable::new(key, &error))?;
    }
    Ok(roots)
}

fn certificates(key: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        if found.len() == CERTIFICATES_MAX {
            let what = format!("more than {CERTIFICATES_MAX} certificates");
            return Err(Unusable::new(key, &what));
        }
        found.push(certificate.map_err(|error| Unusable::new(key, &error))?);
    }
    if found.is_empty() {
        return Err(Unusable::new(key, &"there is no certificate in it"));
    }
    Ok(found)
}

/// What we show: a certificate with those that it comes from, and its key, both as PEM, each after the key that names its file.
pub(crate) struct Own<'a> {
    pub(crate) certificate: (&'static str, &'a [u8]),
    pub(crate) key: (&'static str, &'a [u8]),
}

/// How others are spoken to who can show to come from these authorities.
///
/// # Errors
/// When what we show is none, or its halves do not belong together.
pub(crate) fn tls(roots: RootCertStore, own: Option<&Own<'_>>) -> Result<ClientConfig, Unusable> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Unusable::new("tls", &error))?
        .with_root_certificates(roots);
    let Some(own) = own else {
        return Ok(builder.with_no_client_auth());
    };
    let (name, text) = own.certificate;
    let chain = certificates(name, text)?;
    let key = PrivateKeyDer::from_pem_slice(own.key.1);
    let key = key.map_err(|error| Unusable::new(own.key.0, &error))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| Unusable::new(name, &error))
}
