//! `[[upstream]]`: a server elsewhere that answers in this one's place, with OpenAI's chat completions.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use andon_policy::budget::{self, Price};
use hyper::Uri;
use hyper::http::uri::Scheme;
use serde::{Deserialize, Serialize};

use super::Problems;
use super::gateway::is_name;

/// Most upstreams.
pub const UPSTREAMS_MAX: usize = 16;
/// Longest address, in bytes.
const URL_BYTES_MAX: usize = 512;
/// Longest name of a model, in bytes.
const MODEL_BYTES_MAX: usize = 256;
/// The folder in which systemd has the unit's credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The field that says how many tokens an answer may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum TokensField {
    /// What most servers know.
    #[default]
    #[serde(rename = "max_tokens")]
    MaxTokens,
    /// What OpenAI's newer models know.
    #[serde(rename = "max_completion_tokens")]
    MaxCompletionTokens,
}

impl TokensField {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TokensField::MaxTokens => "max_tokens",
            TokensField::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// One `[[upstream]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct UpstreamConfig {
    /// What it is called here: in answers, metrics and events.
    pub name: String,
    /// Where its API is, up to what stands before `/chat/completions`.
    pub url: String,
    /// The model that is asked for there.
    pub model: String,
    /// A file with its key; one without a folder is a credential of the unit.
    pub api_key_file: Option<PathBuf>,
    /// PEM file with the authorities that its certificate may come from; unset, those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate that it is shown, and those that this comes from; or a credential.
    pub certificate_file: Option<PathBuf>,
    /// PEM file with that certificate's key; or a credential.
    pub key_file: Option<PathBuf>,
    /// The proxy that connections to it go through, by CONNECT.
    pub proxy: Option<String>,
    /// A file with the name and password that the proxy wants, with a colon between; or a credential.
    pub proxy_login_file: Option<PathBuf>,
    /// What a million tokens of prompts cost there, as digits with six after the point at most; unset, nothing.
    pub prompt_price: Option<String>,
    /// What a million tokens of answers cost.
    pub answer_price: Option<String>,
    /// Its rank: of those that can be had, one of the lowest number is asked.
    pub priority: u32,
    /// Its share of the questions among those of its rank.
    pub weight: u32,
    /// Most questions that it has at once.
    pub requests_max: u32,
    /// Which field says how many tokens an answer may have.
    pub tokens_field: TokensField,
    /// Longest wait for a connection, encryption included.
    pub connect_timeout_ms: u64,
    /// Longest wait for the first token.
    pub first_token_timeout_ms: u64,
    /// Longest wait for each further one.
    pub token_timeout_ms: u64,
    /// Longest time that an answer takes in all.
    pub total_timeout_ms: u64,
    /// How often it is asked again when it takes no more for now or cannot be reached.
    pub retries_max: u32,
    /// After so many failures in a row it is left alone.
    pub failures_max: u32,
    /// For how long at first, and at most.
    pub open_ms: u64,
    /// For how long at most.
    pub open_max_ms: u64,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        UpstreamConfig {
            name: String::new(),
            url: String::new(),
            model: String::new(),
            api_key_file: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            proxy: None,
            proxy_login_file: None,
            prompt_price: None,
            answer_price: None,
            priority: 0,
            weight: 1,
            requests_max: 8,
            tokens_field: TokensField::MaxTokens,
            connect_timeout_ms: 5_000,
            first_token_timeout_ms: 30_000,
            token_timeout_ms: 15_000,
            total_timeout_ms: 300_000,
            retries_max: 2,
            failures_max: 3,
            open_ms: 5_000,
            open_max_ms: 120_000,
        }
    }
}

impl UpstreamConfig {
    /// Where its API is; `None` if the address is none.
    #[must_use]
    pub fn address(&self) -> Option<Uri> {
        let uri = plain_uri(&self.url)?;
        let scheme = uri.scheme()?;
        (*scheme == Scheme::HTTP || *scheme == Scheme::HTTPS).then_some(uri)
    }

    /// Where its proxy is.
    #[must_use]
    pub fn proxy_address(&self) -> Option<Uri> {
        let uri = plain_uri(self.proxy.as_deref()?)?;
        let is_bare = matches!(uri.path(), "" | "/");
        (uri.scheme() == Some(&Scheme::HTTP) && is_bare).then_some(uri)
    }

    /// What tokens cost there.
    #[must_use]
    pub fn price(&self) -> Price {
        let micros =
            |price: &Option<String>| price.as_deref().and_then(budget::micros).unwrap_or(0);
        Price {
            prompt_micros_per_million: micros(&self.prompt_price),
            answer_micros_per_million: micros(&self.answer_price),
        }
    }

    /// Whom the daemon connects to itself: the proxy if there is one.
    #[must_use]
    pub fn peer(&self) -> Option<Uri> {
        match self.proxy {
            Some(_) => self.proxy_address(),
            None => self.address(),
        }
    }

    /// Whether it is spoken to by TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.address()
            .is_some_and(|uri| uri.scheme() == Some(&Scheme::HTTPS))
    }

    /// The files that it names, each by its key, and where they are.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        [
            ("api-key-file", &self.api_key_file),
            ("ca-file", &self.ca_file),
            ("certificate-file", &self.certificate_file),
            ("key-file", &self.key_file),
            ("proxy-login-file", &self.proxy_login_file),
        ]
        .into_iter()
        .filter_map(|(key, file)| Some((key, credential(file.as_deref()?))))
    }

    /// `number` counts from 1, in the order of the file.
    pub(super) fn check(&self, number: usize, problems: &mut Problems) {
        let key = |field: &str| format!("upstream[{number}].{field}");
        problems.require(
            is_name(&self.name),
            &key("name"),
            "is not a name",
            "use 1 to 64 letters, digits, '.', '-' or '_'",
        );
        problems.require(
            (1..=MODEL_BYTES_MAX).contains(&self.model.len())
                && !self.model.contains(char::is_control),
            &key("model"),
            "is not the name of a model",
            "give the name that the server knows, of 1 to 256 bytes",
        );
        let address = self.address();
        problems.require(
            address.is_some(),
            &key("url"),
            "is not an address",
            "write it as https://host:port/v1, without user, query and fragment",
        );
        let is_clear = |uri: &Uri| uri.scheme() == Some(&Scheme::HTTP);
        if let Some(uri) = address.filter(is_clear) {
            problems.require(
                self.api_key_file.is_none() || (is_loopback(&uri) && self.proxy.is_none()),
                &key("api-key-file"),
                "would cross the network in the clear",
                "use an address that begins with https://, or leave out the key",
            );
            for (field, file) in [
                ("ca-file", &self.ca_file),
                ("certificate-file", &self.certificate_file),
                ("key-file", &self.key_file),
            ] {
                problems.require(
                    file.is_none(),
                    &key(field),
                    "is set, but the connection is not encrypted",
                    "use an address that begins with https://",
                );
            }
        }
        problems.require(
            self.certificate_file.is_some() == self.key_file.is_some(),
            &key("certificate-file"),
            "goes with key-file only",
            "set both, or neither",
        );
        problems.require(
            self.proxy_login_file.is_none() || self.proxy.is_some(),
            &key("proxy-login-file"),
            "is set, but there is no proxy",
            "name the proxy, or leave out its login",
        );
        problems.require(
            self.proxy.is_none() || self.proxy_address().is_some(),
            &key("proxy"),
            "is not an address of a proxy",
            "write it as http://host:port",
        );
        for (field, file) in [
            ("api-key-file", &self.api_key_file),
            ("ca-file", &self.ca_file),
            ("certificate-file", &self.certificate_file),
            ("key-file", &self.key_file),
            ("proxy-login-file", &self.proxy_login_file),
        ] {
            let is_one = |file: &PathBuf| file.is_absolute() || is_bare(file);
            problems.require(
                file.as_ref().is_none_or(is_one),
                &key(field),
                "is neither an absolute path nor the name of a credential",
                "give an absolute path, or the name of one of the unit's LoadCredential=",
            );
        }
        problems.amount(&key("prompt-price"), self.prompt_price.as_deref());
        problems.amount(&key("answer-price"), self.answer_price.as_deref());
        problems.within(&key("priority"), self.priority, 0..=1000);
        problems.within(&key("weight"), self.weight, 1..=1000);
        problems.within(&key("requests-max"), self.requests_max, 1..=256);
        for (field, value) in [
            ("connect-timeout-ms", self.connect_timeout_ms),
            ("first-token-timeout-ms", self.first_token_timeout_ms),
            ("token-timeout-ms", self.token_timeout_ms),
            ("total-timeout-ms", self.total_timeout_ms),
        ] {
            problems.within(&key(field), value, 10..=3_600_000);
        }
        problems.within(&key("retries-max"), self.retries_max, 0..=10);
        problems.within(&key("failures-max"), self.failures_max, 1..=100);
        problems.within(&key("open-ms"), self.open_ms, 10..=3_600_000);
        problems.within(&key("open-max-ms"), self.open_max_ms, 10..=3_600_000);
        problems.require(
            self.open_ms <= self.open_max_ms,
            &key("open-max-ms"),
            "is less than open-ms",
            "give a longer time",
        );
    }
}

/// Checks what concerns all of them.
pub(super) fn check(upstreams: &[UpstreamConfig], problems: &mut Problems) {
    problems.sections("upstream", upstreams.len(), UPSTREAMS_MAX);
    for (number, upstream) in (1..).zip(upstreams) {
        upstream.check(number, problems);
        let before = upstreams.iter().take(number - 1);
        let is_taken = before.into_iter().any(|other| other.name == upstream.name);
        problems.own_name("upstream", number, is_taken);
    }
}

/// An address with nothing but scheme, host, port and path.
fn plain_uri(text: &str) -> Option<Uri> {
    if text.len() > URL_BYTES_MAX || text.contains(['#', '?', '@']) {
        return None;
    }
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority()?;
    let has_port = authority.as_str() == authority.host() || authority.port_u16().is_some();
    (has_port && authority.port_u16() != Some(0) && !authority.host().is_empty()).then_some(uri)
}

/// The port of an address.
#[must_use]
pub fn port(uri: &Uri) -> u16 {
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) {
        443
    } else {
        80
    };
    uri.port_u16().unwrap_or(usual)
}

/// The address that the host of an address is, if it is no name.
#[must_use]
pub fn ip(uri: &Uri) -> Option<IpAddr> {
    let host = uri.host()?;
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

fn is_loopback(uri: &Uri) -> bool {
    ip(uri).is_some_and(|ip| ip.is_loopback()) || uri.host() == Some("localhost")
}

/// Where a file is: one without a folder is a credential of the unit.
#[must_use]
pub fn credential(file: &Path) -> PathBuf {
    match std::env::var_os(CREDENTIALS_DIRECTORY) {
        Some(folder) if is_bare(file) => Path::new(&folder).join(file),
        _ => file.to_owned(),
    }
}

/// Whether a path is a name and nothing else.
fn is_bare(path: &Path) -> bool {
    path.file_name() == Some(path.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> UpstreamConfig {
        UpstreamConfig {
            name: "plant".to_owned(),
            url: "https://llm.plant:8443/v1".to_owned(),
            model: "large".to_owned(),
            api_key_file: Some("/etc/andon/key".into()),
            ..UpstreamConfig::default()
        }
    }

    fn keys(upstreams: &[UpstreamConfig]) -> Vec<String> {
        let mut problems = Problems::default();
        check(upstreams, &mut problems);
        problems.iter().map(|problem| problem.key.clone()).collect()
    }

    #[test]
    fn one_needs_a_name_an_address_and_a_model() {
        assert!(keys(&[good()]).is_empty());
        assert_eq!(
            keys(&[UpstreamConfig::default()]),
            ["upstream[1].name", "upstream[1].model", "upstream[1].url"]
        );
        assert_eq!(keys(&[good(), good()]), ["upstream[2].name"]);
        assert_eq!(keys(&vec![good(); UPSTREAMS_MAX + 1])[0], "upstream");
    }

    #[test]
    fn addresses_are_bare() {
        for url in [
            "ftp://h/v1",
            "https://",
            "h:80",
            "/v1",
            "https://u:p@h/v1",
            "https://h/v1?x=1",
            "https://h/v1#x",
            "https://h:0/",
            "https://h:x/",
            "https://h:70000/",
            "",
            "https://h:/",
        ] {
            let with = UpstreamConfig {
                url: url.to_owned(),
                ..good()
            };
            assert_eq!(keys(&[with]), ["upstream[1].url"], "{url}");
        }
        let one = good();
        let uri = one.address().expect("an address");
        assert_eq!((port(&uri), uri.path()), (8443, "/v1"));
        let with = |url: &str| UpstreamConfig {
            url: url.to_owned(),
            ..good()
        };
        let uri = with("https://[::1]/").address().expect("an address");
        assert_eq!((port(&uri), ip(&uri)), (443, "::1".parse().ok()));
        for (proxy, is_good) in [
            ("http://proxy.plant:3128", true),
            ("http://proxy.plant:3128/", true),
            ("http://proxy.plant:3128/x", false),
            ("https://proxy.plant:3128", false),
            ("proxy.plant:3128", false),
            ("http://u:p@proxy.plant:3128", false),
        ] {
            let with = UpstreamConfig {
                proxy: Some(proxy.to_owned()),
                ..good()
            };
            assert_eq!(keys(&[with]).is_empty(), is_good, "{proxy}");
        }
    }

    #[test]
    fn a_key_does_not_cross_the_network_in_the_clear() {
        for (url, is_good) in [
            ("http://llm.plant/v1", false),
            ("http://10.0.0.1/v1", false),
            ("http://127.0.0.1:8311/v1", true),
            ("http://localhost:8311/v1", true),
            ("http://[::1]:8311/v1", true),
        ] {
            let with = UpstreamConfig {
                url: url.to_owned(),
                ..good()
            };
            assert_eq!(keys(&[with]).is_empty(), is_good, "{url}");
        }
        let clear = UpstreamConfig {
            url: "http://llm.plant/v1".to_owned(),
            api_key_file: None,
            ca_file: Some("/etc/ca".into()),
            ..good()
        };
        assert_eq!(keys(&[clear]), ["upstream[1].ca-file"]);
        let relative = UpstreamConfig {
            api_key_file: Some("a/b".into()),
            ca_file: Some("../ca.pem".into()),
            ..good()
        };
        assert_eq!(
            keys(&[relative]),
            ["upstream[1].api-key-file", "upstream[1].ca-file"]
        );
        let credentials = UpstreamConfig {
            api_key_file: Some("plant.key".into()),
            ca_file: Some("plant-ca.pem".into()),
            certificate_file: Some("gateway.pem".into()),
            key_file: Some("gateway.key".into()),
            proxy: Some("http://proxy.plant:3128".to_owned()),
            proxy_login_file: Some("proxy.login".into()),
            ..good()
        };
        assert!(keys(std::slice::from_ref(&credentials)).is_empty());
        let files: Vec<_> = credentials.files().map(|(key, _)| key).collect();
        assert_eq!(
            files,
            [
                "api-key-file",
                "ca-file",
                "certificate-file",
                "key-file",
                "proxy-login-file"
            ]
        );
    }

    #[test]
    fn what_is_shown_to_others_is_whole_and_has_somebody_to_be_shown_to() {
        let half = UpstreamConfig {
            certificate_file: Some("/etc/gateway.pem".into()),
            ..good()
        };
        assert_eq!(keys(&[half]), ["upstream[1].certificate-file"]);
        let half = UpstreamConfig {
            key_file: Some("/etc/gateway.key".into()),
            ..good()
        };
        assert_eq!(keys(&[half]), ["upstream[1].certificate-file"]);
        let clear = UpstreamConfig {
            url: "http://127.0.0.1:8311/v1".to_owned(),
            certificate_file: Some("/etc/gateway.pem".into()),
            key_file: Some("/etc/gateway.key".into()),
            ..good()
        };
        assert_eq!(
            keys(&[clear]),
            ["upstream[1].certificate-file", "upstream[1].key-file"]
        );
        let nowhere = UpstreamConfig {
            proxy_login_file: Some("/etc/login".into()),
            ..good()
        };
        assert_eq!(keys(&[nowhere]), ["upstream[1].proxy-login-file"]);
    }

    #[test]
    fn numbers_have_bounds() {
        let with = UpstreamConfig {
            prompt_price: Some("2,5".to_owned()),
            weight: 0,
            requests_max: 0,
            retries_max: 11,
            token_timeout_ms: 0,
            open_ms: 9_000,
            open_max_ms: 8_000,
            ..good()
        };
        assert_eq!(
            keys(&[with]),
            [
                "prompt-price",
                "weight",
                "requests-max",
                "token-timeout-ms",
                "retries-max",
                "open-max-ms"
            ]
            .map(|field| format!("upstream[1].{field}"))
        );
    }
}
