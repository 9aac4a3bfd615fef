//! Models whose signatures are required, wished for, or not looked at; and what is done about bytes that are not those of
//! the manifest.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use andon_engine::gguf::Gguf;
use andon_tests::daemon::Daemon;
use andon_tests::programs;
use andon_tests::tiny_model::{TensorType, TinyModel};
use andon_wire::{AddSigned, ClientFrame, ErrorCode, RequestId};
use serde_json::{Value, json};

use crate::metrics::metric;

use super::{Client, PATIENCE, andonctl, bad, eventually, file, good, names, ready, staged};

const ASK: [&str; 4] = ["ask", "--tokens-max", "12", "hello"];

/// What is done with files, without a daemon.
fn tool(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(programs::folder().unwrap().join("andonctl"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// A folder with a key `own.pem` and one `other.pem`, a model `m.gguf`, and the bundles `plain.andon`, `signed.andon` and
/// `other.andon` of it; and the public half of the key.
fn workshop() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel {
        weights: TensorType::Q8_0,
        // Its embedding is packed as the output, and read from the file as well.
        tied: true,
        ..TinyModel::default()
    };
    model.write(&folder.path().join("m.gguf")).unwrap();
    let public = good(&tool(folder.path(), &["key", "new", "own.pem"]));
    good(&tool(folder.path(), &["key", "new", "other.pem"]));
    for (out, key) in [
        ("plain.andon", None),
        ("signed.andon", Some("own.pem")),
        ("other.andon", Some("other.pem")),
    ] {
        let mut create = vec![
            "bundle", "create", "m.gguf", "--name", "helper", "--out", out,
        ];
        // Manifests of two bundles may be made in one second, and are to differ.
        create.extend(
            key.into_iter()
                .flat_map(|key| ["--key", key, "--license", "mit"]),
        );
        good(&tool(folder.path(), &create));
    }
    (folder, public.trim().to_owned())
}

/// What `model ls` says of the one model.
fn listed(daemon: &Daemon) -> Value {
    let text = good(&andonctl(daemon, &["model", "ls", "--json"]));
    serde_json::from_str(&text).unwrap()
}

/// Rewrites a word of the daemon's configuration, and starts it again without waiting for it.
fn again(daemon: &mut Daemon, from: &str, to: &str) {
    let path = daemon.folder().join("andond.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(&path, text.replace(from, to)).unwrap();
    daemon.kill().unwrap();
    fs::write(daemon.folder().join("log"), "").unwrap();
    daemon.relaunch(&[]).unwrap();
}

/// The daemon ends since an operator has to do something, and says why.
#[track_caller]
fn refuses(daemon: &mut Daemon, why: &str) {
    let status = daemon.wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(78));
    assert!(
        daemon.log().contains(why),
        "{why:?} is not in {}",
        daemon.log()
    );
}

/// Turns a bit of a tensor of the kept model over.
fn flip(path: &Path, tensor: &str) {
    let bytes = fs::read(path).unwrap();
    let at = Gguf::parse(&bytes)
        .unwrap()
        .tensor(tensor)
        .unwrap()
        .range
        .start
        + 3;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
}

#[test]
fn only_signed_models_are_taken_and_served_where_signatures_are_required() {
    let (workshop, public) = workshop();
    let bundle = |name: &str| workshop.path().join(name).display().to_string();
    let mut daemon = Daemon::builder()
        .kept("helper")
        .config(&format!(
            "[models]\nsignature = 'require'\ntrusted-keys = ['{public}']\n[log]\nlevel = 'info'\n"
        ))
        .start()
        .unwrap();
    let add = |daemon: &Daemon, path: &str| andonctl(daemon, &["model", "add", path]);
    let refused = |daemon: &Daemon, path: &str, why: &str| {
        bad(&add(daemon, path), 1, why);
        assert!(names(daemon).is_empty());
        assert_eq!(staged(daemon), 0);
    };
    refused(&daemon, &bundle("plain.andon"), "it is not signed");
    refused(&daemon, &bundle("m.gguf"), "it is not signed");
    refused(
        &daemon,
        &bundle("other.andon"),
        "trusted-keys does not have",
    );
    // A manifest that is not the one that was signed.
    let signed = fs::read(bundle("signed.andon")).unwrap();
    let mut altered = signed.clone();
    let word = b"\"name\": \"helper\"";
    let at = altered
        .windows(word.len())
        .position(|window| window == word)
        .unwrap();
    altered[at + word.len() - 2] = b'R';
    let path = file(&daemon, "altered.andon", &altered);
    refused(&daemon, path.to_str().unwrap(), "its signature is bad");
    // Texts that are no signatures, from a client that does not look.
    let manifest = json!({
        "format": 2, "name": "helper", "architecture": "llama", "quantization": "F32", "created-s": 0,
        "members": [
            { "path": "m.gguf", "role": "weights", "bytes": 10, "sha256": "0".repeat(64) },
        ],
    });
    let whole = format!(
        "andon-signatures-v1\ned25519 {} {}\n",
        "0".repeat(16),
        "0".repeat(128)
    );
    for text in ["", &whole[..whole.len() - 2], &"x".repeat(3000)] {
        let mut client = Client::new(&daemon);
        client.send(&ClientFrame::AddSigned(AddSigned {
            id: RequestId::new("1").unwrap(),
            name: None,
            manifest: &manifest.to_string(),
            signatures: text,
        }));
        let (_, code, why) = client.fault();
        assert_eq!(code, ErrorCode::Rejected);
        assert!(why.contains("its signature is bad"), "{why}");
    }

    good(&add(&daemon, &bundle("signed.andon")));
    eventually("the model is served", || ready(&daemon));
    let answer = good(&andonctl(&daemon, &ASK));
    assert_eq!(listed(&daemon)["signature"], "good");
    assert!(good(&andonctl(&daemon, &["model", "ls"])).contains("signed by "));
    good(&andonctl(&daemon, &["model", "verify", "helper"]));
    assert_eq!(metric::<u64>(&daemon, "andon_weights_compared"), 1);
    // The pack is used once it was compared, too.
    eventually("its pack is used", || {
        metric::<u64>(&daemon, "andon_packed") == 1
    });
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    assert!(daemon.log().contains("the pack is the one of this model"));

    // Weights that were altered are not computed with, nor are they without the signature.
    let folder = daemon.folder().join("models/helper");
    let weights = folder.join("m.gguf");
    let sound = fs::read(&weights).unwrap();
    flip(&weights, "blk.0.ffn_up.weight");
    again(&mut daemon, "info", "info");
    refuses(&mut daemon, "m.gguf differs in blk.0.ffn_up.weight");
    fs::write(&weights, &sound).unwrap();
    let signatures = fs::read(folder.join("manifest.sig")).unwrap();
    fs::remove_file(folder.join("manifest.sig")).unwrap();
    again(&mut daemon, "info", "info");
    refuses(&mut daemon, "it is not signed");
    fs::write(folder.join("manifest.sig"), &signatures[..100]).unwrap();
    again(&mut daemon, "info", "info");
    refuses(&mut daemon, "its signature is bad");
    fs::write(folder.join("manifest.sig"), &signatures).unwrap();
    let digests = fs::read_to_string(folder.join("tensors.sha256")).unwrap();
    fs::write(
        folder.join("tensors.sha256"),
        digests.replacen("0 ", "1 ", 1),
    )
    .unwrap();
    again(&mut daemon, "info", "info");
    refuses(&mut daemon, "tensors.sha256 of helper");
    fs::write(folder.join("tensors.sha256"), &digests).unwrap();
    again(&mut daemon, "info", "info");
    daemon.wait_ready().unwrap();
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    // By its path a file has no signature.
    let path = format!("path = \"{}\"", weights.display());
    again(&mut daemon, "name = \"helper\"", &path);
    refuses(&mut daemon, "served by its path");
}

#[test]
fn where_signatures_are_wished_for_it_is_said_and_where_not_nobody_looks() {
    let (workshop, public) = workshop();
    let bundle = |name: &str| -> PathBuf { workshop.path().join(name) };
    let mut daemon = Daemon::builder()
        .kept("helper")
        .config(&format!(
            "[models]\nsignature = 'warn'\ntrusted-keys = ['{public}']\n[cache]\npack = 'never'\n"
        ))
        .start()
        .unwrap();
    let add = |daemon: &Daemon, name: &str| {
        andonctl(daemon, &["model", "add", bundle(name).to_str().unwrap()])
    };
    good(&add(&daemon, "plain.andon"));
    eventually("the model is served", || ready(&daemon));
    let compared = |daemon: &Daemon| metric::<u64>(daemon, "andon_weights_compared") == 1;
    eventually("it is compared", || compared(&daemon));
    assert_eq!(listed(&daemon)["signature"], "unsigned");
    assert!(
        daemon.log().contains("it is not signed"),
        "{}",
        daemon.log()
    );
    assert_eq!(metric::<u64>(&daemon, "andon_weights_differ"), 0);
    let answer = good(&andonctl(&daemon, &ASK));
    // Signatures of another manifest are not put beside this one; of the same they are.
    bad(&add(&daemon, "signed.andon"), 1, "a manifest of its own");
    let sign = ["bundle", "sign", "plain.andon", "--key", "own.pem"];
    good(&tool(workshop.path(), &sign));
    good(&add(&daemon, "plain.andon"));
    assert_eq!(listed(&daemon)["signature"], "good");

    let weights = daemon.folder().join("models/helper/m.gguf");
    flip(&weights, "blk.1.ffn_up.weight");
    again(&mut daemon, "warn", "warn");
    daemon.wait_ready().unwrap();
    good(&andonctl(&daemon, &ASK));
    eventually("the difference is found", || {
        metric::<u64>(&daemon, "andon_weights_differ") == 1
    });
    let log = daemon.log();
    assert!(
        log.contains("m.gguf differs in blk.1.ffn_up.weight"),
        "{log}"
    );
    assert!(!compared(&daemon));

    again(&mut daemon, "\"warn\"", "\"off\"");
    daemon.wait_ready().unwrap();
    good(&andonctl(&daemon, &ASK));
    assert_eq!(listed(&daemon)["signature"], "unchecked");
    flip(&weights, "blk.1.ffn_up.weight");
    again(&mut daemon, "\"off\"", "\"warn\"");
    daemon.wait_ready().unwrap();
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    eventually("it is compared again", || compared(&daemon));
    assert_eq!(metric::<u64>(&daemon, "andon_weights_differ"), 0);
}

/// Puts a hexadecimal digit in place of another.
fn other_digit(text: &str, at: usize) -> String {
    let digit = if &text[at..=at] == "0" { "1" } else { "0" };
    format!("{}{digit}{}", &text[..at], &text[at + 1..])
}

#[test]
fn nobody_vouches_for_more_than_the_files_are() {
    let (workshop, _) = workshop();
    let folder = workshop.path().join("unpacked");
    fs::create_dir(&folder).unwrap();
    let mut tar = Command::new("tar");
    let tar = tar.arg("-xf").arg(workshop.path().join("plain.andon"));
    good(&tar.current_dir(&folder).output().unwrap());
    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
    let tensors = fs::read_to_string(folder.join("tensors.sha256")).unwrap();
    let bundle = |out: &str| {
        let folder = folder.to_str().unwrap();
        let _ = fs::remove_file(workshop.path().join(out));
        good(&tool(
            workshop.path(),
            &["bundle", "create", folder, "--out", out],
        ));
    };
    let refused = |why: &str| {
        let folder = folder.to_str().unwrap();
        let sign = |path| {
            tool(
                workshop.path(),
                &["bundle", "sign", path, "--key", "own.pem"],
            )
        };
        bad(&sign(folder), 1, why);
        let create = [
            "bundle", "create", folder, "--key", "own.pem", "--out", "x.andon",
        ];
        bad(&tool(workshop.path(), &create), 1, why);
        bundle("wrong.andon");
        bad(&sign("wrong.andon"), 1, why);
        bad(
            &tool(workshop.path(), &["bundle", "verify", "wrong.andon"]),
            1,
            why,
        );
    };
    let daemon = Daemon::builder().kept("helper").start().unwrap();
    let taken = || {
        let path = workshop.path().join("wrong.andon");
        andonctl(&daemon, &["model", "add", path.to_str().unwrap()])
    };

    // What fs-verity would say of other weights.
    let verity = manifest.find("\"verity\"").unwrap() + "\"verity\": \"".len();
    fs::write(folder.join("manifest.json"), other_digit(&manifest, verity)).unwrap();
    refused("m.gguf measures ");
    bad(&taken(), 1, "m.gguf came with the fs-verity digest");

    // The digests of other tensors, which the manifest has the digest of.
    let line = tensors.lines().nth(5).unwrap();
    let start = tensors.find(line).unwrap();
    let others = other_digit(&tensors, start);
    fs::write(folder.join("tensors.sha256"), &others).unwrap();
    let said: Value = serde_json::from_str(&manifest).unwrap();
    let members = said["members"].as_array().unwrap();
    let member = members.iter().find(|one| one["path"] == "tensors.sha256");
    let digest = member.unwrap()["sha256"].as_str().unwrap();
    let mut summed = Command::new("sha256sum");
    let summed = good(&summed.arg(folder.join("tensors.sha256")).output().unwrap());
    let changed = manifest.replace(digest, &summed[..digest.len()]);
    fs::write(folder.join("manifest.json"), changed).unwrap();
    let name = line.rsplit(' ').next().unwrap();
    refused(&format!(
        "m.gguf has in {name}, by tensors.sha256, the digest"
    ));
    bad(&taken(), 1, &format!("m.gguf differs in {name}"));

    fs::write(folder.join("manifest.json"), &manifest).unwrap();
    fs::write(folder.join("tensors.sha256"), &tensors).unwrap();
    let sign = [
        "bundle",
        "sign",
        folder.to_str().unwrap(),
        "--key",
        "own.pem",
    ];
    good(&tool(workshop.path(), &sign));
}

#[test]
fn packed_weights_are_those_of_a_sound_model_or_none() {
    let (workshop, _) = workshop();
    let mut daemon = Daemon::builder()
        .kept("helper")
        .config("[models]\nsignature = 'warn'\n[cache]\npack = 'added'\n")
        .start()
        .unwrap();
    let bundle = workshop.path().join("plain.andon");
    good(&andonctl(
        &daemon,
        &["model", "add", bundle.to_str().unwrap()],
    ));
    eventually("the model is served", || ready(&daemon));
    let is = |daemon: &Daemon, name: &str| metric::<u64>(daemon, name) == 1;
    eventually("all is compared", || is(&daemon, "andon_weights_compared"));
    assert_eq!(metric::<u64>(&daemon, "andon_packed"), 1);
    let answer = good(&andonctl(&daemon, &ASK));
    let weights = daemon.folder().join("models/helper/m.gguf");
    let packs = daemon.folder().join("cache");

    // What is packed and read from the file as well.
    flip(&weights, "token_embd.weight");
    again(&mut daemon, "\"warn\"", "\"warn\"");
    daemon.wait_ready().unwrap();
    eventually("the difference is found", || {
        is(&daemon, "andon_weights_differ")
    });
    assert!(daemon.log().contains("differs in token_embd.weight"));
    flip(&weights, "token_embd.weight");

    // Damaged weights are not packed.
    flip(&weights, "blk.0.ffn_up.weight");
    fs::remove_dir_all(&packs).unwrap();
    again(&mut daemon, "\"warn\"", "\"warn\"");
    daemon.wait_ready().unwrap();
    let unpacked = "are not packed: they are not what its manifest says";
    eventually("they are left as they are", || {
        daemon.log().contains(unpacked)
    });
    assert_eq!(metric::<u64>(&daemon, "andon_weights_differ"), 1);
    assert_eq!(metric::<u64>(&daemon, "andon_packed"), 0);
    bad(
        &andonctl(&daemon, &["model", "pack", "helper"]),
        1,
        "differs in blk.0.ffn_up.weight",
    );

    // Where nobody looks they are; who looks later leaves that pack.
    again(&mut daemon, "\"warn\"", "\"off\"");
    daemon.wait_ready().unwrap();
    eventually("they are packed", || is(&daemon, "andon_packed"));
    flip(&weights, "blk.0.ffn_up.weight");
    again(&mut daemon, "\"off\"", "\"warn\"");
    daemon.wait_ready().unwrap();
    eventually("the difference is found", || {
        is(&daemon, "andon_weights_differ")
    });
    eventually("they are packed anew", || is(&daemon, "andon_packed"));
    assert_eq!(good(&andonctl(&daemon, &ASK)), answer);
    again(&mut daemon, "\"warn\"", "\"warn\"");
    daemon.wait_ready().unwrap();
    eventually("all is compared", || is(&daemon, "andon_weights_compared"));
    assert_eq!(metric::<u64>(&daemon, "andon_weights_differ"), 0);
}
