//! Encryption of the link: rustls, trusting the configured authority and nothing else.
//!
//! The broker's certificate must name the configured host. The system's authorities are not asked: a
//! floor's broker has a certificate of its own authority, and any other would be somebody else's.

use std::path::Path;
use std::sync::Arc;

use rumqttc::{TlsConfiguration, Transport};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::mqtt::MqttConfig;

/// Most certificates in one file.
const CERTIFICATES_MAX: usize = 64;
/// Largest file with certificates or a key, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How the broker is reached: plainly, or encrypted with what the configured files hold now.
///
/// # Errors
/// A file that cannot be read or does not hold what it should, by its key in the configuration.
pub(super) fn transport(config: &MqttConfig) -> Result<Transport, String> {
    if !config.tls {
        return Ok(Transport::Tcp);
    }
    let ca = config.ca_file.as_deref().ok_or("mqtt.ca-file is not set")?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates("mqtt.ca-file", ca)? {
        roots
            .add(certificate)
            .map_err(|error| format!("mqtt.ca-file {}: {error}", ca.display()))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let client = match (&config.certificate_file, &config.key_file) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("mqtt.certificate-file", certificate)?;
            let key = private_key("mqtt.key-file", key)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("mqtt.certificate-file and mqtt.key-file: {error}"))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Transport::tls_with_config(TlsConfiguration::Rustls(
        Arc::new(client),
    )))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{key} {}: {error}", path.display());
    check_size(path).map_err(|error| failed(&error))?;
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))? {
        if found.len() == CERTIFICATES_MAX {
            return Err(failed(&format!(
                "more than {CERTIFICATES_MAX} certificates"
            )));
        }
        found.push(certificate.map_err(|error| failed(&error))?);
    }
    if found.is_empty() {
        return Err(failed(&"there is no certificate in it"));
    }
    Ok(found)
}

fn private_key(key: &str, path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{key} {}: {error}", path.display());
    check_size(path).map_err(|error| failed(&error))?;
    PrivateKeyDer::from_pem_file(path).map_err(|error| failed(&error))
}

fn check_size(path: &Path) -> Result<(), String> {
    let bytes = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!(
            "it has {bytes} bytes, at most {FILE_BYTES_MAX} are read"
        ));
    }
    Ok(())
}
