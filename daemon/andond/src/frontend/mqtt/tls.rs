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
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// How long a broker has to turn a certificate away after the handshake, which with TLS 1.3 has ended for us by then. One that
/// takes it says nothing, and waits for our first words.
const WORD_MAX: Duration = Duration::from_secs(1);

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
