//! Who we are to the broker and whom we take for it: what the files hold that the configuration names, and when to go by what
//! they hold anew.
//!
//! Files are replaced while the daemon runs. What they hold is read for every connection, when the configuration is read again,
//! and when a file has changed.
//!
//! Invariant: what a broker has taken is kept until it has taken something newer: files that are broken, half replaced or turned
//! away cost no connection.

use std::path::Path;
use std::sync::Arc;

use rumqttc::{TlsConfiguration, Transport};
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::ClientConfig;

use crate::config::mqtt::MqttConfig;
use crate::credential::{self, Own, Stamp, Unusable};

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Largest password file, in bytes.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;

/// What the files held at a moment.
#[derive(Clone)]
pub(super) struct Credentials {
    /// User name and password.
    pub(super) login: Option<(String, String)>,
    /// How the broker is spoken to, if the link is encrypted.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Of all that, to tell it from others.
    digest: [u8; 32],
}

impl Credentials {
    /// Reads the files. Blocks as long as they take.
    ///
    /// # Errors
    /// The first that cannot be read or does not hold what it should.
    pub(super) fn read(config: &MqttConfig) -> Result<Credentials, Unusable> {
        let mut digest = Sha256::new();
        let mut file = |key, path: &Path, bytes_max| {
            let bytes = credential::read(key, path, bytes_max)?;
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(&bytes);
            Ok::<_, Unusable>(bytes)
        };
        let login = match (&config.username, &config.password_file) {
            (None, _) => None,
            (Some(name), None) => Some((name.clone(), String::new())),
            (Some(name), Some(path)) => {
                let key = "mqtt.password-file";
                let text = file(key, path, PASSWORD_BYTES_MAX)?;
                let text = std::str::from_utf8(&text);
                let text = text.map_err(|_| Unusable::new(key, &"it is not UTF-8"))?;
                let mut text = text.to_owned();
                if text.ends_with('\n') {
                    text.pop();
                    if text.ends_with('\r') {
                        text.pop();
                    }
                }
                Some((name.clone(), text))
            }
        };
        let tls = if config.tls {
            let none = || Unusable::new("mqtt.ca-file", &"it is not set");
            let ca = config.ca_file.as_deref().ok_or_else(none)?;
            let ca = file("mqtt.ca-file", ca, FILE_BYTES_MAX)?;
            let own = match (&config.certificate_file, &config.key_file) {
                (Some(certificate), Some(key)) => Some((
                    file("mqtt.certificate-file", certificate, FILE_BYTES_MAX)?,
                    file("mqtt.key-file", key, FILE_BYTES_MAX)?,
                )),
                _ => None,
            };
            let own = own.as_ref().map(|(certificate, key)| Own {
                certificate: ("mqtt.certificate-file", certificate),
                key: ("mqtt.key-file", key),
            });
            let roots = credential::authorities("mqtt.ca-file", &ca)?;
            Some(Arc::new(credential::tls(roots, own.as_ref())?))
        } else {
            None
        };
        Ok(Credentials {
            login,
            tls,
            digest: digest.finalize().into(),
        })
    }

    /// How the broker is reached.
    pub(super) fn transport(&self) -> Transport {
        match &self.tls {
            None => Transport::Tcp,
            Some(client) => {
                Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(client)))
            }
        }
    }
}

/// Which files there are, as far as that is known without reading them.
type Stamps = [Option<Stamp>; 4];

fn stamps(config: &MqttConfig) -> Stamps {
    let files = [
        &config.password_file,
        &config.ca_file,
        &config.certificate_file,
        &config.key_file,
    ];
    files.map(|path| credential::stamp(path.as_ref()?))
}

/// What a connection is made with, and what to fall back to.
#[derive(Default)]
pub(super) struct Keyring {
    /// What the last connection was made with.
    in_use: Option<Credentials>,
    /// What the broker has taken last.
    proven: Option<Credentials>,
    /// What it turned away since, while there was something proven.
    refused: Option<[u8; 32]>,
    /// The files when they were last found to be in order, or as they are in use.
    stamps: Option<Stamps>,
    /// What was last said to be wrong with them.
    complained: Option<String>,
}

impl Keyring {
    /// What to make the next connection with: what the files hold, unless they are of no use or the broker has turned it away
    /// and taken something before.
    ///
    /// # Errors
    /// What is wrong with the files, where there is nothing to fall back to.
    pub(super) fn take(&mut self, config: &MqttConfig) -> Result<Credentials, Unusable> {
        let chosen = match (self.read(config), &self.proven) {
            (Ok(new), Some(proven)) if self.refused == Some(new.digest) => {
                crate::event!(
                    CredentialsRefused,
                    "the broker is connected to with the former certificate or password: it turned the new one away"
                );
                proven.clone()
            }
            (Ok(new), _) => new,
            (Err(_), Some(proven)) => proven.clone(),
            (Err(error), None) => return Err(error),
        };
        self.in_use = Some(chosen.clone());
        Ok(chosen)
    }

    /// Reads the files, and says once what is wrong with them.
    fn read(&mut self, config: &MqttConfig) -> Result<Credentials, Unusable> {
        let stamps = stamps(config);
        let read = Credentials::read(config);
        match &read {
            Ok(_) => {
                self.stamps = Some(stamps);
                self.complained = None;
            }
            Err(error) => self.complain(&error.to_string()),
        }
        read
    }

    /// Says that the files are of no use, unless that was the last word.
    pub(super) fn complain(&mut self, what: &str) {
        if self.complained.as_deref() != Some(what) {
            crate::event!(
                CredentialsRefused,
                error = what,
                "the broker's new certificate or password is not used; the former one is, if there is one"
            );
            self.complained = Some(what.to_owned());
        }
    }

    /// What the files hold, if that is something else than what is in use and was not turned away. Without `anew`, files are
    /// read only that have changed.
    pub(super) fn changed(&mut self, config: &MqttConfig, anew: bool) -> Option<Credentials> {
        if !anew && self.stamps == Some(stamps(config)) {
            return None;
        }
        let new = self.read(config).ok()?;
        let differs = |other: &Credentials| other.digest != new.digest;
        let fresh = self.in_use.as_ref().is_none_or(differs) && self.refused != Some(new.digest);
        fresh.then_some(new)
    }

    /// Files that are in order were not taken for a reason that may pass: they are looked at again.
    pub(super) fn look_again(&mut self) {
        self.stamps = None;
    }

    /// The broker has taken what the connection was made with.
    pub(super) fn taken(&mut self) {
        self.proven.clone_from(&self.in_use);
    }

    /// The connection has ended, `greeted` or not. An attempt that fails may fail for another reason, so what was proven and what
    /// is new are tried in turn.
    pub(super) fn ended(&mut self, greeted: bool) {
        let digest = |credentials: &Option<Credentials>| credentials.as_ref().map(|one| one.digest);
        let (used, proven) = (digest(&self.in_use), digest(&self.proven));
        self.refused = used.filter(|_| !greeted && proven.is_some() && used != proven);
    }

    /// What was turned away is tried once more: somebody has asked for it.
    pub(super) fn forgive(&mut self) {
        self.refused = None;
        self.complained = None;
    }

    /// What a broker took says nothing of this one.
    pub(super) fn forget(&mut self) {
        *self = Keyring::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path, password: &str) -> MqttConfig {
        let path = folder.join("password");
        std::fs::write(&path, password).expect("writable");
        MqttConfig {
            username: Some("andon".to_owned()),
            password_file: Some(path),
            ..MqttConfig::default()
        }
    }

    fn password(credentials: &Credentials) -> &str {
        &credentials.login.as_ref().expect("a login").1
    }

    #[test]
    fn what_a_broker_has_taken_stays_until_it_takes_something_newer() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut keyring = Keyring::default();
        let first = config(folder.path(), "first\n");
        assert_eq!(password(&keyring.take(&first).expect("a file")), "first");
        keyring.taken();
        assert!(keyring.changed(&first, false).is_none());
        assert!(keyring.changed(&first, true).is_none());
        // Another file of the same name, which the broker turns away.
        let second = config(folder.path(), "second\r\n");
        let new = keyring.changed(&second, false).expect("it has changed");
        assert_eq!(password(&new), "second");
        keyring.ended(true);
        assert_eq!(password(&keyring.take(&second).expect("a file")), "second");
        keyring.ended(false);
        assert_eq!(password(&keyring.take(&second).expect("a file")), "first");
        keyring.taken();
        assert!(keyring.changed(&second, true).is_none());
        keyring.forgive();
        assert!(keyring.changed(&second, true).is_some());
        // Neither goes: the broker is away. They are tried in turn.
        for expected in ["second", "first", "second"] {
            keyring.ended(false);
            let next = keyring.take(&second).expect("a file");
            assert_eq!(password(&next), expected);
        }
        keyring.taken();
        keyring.ended(true);
        std::fs::remove_file(folder.path().join("password")).expect("it is there");
        assert!(keyring.changed(&second, false).is_none());
        assert_eq!(password(&keyring.take(&second).expect("kept")), "second");
        keyring.forget();
        let error = keyring.take(&second).err().expect("there is nothing");
        assert_eq!(error.key, "mqtt.password-file");
    }

    #[test]
    fn files_of_no_use_are_named_by_their_keys_and_not_quoted() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("writable");
            Some(path)
        };
        let with = |ca: &str| MqttConfig {
            tls: true,
            ca_file: at("ca.pem", ca),
            ..MqttConfig::default()
        };
        for (config, key) in [
            (with("hunter2"), "mqtt.ca-file"),
            (
                with("-----BEGIN CERTIFICATE-----\nhunter2\n"),
                "mqtt.ca-file",
            ),
            (
                config(folder.path(), &"hunter2".repeat(10_000)),
                "mqtt.password-file",
            ),
        ] {
            let error = Credentials::read(&config).err().expect("of no use");
            assert_eq!(error.key, key);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
