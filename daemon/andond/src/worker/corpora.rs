//! Earlier answers to tasks, from which later ones are guessed: whose they are, and their files.
//!
//! Invariant: a corpus is given only to requests of the task, and unless the configuration says otherwise of the client,
//! whose answers are in it. There are at most as many as configured and there is memory for; of those that no answer uses,
//! the one that was not asked for longest goes, and with it what it learnt since it was last written. Nothing here keeps a
//! request from being answered.

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use andon_engine::Model;
use andon_engine::pack;
use andon_engine::speculate::store::{self, CorpusKey, Label};
use andon_engine::speculate::{Corpus, Sources};
use sha2::{Digest as _, Sha256};

use super::Shared;
use super::board::{Key, Phase};
use crate::config::Config;
use crate::config::speculation::{CorpusScope, SpeculationConfig};

/// How often what was learnt is written: a power cut loses no more.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// How often those that nobody uses go while memory is short.
const SHED_EVERY: Duration = Duration::from_secs(1);

/// Where they are, in the folder of what can be made again.
const FOLDER: &str = "corpora";

/// The corpora of the served model.
#[derive(Debug)]
pub(super) struct Corpora {
    config: SpeculationConfig,
    /// Whether a draft model guesses.
    drafts: bool,
    /// How many are in memory at most.
    held_max: usize,
    vocabulary: usize,
    /// Digest of what all keys begin with: the model.
    model: Sha256,
    /// Where files are, be it from an earlier start with another configuration.
    folder: PathBuf,
    /// Whether they are read and written.
    keeps: bool,
    held: Mutex<Held>,
    /// Held by whoever writes or erases files, before anything else is.
    files: Mutex<()>,
}

/// Whose answers are kept, and how much of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CorpusFacts {
    /// The task.
    pub task: String,
    /// The client; empty if those of all clients are kept together.
    pub client: String,
    /// Whether the client is a user of this machine.
    pub local: bool,
    /// Tokens of the answers.
    pub tokens: usize,
}

/// What became of answers that were to be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erased {
    /// Of how many tasks and clients there were any.
    pub count: usize,
    /// To how many tasks those of all clients are kept together and stay, where only those of one were to go.
    pub shared: usize,
}

#[derive(Debug, Default)]
struct Held {
    corpora: HashMap<CorpusKey, Entry>,
    /// Counts what is asked for.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    corpus: Arc<Corpus>,
    /// Whose answers it has.
    label: Label,
    /// When it was last asked for.
    used: u64,
    /// How many answers had been added when it was written.
    written: u64,
}

impl Corpora {
    /// Those of a model, all of them on the disk until they are asked for, and then at most `held_max` in memory. `drafts`
    /// says whether a draft guesses too. `key` is that of the model's pack, if it is known.
    pub(super) fn new(
        config: &Config,
        (held_max, drafts): (usize, bool),
        model: &Model,
        key: Option<&pack::Key>,
    ) -> Corpora {
        let mut speculation = config.speculation.clone();
        speculation.enabled &= model.info().pooling.is_none();
        if held_max == 0 {
            speculation.corpus = CorpusScope::Off;
        }
        let folder = config.cache.dir.join(FOLDER);
        let vocabulary = model.info().vocabulary_count;
        let name = || {
            let key = key.cloned().or_else(|| model.pack_key().ok());
            // Of a model without weights there is nothing to tell it by; the vocabulary is compared all the same.
            key.map_or_else(|| config.model.name(), |key| key.to_string())
        };
        Corpora {
            drafts,
            held_max,
            ..Corpora::with(speculation, &folder, name, vocabulary)
        }
    }

    fn with(
        config: SpeculationConfig,
        folder: &Path,
        name: impl FnOnce() -> String,
        vocabulary: usize,
    ) -> Corpora {
        let learns = config.enabled && config.corpus != CorpusScope::Off;
        let keeps = learns && config.corpus_keep && {
            let prepared = store::prepare(folder);
            if let Err(error) = &prepared {
                let folder = folder.display();
                tracing::warn!(%folder, %error, "earlier answers are not kept for the next start");
            }
            prepared.is_ok()
        };
        let mut digest = Sha256::new();
        if keeps {
            part(&mut digest, name().as_bytes());
        }
        Corpora {
            held_max: config.corpora_max,
            config,
            drafts: false,
            vocabulary,
            model: digest,
            folder: folder.to_path_buf(),
            keeps,
            held: Mutex::default(),
            files: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Every critical section leaves it whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything is guessed.
    pub(super) fn enabled(&self) -> bool {
        self.config.enabled
    }

    /// Where guesses for a request of `client` come from.
    /// With `lookup` also from the prompt and the answer so far.
    pub(super) fn sources(&self, client: &Key, task: Option<&str>, lookup: bool) -> Sources {
        if !self.config.enabled {
            return Sources::default();
        }
        let corpus = task.and_then(|task| self.corpus(client, task));
        Sources {
            own: lookup,
            learns: corpus.is_some(),
            corpus,
            model: self.drafts,
        }
    }

    fn key(&self, client: &Key, task: &str) -> Option<(CorpusKey, Label)> {
        let mut digest = self.model.clone();
        part(&mut digest, task.as_bytes());
        let mut label = Label {
            task: task.to_owned(),
            ..Label::default()
        };
        match self.config.corpus {
            CorpusScope::Off => return None,
            CorpusScope::Client => {
                part(&mut digest, &[u8::from(client.local)]);
                part(&mut digest, client.client.as_bytes());
                label.client.clone_from(&client.client);
                label.local = client.local;
            }
            CorpusScope::Task => {}
        }
        Some((CorpusKey(digest.finalize().into()), label))
    }

    fn corpus(&self, client: &Key, task: &str) -> Option<Arc<Corpus>> {
        let (key, label) = self.key(client, task)?;
        let mut held = self.held();
        held.clock += 1;
        let used = held.clock;
        if let Some(entry) = held.corpora.get_mut(&key) {
            entry.used = used;
            return Some(Arc::clone(&entry.corpus));
        }
        while held.corpora.len() >= self.held_max {
            // One that is in use would take its memory all the same.
            let mut entries: Vec<_> = held.corpora.iter().collect();
            entries.retain(|(_, entry)| Arc::strong_count(&entry.corpus) == 1);
            let (&oldest, _) = entries.into_iter().min_by_key(|(_, entry)| entry.used)?;
            held.corpora.remove(&oldest);
        }
        let corpus = Arc::new(self.read(&key));
        let entry = Entry {
            corpus: Arc::clone(&corpus),
            label,
            used,
            written: 0,
        };
        held.corpora.insert(key, entry);
        Some(corpus)
    }

    /// What is on the disk, else an empty one.
    fn read(&self, key: &CorpusKey) -> Corpus {
        let most = self.config.corpus_tokens_max;
        if !self.keeps {
            return Corpus::new(most);
        }
        store::read(&self.folder, key, self.vocabulary, most).unwrap_or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(%error, "a file of earlier answers is not used");
            }
            Corpus::new(most)
        })
    }

    fn files(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose answers are kept, in memory or on the disk, in order.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(super) fn list(&self) -> std::io::Result<Vec<CorpusFacts>> {
        let facts = |label: &Label, tokens| CorpusFacts {
            task: label.task.clone(),
            client: label.client.clone(),
            local: label.local,
            tokens,
        };
        let listed = store::list(&self.folder)?;
        let held = self.held();
        let on_disk = listed
            .iter()
            .filter(|listed| !held.corpora.contains_key(&listed.key))
            .map(|listed| facts(&listed.label, listed.tokens));
        let mut all: Vec<CorpusFacts> = held
            .corpora
            .values()
            .map(|entry| facts(&entry.label, entry.corpus.token_count()))
            .filter(|facts| facts.tokens > 0)
            .chain(on_disk)
            .collect();
        all.sort_unstable();
        Ok(all)
    }

    /// Erases the answers to a task, or of clients of this name, or both; all that there are if neither is named, of other
    /// models too. Answers that are under way are not learnt from any more.
    ///
    /// # Errors
    /// If a file cannot be removed; others may have been.
    pub(super) fn erase(
        &self,
        task: Option<&str>,
        client: Option<&str>,
    ) -> std::io::Result<Erased> {
        let of_task = |label: &Label| task.is_none_or(|task| label.task == task);
        let is_meant =
            |label: &Label| of_task(label) && client.is_none_or(|client| label.client == client);
        // Whose answers these are is not known.
        let is_shared =
            |label: &Label| label.client.is_empty() && of_task(label) && !is_meant(label);
        let _files = self.files();
        let listed = store::list(&self.folder)?;
        let mut held = self.held();
        let mut count = 0;
        let mut shared: BTreeSet<&str> = listed
            .iter()
            .map(|listed| &listed.label)
            .filter(|label| is_shared(label))
            .map(|label| &*label.task)
            .collect();
        held.corpora.retain(|key, entry| {
            let stays = !is_meant(&entry.label);
            let counted = listed.iter().any(|listed| listed.key == *key);
            count += usize::from(!stays && !counted && entry.corpus.token_count() > 0);
            stays
        });
        let entries = held.corpora.values();
        let known = entries.filter(|entry| entry.corpus.token_count() > 0);
        shared.extend(
            known
                .map(|entry| &entry.label)
                .filter(|label| is_shared(label))
                .map(|label| &*label.task),
        );
        let shared = shared.len();
        count += store::remove(&self.folder, is_meant)?;
        Ok(Erased { count, shared })
    }

    /// Writes what was learnt since it was last written. Answers are read and added meanwhile.
    pub(super) fn write(&self) {
        if !self.keeps {
            return;
        }
        let folder = &self.folder;
        let _files = self.files();
        let changed: Vec<(CorpusKey, Label, Arc<Corpus>, u64)> = {
            let held = self.held();
            let entries = held.corpora.iter();
            entries
                .map(|(&key, entry)| (key, entry, entry.corpus.added()))
                .filter(|(_, entry, added)| *added != entry.written)
                .map(|(key, entry, added)| {
                    (key, entry.label.clone(), Arc::clone(&entry.corpus), added)
                })
                .collect()
        };
        if changed.is_empty() {
            return;
        }
        for (key, label, corpus, added) in changed {
            if let Err(error) = store::write(folder, &key, self.vocabulary, &label, &corpus) {
                // The next time it is tried again.
                tracing::warn!(%error, "earlier answers could not be written");
                return;
            }
            if let Some(entry) = self.held().corpora.get_mut(&key) {
                entry.written = added;
            }
        }
        if let Err(error) = store::thin_out(folder, self.config.corpora_max) {
            tracing::warn!(%error, "old files of earlier answers could not be removed");
        }
    }
}

impl Corpora {
    /// Lets go of those that nobody uses and that can be read again.
    fn shed(&self) {
        self.write();
        if self.keeps {
            self.held().corpora.retain(|_, entry| {
                let used = Arc::strong_count(&entry.corpus) > 1;
                used || entry.corpus.added() != entry.written
            });
        }
    }
}

/// Adds a part of a key, so that no two lists of parts look alike.
fn part(digest: &mut Sha256, bytes: &[u8]) {
    digest.update((bytes.len() as u64).to_le_bytes());
    digest.update(bytes);
}

/// Writes from time to time what was learnt, until the daemon stops.
pub(super) fn run(shared: &Shared, corpora: &Corpora) {
    if !corpora.keeps {
        return;
    }
    if let Err(error) = andon_os::give_way() {
        tracing::debug!(%error, "writing has the rank of an answer");
    }
    loop {
        let began = Instant::now();
        let until = began + WRITE_EVERY;
        let mut board = shared.board();
        let sheds = loop {
            if matches!(board.phase, Phase::Stopping(_) | Phase::Failed) {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            let sheds = shared.budget.is_short() && began.elapsed() >= SHED_EVERY;
            if left.is_zero() || sheds {
                break sheds;
            }
            board = shared.wait(board, Some(left));
        };
        drop(board);
        if sheds {
            corpora.shed();
        } else {
            corpora.write();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Corpora, Corpus, CorpusScope, Key, SpeculationConfig};
    use crate::request::Origin;
    use std::fs;
    use std::path::Path;
    use std::sync::{Arc, Weak};

    fn corpora(folder: &Path, corpus: CorpusScope, model: &str) -> Corpora {
        let config = SpeculationConfig {
            corpus,
            corpora_max: 2,
            ..SpeculationConfig::default()
        };
        Corpora::with(config, folder, || model.to_owned(), 100)
    }

    fn client(origin: Origin, name: &str) -> Key {
        Key::new(origin, name, "1")
    }

    fn learn(corpora: &Corpora, client: &Key, task: &str) {
        let sources = corpora.sources(client, Some(task), true);
        assert!(sources.learns);
        sources.corpus.unwrap().add(&[1], &[2, 3, 4]);
    }

    fn knows(corpora: &Corpora, client: &Key, task: &str) -> bool {
        let corpus = corpora.sources(client, Some(task), true).corpus.unwrap();
        !corpus.continuation(&[2, 3], 9).is_empty()
    }

    #[test]
    fn no_client_is_guessed_for_from_answers_to_another_unless_configured() {
        let folder = tempfile::tempdir().unwrap();
        let ours = client(Origin::Mqtt, "a");
        // A name over MQTT is no user of this machine.
        let others = [client(Origin::Mqtt, "b"), client(Origin::Wire, "a")];
        for (scope, shared) in [(CorpusScope::Client, false), (CorpusScope::Task, true)] {
            let corpora = corpora(folder.path(), scope, "m");
            learn(&corpora, &ours, "explain");
            assert!(knows(&corpora, &ours, "explain"));
            for other in &others {
                assert_eq!(knows(&corpora, other, "explain"), shared, "{scope:?}");
                assert!(!knows(&corpora, other, "other"), "{scope:?}");
            }
        }
        let off = corpora(folder.path(), CorpusScope::Off, "m");
        let sources = off.sources(&ours, Some("explain"), true);
        assert!(sources.own && sources.corpus.is_none() && !sources.learns);
    }

    #[test]
    fn without_a_task_nothing_is_learnt_and_disabled_nothing_is_guessed() {
        let folder = tempfile::tempdir().unwrap();
        let client = client(Origin::Http, "a");
        let mut corpora = corpora(folder.path(), CorpusScope::Task, "m");
        let sources = corpora.sources(&client, None, true);
        assert!(sources.own && sources.corpus.is_none() && !sources.learns);
        corpora.config.enabled = false;
        assert!(corpora.sources(&client, Some("explain"), true).is_empty());
    }

    #[test]
    fn what_was_written_is_there_at_the_next_start_of_the_same_model() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("corpora");
        let client = client(Origin::Mqtt, "a");
        let start = |model| corpora(&folder, CorpusScope::Client, model);
        let first = start("m");
        learn(&first, &client, "explain");
        first.write();
        assert!(knows(&start("m"), &client, "explain"));
        assert!(!knows(&start("another"), &client, "explain"));
        // Nothing is written that was not learnt since.
        let file = fs::read_dir(&folder)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        fs::remove_file(&file).unwrap();
        first.write();
        assert!(!file.exists());
        learn(&first, &client, "explain");
        first.write();
        let mut bytes = fs::read(&file).unwrap();
        bytes.truncate(bytes.len() / 2);
        fs::write(&file, &bytes).unwrap();
        assert!(!knows(&start("m"), &client, "explain"), "it is damaged");
    }

    #[test]
    fn what_is_erased_is_gone_from_memory_and_disk() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("corpora");
        let mut corpora = corpora(&folder, CorpusScope::Client, "m");
        (corpora.held_max, corpora.config.corpora_max) = (9, 9);
        let clients = ["a", "b"].map(|name| client(Origin::Mqtt, name));
        for client in &clients {
            for task in ["explain", "triage"] {
                learn(&corpora, client, task);
            }
        }
        corpora.write();
        learn(&corpora, &client(Origin::Wire, "c"), "explain");
        let list = |corpora: &Corpora| -> Vec<(String, String)> {
            let facts = corpora.list().unwrap().into_iter();
            facts.map(|facts| (facts.task, facts.client)).collect()
        };
        assert_eq!(list(&corpora).len(), 5);
        let running = corpora.sources(&clients[0], Some("explain"), true).corpus;
        let erase = |corpora: &Corpora, task, client| {
            let erased = corpora.erase(task, client).unwrap();
            assert_eq!(erased.shared, 0);
            erased.count
        };
        assert_eq!(erase(&corpora, Some("explain"), Some("a")), 1);
        // What was under way when it was erased does not bring it back.
        running.unwrap().add(&[1], &[2, 3, 4]);
        corpora.write();
        assert!(!knows(&corpora, &clients[0], "explain"));
        assert!(knows(&corpora, &clients[0], "triage"));
        assert_eq!(erase(&corpora, Some("explain"), None), 2);
        corpora.write();
        let left = ["a", "b"].map(|name| ("triage".to_owned(), name.to_owned()));
        assert_eq!(list(&corpora), left);
        assert_eq!(
            list(&super::tests::corpora(&folder, CorpusScope::Client, "m")),
            left
        );
        fs::write(folder.join("old.corpus"), "of another format").unwrap();
        assert_eq!(erase(&corpora, Some("none"), None), 1, "the old one");
        // Also by a daemon that learns no more.
        let off = super::tests::corpora(&folder, CorpusScope::Off, "m");
        assert_eq!(list(&off), left);
        assert_eq!(erase(&off, None, Some("b")), 1);
        fs::write(folder.join("old.corpus"), "of another format").unwrap();
        assert_eq!(erase(&corpora, None, None), 3);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert!(list(&corpora).is_empty());
    }

    #[test]
    fn answers_of_all_clients_together_are_not_taken_for_those_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let ours = client(Origin::Mqtt, "a");
        let before = corpora(folder.path(), CorpusScope::Client, "m");
        learn(&before, &ours, "explain");
        before.write();
        let corpora = corpora(folder.path(), CorpusScope::Task, "m");
        let erase = |task, client| {
            let erased = corpora.erase(task, client).unwrap();
            (erased.count, erased.shared)
        };
        learn(&corpora, &ours, "explain");
        assert_eq!(erase(None, Some("b")), (0, 1), "in memory");
        corpora.write();
        learn(&corpora, &ours, "triage");
        assert_eq!(erase(None, Some("a")), (1, 2), "from when they were apart");
        assert_eq!(erase(Some("triage"), Some("a")), (0, 1));
        assert_eq!(erase(Some("other"), Some("a")), (0, 0));
        assert_eq!(corpora.list().unwrap().len(), 2);
        assert_eq!(erase(Some("triage"), None), (1, 0));
        assert_eq!(erase(None, None), (1, 0));
        assert_eq!(erase(None, Some("a")), (0, 0));
    }

    #[test]
    fn what_is_shed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let corpora = corpora(folder.path(), CorpusScope::Client, "m");
        let clients = ["a", "b"].map(|name| client(Origin::Mqtt, name));
        for client in &clients {
            learn(&corpora, client, "explain");
        }
        let used = corpora.sources(&clients[0], Some("explain"), true).corpus;
        corpora.shed();
        assert_eq!(corpora.held().corpora.len(), 1);
        drop(used);
        corpora.shed();
        assert_eq!(corpora.held().corpora.len(), 0);
        assert!(
            clients
                .iter()
                .all(|client| knows(&corpora, client, "explain"))
        );
    }

    #[test]
    fn the_one_that_was_not_asked_for_longest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let mut corpora = corpora(folder.path(), CorpusScope::Client, "m");
        corpora.keeps = false;
        let clients = ["a", "b", "c"].map(|name| client(Origin::Mqtt, name));
        let corpus = |at: usize| corpora.sources(&clients[at], Some("explain"), true).corpus;
        let is = |at: usize, it: &Weak<Corpus>| {
            corpus(at).is_some_and(|corpus| Weak::ptr_eq(it, &Arc::downgrade(&corpus)))
        };
        let [a, b] = [0, 1].map(|at| Arc::downgrade(&corpus(at).unwrap()));
        assert!(is(0, &a));
        let c = Arc::downgrade(&corpus(2).unwrap());
        assert!(is(0, &a) && is(2, &c));
        assert!(!is(1, &b));
        assert_eq!(corpora.held().corpora.len(), 2);
        // None goes while answers are learnt from.
        let used = [1, 2].map(corpus);
        assert!(used.iter().all(Option::is_some) && corpus(0).is_none());
        drop(used);
        assert!(corpus(0).is_some());
    }
}
