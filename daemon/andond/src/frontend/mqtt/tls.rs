//! Encryption of the link: rustls, trusting the configured authority and nothing else.
//!
//! The broker's certificate must name the configured host. The system's authorities are not asked: a
//! floor's broker has a certificate of its own authority, and any other would be somebody else's.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::credentials::Unusable;

/// Most certificates in one file.
const CERTIFICATES_MAX: usize = 64;
/// How long a broker has to turn a certificate away after the handshake, which with TLS 1.3 has ended for us by then. One that
/// takes it says nothing, and waits for our first words.
const WORD_MAX: Duration = Duration::from_secs(1);

/// What the configured files hold.
pub(super) struct Texts<'a> {
    /// Of `ca-file`.
    pub(super) ca: &'a [u8],
    /// Of `certificate-file` and `key-file`.
    pub(super) own: Option<(&'a [u8], &'a [u8])>,
}

/// How the broker is spoken to.
///
/// # Errors
/// What does not hold what it should, by its key in the configuration.
pub(super) fn client(texts: &Texts<'_>) -> Result<Arc<ClientConfig>, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("mqtt.ca-file", texts.ca)? {
        roots
            .add(certificate)
            .map_err(|error| Unusable::new("mqtt.ca-file", &error))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Unusable::new("mqtt.tls", &error))?
        .with_root_certificates(roots);
    let client = match texts.own {
        Some((certificate, key)) => {
            let chain = certificates("mqtt.certificate-file", certificate)?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|error| Unusable::new("mqtt.key-file", &error))?;
            // Also where they do not belong together.
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| Unusable::new("mqtt.certificate-file", &error))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(client))
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

/// Whether the broker takes a certificate, and ours takes the broker's: a handshake beside the connection in use, and not a word
/// of MQTT, so that the session is not disturbed.
///
/// # Errors
/// Why not, or why that could not be found out.
pub(super) async fn probe(
    client: Arc<ClientConfig>,
    host: &str,
    port: u16,
    patience: Duration,
) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let shaking = async {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let stream = TcpStream::connect((host, port)).await.map_err(text)?;
        let connector = TlsConnector::from(client);
        connector.connect(name, stream).await.map_err(text)
    };
    let mut stream = timeout(patience, shaking)
        .await
        .map_err(|_| "the broker does not answer".to_owned())??;
    match timeout(WORD_MAX, stream.read(&mut [0])).await {
        Err(_) | Ok(Ok(1..)) => Ok(()),
        Ok(Ok(0)) => Err("the broker hangs up".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
    }
}
