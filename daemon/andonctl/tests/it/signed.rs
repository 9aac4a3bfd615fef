//! Keys, and bundles that are signed with them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use andon_wire::manifest::Digest;
use serde_json::Value;

use crate::bundle::{bad, bundle, good};
use crate::hub::sha256;
use crate::pull::gguf;

/// A public key that signs nothing here: the one of RFC 8032, 7.1, test 1.
const STRANGER: &str = "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
/// The private key that it is of.
const STRANGER_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
    -----END PRIVATE KEY-----\n";

fn key(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_andonctl"))
        .current_dir(folder)
        .arg("key")
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn keys_are_made_once_and_for_their_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let made = key(folder.path(), &["new", "own.pem"]);
    let public = good(&made);
    assert!(public.starts_with("MCowBQYDK2VwAyEA"), "{public}");
    assert!(String::from_utf8_lossy(&made.stderr).contains("trusted-keys"));
    let path = folder.path().join("own.pem");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(good(&key(folder.path(), &["show", "own.pem"])), public);
    bad(&key(folder.path(), &["new", "own.pem"]), 1, "own.pem");
    let other = good(&key(folder.path(), &["new", "other.pem"]));
    assert_ne!(other, public);
    // As other programs write it.
    fs::write(&path, STRANGER_PRIVATE).unwrap();
    let shown = good(&key(folder.path(), &["show", "own.pem"]));
    assert_eq!(shown.trim(), STRANGER);
    for text in [
        "",
        "-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n",
        &STRANGER_PRIVATE[..80],
        &STRANGER_PRIVATE.replace("MC4CAQAwBQYDK2Vw", "MC4CAQAwBQYDK2Vx"),
    ] {
        fs::write(&path, text).unwrap();
        bad(&key(folder.path(), &["show", "own.pem"]), 1, "private key");
    }
}

#[test]
fn a_bundle_is_signed_by_several_and_verified_by_any() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("m.gguf"), gguf(5000, 1)).unwrap();
    let keys = ["a.pem", "b.pem"].map(|name| good(&key(folder, &["new", name])));
    let [a, b] = keys.each_ref().map(|key| key.trim());
    let verify = |key: &str| bundle(folder, &["verify", "m.andon", "--trust", key]);
    good(&bundle(folder, &["create", "m.gguf"]));
    bad(&verify(a), 1, "none of these keys signed it");
    bad(&verify("AAAA"), 2, "no Ed25519 public key");
    let plain = fs::read(folder.join("m.andon")).unwrap();

    good(&bundle(folder, &["sign", "m.andon", "--key", "a.pem"]));
    assert!(good(&verify(a)).contains("signed by"));
    bad(&verify(b), 1, "none of these keys");
    // A second time it is the same: these signatures are made of nothing but the key and the manifest.
    let once = fs::read(folder.join("m.andon")).unwrap();
    good(&bundle(folder, &["sign", "m.andon", "--key", "a.pem"]));
    assert!(fs::read(folder.join("m.andon")).unwrap() == once);
    good(&bundle(folder, &["sign", "m.andon", "--key", "b.pem"]));
    good(&verify(a));
    good(&verify(b));
    bad(&verify(STRANGER), 1, "none of these keys");
    let trust = ["verify", "m.andon", "--trust", STRANGER, "--trust", b];
    good(&bundle(folder, &trust));
    let shown = good(&bundle(folder, &["show", "m.andon"]));
    assert_eq!(shown.matches("signed it").count(), 2, "{shown}");
    // What stands before the signatures is as it was.
    let signed = fs::read(folder.join("m.andon")).unwrap();
    assert!(signed.starts_with(&plain[..plain.len() - 1024]));

    // Unpacked it is signed as well, and packs into the same again.
    let unpacked = folder.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let tar = Command::new("tar")
        .args(["-xf", "../m.andon"])
        .current_dir(&unpacked)
        .status();
    assert!(tar.unwrap().success());
    let again = ["create", "unpacked", "--out", "again.andon"];
    good(&bundle(folder, &again));
    assert!(
        fs::read(folder.join("again.andon")).unwrap()[..signed.len() - 1024]
            == signed[..signed.len() - 1024]
    );
    fs::remove_file(unpacked.join("manifest.sig")).unwrap();
    good(&bundle(folder, &["sign", "unpacked", "--key", "a.pem"]));
    assert!(unpacked.join("manifest.sig").exists());
    // Made and signed in one.
    let create = ["create", "m.gguf", "--key", "b.pem", "--out", "one.andon"];
    good(&bundle(folder, &create));
    good(&bundle(folder, &["verify", "one.andon", "--trust", b]));

    // Another manifest is not signed; half a signature makes it no bundle.
    let change = |from: &[u8], to: &[u8]| {
        let mut bytes = signed.clone();
        let at = bytes
            .windows(from.len())
            .position(|window| window == from)
            .unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        fs::write(folder.join("m.andon"), bytes).unwrap();
    };
    change(b"\"quantization\": \"u", b"\"quantization\": \"U");
    bad(&verify(a), 1, "none of these keys");
    change(b"\ned25519 ", b"\ned448   ");
    bad(&verify(a), 1, "another algorithm");
    change(b"andon-signatures-v1", b"andon-signatures-v2");
    bad(&bundle(folder, &["show", "m.andon"]), 1, "first line");
}

#[test]
fn what_is_damaged_is_not_signed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("m.gguf"), gguf(5000, 1)).unwrap();
    good(&key(folder, &["new", "a.pem"]));
    good(&bundle(folder, &["create", "m.gguf"]));
    let path = folder.join("m.andon");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 2000;
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let sign = ["sign", "m.andon", "--key", "a.pem"];
    bad(&bundle(folder, &sign), 1, "has the digest");
    assert!(fs::read(&path).unwrap() == bytes);
    let sign = ["sign", ".", "--key", "a.pem"];
    bad(&bundle(folder, &sign), 1, "no manifest");
}

/// A file with two tensors: where its data begins, and its bytes.
fn two_tensors() -> (usize, Vec<u8>) {
    let mut file = gguf(0, 1);
    file[8..16].copy_from_slice(&2u64.to_le_bytes());
    for (name, offset) in [("first", 0u64), ("second", 64)] {
        file.extend((name.len() as u64).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(10u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(offset.to_le_bytes());
    }
    let data = file.len().next_multiple_of(32);
    file.resize(data, 0);
    file.extend((0..104u8).map(|byte| byte ^ 0x5a));
    (data, file)
}

#[test]
fn tensors_have_digests_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = two_tensors();
    fs::write(folder.path().join("m.gguf"), &file).unwrap();
    good(&bundle(folder.path(), &["create", "m.gguf"]));
    let show = bundle(folder.path(), &["show", "--json", "m.andon"]);
    let manifest: Value = serde_json::from_str(&good(&show)).unwrap();
    let members = manifest["members"].as_array().unwrap();
    assert_eq!(members[1]["role"], "tensor-digests");
    assert_eq!(members[1]["path"], "tensors.sha256");
    assert!(
        members[0]["verity"]
            .as_str()
            .unwrap()
            .parse::<Digest>()
            .is_ok()
    );
    let digest = |bytes: &[u8]| sha256(bytes);
    let expected = format!(
        "andon-tensors-v1\n{} 0 {data} (head)\n{} 0 64 first\n{} 0 40 second\n",
        digest(&file[..data]),
        digest(&file[data..data + 64]),
        digest(&file[data + 64..]),
    );
    let bytes = fs::read(folder.path().join("m.andon")).unwrap();
    assert!(
        bytes
            .windows(expected.len())
            .any(|window| window == expected.as_bytes())
    );
    good(&bundle(folder.path(), &["verify", "m.andon"]));
}
