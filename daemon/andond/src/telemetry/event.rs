//! The events that an operator acts on, each with the `MESSAGE_ID` by which the journal's catalog explains it.
//!
//! They are logged by [`event!`](crate::event), which takes the level and the id from the table, so that none goes without.
//! What is no error and explains itself (what becomes of a request, what a step of loading came to) is logged by the macros of
//! `tracing`; errors are always events. `systemd/andon.catalog` has a text for each, under its id; an id is never given to
//! another event.

use tracing::Level;

/// Makes the table.
macro_rules! table {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal, $level:ident;)+) => {
        /// An event that an operator acts on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Event {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Event {
            /// All of them, in the order of the table.
            pub const ALL: &[Event] = &[$(Event::$name,)+];

            /// The journal's `MESSAGE_ID`: 128 bits in hexadecimal.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self {
                    $(Event::$name => $id,)+
                }
            }

            /// The name in the table.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Event::$name => stringify!($name),)+
                }
            }

            /// How loudly it is said.
            #[must_use]
            pub const fn level(self) -> Level {
                match self {
                    $(Event::$name => Level::$level,)+
                }
            }
        }
    };
}

table! {
    /// The model has decoded a token; requests are answered.
    Ready = "8ae7eb544af544f5b9dab96e43d0f91e", INFO;
    /// The configured model is not kept here yet; requests are refused until it is added.
    Waiting = "e3cdb55b5b4f488e916d054f49114e2f", WARN;
    /// The daemon was told to stop.
    Stopping = "d941774afba94c59bec127c14dddd5bb", INFO;
    /// It has stopped in good order.
    Stopped = "b3662df6fc9b459dbb5d9230a258d6b5", INFO;
    /// It stopped before everything was said or written that was to be.
    StopIncomplete = "722531547681419ab5ea8fb641e5d41c", WARN;
    /// It cannot start, or not go on.
    Failed = "c730aee79abc4284a70620e4b93d228d", ERROR;
    /// A bug ends it.
    Panicked = "028c046931a9497a97487844f3c6dce8", ERROR;
    /// Something of the daemon's own is not as it should be; it goes on.
    Internal = "7a9ce5c6084040f292d43a98c8df8fd8", ERROR;
    /// What is being answered makes no progress; the watchdog is not fed.
    WatchdogStall = "42f9f2b87a6b4fce8c13a9fb5065bf4f", ERROR;
    /// The configuration was read again; what is live holds.
    ConfigReloaded = "2b689b8a5ba84a43893c9343201badd8", INFO;
    /// The configuration has a problem; the former one goes on to hold.
    ConfigRefused = "ff25609cb71f4abd8fbbe9503b304255", ERROR;
    /// The configuration was read again, and keys have other values in the file that need a restart.
    RestartNeeded = "b5f059b5e2b04fbcbb8784946d3bff56", WARN;
    /// A part of the sandbox cannot be had from this kernel.
    SandboxDegraded = "14d513569c964fc981653a0840fcb5d1", WARN;
    /// Somebody asked for what the rules do not allow.
    AccessDenied = "d9811586a6d447b6861aa19dfd3ac43d", WARN;
    /// Events of a kind came faster than they are logged.
    Suppressed = "c6c76e20b5164d609762782cbf8d7244", WARN;

    /// A model was added to those that are kept.
    ModelAdded = "25bb74a75f8f4588b00c74eb19f29871", INFO;
    /// One was removed.
    ModelRemoved = "0e1cae0e3b864f5484e816703ecca310", INFO;
    /// A model is loaded and has made the tokens that it should.
    ModelLoaded = "84ed0801f9c747a8a0de4e29ab4d462d", INFO;
    /// One was unloaded.
    ModelUnloaded = "84ec3e030da14c2e80a80da7193bd611", INFO;
    /// A model cannot be loaded or served.
    ModelFailed = "cfd8af9767c7432eb840bb9852bc0c89", ERROR;
    /// A model that was served is of no use any more.
    ModelBroken = "7ce10ce209454c33b398317e628d2c8b", ERROR;
    /// A model took another's name.
    ModelSwapped = "e8cef1ad2ccb49a8ba27b49a2b3ebd36", INFO;
    /// The former one took it back.
    ModelRolledBack = "77a5b466af6d487a9787b5ec61459f0c", ERROR;
    /// Which model answers to which name cannot be read or kept.
    ModelNamesLost = "4c0ae5e6dcc64c0da3ab7d487043d518", ERROR;
    /// A model's signature, or a file that is signed, is not as it should be.
    SignatureBad = "a2aaebd302be4ba898a799bf06124056", ERROR;
    /// A model is not signed by a key that is trusted.
    SignatureMissing = "c0663edea8964459be2df42ad426864d", WARN;
    /// Weights are not those of the manifest.
    WeightsDiffer = "be4ff4ea2002448fb0289498aae1553e", ERROR;
    /// A pass over the model failed, and with it the requests that took part.
    PassFailed = "775a9f3c90024c0a8365c0813d2d07d2", ERROR;
    /// A request has no answer, and the daemon or the model is at fault.
    RequestFailed = "c0dd9a47aa9d4385b9194dc6e191d68b", ERROR;
    /// A device has the weights of a model that the processor served until then, and computes.
    BackendReady = "d7a41e0c5b8f4e62b39d1c7f04a6e815", INFO;
    /// A device that computed failed, and the processor goes on.
    BackendLost = "8c1f5a0e4d7b4f4f9e0b6a3d2c91e7a5", ERROR;
    /// A request was ended since passes brought it nothing.
    RequestStuck = "5935b739c4fd47a783b500587c156035", ERROR;

    /// Memory is short, and more gives way than before.
    MemoryShort = "4799c3534f094a089b8a068423955c6f", WARN;
    /// There is enough of it again.
    MemoryEased = "e19de2abc2694cf29d53dd6a159f90bb", INFO;
    /// Batch work gives way to heat, power or the lack of memory.
    Throttled = "05050cbd2531409bb9e8c2977f756b0e", WARN;
    /// It does so no more.
    ThrottleEased = "6fb581dfe73d4e509b9fa8d82e1cb40f", INFO;
    /// A sensor does not answer.
    SensorHangs = "c20f481fbc964259bcd3794fcc565446", WARN;

    /// Nothing can be written to the spool.
    SpoolFailing = "4e6c2e13c2af4397be9931bf3d975748", ERROR;
    /// It works again.
    SpoolRecovered = "80898fa58fc34042a5ede2063eb69093", WARN;
    /// Its disk takes long to write.
    SpoolSlow = "cbaa5eec6c7048f0a4a199c9906dbf2a", ERROR;
    /// It is in memory only.
    SpoolVolatile = "ebd959d54f9e476da4588a9c2c47b4f7", WARN;
    /// The daemon stopped before all was written to it.
    SpoolUnwritten = "ca2c0343f4874c7f8194f964c099c13c", ERROR;
    /// A record of it cannot be read or answered.
    RecordUnreadable = "cdcebb0766f14c828594665e3e36c188", ERROR;
    /// A request was given up after a long time.
    RequestGivenUp = "3a90a51aa03a4339a80a380ebf34250f", ERROR;
    /// An answer is given that would not survive the daemon.
    AnswerUnsafe = "4e7947d04f0a4484b1321d460fa1813b", ERROR;
    /// An answer could not be delivered.
    AnswerUndelivered = "f2c96917cd2f4f22bafb72e68e8a540a", ERROR;

    /// Audit records cannot be written.
    AuditFailing = "f2e99936057b431b86bdfcd29d4a1bfa", ERROR;
    /// They are written again.
    AuditRecovered = "ef081f08401b4e419d632fdd38b5f43c", WARN;

    /// It is not known what was spent upstream.
    LedgerUnusable = "f8520c5c30554e63803984348c0a0a80", ERROR;
    /// What is spent upstream cannot be written down.
    LedgerFailing = "41ce20711911432090593adfcba0d841", ERROR;
    /// It is written down again.
    LedgerRecovered = "1b05c09cde7f41a0b991de82ada49f5f", WARN;

    /// The broker is connected.
    BrokerConnected = "8af850be589841ed8a1a97a4cc19c350", INFO;
    /// The connection to the broker ended, or could not be made.
    BrokerLost = "2d5069f6c6474206a1d18934ddb4e3a0", WARN;
    /// The broker refuses what andond needs, or cannot be asked for it.
    BrokerRefused = "6f7074da67f54bdfadcde338ae45b24d", ERROR;
    /// A new certificate or password for the broker is of no use; the former one is used on.
    CredentialsRefused = "983c660af87c4368992a399d5bdb7d3d", ERROR;
    /// What the broker kept for the gateway was thrown away.
    BrokerSessionDropped = "5d7aae60b7724080ad5e77f70e852d77", ERROR;
    /// MQTT is not served, though it is configured.
    MqttNotServed = "b446afb2a29e43dfb61772a956f4a907", ERROR;

    /// An upstream failed too often and is left alone for a while.
    UpstreamLost = "92f81fa84c3f40d18cd9e2c1db97d5d4", WARN;
    /// It answers again.
    UpstreamBack = "88d90dffbd304d209bfd73a14b962089", INFO;
    /// It cannot be asked until a person has seen to it: its key, its certificate or its address.
    UpstreamRefused = "a766e01fe63b4d87b3a532e3bfbe2e2c", ERROR;

    /// Somebody erased what was kept of requests.
    DataErased = "22e17cef468d4831bf4f881ae4c28367", INFO;
}

/// Logs an event of the table: its name, fields, and a text.
#[macro_export]
macro_rules! event {
    ($event:ident, $($rest:tt)+) => {
        ::tracing::event!(
            $crate::telemetry::Event::$event.level(),
            message_id = $crate::telemetry::Event::$event.id(),
            $($rest)+
        )
    };
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use super::Event;

    const CATALOG: &str = include_str!("../../../../systemd/andon.catalog");

    /// The catalog's entries: id, and lines.
    fn catalog() -> BTreeMap<&'static str, Vec<&'static str>> {
        let mut entries = BTreeMap::new();
        for entry in CATALOG.split("-- ").skip(1) {
            let mut lines = entry.lines();
            let id = lines.next().unwrap_or_default().trim();
            let known = entries.insert(id, lines.collect::<Vec<_>>());
            assert!(known.is_none(), "{id} stands twice in the catalog");
        }
        entries
    }

    #[test]
    fn every_event_has_an_id_of_its_own() {
        let ids: BTreeSet<&str> = Event::ALL.iter().map(|event| event.id()).collect();
        assert_eq!(ids.len(), Event::ALL.len());
        for id in ids {
            assert!(
                id.len() == 32
                    && id
                        .bytes()
                        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
                "{id} is no MESSAGE_ID"
            );
        }
    }

    #[test]
    fn table_and_catalog_agree_in_both_directions() {
        let catalog = catalog();
        let table: BTreeSet<&str> = Event::ALL.iter().map(|event| event.id()).collect();
        let explained: BTreeSet<&str> = catalog.keys().copied().collect();
        let missing: Vec<&Event> = Event::ALL
            .iter()
            .filter(|event| !explained.contains(event.id()))
            .collect();
        assert!(missing.is_empty(), "not in andon.catalog: {missing:?}");
        let unknown: Vec<&&str> = explained.difference(&table).collect();
        assert!(unknown.is_empty(), "no event has these ids: {unknown:?}");
        for (id, lines) in catalog {
            for field in [
                "Subject: ",
                "Defined-By: andond",
                "Documentation: man:andond(8)",
            ] {
                assert!(
                    lines.iter().any(|line| line.starts_with(field)),
                    "{id} has no {field:?}"
                );
            }
            let blank = lines.iter().position(|line| line.is_empty());
            let text = blank.map_or(&[][..], |at| &lines[at..]);
            let words = text.iter().flat_map(|line| line.split_whitespace()).count();
            assert!(words >= 8, "{id} explains nothing");
        }
    }

    /// Sources without their tests, which come last in a file.
    fn sources(folder: &Path, all: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, all);
            } else if path.extension().is_some_and(|ending| ending == "rs")
                && !path.ends_with("telemetry/event.rs")
            {
                let text = std::fs::read_to_string(&path).expect("a source");
                let text = text
                    .split("#[cfg(test)]\nmod tests {")
                    .next()
                    .unwrap_or_default();
                all.push((path.display().to_string(), text.to_owned()));
            }
        }
    }

    #[test]
    fn every_event_is_logged_somewhere_and_every_error_is_an_event() {
        let mut all = Vec::new();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        sources(&folder, &mut all);
        for event in Event::ALL {
            let logged = format!("event!({},", event.name());
            let split = format!("event!(\n{}", event.name());
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join("\n");
            assert!(
                all.iter()
                    .any(|(_, text)| text.contains(&logged) || squeezed(text).contains(&split)),
                "nobody logs {event:?}"
            );
        }
        for (path, text) in &all {
            assert!(
                !text.contains("tracing::error!"),
                "{path}: an error is for the operator: log it by event!, and explain it in andon.catalog"
            );
        }
    }
}
