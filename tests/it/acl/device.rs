//! A client of the floor: one connection, known by its certificate, that asks, cancels and listens.

use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{MESSAGE_TIMEOUT, START_TIMEOUT};
use andon_tests::certificates::Authority;
use rumqttc::tokio_rustls::rustls::crypto::ring;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, Packet, PubAckReason, PublishProperties, SubscribeReasonCode,
};
use rumqttc::v5::{Client, Event, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use serde_json::Value;

/// How long nothing has to come for nothing to come any more.
const SILENCE: Duration = Duration::from_millis(500);

/// What came over the connection.
enum Word {
    Connected,
    Subscribed(SubscribeReasonCode),
    Taken(PubAckReason),
    Message(String, Value),
    Lost(String),
}

/// The client.
pub(super) struct Device {
    name: String,
    client: Client,
    words: Receiver<Word>,
    /// The topic of every message that came, whether somebody waited for it or not.
    heard: Arc<Mutex<Vec<String>>>,
}

impl Device {
    /// Connects by the certificate that `authority` signed for `name`.
    pub(super) fn connect(authority: &Authority, port: u16, name: &str) -> Device {
        // Another test may have been first.
        drop(ring::default_provider().install_default());
        let read = |file: &str| fs::read(authority.path(file)).unwrap();
        let mut options = MqttOptions::new(name, "localhost", port);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Simple {
            ca: read("ca.pem"),
            alpn: None,
            client_auth: Some((read(&format!("{name}.pem")), read(&format!("{name}.key")))),
        }));
        options.set_keep_alive(Duration::from_secs(60));
        let (client, mut connection) = Client::new(options, 64);
        let (sender, words) = channel();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let note = Arc::clone(&heard);
        thread::spawn(move || {
            for event in connection.iter() {
                let word = match event {
                    Ok(Event::Incoming(Packet::ConnAck(ack)))
                        if ack.code == ConnectReturnCode::Success =>
                    {
                        Word::Connected
                    }
                    Ok(Event::Incoming(Packet::SubAck(ack))) => {
                        Word::Subscribed(ack.return_codes[0])
                    }
                    Ok(Event::Incoming(Packet::PubAck(ack))) => Word::Taken(ack.reason),
                    Ok(Event::Incoming(Packet::Publish(publish))) => Word::Message(
                        String::from_utf8_lossy(&publish.topic).into_owned(),
                        serde_json::from_slice(&publish.payload).unwrap_or_default(),
                    ),
                    Ok(_) => continue,
                    Err(error) => Word::Lost(error.to_string()),
                };
                if let Word::Message(topic, _) = &word {
                    let mut heard = note.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.push(topic.clone());
                }
                let lost = matches!(word, Word::Lost(_));
                if sender.send(word).is_err() || lost {
                    return;
                }
            }
        });
        let device = Device {
            name: name.to_owned(),
            client,
            words,
            heard,
        };
        device.until(START_TIMEOUT, |word| {
            matches!(word, Word::Connected).then_some(())
        });
        device
    }

    /// Subscribes. The broker grants what it will not deliver, too.
    pub(super) fn subscribe(&self, filter: &str) {
        self.client.subscribe(filter, QoS::AtLeastOnce).unwrap();
        let granted = self.until(START_TIMEOUT, |word| match word {
            Word::Subscribed(code) => Some(code),
            _ => None,
        });
        assert!(
            matches!(granted, SubscribeReasonCode::Success(_)),
            "{granted:?}"
        );
    }

    /// Publishes; whether the broker's access list let it.
    pub(super) fn publish(&self, topic: &str, payload: &str, response_topic: Option<&str>) -> bool {
        let properties = PublishProperties {
            response_topic: response_topic.map(str::to_owned),
            ..PublishProperties::default()
        };
        self.client
            .publish_with_properties(
                topic,
                QoS::AtLeastOnce,
                false,
                payload.to_owned(),
                properties,
            )
            .unwrap();
        let reason = self.until(START_TIMEOUT, |word| match word {
            Word::Taken(reason) => Some(reason),
            _ => None,
        });
        match reason {
            PubAckReason::Success => true,
            PubAckReason::NotAuthorized => false,
            other => panic!("{} published on {topic}: {other:?}", self.name),
        }
    }

    /// The next message for which `wanted` holds, with its topic.
    pub(super) fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> (String, Value) {
        self.until(MESSAGE_TIMEOUT, |word| match word {
            Word::Message(topic, value) if wanted(&value) => Some((topic, value)),
            _ => None,
        })
    }

    /// The answer or the error to the request `id`.
    pub(super) fn end_of(&self, id: &str) -> (String, Value) {
        self.wait_for(|value| value["id"] == id && value["type"] != "chunk")
    }

    /// The topics of all messages that came, once none comes any more.
    pub(super) fn heard(&self) -> Vec<String> {
        loop {
            match self.words.recv_timeout(SILENCE) {
                Ok(Word::Lost(error)) => panic!("{}: {error}", self.name),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn until<T>(&self, patience: Duration, pick: impl Fn(Word) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let left = patience.saturating_sub(start.elapsed());
            match self.words.recv_timeout(left) {
                Ok(Word::Lost(error)) => panic!("{}: {error}", self.name),
                Ok(word) => {
                    if let Some(found) = pick(word) {
                        return found;
                    }
                }
                Err(error) => panic!("{}: {error}", self.name),
            }
        }
    }
}
