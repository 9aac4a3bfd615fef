//! What the files hold that an upstream's section names: its key, the authorities that its certificate may come from, the
//! certificate that it is shown, and the login at the proxy.
//!
//! The key is read for each question; the others when a connection may be made and one of them has changed.
//!
//! Invariant: nothing of what they hold is in a text that is made here, and headers made of them are marked as secrets.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::connect::HTTP2;
use crate::config::upstream::{self, UpstreamConfig};
use crate::credential::{self, Own, Stamp, Unusable};

/// Largest file with a key or a login, in bytes.
const SECRET_BYTES_MAX: u64 = 8 * 1024;
/// Largest file with certificates or a certificate's key, in bytes.
const CERTIFICATES_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The keys of the section.
const API_KEY: &str = "api-key-file";
pub(super) const CA: &str = "ca-file";
const CERTIFICATE: &str = "certificate-file";
const KEY: &str = "key-file";
const PROXY_LOGIN: &str = "proxy-login-file";

/// How the files are that connections are made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamps([Option<Stamp>; 4]);

impl Stamps {
    pub(super) fn of(config: &UpstreamConfig) -> Stamps {
        let files = [
            &config.ca_file,
            &config.certificate_file,
            &config.key_file,
            &config.proxy_login_file,
        ];
        Stamps(files.map(|file| credential::stamp(&upstream::credential(file.as_deref()?))))
    }
}

/// The key that an upstream is shown, as a header that is marked as a secret. Blocks as long as the file takes.
///
/// # Errors
/// Why the file is of no use.
pub(super) fn key(config: &UpstreamConfig) -> Result<Option<HeaderValue>, Unusable> {
    let Some(file) = &config.api_key_file else {
        return Ok(None);
    };
    let path = upstream::credential(file);
    let bytes = credential::read(API_KEY, &path, SECRET_BYTES_MAX)?;
    let key = bytes.trim_ascii();
    if key.is_empty() || !key.iter().all(u8::is_ascii_graphic) {
        let what = format!("{} holds no key in one line", path.display());
        return Err(Unusable::new(API_KEY, &what));
    }
    secret(API_KEY, b"Bearer ", key).map(Some)
}

/// How the proxy is told who connects, likewise.
///
/// # Errors
/// As for [`key`].
pub(super) fn login(config: &UpstreamConfig) -> Result<Option<HeaderValue>, Unusable> {
    let Some(file) = &config.proxy_login_file else {
        return Ok(None);
    };
    let path = upstream::credential(file);
    let bytes = credential::read(PROXY_LOGIN, &path, SECRET_BYTES_MAX)?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // The name ends at the first colon; the password may have some.
    let has_both = line
        .iter()
        .position(|&byte| byte == b':')
        .is_some_and(|at| at > 0);
    if !has_both || line.iter().any(u8::is_ascii_control) {
        let what = format!("{} holds no name:password in one line", path.display());
        return Err(Unusable::new(PROXY_LOGIN, &what));
    }
    let encoded = Zeroizing::new(STANDARD.encode(line));
    secret(PROXY_LOGIN, b"Basic ", encoded.as_bytes()).map(Some)
}

fn secret(name: &'static str, kind: &[u8], value: &[u8]) -> Result<HeaderValue, Unusable> {
    let text = Zeroizing::new([kind, value].concat());
    let mut value = HeaderValue::from_bytes(&text)
        .map_err(|_| Unusable::new(name, &"it holds what no header can have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// How an upstream is spoken to over TLS; `None` if it is spoken to in the clear.
///
/// # Errors
/// Why a file is of no use.
pub(super) fn tls(config: &UpstreamConfig) -> Result<Option<Arc<ClientConfig>>, Unusable> {
    if !config.is_secure() {
        return Ok(None);
    }
    let read = |name, file: &_| {
        credential::read(name, &upstream::credential(file), CERTIFICATES_BYTES_MAX)
    };
    let roots = match &config.ca_file {
        Some(file) => credential::authorities(CA, &read(CA, file)?)?,
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let what = "this system has no authorities of its own";
                return Err(Unusable::new(CA, &what));
            }
            roots
        }
    };
    let shown = match (&config.certificate_file, &config.key_file) {
        (Some(certificate), Some(key)) => Some((read(CERTIFICATE, certificate)?, read(KEY, key)?)),
        _ => None,
    };
    let own = shown.as_ref().map(|(certificate, key)| Own {
        certificate: (CERTIFICATE, certificate),
        key: (KEY, key),
    });
    let mut client = credential::tls(roots, own.as_ref())?;
    client.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Arc::new(client)))
}

/// Reads all of them, as a question would.
///
/// # Errors
/// The first that is of no use, and why.
pub(super) fn check(config: &UpstreamConfig) -> Result<(), Unusable> {
    key(config)?;
    login(config)?;
    tls(config).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_line_and_a_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let config = UpstreamConfig {
            api_key_file: Some(path.clone()),
            ..UpstreamConfig::default()
        };
        std::fs::write(&path, "hunter2\n").expect("written");
        let value = key(&config).expect("a key").expect("a key");
        assert_eq!(value.as_bytes(), b"Bearer hunter2");
        assert!(value.is_sensitive() && !format!("{value:?}").contains("hunter2"));
        for bad in [
            "",
            "\n",
            "hunter2 hunter3",
            "hunter2\nX-Other: 1",
            "h\u{fc}nter2",
        ] {
            std::fs::write(&path, bad).expect("written");
            let error = key(&config).expect_err(bad);
            assert!(!error.what.contains("unter2"), "{error}");
        }
        std::fs::write(&path, "x".repeat(9000)).expect("written");
        assert!(key(&config).expect_err("too long").what.contains("8192"));
        assert_eq!(key(&UpstreamConfig::default()), Ok(None));
    }

    #[test]
    fn a_login_is_a_name_and_a_password_in_one_line_and_a_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("login");
        let config = UpstreamConfig {
            proxy_login_file: Some(path.clone()),
            ..UpstreamConfig::default()
        };
        // The example of RFC 7617, and what it says of colons and other letters.
        for (line, expected) in [
            (
                "Aladdin:open sesame\n",
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            ),
            ("test:123\u{a3}\r\n", "Basic dGVzdDoxMjPCow=="),
            ("a::b", "Basic YTo6Yg=="),
            ("a:", "Basic YTo="),
        ] {
            std::fs::write(&path, line).expect("written");
            let value = login(&config).expect(line).expect("a login");
            assert_eq!(value.as_bytes(), expected.as_bytes());
            assert!(value.is_sensitive());
        }
        for bad in [
            "",
            "\n",
            ":",
            ":hunter2",
            "hunter2",
            "a:hunter2\nX-Other: 1",
            "a:hunter2\0",
        ] {
            std::fs::write(&path, bad).expect("written");
            let error = login(&config).expect_err(bad);
            assert_eq!(error.key, PROXY_LOGIN);
            assert!(!error.what.contains("hunter2"), "{error}");
        }
        assert_eq!(login(&UpstreamConfig::default()), Ok(None));
    }
}
