//! Handing models over, to a daemon that a test plays: what is sent, and what the user hears.

use std::fs;
use std::sync::mpsc;

use andon_wire::manifest::Digest;
use andon_wire::{
    AddReady, ClientFrame, ErrorCode, Fault, ModelAction, ModelAdded, ModelDone, ModelName,
    ModelProgress, ModelResidence, ModelStage, Models, RequestId, ServedModel, ServerFrame,
    SignatureState, StoredModel, StoredPack, StoredSignature,
};

use crate::pull::gguf;
use crate::support::{Peer, Server};

fn name(text: &str) -> ModelName {
    ModelName::new(text).unwrap()
}

/// Takes the wish to add a model; its id and manifest.
fn wish(peer: &mut Peer) -> (RequestId, serde_json::Value) {
    match peer.receive() {
        Some(ClientFrame::AddModel(ask)) => {
            let manifest = serde_json::from_str(ask.manifest).unwrap();
            (ask.id, manifest)
        }
        other => panic!("{other:?} in place of a model"),
    }
}

fn ready(peer: &mut Peer, id: &RequestId, weights: bool) {
    peer.send(&ServerFrame::AddReady(AddReady {
        id: id.clone(),
        weights,
    }));
}

/// The next bytes of the model, or nothing when the program has nothing more to say.
fn data(peer: &mut Peer) -> Option<Vec<u8>> {
    match peer.receive()? {
        ClientFrame::ModelData(data) => Some(data.bytes.0.to_vec()),
        other => panic!("{other:?} in place of bytes"),
    }
}

fn added(peer: &mut Peer, id: &RequestId, present: bool) {
    peer.send(&ServerFrame::ModelAdded(ModelAdded {
        id: id.clone(),
        name: name("m"),
        bytes: 300_000,
        present,
    }));
    let (id, action) = task(peer);
    assert_eq!(action, ModelAction::Show(name("m")));
    stored(peer, &id, true);
}

/// Takes a question about the models.
fn task(peer: &mut Peer) -> (RequestId, ModelAction) {
    match peer.receive() {
        Some(ClientFrame::ModelTask(task)) => (task.id, task.action),
        other => panic!("{other:?} in place of a question"),
    }
}

fn stored(peer: &mut Peer, id: &RequestId, active: bool) {
    peer.send(&ServerFrame::StoredModel(StoredModel {
        id: id.clone(),
        name: name("m"),
        architecture: "llama",
        quantization: "Q4_0",
        license: "",
        bytes: 2048,
        added_s: 1,
        sha256: Digest([0xab; 32]),
        active,
    }));
}

#[test]
fn the_bytes_of_a_file_are_sent_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let model = gguf(600_000, 1);
    fs::write(&path, &model).unwrap();
    let server = Server::welcoming(move |peer| {
        let (id, manifest) = wish(peer);
        assert_eq!(manifest["name"], "m");
        assert_eq!(manifest["members"][0]["bytes"], model.len());
        ready(peer, &id, true);
        let mut came = Vec::new();
        while came.len() < model.len() {
            came.extend(data(peer).unwrap());
        }
        assert!(came == model);
        peer.send(&ServerFrame::ModelProgress(ModelProgress {
            id: id.clone(),
            stage: ModelStage::Testing,
            bytes: 1,
            bytes_total: 2,
        }));
        added(peer, &id, false);
    });
    let outcome = server.run(["model", "add", path.to_str().unwrap()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stdout, "m\n");
    assert!(outcome.stderr.contains("registered"), "{outcome:?}");
    assert!(
        outcome.stderr.contains("the one that [model]"),
        "{outcome:?}"
    );
}

#[test]
fn weights_that_are_there_are_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("m.gguf"), gguf(600_000, 1)).unwrap();
    fs::write(folder.path().join("LICENSE"), "Do as you like.").unwrap();
    let server = Server::welcoming(|peer| {
        let (id, _) = wish(peer);
        ready(peer, &id, false);
        assert_eq!(data(peer).unwrap(), b"Do as you like.");
        added(peer, &id, false);
    });
    let outcome = server.run(["model", "add", folder.path().to_str().unwrap()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");

    let server = Server::welcoming(|peer| {
        let (id, _) = wish(peer);
        added(peer, &id, true);
    });
    let outcome = server.run(["model", "add", folder.path().to_str().unwrap()]);
    assert!(outcome.stderr.contains("was there before"), "{outcome:?}");
}

#[test]
fn a_refusal_in_the_middle_is_what_the_user_hears() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, gguf(3_000_000, 1)).unwrap();
    for (code, word) in [
        (ErrorCode::NoSpace, "model rm"),
        (ErrorCode::Rejected, "no good"),
    ] {
        let server = Server::welcoming(move |peer| {
            let (id, _) = wish(peer);
            ready(peer, &id, true);
            data(peer).unwrap();
            peer.send(&ServerFrame::Error(Fault {
                id: Some(id),
                code,
                message: "no good",
                retry_after_ms: None,
            }));
            while data(peer).is_some() {}
        });
        let outcome = server.run(["model", "add", path.to_str().unwrap()]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains("no good"), "{outcome:?}");
        assert!(outcome.stderr.contains(word), "{outcome:?}");
    }
}

#[test]
fn a_daemon_that_goes_away_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, gguf(3_000_000, 1)).unwrap();
    let server = Server::welcoming(|peer| {
        let (id, _) = wish(peer);
        ready(peer, &id, true);
        data(peer).unwrap();
    });
    let outcome = server.run(["model", "add", path.to_str().unwrap()]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stdout.is_empty());
}

#[test]
fn a_daemon_that_takes_no_more_bytes_does_not_hold_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, gguf(3_000_000, 1)).unwrap();
    let (over, until) = mpsc::channel::<()>();
    let server = Server::welcoming(move |peer| {
        let (id, _) = wish(peer);
        ready(peer, &id, true);
        // It answers nonsense, and from then on neither reads nor hangs up.
        peer.send(&ServerFrame::Models(Models::default()));
        let _ = until.recv();
    });
    let outcome = server.run(["model", "add", path.to_str().unwrap()]);
    drop(over);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
}

#[test]
fn models_are_listed_one_a_line() {
    let serve = |peer: &mut Peer| {
        let (id, action) = task(peer);
        assert_eq!(action, ModelAction::List);
        stored(peer, &id, true);
        stored(peer, &id, false);
        peer.send(&ServerFrame::ModelDone(ModelDone { id, count: 2 }));
    };
    // One that does not know what packs are, or which models answer, hangs up; the models are listed all the same.
    let server = Server::welcoming(serve);
    let outcome = server.run(["model", "ls"]);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{outcome:?}");
    assert!(
        lines[0].ends_with("active") && lines[0].contains("2.0 KiB"),
        "{outcome:?}"
    );
    assert!(lines[1].ends_with("not stated"), "{outcome:?}");
    let outcome = server.run(["model", "ls", "--json"]);
    let first: serde_json::Value =
        serde_json::from_str(outcome.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(first["active"], true);
    assert_eq!(first["state"], serde_json::Value::Null);
    assert_eq!(first["sha256"], "ab".repeat(32));
}

#[test]
fn packed_and_signed_models_are_marked() {
    let serve = |peer: &mut Peer| {
        let (id, action) = task(peer);
        assert_eq!(action, ModelAction::List);
        stored(peer, &id, false);
        peer.send(&ServerFrame::ModelDone(ModelDone { id, count: 1 }));
        let (id, action) = task(peer);
        assert_eq!(action, ModelAction::Packs);
        peer.send(&ServerFrame::StoredPack(StoredPack {
            id: id.clone(),
            name: name("m"),
            bytes: 2100,
        }));
        peer.send(&ServerFrame::ModelDone(ModelDone { id, count: 1 }));
        let (id, action) = task(peer);
        assert_eq!(action, ModelAction::Signatures);
        peer.send(&ServerFrame::StoredSignature(StoredSignature {
            id: id.clone(),
            name: name("m"),
            state: SignatureState::Good,
            key: "0123456789abcdef",
            verity: true,
        }));
        peer.send(&ServerFrame::ModelDone(ModelDone { id, count: 1 }));
        let (id, action) = task(peer);
        assert_eq!(action, ModelAction::Served);
        for name in ["m", "chat"] {
            peer.send(&ServerFrame::ServedModel(ServedModel {
                id: id.clone(),
                name,
                model: if name == "m" { "" } else { "m" },
                former: "",
                residence: ModelResidence::Loaded,
                default: false,
                pinned: false,
                probation: false,
                memory_bytes: 0,
            }));
        }
        peer.send(&ServerFrame::ModelDone(ModelDone { id, count: 2 }));
    };
    let server = Server::welcoming(serve);
    let outcome = server.run(["model", "ls"]);
    assert!(
        outcome.stdout.ends_with(
            "not stated  packed  signed by 0123456789abcdef  verity  loaded  answers to chat\n"
        ),
        "{outcome:?}"
    );
    let outcome = server.run(["model", "ls", "--json"]);
    let line: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(line["packed_bytes"], 2100);
    assert_eq!(line["signature"], "good");
    assert_eq!(line["key"], "0123456789abcdef");
    assert_eq!(line["verity"], true);
    assert_eq!(line["state"], "loaded");
    assert_eq!(line["answers_to"], serde_json::json!(["chat"]));
}
