//! A publisher with a ledger of its own: what it asked, and every word it got.
//!
//! It keeps its session at the broker and publishes again what the broker has not confirmed, as a careful client does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Event, MqttOptions};
use serde_json::Value;

/// Longest wait for the answers that are still missing at the end.
const PATIENCE: Duration = Duration::from_secs(180);

/// What came for one request, in order.
#[derive(Debug, Default, Clone)]
pub(super) struct Entry {
    /// Payloads of answers and errors.
    pub(super) ends: Vec<String>,
    /// Attempt, number and text of chunks.
    pub(super) chunks: Vec<(u64, u64, String)>,
}

type Ledger = Arc<Mutex<BTreeMap<String, Entry>>>;

/// The publisher.
pub(super) struct Publisher {
    client: Client,
    ledger: Ledger,
    over: Arc<AtomicBool>,
    /// The first message that was none of the daemon's.
    wrong: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
    topic: String,
}

impl Publisher {
    /// Begins with a subscription that the broker granted: an answer that came before it would be nobody's.
    pub(super) fn start(port: u16, name: &str) -> Publisher {
        let mut options = MqttOptions::new(format!("ledger-{name}"), "127.0.0.1", port);
        options.set_clean_start(false);
        options.set_session_expiry_interval(Some(3600));
        options.set_keep_alive(Duration::from_secs(5));
        let (client, mut connection) = Client::new(options, 4096);
        let ledger: Ledger = Ledger::default();
        let over = Arc::new(AtomicBool::new(false));
        let wrong: Arc<Mutex<Option<String>>> = Arc::default();
        let filter = format!("andon/test/response/{name}/#");
        let (granted, subscribed) = mpsc::channel();
        let thread = {
            let (client, ledger, over) = (client.clone(), ledger.clone(), over.clone());
            let wrong = Arc::clone(&wrong);
            thread::spawn(move || {
                for event in connection.iter() {
                    match event {
                        Ok(Event::Incoming(Packet::ConnAck(_))) => {
                            client.try_subscribe(&filter, QoS::AtLeastOnce).unwrap();
                        }
                        // Nobody waits for those of later connections.
                        Ok(Event::Incoming(Packet::SubAck(_))) => drop(granted.send(())),
                        Ok(Event::Incoming(Packet::Publish(publish))) => {
                            let payload = String::from_utf8_lossy(&publish.payload);
                            if let Err(what) = note(&ledger, &payload) {
                                let mut wrong =
                                    wrong.lock().unwrap_or_else(PoisonError::into_inner);
                                wrong.get_or_insert(format!("{what}: {payload}"));
                            }
                        }
                        Ok(_) => {}
                        // The broker is away; it is tried again until it is back.
                        Err(_) if over.load(Ordering::Relaxed) => return,
                        Err(_) => thread::sleep(Duration::from_millis(50)),
                    }
                }
            })
        };
        subscribed.recv_timeout(PATIENCE).unwrap();
        Publisher {
            client,
            ledger,
            over,
            wrong,
            thread: Some(thread),
            topic: format!("andon/test/request/{name}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and writes it down.
    pub(super) fn ask(&self, id: &str, more: &str) {
        self.lock().entry(id.to_owned()).or_default();
        let payload = format!(r#"{{"id":"{id}",{more}}}"#);
        self.client
            .publish(&self.topic, QoS::AtLeastOnce, false, payload)
            .unwrap();
    }

    /// How many requests have no word that ends them.
    pub(super) fn open(&self) -> usize {
        self.lock()
            .values()
            .filter(|entry| entry.ends.is_empty())
            .count()
    }

    /// The last word on a request.
    pub(super) fn end_of(&self, id: &str) -> String {
        self.lock()[id].ends.last().cloned().unwrap_or_default()
    }

    /// The ledger, once everything has been answered.
    pub(super) fn settled(&self) -> BTreeMap<String, Entry> {
        let began = Instant::now();
        while self.open() > 0 {
            let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(wrong.is_none(), "{wrong:?}");
            drop(wrong);
            let open: Vec<String> = self
                .lock()
                .iter()
                .filter(|(_, entry)| entry.ends.is_empty())
                .map(|(id, _)| id.clone())
                .collect();
            assert!(began.elapsed() < PATIENCE, "LOST: {open:?}");
            thread::sleep(Duration::from_millis(20));
        }
        // Whatever still comes twice.
        thread::sleep(Duration::from_millis(300));
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(wrong.is_none(), "{wrong:?}");
        self.lock().clone()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(self.client.disconnect());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn note(ledger: &Ledger, payload: &str) -> Result<(), String> {
    let value: Value = serde_json::from_str(payload).map_err(|error| error.to_string())?;
    let id = value["id"].as_str().ok_or("no id")?.to_owned();
    let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = ledger.entry(id).or_default();
    if value["type"] == "chunk" {
        let number = |name: &str| value[name].as_u64().ok_or(format!("no {name}"));
        let text = value["text"].as_str().ok_or("no text")?.to_owned();
        entry
            .chunks
            .push((number("attempt")?, number("sequence")?, text));
    } else {
        entry.ends.push(payload.to_owned());
    }
    Ok(())
}

/// What a ledger came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Answers that came more than once.
    pub(super) repeated: usize,
    /// Requests that were given up, since the daemon ended over them again and again.
    pub(super) given_up: usize,
}

/// Holds the ledger against what was promised, chunks too unless the daemon says that it has dropped some (`lossy`).
pub(super) fn judge(ledger: &BTreeMap<String, Entry>, lossy: bool) -> Outcome {
    let mut outcome = Outcome::default();
    for (id, entry) in ledger {
        let ends: Vec<Value> = entry
            .ends
            .iter()
            .map(|end| serde_json::from_str(end).expect("JSON"))
            .collect();
        let first = ends.first().expect("settled");
        // Killed over it again and again, the daemon tries it no more; that then is its answer.
        let why = first["error"]["message"].as_str().unwrap_or_default();
        if why.starts_with("the daemon ended") {
            assert!(entry.ends.iter().all(|end| *end == entry.ends[0]), "{id}");
            outcome.repeated += ends.len() - 1;
            outcome.given_up += 1;
            continue;
        }
        assert_eq!(first["type"], "answer", "{id}: {first}");
        outcome.repeated += ends.len() - 1;
        for (end, text) in ends.iter().zip(&entry.ends) {
            assert_eq!(
                end["answer"], first["answer"],
                "{id} was answered in two ways"
            );
            // Of one attempt it is the same message, byte for byte.
            if end["attempt"] == first["attempt"] {
                assert_eq!(text, &entry.ends[0], "{id}");
            }
        }
        // A reader that discards older attempts and repeated numbers, and what comes after a gap, reads the beginning of the
        // answer. There is none where nothing was dropped: what was not confirmed when a connection ended comes with the next.
        let answer = first["answer"].as_str().expect("a text");
        let mut attempts: BTreeMap<u64, BTreeMap<u64, &str>> = BTreeMap::new();
        for (attempt, sequence, text) in &entry.chunks {
            let before = attempts
                .entry(*attempt)
                .or_default()
                .insert(*sequence, text);
            assert!(
                before.is_none_or(|before| before == text),
                "{id}: chunk {sequence} of attempt {attempt} came with two texts"
            );
        }
        for (attempt, chunks) in attempts {
            let until_gap = (0..)
                .zip(&chunks)
                .take_while(|(place, chunk)| place == chunk.0);
            let text: String = until_gap.map(|(_, (_, text))| *text).collect();
            let gaps = chunks.keys().copied().ne(0..chunks.len() as u64);
            assert!(
                (lossy || !gaps) && answer.starts_with(&text),
                "{id}, attempt {attempt}: {text:?} is no beginning of {answer:?}"
            );
        }
    }
    outcome
}
