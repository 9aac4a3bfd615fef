//! The broker's access list that is shipped, at a real broker with certificates: a client's name in a topic is true.
//!
//! Each attempt in another's name is made beside the rightful one, which has to work, so that a test cannot pass because
//! nothing works.

mod device;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{Broker, MESSAGE_TIMEOUT, client, succeed};
use andon_tests::certificates::Authority;
use andon_tests::daemon::{Builder, Daemon};
use andon_tests::source::repository_root;
use andon_tests::tiny_model::TinyModel;
use serde_json::Value;

use self::device::Device;

/// The gateway's certificate, as the shipped list has it.
const GATEWAY: &str = "gateway-press-3";

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(20);

/// A plant: authority, broker with the shipped configuration, gateway.
struct Plant {
    authority: Authority,
    broker: Broker,
    daemon: Daemon,
}

fn example(name: &str) -> String {
    fs::read_to_string(repository_root().join("systemd/examples").join(name)).unwrap()
}

impl Plant {
    /// A plant; `None` without openssl.
    fn start(config: &str) -> Option<Plant> {
        Plant::with(Daemon::builder(), config)
    }

    /// A plant whose gateway serves what `builder` says.
    fn with(builder: Builder, config: &str) -> Option<Plant> {
        let Some(authority) = Authority::new().unwrap() else {
            eprintln!("skipped: openssl is not installed");
            return None;
        };
        authority.sign_host("broker").unwrap();
        for name in [GATEWAY, "plc1", "plc2", "supervisor", "node-red"] {
            authority.sign(name).unwrap();
        }
        // Only the port, the paths and the user that the broker runs as are other than what is shipped.
        fs::write(authority.path("andon.acl"), example("mosquitto.acl")).unwrap();
        let shipped = example("mosquitto.conf");
        let made = |port: u16| {
            let mut text = String::from("user root\nlog_type all\n");
            let mut replaced = 0;
            for line in shipped.lines() {
                let words = match line.split_once(' ') {
                    Some(("listener", "8883")) => format!("listener {port} 127.0.0.1"),
                    Some((
                        key @ ("cafile" | "certfile" | "keyfile" | "crlfile" | "acl_file"),
                        path,
                    )) => {
                        let file = match path.rsplit('/').next().unwrap_or_default() {
                            "plant-ca.pem" => "ca.pem",
                            "plant.crl" => "ca.crl",
                            name => name,
                        };
                        format!("{key} {}", authority.path(file).display())
                    }
                    _ => {
                        text.push_str(line);
                        text.push('\n');
                        continue;
                    }
                };
                replaced += 1;
                text.push_str(&words);
                text.push('\n');
            }
            assert_eq!(replaced, 6, "{shipped}");
            text
        };
        let broker = Broker::start_from(&made).unwrap();
        let file = |name: &str| authority.path(name).display().to_string();
        let config = format!(
            "[gateway]\nname = \"press-3\"\n[mqtt]\nenabled = true\nhost = \"localhost\"\nport = {}\ntls = true\n\
             ca-file = \"{}\"\ncertificate-file = \"{}\"\nkey-file = \"{}\"\nfleet-group = \"hall-3\"\n{config}",
            broker.port(),
            file("ca.pem"),
            file(&format!("{GATEWAY}.pem")),
            file(&format!("{GATEWAY}.key")),
        );
        let daemon = builder.config(&config).start().unwrap();
        let plant = Plant {
            authority,
            broker,
            daemon,
        };
        let watcher = plant.device("supervisor");
        watcher.subscribe("andon/press-3/status");
        watcher.wait_for(|value| value["state"] == "online" && value["ready"] == true);
        Some(plant)
    }

    fn device(&self, name: &str) -> Device {
        Device::connect(&self.authority, self.broker.port(), name)
    }

    /// Waits until the gateway has said `words`.
    fn wait_for_log(&self, words: &str) {
        let start = Instant::now();
        while !self.daemon.log().contains(words) {
            assert!(start.elapsed() < MESSAGE_TIMEOUT, "{}", self.daemon.log());
            thread::sleep(POLL);
        }
    }
}

/// A request of so many tokens; the tiny model never ends by itself.
fn request(id: &str, tokens: usize) -> String {
    format!(r#"{{"id":"{id}","prompt":"a","tokens_max":{tokens}}}"#)
}

#[test]
fn nobody_asks_or_reads_in_anothers_name() {
    let Some(plant) = Plant::start("") else {
        return;
    };
    let (rightful, other) = (plant.device("plc1"), plant.device("plc2"));
    rightful.subscribe("andon/press-3/response/plc1/#");
    // What a subscription covers is not what is delivered.
    for kind in ["response", "request", "cancel", "event"] {
        other.subscribe(&format!("andon/+/{kind}/#"));
    }

    for topic in [
        "andon/press-3/request/plc1",
        "andon/press-3/request/plc1/explain",
        "andon/fleet/hall-3/request/plc1",
        "andon/press-3/response/plc1/1",
        "andon/press-3/status",
        "andon/press-3/event/refused",
        "andon/press-3/request/plc2/plc1/x",
    ] {
        assert!(!other.publish(topic, &request("1", 2), None), "{topic}");
    }
    assert!(rightful.heard().is_empty());

    // Each for itself, and of one id.
    for topic in [
        "andon/press-3/request/plc1",
        "andon/fleet/hall-3/request/plc1",
    ] {
        if topic.contains("fleet") {
            rightful.subscribe("andon/fleet/hall-3/response/plc1/#");
        }
        assert!(rightful.publish(topic, &request("2", 3), None), "{topic}");
        let (at, value) = rightful.end_of("2");
        assert_eq!(
            (at, &value["type"]),
            (
                topic.replace("request", "response") + "/2",
                &Value::from("answer")
            )
        );
    }
    assert!(other.publish("andon/press-3/request/plc2", &request("2", 5), None));
    let (topic, value) = other.end_of("2");
    assert_eq!(topic, "andon/press-3/response/plc2/2");
    assert_eq!(value["usage"]["completion_tokens"], 5, "{value}");
    assert_eq!(other.heard(), ["andon/press-3/response/plc2/2"]);
    assert_eq!(rightful.heard().len(), 2);
}

#[test]
fn nobody_cancels_anothers_request() {
    // A context long enough for an answer that takes a while on any machine.
    const TOKENS: usize = 30_000;
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("long.gguf");
    let tiny = TinyModel {
        context_tokens_max: TOKENS + 1000,
        ..TinyModel::default()
    };
    tiny.write(&model).unwrap();
    let config = format!("[model]\nkv-tokens-max = {}\n", TOKENS + 2000);
    let Some(plant) = Plant::with(Daemon::builder().model(&model), &config) else {
        return;
    };
    let (rightful, other) = (plant.device("plc1"), plant.device("plc2"));
    rightful.subscribe("andon/press-3/response/plc1/#");
    let payload = format!(r#"{{"id":"1","prompt":"a","tokens_max":{TOKENS},"stream":true}}"#);
    assert!(rightful.publish("andon/press-3/request/plc1", &payload, None));
    rightful.wait_for(|value| value["type"] == "chunk");
    assert!(!other.publish("andon/press-3/cancel/plc1", "1", None));
    // Its own topic is its to use; it names its own requests only.
    assert!(other.publish("andon/press-3/cancel/plc2", "1", None));
    plant.wait_for_log("a cancel names a request that is not running");
    assert!(
        !plant
            .daemon
            .log()
            .contains("answered origin=\"mqtt\" client=\"plc1\"")
    );

    assert!(rightful.publish("andon/press-3/cancel/plc1", "1", None));
    let (_, value) = rightful.end_of("1");
    assert_eq!(value["finish"], "cancelled", "{value}");
}

#[test]
fn answers_go_nowhere_but_to_who_asked() {
    let Some(plant) = Plant::start(
        "response-topics = [\"<base>/response/<client>/#\", \"andon/press-3/response/<client>/+\"]\n",
    ) else {
        return;
    };
    let (rightful, other) = (plant.device("plc1"), plant.device("plc2"));
    rightful.subscribe("andon/press-3/response/plc1/#");
    other.subscribe("andon/press-3/response/plc2/#");
    let wrong = [
        "andon/press-3/response/plc2/1",
        "andon/press-3/request/plc1",
        "andon/press-3/cancel/plc2",
        "andon/press-3/status",
        "andon/press-3/event/refused",
        "floor/press-3/stop",
        "$SYS/broker/clients",
    ];
    for (index, topic) in wrong.iter().enumerate() {
        let id = format!("w{index}");
        assert!(rightful.publish("andon/press-3/request/plc1", &request(&id, 2), Some(topic)));
        let (at, value) = rightful.end_of(&id);
        assert_eq!(
            (at, &value["type"]),
            (
                format!("andon/press-3/response/plc1/{id}"),
                &Value::from("answer")
            ),
            "{topic}"
        );
    }
    assert!(other.heard().is_empty());
    let log = plant.daemon.log();
    assert!(
        log.matches("not in mqtt.response-topics").count() >= wrong.len(),
        "{log}"
    );

    // Its own are taken, at any depth; to a broker, two dots are a name like any other.
    for (id, own) in [("o1", "mine"), ("o2", "../plc2/1")] {
        let own = format!("andon/press-3/response/plc1/{own}");
        assert!(rightful.publish("andon/press-3/request/plc1", &request(id, 2), Some(&own)));
        assert_eq!(rightful.end_of(id).0, own);
    }
    assert!(other.heard().is_empty());
}

#[test]
fn a_list_that_allows_too_much_lets_the_gateway_down_only_as_far_as_the_broker() {
    // Somebody adds a topic of the floor to [mqtt] response-topics: the broker still denies it to the gateway.
    let Some(plant) = Plant::start("response-topics = [\"floor/#\"]\n") else {
        return;
    };
    let rightful = plant.device("plc1");
    rightful.subscribe("floor/#");
    assert!(rightful.publish(
        "andon/press-3/request/plc1",
        &request("1", 2),
        Some("floor/press-3/stop")
    ));
    let start = Instant::now();
    while !plant
        .broker
        .log()
        .contains("Denied PUBLISH from gateway-press-3")
    {
        assert!(start.elapsed() < MESSAGE_TIMEOUT, "{}", plant.broker.log());
        thread::sleep(POLL);
    }
    assert!(rightful.heard().is_empty());
}

#[test]
fn a_certificate_is_needed_and_its_name_is_the_only_one() {
    let Some(plant) = Plant::start("") else {
        return;
    };
    let port = plant.broker.port();
    let publish = |arguments: &[&str]| {
        let mut command = client("mosquitto_pub", port);
        command
            .args(["-h", "localhost", "--cafile"])
            .arg(plant.authority.path("ca.pem"));
        command.args([
            "-V",
            "5",
            "-q",
            "1",
            "-t",
            "andon/press-3/request/plc1",
            "-m",
            "x",
        ]);
        succeed(command.args(arguments)).is_ok()
    };
    assert!(!publish(&[]));
    // A name that is only said counts for nothing, neither the user's nor the session's.
    let before = plant
        .broker
        .log()
        .matches("Denied PUBLISH from plc2")
        .count();
    let (certificate, key) = (
        plant.authority.path("plc2.pem"),
        plant.authority.path("plc2.key"),
    );
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    publish(&[
        "--cert",
        certificate,
        "--key",
        key,
        "-u",
        "plc1",
        "-i",
        GATEWAY,
    ]);
    let log = plant.broker.log();
    assert_eq!(
        log.matches("Denied PUBLISH from plc2").count(),
        before + 1,
        "{log}"
    );
    assert!(
        !log.contains("Client gateway-press-3 already connected"),
        "{log}"
    );
    let rightful = plant.device("plc1");
    rightful.subscribe("andon/press-3/response/plc1/#");
    assert!(rightful.publish("andon/press-3/request/plc1", &request("1", 2), None));
    assert_eq!(rightful.end_of("1").1["type"], "answer");
}

#[test]
fn the_flow_for_node_red_uses_topics_that_it_may() {
    let Some(plant) = Plant::start("") else {
        return;
    };
    let flow: Value = serde_json::from_str(&example("node-red.json")).unwrap();
    let nodes = flow.as_array().unwrap();
    let node = |kind: &str| nodes.iter().find(|node| node["type"] == kind).unwrap();
    for wire in nodes
        .iter()
        .filter_map(|node| node["wires"].as_array())
        .flatten()
    {
        for target in wire.as_array().unwrap() {
            assert!(nodes.iter().any(|node| &node["id"] == target), "{target}");
        }
    }
    for kind in ["mqtt in", "mqtt out"] {
        assert_eq!(node(kind)["broker"], node("mqtt-broker")["id"]);
    }
    assert_eq!(node("mqtt-broker")["tls"], node("tls-config")["id"]);
    assert_eq!(node("mqtt-broker")["protocolVersion"], "5");
    // What the function of the flow sets, as it stands there.
    let code = nodes.iter().find(|node| node["name"] == "request").unwrap()["func"]
        .as_str()
        .unwrap();
    let said = |key: &str| {
        let rest = code.split(&format!("{key} = '")).nth(1).unwrap();
        rest.split('\'').next().unwrap().to_owned()
    };
    let client = plant.device("node-red");
    client.subscribe(node("mqtt in")["topic"].as_str().unwrap());
    let answered = said("msg.responseTopic") + "17";
    let payload = r#"{"id":"17","messages":[{"role":"user","content":"E42?"}],"tokens_max":2}"#;
    assert!(client.publish(&said("msg.topic"), payload, Some(&answered)));
    let (topic, value) = client.end_of("17");
    assert_eq!((topic, &value["type"]), (answered, &Value::from("answer")));
}
