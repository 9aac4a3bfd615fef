//! Over a broker: messages that are no requests, lie, or come again.

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::Broker;
use andon_tests::mutate::Draw;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{Client, Event, MqttOptions};

use super::{Campaign, json};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// After so many hostile ones the sender waits for the answer to a good one, so that the broker need not drop any.
const WINDOW: usize = 100;

const TOPICS: [&str; 8] = [
    "request/evil",
    "request/evil",
    "request/evil",
    "request/evil/explain",
    "request/evil/none",
    "request/evil/a/b/c",
    "cancel/evil",
    "request/",
];

#[test]
fn hostile_messages_leave_nothing_behind() {
    let campaign = Campaign::asked();
    let broker = Broker::start_with("max_queued_messages 0").unwrap();
    let config = broker.config()
        + super::CONFIG
        + "[task.explain]\ninstructions = \"Explain {{ code }}.\"\ntokens-max = 2\n";
    let status = broker.watch("andon/test/status", "mqttv5").unwrap();
    let mut daemon = campaign.daemon().config(&config).start().unwrap();
    status
        .wait_for(|seen| seen.json().is_ok_and(|value| value["ready"] == true))
        .unwrap();
    drop(status);
    let sender = Sender::start(broker.port());
    campaign.run(
        "over MQTT",
        &mut daemon,
        || sender.good("x"),
        |_, numbers| {
            // One after the other: the order is the seed's, and the broker keeps it.
            for number in numbers {
                let mut draw = Draw::new(campaign.seed ^ ((number as u64) << 20));
                sender.hostile(&mut draw);
                if number % WINDOW == WINDOW - 1 {
                    sender.good(&number.to_string());
                }
            }
        },
    );
    let metrics = daemon.http().get("/metrics").unwrap().text();
    let count = |start: &str| -> f64 {
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with(start) && line.contains("mqtt"));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    let (came, malformed) = (
        count("andon_requests_total"),
        count("andon_malformed_total"),
    );
    eprintln!("over MQTT {came} requests came, {malformed} were malformed");
    // Some have topics that nobody listens to, say what is no request, or say again what was said.
    let sent = campaign.count as f64;
    assert!(malformed > sent / 8.0, "{malformed} of {sent}");
    assert!(
        came + malformed > sent / 3.0,
        "{came} and {malformed} of {sent}"
    );
}

struct Sender {
    client: Client,
    answers: Receiver<String>,
}

impl Sender {
    fn start(port: u16) -> Sender {
        let mut options = MqttOptions::new("hostile", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30));
        options.set_connection_timeout(30);
        let (client, mut connection) = Client::new(options, 64);
        let (sender, answers) = channel();
        client
            .subscribe("andon/test/response/good/#", QoS::AtLeastOnce)
            .unwrap();
        let (granted, wait) = channel();
        thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let text = String::from_utf8_lossy(&publish.payload).into_owned();
                        if sender.send(text).is_err() {
                            return;
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => drop(granted.send(())),
                    Ok(_) => {}
                    // A packet larger than the broker takes: it hangs up, and the client comes back.
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        wait.recv_timeout(PATIENCE).unwrap();
        Sender { client, answers }
    }

    /// A good request of a client of its own, and how long its answer took.
    fn good(&self, id: &str) -> Duration {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let id = format!(
            "{id}-{}",
            COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        );
        let payload = format!(r#"{{"id":"{id}","prompt":"hello","tokens_max":4,"temperature":0}}"#);
        let began = Instant::now();
        self.client
            .publish("andon/test/request/good", QoS::AtLeastOnce, false, payload)
            .unwrap();
        loop {
            let answer = self
                .answers
                .recv_timeout(PATIENCE)
                .expect("an answer to a good request");
            if answer.contains(&format!(r#""id":"{id}""#)) {
                assert!(answer.contains(r#""type":"answer""#), "{answer}");
                return began.elapsed();
            }
        }
    }

    fn hostile(&self, draw: &mut Draw) {
        let topic = format!("andon/test/{}", TOPICS[draw.below(TOPICS.len())]);
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][draw.below(3)];
        let id = draw.below(50);
        let sound = format!(
            r#"{{"id":"{id}","prompt":"note {}","tokens_max":{},"stream":true}}"#,
            draw.below(3),
            1 + draw.below(2)
        );
        let mut properties = PublishProperties::default();
        let payload = match draw.below(10) {
            // Ids come again, with the same words or others.
            0 => sound.into_bytes(),
            1 => (0..draw.below(4000))
                .map(|_| draw.number().to_le_bytes()[0])
                .collect(),
            2 => {
                properties.content_type = Some("application/postcard".to_owned());
                (0..draw.below(300))
                    .map(|_| draw.number().to_le_bytes()[0])
                    .collect()
            }
            3 => {
                properties.content_type = Some(
                    ["text/plain", "text/html", "", "application/json; x"][draw.below(4)]
                        .to_owned(),
                );
                json::wrong(draw, &sound)
            }
            4 => {
                let topics = [
                    "andon/test/response/good/x",
                    "$SYS/x",
                    "andon/test/request/evil",
                    "a/b",
                    "andon/test/status",
                ];
                properties.response_topic = Some(topics[draw.below(topics.len())].to_owned());
                properties.correlation_data = Some(vec![7; draw.below(40_000)].into());
                sound.into_bytes()
            }
            5 => {
                let pair = |index: usize| (format!("name {index}"), "v".repeat(60));
                properties.user_properties = (0..draw.below(200)).map(pair).collect();
                properties
                    .user_properties
                    .push(("priority".to_owned(), "highest".to_owned()));
                properties.message_expiry_interval = Some(u32::try_from(draw.below(2)).unwrap());
                sound.into_bytes()
            }
            6 if draw.below(8) == 0 => vec![b' '; 200_000 + draw.below(200_000)],
            _ => json::wrong(draw, &sound),
        };
        self.client
            .publish_with_properties(topic, qos, false, payload, properties)
            .unwrap();
    }
}
