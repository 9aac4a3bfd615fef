//! TLS, HTTP/2 and proxies.

use std::time::Duration;

use andon_tests::certificates::Authority;
use andon_tests::upstream::{
    Fake, Greeting, Passing, Proxy, Step, end, events_head, good, text, tls,
};
use andond::config::upstream::UpstreamConfig;
use andond::upstream::FaultKind;

use super::{ask, at, folder, upstreams};

fn authority() -> Authority {
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

fn secure(fake: &Fake, authority: &Authority) -> UpstreamConfig {
    UpstreamConfig {
        url: format!("https://localhost:{}/v1", fake.address().port()),
        ca_file: Some(authority.path("ca.pem")),
        ..at("plant", fake)
    }
}

#[tokio::test]
async fn an_encrypted_server_of_the_configured_authority_is_asked() {
    let authority = authority();
    let fake = Fake::start(greeting(&authority, &[]), vec![good(&["Yes."])])
        .await
        .expect("it listens");
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
    let fake = Fake::start(greeting(&authority, &[b"h2", b"http/1.1"]), vec![script])
        .await
        .expect("it listens");
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
    let start = |greeting| Fake::start(greeting, vec![good(&["Yes."])]);
    let foreign = start(greeting(&other, &[])).await.expect("it listens");
    let named = start(greeting(&own, &[])).await.expect("it listens");
    let clear = start(Greeting::Plain).await.expect("it listens");
    let nonsense = start(Greeting::Bytes(vec![0x16; 4096]))
        .await
        .expect("it listens");
    let silent = start(Greeting::Silence).await.expect("it listens");
    let closing = start(Greeting::Close).await.expect("it listens");
    let mail = start(Greeting::Bytes(b"220 mail.plant ESMTP\r\n".to_vec()))
        .await
        .expect("it listens");
    let unknown = start(greeting(&own, &[b"spdy/1"]))
        .await
        .expect("it listens");
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
    let fake = Fake::start(greeting(&authority, &[]), vec![script])
        .await
        .expect("it listens");
    let outcome = ask(&upstreams(vec![secure(&fake, &authority)])).await;
    assert_eq!(outcome.fault().kind, FaultKind::Broken);
    assert!(outcome.fault().sent_text);
}

#[tokio::test]
async fn files_that_hold_no_authority_are_named() {
    let authority = authority();
    let fake = Fake::start(greeting(&authority, &[]), vec![good(&["Yes."])])
        .await
        .expect("it listens");
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
    let fake = Fake::start(greeting(&authority, &[]), vec![good(&["Yes."])])
        .await
        .expect("it listens");
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
    let clear = Fake::start(Greeting::Plain, vec![good(&["Clear."])])
        .await
        .expect("it listens");
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
            FaultKind::Unreachable,
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
