//! The small files that the daemon keeps for itself or reads beside a model: a byte for which, then its text.
//!
//! Each is refused, or is the same after writing and reading, and says only what can be.

use crate::small::model;
use andon_engine::calibrate::store::{self, Key};
use andon_engine::calibrate::{Calibration, HugePages};
use andon_engine::kv::KvType;
use andon_engine::{Executor, ExecutorOptions, Model};
use andon_os::heap;
use andond::access::Token;
use andond::registry::{Known, task_of};
use andond::task::Tasks;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

/// Which model answers to which name.
pub(crate) const NAMES: u8 = 0;
/// What a model is known to make.
pub(crate) const KNOWN: u8 = 1;
/// What the machine delivers; `@` stands for the key, which is another on each machine.
pub(crate) const CALIBRATION: u8 = 2;
/// A task that comes with a model.
pub(crate) const TASK: u8 = 3;
/// The token of the loopback listener.
pub(crate) const TOKEN: u8 = 4;
/// What was spent upstream.
pub(crate) const LEDGER: u8 = 5;
const KINDS: u8 = 6;

static SUBJECT: LazyLock<Subject> = LazyLock::new(Subject::new);

struct Subject {
    folder: tempfile::TempDir,
    key: Key,
    /// The key as it stands in the file.
    key_text: String,
    /// The file of what the machine delivers.
    path: PathBuf,
}

pub(crate) fn run(data: &[u8]) {
    let [kind, text @ ..] = data else {
        return;
    };
    // JSON of small values takes many times its text, and a task's schema is compiled.
    let limit = (16 << 20) + 1000 * text.len();
    let subject = &*SUBJECT;
    heap::measure(limit, text.len() as u64, || {
        let utf8 = std::str::from_utf8(text);
        match (kind % KINDS, utf8) {
            (NAMES, Ok(text)) => names(text),
            (KNOWN, _) => subject.known(text),
            (CALIBRATION, Ok(text)) => subject.calibration(text),
            (TASK, Ok(text)) => task(text),
            (TOKEN, _) => subject.token(text),
            (LEDGER, Ok(text)) => ledger(text),
            _ => {}
        }
    });
}

fn names(text: &str) {
    match andond::workers::rewritten(text) {
        Ok(written) => assert_eq!(andond::workers::rewritten(&written), Ok(written)),
        Err(why) => assert!(!why.is_empty()),
    }
}

fn ledger(text: &str) {
    use andond::router::ledger::rewritten;
    match rewritten(text) {
        // Days may have passed once.
        Ok(written) => assert!(rewritten(&written).is_ok()),
        Err(why) => assert!(!why.is_empty()),
    }
}

fn task(text: &str) {
    match task_of("explain", text) {
        Ok(task) => {
            assert!(task.model.is_none());
            // Its templates and its schema are looked at where all tasks are.
            let tasks = [("explain".to_owned(), task)].into();
            if let Err(problems) = Tasks::new(&tasks) {
                assert!(problems.iter().count() > 0);
            }
        }
        Err(why) => assert!(!why.is_empty()),
    }
}

impl Subject {
    fn new() -> Subject {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        fs::write(&path, model(32)).expect("written");
        let options = ExecutorOptions {
            threads: Some(1),
            batch_tokens_max: 4,
            kv_tokens_max: 32,
            ..ExecutorOptions::default()
        };
        let model = Arc::new(Model::load(&path).expect("a sound model"));
        let key = Key::of(&mut Executor::new(model, &options).expect("an executor"))
            .expect("of the processor");
        store::write(folder.path(), &key, &CALIBRATED).expect("written");
        let written = fs::read_dir(folder.path())
            .expect("a folder")
            .find_map(|entry| {
                let path = entry.expect("a file").path();
                (path.extension()? == "json").then_some(path)
            });
        let path = written.expect("a file");
        let text = fs::read_to_string(&path).expect("a text");
        let file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        Subject {
            folder,
            key,
            key_text: file["key"].to_string(),
            path,
        }
    }

    fn calibration(&self, text: &str) {
        let folder = self.folder.path();
        fs::write(&self.path, text.replace('@', &self.key_text)).expect("written");
        let Some(read) = store::read(folder, &self.key) else {
            return;
        };
        assert!(read.is_plausible());
        let figures = [read.read_bytes_per_s, read.multiply_adds_per_s];
        assert!(
            figures
                .iter()
                .all(|figure| figure.is_finite() && *figure > 0.0)
        );
        assert!(text.contains('@'), "it is of this machine");
    }

    fn known(&self, text: &[u8]) {
        let folder = self.folder.path();
        fs::write(folder.join(".known.json"), text).expect("written");
        let Some(known) = Known::read(folder) else {
            return;
        };
        known.write(folder).expect("written");
        assert_eq!(Known::read(folder).as_ref(), Some(&known));
        if known.fits(8, 50) {
            for kv_type in [KvType::F16, KvType::Q8] {
                let tokens = known.prompt.iter().chain(known.tokens(kv_type));
                assert!(tokens.clone().count() <= 8);
                assert!(tokens.into_iter().all(|&token| token < 50));
            }
        }
    }

    fn token(&self, text: &[u8]) {
        let path = self.folder.path().join("token");
        fs::write(&path, text).expect("written");
        let read = Token::read(&path);
        let line = text.strip_suffix(b"\n").unwrap_or(text);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_letter = |&byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        let is_token = (16..=512).contains(&line.len()) && line.iter().all(is_letter);
        assert_eq!(read.is_ok(), is_token);
        // Nothing says what is in it: a refusal is the same whatever that is.
        match read {
            Ok(token) => assert_eq!(format!("{token:?}"), "Token"),
            Err(why) => {
                fs::write(&path, "").expect("written");
                assert_eq!(Err(why), Token::read(&path).map(drop));
            }
        }
    }
}

const CALIBRATED: Calibration = Calibration {
    read_bytes_per_s: 3e10,
    multiply_adds_per_s: 4e11,
    column_cost: [1.0, 1.01, 1.02, 1.1, 1.3, 1.5, 1.7, 1.9],
    wake_s: 5e-5,
    spin_s: 1e-4,
    huge_pages: HugePages::OnRequest,
};

/// A sound file of what the machine delivers.
#[allow(dead_code, reason = "what seeds are made of")]
pub(crate) fn calibration() -> String {
    let calibration = serde_json::to_value(CALIBRATED).expect("numbers");
    format!("{{\"key\":@,\"calibration\":{calibration}}}")
}
