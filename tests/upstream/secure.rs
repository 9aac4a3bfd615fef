//! TLS, HTTP/2 and proxies.

use std::path::Path;
use std::time::Duration;

use andon_tests::certificates::Authority;
use andon_tests::upstream::{
    Fake, Greeting, Passing, Proxy, Step, end, events_head, good, text, tls, tls_among,
};
use andond::config::upstream::UpstreamConfig;
use andond::upstream::FaultKind;

use tokio_rustls::rustls::SupportedProtocolVersion;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::{ask, at, folder, greets, server, upstreams};

pub(crate) fn authority() -> Authority {
    let authority = Authority::new().expect("openssl works");
    let authority = authority.expect("these tests make certificates with openssl");
    authority.sign_host("host").expect("signed");
    authority
}

fn greeting(authority: &Authority, protocols: &[&[u8]]) -> Greeting {
    tls(
        &authority.path("host.pem"),
        &authority.path("host.key"),
        protocols,
    )
    .expect("a certificate")
}

pub(crate) fn secure(fake: &Fake, authority: &Authority) -> UpstreamConfig {
    UpstreamConfig {
        url: format!("https://localhost:{}/v1", fake.address().port()),
        ca_file: Some(authority.path("ca.pem")),
        ..at("plant", fake)
    }
}

#[tokio::test]
async fn an_encrypted_server_of_the_configured_authority_is_asked() {
    let authority = authority();
    let fake = greets(greeting(&authority, &[]), vec![good(&["Yes."])]).await;
    let all = upstreams(vec![secure(&fake, &authority)]);
    for _ in 0..2 {
        assert_eq!(ask(&all).await.text, "Yes.");
    }
    assert_eq!(fake.connections(), 1);
    assert_eq!(fake.seen()[0].line, "POST /v1/chat/completions HTTP/1.1");
}

#[tokio::test]
async fn http2_is_spoken_with_whom_offers_it() {
    let authority = authority();
    let script = vec![Step::Send([text("Yes."), end("stop")].concat())];
    let fake = greets(greeting(&authority, &[b"h2", b"http/1.1"]), vec![script]).await;
    let all = upstreams(vec![secure(&fake, &authority)]);
    let (one, two) = tokio::join!(ask(&all), ask(&all));
    assert_eq!((one.text.as_str(), two.text.as_str()), ("Yes.", "Yes."));
    assert_eq!(ask(&all).await.text, "Yes.");
    assert!(
        fake.seen()
            .iter()
            .all(|seen| seen.line == "POST /v1/chat/completions HTTP/2")
    );
    // Two at the start may each have opened one.
    assert!(fake.connections() <= 2);
}

#[tokio::test]
async fn who_cannot_show_to_be_the_one_gets_no_question() {
    let (own, other) = (authority(), authority());
    let by_address = |fake: &Fake| UpstreamConfig {
        url: format!("https://127.0.0.1:{}/v1", fake.address().port()),
        ..secure(fake, &own)
    };
    let start = |greeting| greets(greeting, vec![good(&["Yes."])]);
    let foreign = start(greeting(&other, &[])).await;
    let named = start(greeting(&own, &[])).await;
    let clear = start(Greeting::Plain).await;
    let nonsense = start(Greeting::Bytes(vec![0x16; 4096])).await;
    let silent = start(Greeting::Silence).await;
    let closing = start(Greeting::Close).await;
    let mail = start(Greeting::Bytes(b"220 mail.plant ESMTP\r\n".to_vec())).await;
    let unknown = start(greeting(&own, &[b"spdy/1"])).await;
    for (name, fake, config, kind) in [
        (
            "of another authority",
            &foreign,
            secure(&foreign, &own),
            FaultKind::Untrusted,
        ),
        (
            "for another name",
            &named,
            by_address(&named),
            FaultKind::Untrusted,
        ),
        (
            "in the clear",
            &clear,
            secure(&clear, &own),
            FaultKind::Slow,
        ),
        (
            "nonsense",
            &nonsense,
            secure(&nonsense, &own),
            FaultKind::Untrusted,
        ),
        ("silent", &silent, secure(&silent, &own), FaultKind::Slow),
        (
            "closing",
            &closing,
            secure(&closing, &own),
            FaultKind::Unreachable,
        ),
        ("mail", &mail, secure(&mail, &own), FaultKind::Untrusted),
        (
            "of another protocol",
            &unknown,
            secure(&unknown, &own),
            FaultKind::Untrusted,
        ),
    ] {
        let outcome = ask(&upstreams(vec![config])).await;
        assert_eq!(outcome.fault().kind, kind, "{name}: {}", outcome.fault());
        assert!(outcome.took < Duration::from_secs(3), "{name}");
        assert!(fake.seen().is_empty(), "{name} was asked");
    }
    // The system's authorities do not count beside the configured one, nor it beside them.
    let without = UpstreamConfig {
        ca_file: None,
        ..secure(&named, &own)
    };
    assert_eq!(
        ask(&upstreams(vec![without])).await.fault().kind,
        FaultKind::Untrusted
    );
}

#[tokio::test]
async fn an_encrypted_stream_that_is_cut_is_no_answer() {
    let authority = authority();
    let script = vec![
        Step::Send([events_head(), text("It is ")].concat()),
        Step::Wait(Duration::from_millis(50)),
        Step::Reset,
    ];
    let fake = greets(greeting(&authority, &[]), vec![script]).await;
    let outcome = ask(&upstreams(vec![secure(&fake, &authority)])).await;
    assert_eq!(outcome.fault().kind, FaultKind::Broken);
    assert!(outcome.fault().sent_text);
}

#[tokio::test]
async fn files_that_hold_no_authority_are_named() {
    let authority = authority();
    let fake = greets(greeting(&authority, &[]), vec![good(&["Yes."])]).await;
    let (_folder, path) = folder();
    let path = path.join("ca.pem");
    for text in [
        None,
        Some(""),
        Some("-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n"),
    ] {
        if let Some(text) = text {
            std::fs::write(&path, text).expect("written");
        }
        let config = UpstreamConfig {
            ca_file: Some(path.clone()),
            ..secure(&fake, &authority)
        };
        let outcome = ask(&upstreams(vec![config])).await;
        let fault = outcome.fault();
        assert_eq!(fault.kind, FaultKind::Untrusted);
        assert!(
            fault.message.starts_with("ca-file: ") && !fault.message.contains("hunter2"),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn a_proxy_passes_connections_on_and_hears_nothing_of_them() {
    let authority = authority();
    let fake = greets(greeting(&authority, &[]), vec![good(&["Yes."])]).await;
    let proxy = Proxy::start(Passing::To(fake.address()))
        .await
        .expect("it listens");
    let through = |proxy: &Proxy| UpstreamConfig {
        // Only the proxy finds out where that is, whatever the name resolves to here.
        url: "https://localhost:1/v1".to_owned(),
        proxy: Some(format!("http://{}", proxy.address())),
        ..secure(&fake, &authority)
    };
    assert_eq!(ask(&upstreams(vec![through(&proxy)])).await.text, "Yes.");
    assert_eq!(proxy.asked(), ["CONNECT localhost:1 HTTP/1.1"]);
    let clear = server(good(&["Clear."])).await;
    let passing = Proxy::start(Passing::To(clear.address()))
        .await
        .expect("it listens");
    let plain = UpstreamConfig {
        url: "http://llm.plant/v1".to_owned(),
        ca_file: None,
        ..through(&passing)
    };
    assert_eq!(ask(&upstreams(vec![plain])).await.text, "Clear.");
    assert_eq!(passing.asked(), ["CONNECT llm.plant:80 HTTP/1.1"]);
    let says = |text: &str| Passing::Says(text.as_bytes().to_vec());
    for (passing, kind, word) in [
        (
            says("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"),
            FaultKind::Denied,
            "who connects",
        ),
        (
            says("HTTP/1.1 502 Bad Gateway\r\n\r\n"),
            FaultKind::Unreachable,
            "does not connect",
        ),
        (
            says("HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n"),
            FaultKind::Unreachable,
            "does not connect",
        ),
        (
            says("nonsense\r\n\r\n"),
            FaultKind::Unreachable,
            "does not connect",
        ),
        (
            says(&"HTTP/1.1 200 OK\r\nX: y\r\n".repeat(2000)),
            FaultKind::Unreachable,
            "does not connect",
        ),
        (Passing::Silence, FaultKind::Slow, "within 500 ms"),
    ] {
        let proxy = Proxy::start(passing.clone()).await.expect("it listens");
        let outcome = ask(&upstreams(vec![through(&proxy)])).await;
        assert_eq!(
            outcome.fault().kind,
            kind,
            "{passing:?}: {}",
            outcome.fault()
        );
        assert!(
            outcome.fault().message.contains(word),
            "{passing:?}: {}",
            outcome.fault()
        );
    }
    let gone = Proxy::start(Passing::Silence).await.expect("it listens");
    let config = through(&gone);
    drop(gone);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let outcome = ask(&upstreams(vec![config])).await;
    assert_eq!(outcome.fault().kind, FaultKind::Unreachable);
    assert!(
        outcome.fault().message.contains("proxy"),
        "{}",
        outcome.fault()
    );
}

/// A server that wants a certificate of this authority, by these versions of TLS.
async fn exclusive(authority: &Authority, versions: &[&'static SupportedProtocolVersion]) -> Fake {
    let (host, key) = (authority.path("host.pem"), authority.path("host.key"));
    let greeting = tls_among(&host, &key, &authority.path("ca.pem"), versions);
    greets(greeting.expect("a certificate"), vec![good(&["Yes."])]).await
}

const EACH_VERSION: [&[&SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];

fn der(path: &Path) -> Vec<u8> {
    let certificate = CertificateDer::from_pem_file(path);
    certificate.expect("a certificate").to_vec()
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_is_shown_it() {
    let (own, other) = (authority(), authority());
    own.sign("gateway").expect("signed");
    other.sign("gateway").expect("signed");
    for versions in EACH_VERSION {
        let fake = exclusive(&own, versions).await;
        let with = |of: &Authority| UpstreamConfig {
            certificate_file: Some(of.path("gateway.pem")),
            key_file: Some(of.path("gateway.key")),
            ..secure(&fake, &own)
        };
        let all = upstreams(vec![with(&own)]);
        assert_eq!(ask(&all).await.text, "Yes.");
        assert_eq!(
            fake.seen()[0].certificate,
            Some(der(&own.path("gateway.pem")))
        );
        for (name, config, word) in [
            (
                "of another authority",
                with(&other),
                "does not take the certificate",
            ),
            (
                "none",
                secure(&fake, &own),
                "wants to be shown a certificate",
            ),
        ] {
            let outcome = ask(&upstreams(vec![config])).await;
            let fault = outcome.fault();
            assert_eq!(
                fault.kind,
                FaultKind::Denied,
                "{name} {versions:?}: {fault}"
            );
            assert!(fault.message.contains(word), "{name} {versions:?}: {fault}");
        }
        assert_eq!(fake.seen().len(), 1);
        // It is of use only with its own key.
        let mixed = UpstreamConfig {
            key_file: Some(other.path("gateway.key")),
            ..with(&own)
        };
        let outcome = ask(&upstreams(vec![mixed])).await;
        let fault = outcome.fault();
        assert_eq!(fault.kind, FaultKind::Denied);
        assert!(fault.message.starts_with("certificate-file: "), "{fault}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_replaced_holds_from_the_next_connection_on() {
    let own = authority();
    for name in ["first", "second"] {
        own.sign(name).expect("signed");
    }
    let (_folder, path) = folder();
    let (certificate, key) = (path.join("gateway.pem"), path.join("gateway.key"));
    // As whatever renews certificates does it: a new file takes the name of the former.
    let replace = |name: String, to: &Path| {
        let new = path.join("new");
        std::fs::copy(own.path(&name), &new).expect("copied");
        std::fs::rename(&new, to).expect("renamed");
    };
    replace("first.pem".to_owned(), &certificate);
    replace("first.key".to_owned(), &key);
    let fake = exclusive(&own, &[&TLS13]).await;
    let config = UpstreamConfig {
        certificate_file: Some(certificate.clone()),
        key_file: Some(key.clone()),
        ..secure(&fake, &own)
    };
    let all = upstreams(vec![config]);
    let shown = || fake.seen().last().and_then(|seen| seen.certificate.clone());
    for _ in 0..2 {
        assert_eq!(ask(&all).await.text, "Yes.");
    }
    assert_eq!(fake.connections(), 1);
    // Half of it is of no use, and the former goes on being one.
    replace("second.pem".to_owned(), &certificate);
    assert_eq!(ask(&all).await.text, "Yes.");
    assert_eq!(shown(), Some(der(&own.path("first.pem"))));
    replace("second.key".to_owned(), &key);
    assert_eq!(ask(&all).await.text, "Yes.");
    assert_eq!(shown(), Some(der(&own.path("second.pem"))));
    assert_eq!(fake.connections(), 2);
    // So do the authorities.
    let authorities = path.join("ca.pem");
    let other = authority();
    std::fs::copy(own.path("ca.pem"), &authorities).expect("copied");
    let config = UpstreamConfig {
        certificate_file: Some(certificate.clone()),
        key_file: Some(key.clone()),
        ca_file: Some(authorities.clone()),
        ..secure(&fake, &own)
    };
    let all = upstreams(vec![config]);
    assert_eq!(ask(&all).await.text, "Yes.");
    let new = path.join("new");
    std::fs::copy(other.path("ca.pem"), &new).expect("copied");
    std::fs::rename(&new, &authorities).expect("renamed");
    assert_eq!(ask(&all).await.fault().kind, FaultKind::Untrusted);
}

#[tokio::test]
async fn a_proxy_is_told_who_connects_and_the_server_is_not() {
    let authority = authority();
    let fake = greets(greeting(&authority, &[]), vec![good(&["Yes."])]).await;
    let line = "Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned();
    let proxy = Proxy::start(Passing::For(line, fake.address())).await;
    let proxy = proxy.expect("it listens");
    let (_folder, path) = folder();
    let login = path.join("login");
    let config = UpstreamConfig {
        proxy: Some(format!("http://{}", proxy.address())),
        proxy_login_file: Some(login.clone()),
        failures_max: 9,
        retries_max: 3,
        ..secure(&fake, &authority)
    };
    let all = upstreams(vec![config.clone()]);
    for (text, kind, word) in [
        (None, FaultKind::Denied, "proxy-login-file: cannot read"),
        (Some("Aladdin"), FaultKind::Denied, "name:password"),
        (
            Some("Aladdin:sesame\n"),
            FaultKind::Denied,
            "does not take its login",
        ),
    ] {
        if let Some(text) = text {
            std::fs::write(&login, text).expect("written");
        }
        let outcome = ask(&all).await;
        let fault = outcome.fault();
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(fault.message.contains(word), "{fault}");
        assert!(!fault.message.contains("sesame") && !format!("{all:?}").contains("sesame"));
    }
    // That is not asked again: it would be the same.
    assert_eq!((proxy.asked().len(), fake.connections()), (1, 0));
    std::fs::write(&login, "Aladdin:open sesame\n").expect("written");
    assert_eq!(ask(&all).await.text, "Yes.");
    assert_eq!(fake.seen().len(), 1);
    assert!(!fake.seen()[0].head.to_ascii_lowercase().contains("proxy"));
    let nameless = UpstreamConfig {
        proxy_login_file: None,
        ..config
    };
    let outcome = ask(&upstreams(vec![nameless])).await;
    assert_eq!(outcome.fault().kind, FaultKind::Denied);
    assert!(outcome.fault().message.contains("who connects"));
}
