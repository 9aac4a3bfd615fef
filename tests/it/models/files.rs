//! Models by their files: split ones, weights that are no numbers, copies that the disk damaged, and disks that fill up
//! while a model comes in.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;

use andon_engine::gguf::Gguf;
use andon_tests::daemon::Daemon;
use andon_tests::programs;
use andon_tests::tiny_model::{TensorType, TinyModel};

use andon_wire::ErrorCode;

use super::{Client, andonctl, bad, eventually, file, good, manifest, names, ready, staged};

#[test]
fn a_split_model_is_added_by_any_part_and_served_whole() {
    let daemon = Daemon::builder().kept("split").start().unwrap();
    let model = TinyModel::default();
    let parts = model.parts(8);
    assert_eq!(parts.len(), 3);
    for (number, part) in (1..).zip(&parts) {
        file(&daemon, &format!("split-{number:05}-of-00003.gguf"), part);
    }
    let last = "split-00003-of-00003.gguf";
    good(&andonctl(&daemon, &["model", "add", last]));
    eventually("the model is served", || ready(&daemon));
    let ask = ["ask", "--tokens-max", "12", "hello"];
    let answer = good(&andonctl(&daemon, &ask));
    let whole = Daemon::builder().start().unwrap();
    assert_eq!(good(&andonctl(&whole, &ask)), answer);

    // As a bundle it travels in one file, and all its parts are shared.
    good(&andonctl(&daemon, &["bundle", "create", last]));
    let add = ["model", "add", "split.andon", "--name", "again"];
    good(&andonctl(&daemon, &add));
    for number in 1..=3 {
        let inode = |name: &str| {
            let part = format!("models/{name}/split-{number:05}-of-00003.gguf");
            fs::metadata(daemon.folder().join(part)).unwrap().ino()
        };
        assert_eq!(inode("split"), inode("again"));
    }
    // A part of another model among them is found by the trial: its digest is right.
    let other = TinyModel { seed: 2, ..model };
    let wrong = other.parts(7);
    file(&daemon, "split-00002-of-00003.gguf", &wrong[1]);
    let add = ["model", "add", last, "--name", "mixed"];
    bad(&andonctl(&daemon, &add), 1, "split-00002-of-00003.gguf");
    assert_eq!(names(&daemon), ["again", "split"]);
    assert_eq!(staged(&daemon), 0);
}

#[test]
fn a_scale_that_is_no_number_is_named() {
    let daemon = Daemon::builder().start().unwrap();
    let mut bytes = TinyModel {
        weights: TensorType::Q4_0,
        ..TinyModel::default()
    }
    .bytes();
    let name = "blk.1.ffn_down.weight";
    let at = {
        let gguf = Gguf::parse(&bytes).unwrap();
        // The third block's scale, which is the f16 that the block begins with.
        gguf.tensor(name).unwrap().range.start + 2 * 18
    };
    for scale in [0x7e00_u16, 0x7c00, 0xfc00] {
        bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        file(&daemon, "m.gguf", &bytes);
        let place = format!("`m.gguf`: byte {at}: tensor `{name}`");
        bad(&andonctl(&daemon, &["model", "add", "m.gguf"]), 1, &place);
    }
    assert!(names(&daemon).is_empty());
    assert_eq!(staged(&daemon), 0);
}

#[test]
fn a_copy_that_the_disk_damaged_is_not_shared() {
    let daemon = Daemon::builder().start().unwrap();
    file(&daemon, "m.gguf", &TinyModel::default().bytes());
    let add = |name| andonctl(&daemon, &["model", "add", "m.gguf", "--name", name]);
    let verify = |name| andonctl(&daemon, &["model", "verify", name]);
    let path = |name: &str| daemon.folder().join("models").join(name).join("m.gguf");
    let inode = |name| fs::metadata(path(name)).unwrap().ino();
    good(&add("a"));
    good(&add("b"));
    assert_eq!(inode("a"), inode("b"));
    let mut bytes = fs::read(path("a")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path("a"), bytes).unwrap();
    bad(&verify("a"), 1, "has the digest");
    bad(&verify("b"), 1, "has the digest");

    // Removing and adding it mends it, as verify says, although the other copy is still there.
    good(&andonctl(&daemon, &["model", "rm", "a"]));
    good(&add("a"));
    assert_ne!(inode("a"), inode("b"));
    good(&verify("a"));
    good(&andonctl(&daemon, &["model", "rm", "b"]));
    good(&add("b"));
    assert_eq!(inode("a"), inode("b"));
    good(&verify("b"));
}

/// A folder with an `andond` that does `first` and becomes the real one.
fn program(first: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("andond");
    let real = programs::folder().unwrap().join("andond");
    let script = format!("#!/bin/sh\n{first} '{}' \"$@\"\n", real.display());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let place = folder.path().to_owned();
    (folder, place)
}

#[test]
fn a_file_that_may_not_grow_ends_the_add_and_nothing_else() {
    // 256 blocks of 512 bytes: more than the spool begins with, and less than a tiny model has. The signal that comes with the error would end the program.
    let (_folder, place) = program("trap '' XFSZ; ulimit -f 256; exec");
    let daemon = Daemon::builder().programs(&place).start().unwrap();
    file(&daemon, "m.gguf", &TinyModel::default().bytes());
    bad(
        &andonctl(&daemon, &["model", "add", "m.gguf"]),
        1,
        "File too large",
    );
    assert!(names(&daemon).is_empty());
    assert_eq!(staged(&daemon), 0);
    good(&andonctl(&daemon, &["ask", "--tokens-max", "3", "hello"]));
}

#[test]
fn a_disk_that_fills_up_ends_the_add_and_nothing_else() {
    let models = tempfile::tempdir().unwrap();
    // A disk of two megabytes that only the daemon sees; where mounting is not allowed there is nothing to try.
    let mount = format!(
        "unshare --mount --propagation private sh -c \
         'mount -t tmpfs -o size=2m tmpfs \"$0\" && exec \"$@\"' '{}'",
        models.path().display()
    );
    let trial = Command::new("sh")
        .args(["-c", &format!("{mount} true")])
        .status();
    if !trial.is_ok_and(|status| status.success()) {
        return;
    }
    let (_folder, place) = program(&format!("exec {mount}"));
    let daemon = Daemon::builder()
        .programs(&place)
        .config(&format!(
            "[models]\ndir = '{}'\nfree-bytes-min = 0\n",
            models.path().display()
        ))
        .start()
        .unwrap();
    let inside = PathBuf::from(format!("/proc/{}/root", daemon.pid()))
        .join(models.path().strip_prefix("/").unwrap());
    let mut client = Client::new(&daemon);
    client.add("1", &manifest("big", 1_500_000));
    client.ready();
    client.data("1", &[1; 200_000]);
    let other = inside.join(".other");
    fs::write(&other, vec![2; 1_200_000]).unwrap();
    for _ in 0..6 {
        client.data("1", &[1; 200_000]);
    }
    let (id, code, message) = client.fault();
    assert_eq!(
        (id.as_deref(), code),
        (Some("1"), ErrorCode::NoSpace),
        "{message}"
    );
    let left = fs::read_dir(inside.join(".staging")).unwrap().count();
    assert_eq!(left, 0);
    good(&andonctl(&daemon, &["ask", "--tokens-max", "3", "hello"]));

    // What needs more than there is does not even begin; what fits does.
    client.add("2", &manifest("big", 1_500_000));
    let (_, code, message) = client.fault();
    assert_eq!(code, ErrorCode::NoSpace, "{message}");
    fs::remove_file(&other).unwrap();
    file(&daemon, "m.gguf", &TinyModel::default().bytes());
    good(&andonctl(&daemon, &["model", "add", "m.gguf"]));
    assert_eq!(names(&daemon), ["m"]);
}
