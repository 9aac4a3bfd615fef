//! Packed weights of the daemon's models: made when a model is added, used at the next start, made anew when they are
//! gone or damaged, and never needed.

use std::fs;
use std::path::{Path, PathBuf};

use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::{TensorType, TinyModel};

use crate::metrics::metric;

use super::{andonctl, bad, eventually, file, good, ready};

const ASK: [&str; 4] = ["ask", "--tokens-max", "12", "hello"];

fn model() -> Vec<u8> {
    let model = TinyModel {
        weights: TensorType::Q8_0,
        ..TinyModel::default()
    };
    model.bytes()
}

/// The packs in a folder; what is half written is none.
fn packs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "pack"))
        .collect()
}

/// How often the daemon began to serve with packed weights, and how often without.
fn starts(daemon: &Daemon) -> [usize; 2] {
    let log = daemon.log();
    ["packed=true", "packed=false"].map(|text| log.matches(text).count())
}

#[test]
fn what_is_added_is_packed_and_served_so() {
    let mut daemon = Daemon::builder().kept("helper").start().unwrap();
    let dir = daemon.folder().join("cache");
    file(&daemon, "m.gguf", &model());
    let add = |name| ["model", "add", "m.gguf", "--name", name];
    good(&andonctl(&daemon, &add("helper")));
    // It was packed before it was registered.
    let [pack] = &packs(&dir)[..] else {
        panic!("one pack")
    };
    let ls = |daemon: &Daemon| good(&andonctl(daemon, &["model", "ls"]));
    assert!(ls(&daemon).contains("  packed"), "{}", ls(&daemon));
    eventually("the model is served", || ready(&daemon));
    let answer = good(&andonctl(&daemon, &ASK));
    assert_eq!(starts(&daemon), [1, 0]);
    let plain = Daemon::builder()
        .model(&daemon.folder().join("m.gguf"))
        .config("[cache]\npack = 'never'")
        .start()
        .unwrap();
    assert_eq!(good(&andonctl(&plain, &ASK)), answer);
    assert_eq!(starts(&plain), [0, 1]);
    assert_eq!(metric::<u64>(&plain, "andon_packed"), 0);
    assert_eq!(metric::<u64>(&daemon, "andon_packed"), 1);
    assert!(packs(&plain.folder().join("cache")).is_empty());

    daemon.restart().unwrap();
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    assert_eq!(starts(&daemon), [2, 0]);

    // Without its pack, as after an update that has another layout, it is served all the same, and packed again.
    good(&andonctl(&daemon, &["model", "unpack", "helper"]));
    assert!(!ls(&daemon).contains("  packed"));
    assert!(packs(&dir).is_empty());
    daemon.restart().unwrap();
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    assert_eq!(starts(&daemon), [2, 1]);
    eventually("it is packed", || packs(&dir).contains(pack));
    eventually("its pack is used", || {
        metric::<u64>(&daemon, "andon_packed") == 1
    });
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);

    // A damaged one is found when it is read, and made anew.
    let sound = fs::read(pack).unwrap();
    let mut damaged = sound.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(pack, &damaged).unwrap();
    daemon.restart().unwrap();
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    assert!(daemon.log().contains("is damaged between the bytes"));
    eventually("it is made anew", || fs::read(pack).unwrap() == sound);
    // One that ends early is found at once.
    fs::write(pack, &sound[..sound.len() / 2]).unwrap();
    daemon.restart().unwrap();
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    eventually("it is made anew", || fs::read(pack).unwrap() == sound);

    // Two of the same weights share it, and it goes with the last.
    good(&andonctl(&daemon, &add("first")));
    good(&andonctl(&daemon, &add("second")));
    assert_eq!(packs(&dir).len(), 1);
    let other = TinyModel {
        weights: TensorType::Q4_0,
        ..TinyModel::default()
    };
    file(&daemon, "other.gguf", &other.bytes());
    good(&andonctl(&daemon, &["model", "add", "other.gguf"]));
    assert_eq!(packs(&dir).len(), 2);
    good(&andonctl(&daemon, &["model", "rm", "other"]));
    good(&andonctl(&daemon, &["model", "rm", "first"]));
    assert_eq!(packs(&dir), std::slice::from_ref(pack));
    good(&andonctl(&daemon, &["model", "unpack", "second"]));
    assert!(packs(&dir).is_empty());
    good(&andonctl(&daemon, &["model", "pack", "second"]));
    good(&andonctl(&daemon, &["model", "pack", "second"]));
    assert_eq!(packs(&dir), std::slice::from_ref(pack));
    let unknown = andonctl(&daemon, &["model", "pack", "third"]);
    bad(&unknown, 1, "no model third");
}

#[test]
fn where_nothing_is_packed_any_more_packs_go_with_their_models() {
    let mut daemon = Daemon::builder().start().unwrap();
    let dir = daemon.folder().join("cache");
    for (name, seed) in [("first", 1), ("second", 2)] {
        let model = TinyModel {
            weights: TensorType::Q8_0,
            seed,
            ..TinyModel::default()
        };
        file(&daemon, "m.gguf", &model.bytes());
        good(&andonctl(
            &daemon,
            &["model", "add", "m.gguf", "--name", name],
        ));
    }
    assert_eq!(packs(&dir).len(), 2);
    let left = dir.join(".0123456789abcdef.tmp");
    fs::write(&left, "half").unwrap();
    let config = daemon.folder().join("andond.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[cache]", "[cache]\npack = 'never'")).unwrap();
    daemon.restart().unwrap();
    assert!(!left.exists(), "nobody writes it any more");
    bad(
        &andonctl(&daemon, &["model", "pack", "first"]),
        1,
        "nothing is packed here",
    );
    good(&andonctl(&daemon, &["model", "unpack", "first"]));
    assert_eq!(packs(&dir).len(), 1);
    good(&andonctl(&daemon, &["model", "rm", "second"]));
    assert!(packs(&dir).is_empty());
}

#[test]
fn a_model_by_its_path_is_packed_where_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, model()).unwrap();
    let start = |config: &str| {
        let builder = Daemon::builder().model(&path).config(config);
        builder.start().unwrap()
    };
    let plain = start("");
    let answer = good(&andonctl(&plain, &ASK));
    let mut daemon = start("[cache]\npack = 'idle'");
    let dir = daemon.folder().join("cache");
    eventually("it is packed", || packs(&dir).len() == 1);
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    daemon.restart().unwrap();
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    assert_eq!(starts(&daemon), [1, 1]);
    assert!(packs(&plain.folder().join("cache")).is_empty());
}

#[test]
fn a_cache_that_cannot_be_written_keeps_no_model_from_being_served() {
    // A file is in the place of a folder; no room.
    for config in [
        "[cache]\ndir = '/dev/null/cache'",
        "[cache]\nbytes-max = 100",
    ] {
        let mut daemon = Daemon::builder().kept("m").config(config).start().unwrap();
        file(&daemon, "m.gguf", &model());
        good(&andonctl(&daemon, &["model", "add", "m.gguf"]));
        eventually("the model is served", || ready(&daemon));
        let answer = good(&andonctl(&daemon, &ASK));
        daemon.restart().unwrap();
        assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
        assert_eq!(starts(&daemon), [0, 2]);
        assert!(daemon.log().contains("which is slower"));
        assert!(packs(&daemon.folder().join("cache")).is_empty());
        bad(&andonctl(&daemon, &["model", "pack", "m"]), 1, "");
    }
}
