//! Bundles: made, shown, verified; and archives that are none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::hub::sha256;
use crate::pull::gguf;

pub(crate) fn bundle(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_andonctl"))
        .current_dir(folder)
        .arg("bundle")
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
pub(crate) fn good(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
pub(crate) fn bad(output: &Output, status: i32, why: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.contains(why), "{why:?} is not in: {stderr}");
}

#[test]
fn a_folder_becomes_a_bundle_that_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m");
    fs::create_dir_all(model.join("tasks")).unwrap();
    let weights = [gguf(7000, 1), gguf(8000, 2)];
    fs::write(model.join("big-00001-of-00002.gguf"), &weights[0]).unwrap();
    fs::write(model.join("big-00002-of-00002.gguf"), &weights[1]).unwrap();
    fs::write(model.join("LICENSE"), "Do as you like.").unwrap();
    fs::write(model.join("chat_template.jinja"), "{{ messages }}").unwrap();
    fs::write(model.join("tasks/explain.toml"), "instructions = 'x'\n").unwrap();
    let create = [
        "create",
        "m",
        "--name",
        "helper",
        "--license",
        "mit",
        "--pre-tokenizer",
        "qwen2",
        "--source",
        "org/m",
        "--revision",
        "v1",
    ];
    assert_eq!(good(&bundle(folder.path(), &create)), "helper.andon\n");
    bad(&bundle(folder.path(), &create), 2, "exists");
    let manifest: Value = serde_json::from_str(&good(&bundle(
        folder.path(),
        &["show", "--json", "helper.andon"],
    )))
    .unwrap();
    let paths: Vec<&str> = manifest["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "big-00001-of-00002.gguf",
            "big-00002-of-00002.gguf",
            "LICENSE",
            "chat_template.jinja",
            "tasks/explain.toml"
        ]
    );
    assert_eq!(manifest["format"], 2);
    assert_eq!(manifest["name"], "helper");
    assert_eq!(manifest["architecture"], "llama");
    assert_eq!(manifest["pre-tokenizer"], "qwen2");
    assert_eq!(manifest["members"][1]["sha256"], sha256(&weights[1]));
    let shown = good(&bundle(folder.path(), &["show", "helper.andon"]));
    assert!(
        shown.contains("license mit") && shown.contains("org/m at v1"),
        "{shown}"
    );
    good(&bundle(folder.path(), &["verify", "helper.andon"]));

    // Any tar unpacks it, and what is unpacked is a model again.
    let unpacked = folder.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let status = Command::new("tar")
        .args(["-xf", "../helper.andon"])
        .current_dir(&unpacked)
        .status()
        .unwrap();
    assert!(status.success());
    let again = ["create", "unpacked", "--out", "again.andon"];
    good(&bundle(folder.path(), &again));
    assert_eq!(
        fs::read(folder.path().join("again.andon")).unwrap(),
        fs::read(folder.path().join("helper.andon")).unwrap()
    );

    // A flipped bit is found by verify; show reads the manifest only.
    let path = folder.path().join("helper.andon");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    good(&bundle(folder.path(), &["show", "helper.andon"]));
    bad(
        &bundle(folder.path(), &["verify", "helper.andon"]),
        1,
        "has the digest",
    );
    fs::write(&path, &bytes[..at]).unwrap();
    bad(
        &bundle(folder.path(), &["show", "helper.andon"]),
        1,
        "ends within",
    );
}

#[test]
fn what_makes_no_model_makes_no_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("text.gguf", b"hello");
    bad(
        &bundle(folder.path(), &["create", "text.gguf"]),
        1,
        "neither a GGUF file nor a bundle",
    );
    write("short.gguf", b"GGUF\x03\0\0\0");
    bad(
        &bundle(folder.path(), &["create", "short.gguf"]),
        1,
        "is not a GGUF file",
    );
    write("a-00001-of-00002.gguf", &gguf(10, 1));
    bad(
        &bundle(folder.path(), &["create", "a-00001-of-00002.gguf"]),
        1,
        "part of the model is missing",
    );
    bad(
        &bundle(folder.path(), &["create", "none.gguf"]),
        1,
        "none.gguf",
    );
    bad(
        &bundle(folder.path(), &["create", "."]),
        2,
        "several models",
    );
    write("good.gguf", &gguf(10, 1));
    bad(
        &bundle(folder.path(), &["create", "good.gguf", "--name", "../x"]),
        2,
        "letters",
    );
    write("empty.toml", b"");
    bad(
        &bundle(
            folder.path(),
            &["create", "good.gguf", "--task", "empty.toml"],
        ),
        2,
        "0 bytes",
    );
    assert!(!folder.path().join("good.andon").exists());
    // A name that an archive has no room for is not the file's name inside.
    let long = format!("{}.gguf", "l".repeat(110));
    write(&long, &gguf(10, 1));
    let create = ["create", long.as_str(), "--out", "long.andon"];
    good(&bundle(folder.path(), &create));
    let shown = good(&bundle(folder.path(), &["show", "long.andon"]));
    assert!(shown.contains("  model.gguf\n"), "{shown}");
}

/// An archive of these entries.
fn archive(folder: &Path, entries: &[(Header, &[u8])]) -> PathBuf {
    let path = folder.join("made.andon");
    let mut builder = Builder::new(fs::File::create(&path).unwrap());
    for (header, bytes) in entries {
        builder.append(header, *bytes).unwrap();
    }
    builder.into_inner().unwrap();
    path
}

fn entry<'a>(path: &str, bytes: &'a [u8]) -> (Header, &'a [u8]) {
    let mut header = Header::new_ustar();
    // Not by `set_path`, which refuses what is to be tried.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    (header, bytes)
}

fn manifest(weights: &[u8]) -> Value {
    json!({
        "format": 1, "name": "m", "architecture": "llama", "quantization": "F32", "created-s": 0,
        "members": [
            { "path": "model.gguf", "role": "weights", "bytes": weights.len(), "sha256": sha256(weights) },
        ],
    })
}

#[test]
fn archives_that_are_no_bundles_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let weights = gguf(1000, 1);
    let sound = manifest(&weights).to_string();
    let sound = sound.as_bytes();
    let model = entry("model.gguf", &weights);
    let of = |entries: &[(Header, &[u8])]| {
        let path = archive(folder.path(), entries);
        bundle(folder.path(), &["verify", path.to_str().unwrap()])
    };
    good(&of(&[entry("manifest.json", sound), model.clone()]));

    bad(&of(&[]), 1, "it is empty");
    bad(
        &of(&[model.clone(), entry("manifest.json", sound)]),
        1,
        "first entry",
    );
    bad(
        &of(&[entry("manifest.json", sound)]),
        1,
        "model.gguf is missing",
    );
    bad(
        &of(&[entry("manifest.json", sound), model.clone(), model.clone()]),
        1,
        "is not in the manifest",
    );
    for path in ["../model.gguf", "/model.gguf", "./model.gguf", "Model.gguf"] {
        let other = entry(path, &weights);
        bad(
            &of(&[entry("manifest.json", sound), other]),
            1,
            "lies where the manifest has",
        );
    }
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::Char,
        EntryType::Fifo,
        EntryType::GNULongName,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::GNUSparse,
    ] {
        let mut odd = entry("model.gguf", &weights);
        odd.0.set_entry_type(kind);
        odd.0.set_cksum();
        bad(
            &of(&[entry("manifest.json", sound), odd]),
            1,
            "not a plain file",
        );
    }
    // A header that claims more than there is.
    let mut huge = entry("model.gguf", &weights);
    huge.0.set_size(1 << 50);
    huge.0.set_cksum();
    bad(
        &of(&[entry("manifest.json", sound), huge]),
        1,
        "ends within",
    );
    let mut wrong = entry("model.gguf", &weights);
    wrong.0.set_mode(0o777);
    bad(
        &of(&[entry("manifest.json", sound), wrong]),
        1,
        "a header in it is damaged",
    );
    // What is no archive at all is not called a damaged one.
    for (name, bytes) in [("short.txt", 5), ("long.txt", 5000)] {
        let path = folder.path().join(name);
        fs::write(&path, vec![b'x'; bytes]).unwrap();
        let output = bundle(folder.path(), &["verify", name]);
        bad(&output, 1, "txt: it is neither a GGUF file nor a bundle\n");
    }
}

#[test]
fn manifests_that_cannot_be_trusted_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let weights = gguf(1000, 1);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut manifest = manifest(&weights);
        change(&mut manifest);
        let text = manifest.to_string();
        let entries = [
            entry("manifest.json", text.as_bytes()),
            entry("model.gguf", &weights),
        ];
        let path = archive(folder.path(), &entries);
        bundle(folder.path(), &["verify", path.to_str().unwrap()])
    };
    good(&with(&|_| {}));
    bad(
        &with(&|m| m["format"] = json!(3)),
        1,
        "its format is 3, this program reads 1 to 2",
    );
    bad(
        &with(&|m| m["surprise"] = json!(1)),
        1,
        "unknown field `surprise`",
    );
    bad(
        &with(&|m| m["name"] = json!("../x")),
        1,
        "is not a model's name",
    );
    bad(&with(&|m| m["name"] = json!("x".repeat(65))), 1, "manifest");
    bad(
        &with(&|m| m["members"] = json!([])),
        1,
        "no member has the role weights",
    );
    bad(
        &with(&|m| m["members"][0]["path"] = json!("../m.gguf")),
        1,
        "is not the path",
    );
    bad(
        &with(&|m| m["members"][0]["bytes"] = json!(1)),
        1,
        "lies where",
    );
    bad(
        &with(&|m| m["members"][0]["sha256"] = json!("00")),
        1,
        "digest",
    );
    bad(
        &with(&|m| m["members"][0]["sha256"] = json!("0".repeat(64))),
        1,
        "has the digest",
    );
    bad(
        &with(&|m| m["members"][0]["role"] = json!("script")),
        1,
        "unknown variant",
    );
    let member = manifest(&weights)["members"][0].clone();
    bad(
        &with(&|m| m["members"] = json!(vec![member.clone(); 129])),
        1,
        "manifest",
    );
    let twice = json!([member.clone(), member.clone()]);
    bad(
        &with(&|m| m["members"] = twice.clone()),
        1,
        "stands in it twice",
    );
    bad(
        &with(&|m| m["license"] = json!("x".repeat(70_000))),
        1,
        "bytes",
    );
}
