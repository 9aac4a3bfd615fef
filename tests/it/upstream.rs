//! The whole daemon, confined as always, with an upstream server: over TLS with a key, and over a cable that is pulled.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use andon_tests::certificates::Authority;
use andon_tests::daemon::Daemon;
use andon_tests::network::Network;
use andon_tests::upstream::{Fake, Greeting, Step, good, status, tls_among};
use serde_json::{Value, json};
use tokio_rustls::rustls::DEFAULT_VERSIONS;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use crate::metrics::sum;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn ask(daemon: &Daemon, policy: &str) -> (u16, Value) {
    let body = json!({ "messages": [{ "role": "user", "content": "What does E42 mean?" }],
        "egress": "any", "policy": policy, "max_tokens": 8 });
    let reply = daemon
        .http()
        .post("/v1/chat/completions", &body)
        .expect("a reply");
    (reply.status, reply.json().expect("JSON"))
}

fn wait_until(what: &str, daemon: &Daemon, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process hears of routes: the kernel's table of such sockets has it with groups.
fn hears_of_routes(pid: u32) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap_or_default();
    table.lines().skip(1).any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| columns.get(at).copied().unwrap_or_default();
        number(1) == "0" && number(2) == pid.to_string() && number(3) == "00000551"
    })
}

#[test]
fn a_confined_daemon_asks_over_tls_with_its_key_and_certificate() {
    let Some(authority) = Authority::new().expect("openssl works") else {
        eprintln!("skipped: no openssl");
        return;
    };
    authority.sign_host("host").expect("signed");
    authority.sign("gateway").expect("signed");
    let key = authority.path("api.key");
    std::fs::write(&key, "k-0123456789abcdef\n").expect("written");
    let [ca, host, host_key] = ["ca.pem", "host.pem", "host.key"].map(|file| authority.path(file));
    let greeting = tls_among(&host, &host_key, &ca, DEFAULT_VERSIONS).expect("a certificate");
    let fake = Fake::beside(
        Ipv4Addr::LOCALHOST,
        greeting,
        vec![good(&["It is ", "overheated."])],
    )
    .expect("it listens");
    let config = format!(
        "[log]\nlevel = \"debug\"\n[[upstream]]\nname = \"plant\"\nmodel = \"large\"\nretries-max = 0\n\
         url = \"https://localhost:{}/v1\"\nca-file = {ca:?}\napi-key-file = {key:?}\n\
         certificate-file = {:?}\nkey-file = {:?}\n",
        fake.address().port(),
        authority.path("gateway.pem"),
        authority.path("gateway.key"),
    );
    let daemon = Daemon::builder().config(&config).start().expect("ready");
    let (code, reply) = ask(&daemon, "cloud");
    assert_eq!(code, 200, "{reply}\n{}", daemon.log());
    assert_eq!(
        reply["choices"][0]["message"]["content"], "It is overheated.",
        "{reply}"
    );
    let head = fake.seen()[0].head.to_ascii_lowercase();
    assert!(head.contains("authorization: bearer k-0123456789abcdef"));
    let shown = |at: usize| {
        fake.seen()
            .get(at)
            .and_then(|seen| seen.certificate.clone())
    };
    let of_gateway = || {
        let path = authority.path("gateway.pem");
        CertificateDer::from_pem_file(path)
            .expect("a certificate")
            .to_vec()
    };
    let former = of_gateway();
    assert_eq!(shown(0), Some(former.clone()));
    assert_eq!(
        sum(
            &daemon,
            "andon_upstream_questions_total",
            "outcome=\"answered\""
        ),
        1.0
    );
    assert_eq!(sum(&daemon, "andon_upstream_up", ""), 1.0);
    assert_eq!(
        sum(&daemon, "andon_upstream_tokens_total", "of=\"prompt\""),
        11.0
    );
    // The daemon's own filter lets it hear of routes, and nothing more of that kind.
    assert!(hears_of_routes(daemon.pid()), "{}", daemon.log());
    // Not what may not travel, whatever the policy.
    let body = json!({ "messages": [{ "role": "user", "content": "What does E42 mean?" }], "policy": "auto", "max_tokens": 2 });
    let reply = daemon
        .http()
        .post("/v1/chat/completions", &body)
        .expect("a reply");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(fake.seen().len(), 1);
    // Another certificate and its key are shown once they are there, without a word to the daemon.
    authority.sign("gateway").expect("signed anew");
    let (code, reply) = ask(&daemon, "cloud");
    assert_eq!(code, 200, "{reply}\n{}", daemon.log());
    assert!(shown(1) == Some(of_gateway()) && shown(1) != Some(former));
    // It fails: a clear error, and nothing of the key anywhere.
    fake.now(status(
        "401 Unauthorized",
        "",
        "{\"error\":{\"message\":\"k-0123456789abcdef\"}}",
    ));
    let (code, reply) = ask(&daemon, "cloud");
    assert!(code >= 500, "{code} {reply}");
    wait_until("the journal says so", &daemon, || {
        daemon
            .log()
            .contains("an upstream cannot be asked until somebody sees to it")
    });
    assert!(
        !daemon.log().contains("0123456789abcdef")
            && !reply.to_string().contains("0123456789abcdef")
    );
}

#[test]
fn a_cable_that_is_plugged_in_again_is_noticed_at_once() {
    let network = match Network::make() {
        Ok(network) => network,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let fake = Fake::beside(network.outside(), Greeting::Plain, vec![good(&["Yes."])])
        .expect("it listens");
    // Left alone for longer than the test has patience: only word of the routes has it tried before.
    let config = format!(
        "[[upstream]]\nname = \"plant\"\nmodel = \"large\"\nurl = \"http://{}/v1\"\nretries-max = 0\nfailures-max = 1\n\
         open-ms = 3600000\nopen-max-ms = 3600000\nconnect-timeout-ms = 500\nfirst-token-timeout-ms = 1000\n",
        fake.address(),
    );
    let daemon = Daemon::builder()
        .config(&config)
        .before(network.inside())
        .start()
        .expect("ready");
    let (code, reply) = ask(&daemon, "cloud");
    assert_eq!(code, 200, "{reply}\n{}", daemon.log());
    network.plug(false).expect("root");
    let (code, reply) = ask(&daemon, "cloud");
    assert!(code >= 500, "{code} {reply}");
    let up = || sum(&daemon, "andon_upstream_up", "");
    wait_until("it is known to be away", &daemon, || up() == 0.0);
    fake.now(vec![Step::Send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            .to_vec(),
    )]);
    network.plug(true).expect("root");
    wait_until("it is looked for", &daemon, || up() == 1.0);
    fake.now(good(&["There."]));
    let (code, reply) = ask(&daemon, "cloud");
    assert_eq!(
        (code, &reply["choices"][0]["message"]["content"]),
        (200, &json!("There.")),
        "{reply}"
    );
    assert_eq!(
        sum(&daemon, "andon_upstream_state", "state=\"closed\""),
        1.0
    );
}
