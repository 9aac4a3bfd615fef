//! `andonctl status`, `models`, `cancel` and what needs no daemon.

use std::io::{BufRead as _, BufReader};
use std::process::Command;

use andon_wire::{
    Cancelled, ClientFrame, CorpusErased, Degraded, DraftStatus, HealthStatus, MemoryStatus,
    ModelEntry, ModelName, ModelStatus, Models, MqttLink, MqttStatus, QueueStatus, Readiness,
    RequestCounters, SandboxLayer, SandboxStatus, ServerFrame, ServiceStatus, Speed, SpoolStatus,
    Status, TokenCounters,
};

use crate::support::{Outcome, Peer, Server};

fn name(text: &str) -> ModelName {
    ModelName::new(text).unwrap()
}

fn status() -> Status<'static> {
    Status {
        software: "andond 9.9.9",
        gateway: "gw1",
        uptime_s: 3_725,
        readiness: Readiness::Ready,
        model: Some(ModelStatus {
            name: name("smollm2"),
            architecture: "llama",
            file_bytes: 98_304_000,
            context_tokens_max: 2048,
            isa: "avx2",
            threads: 2,
        }),
        requests: RequestCounters {
            accepted: 11,
            answered: 7,
            refused: 3,
            failed: 2,
            cancelled: 1,
        },
        tokens: TokenCounters {
            prompt: 1234,
            completion: 5678,
        },
        queue: QueueStatus {
            waiting: 4,
            waiting_max: 64,
            active: 1,
            active_max: 8,
        },
        speed: Speed {
            prefill_tokens_per_s: 812.5,
            decode_tokens_per_s: 98.25,
        },
        mqtt: MqttStatus {
            link: MqttLink::Connected5,
            broker: "localhost:1883",
            reconnects: 2,
        },
    }
}

fn models() -> Models<'static> {
    let mut models = Models::default();
    for (model, loaded, default) in [("smollm2", true, true), ("org/other", false, false)] {
        models
            .models
            .push(ModelEntry {
                name: name(model),
                architecture: "llama",
                context_tokens_max: 2048,
                file_bytes: 98_304_000,
                loaded,
                default,
            })
            .unwrap();
    }
    models
}

/// Answers until the program is gone.
fn serve(peer: &mut Peer) {
    loop {
        let reply = match peer.receive() {
            None => break,
            Some(ClientFrame::Status) => ServerFrame::Status(status()),
            Some(ClientFrame::Draft) => ServerFrame::Draft(Some(DraftStatus {
                name: "small",
                used: false,
                bytes: 0,
                reason: "cannot open it",
                translated: false,
            })),
            Some(ClientFrame::Health) => ServerFrame::Health(health()),
            Some(ClientFrame::Service) => ServerFrame::Service(service()),
            Some(ClientFrame::Models) => ServerFrame::Models(models()),
            Some(ClientFrame::Cancel(cancel)) => {
                let found = cancel.id.as_str() == "17";
                ServerFrame::Cancelled(Cancelled {
                    id: cancel.id,
                    found,
                })
            }
            Some(other) => panic!("{other:?}"),
        };
        peer.send(&reply);
    }
}

#[test]
fn status_for_people() {
    let outcome = Server::welcoming(serve).run(["status"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "\
andond 9.9.9 on gw1: ready, up 1 h 2 min
  model     smollm2 (llama), 93.8 MiB, context 2048 tokens, avx2, 2 threads
  requests  11 accepted, 7 answered, 3 refused, 2 failed, 1 cancelled
  queue     4 of 64 waiting, 1 of 8 active
  tokens    1234 of prompts, 5678 of answers
  speed     prefill 812.5 tok/s, decode 98.2 tok/s of late
  mqtt      connected (MQTT 5), broker localhost:1883, 2 reconnects
  draft     small is not used: cannot open it
  memory    1.0 GiB promised of 3.0 GiB, 512.0 MiB to be had
  spool     1 waiting, 2 running, 3 to deliver, 4 delivered, 5 B
  sandbox   Landlock on (version 7), seccomp missing: the kernel has none
  degraded  throttled, broker_lost
"
    );
}

/// What one says whose kernel has no seccomp.
fn service() -> ServiceStatus<'static> {
    ServiceStatus {
        sandbox: SandboxStatus {
            landlock: SandboxLayer::On { level: 7 },
            seccomp: SandboxLayer::Missing {
                why: "the kernel has none",
            },
        },
        spool: SpoolStatus {
            durable: true,
            accepted: 1,
            running: 2,
            answered: 3,
            delivered: 4,
            bytes: 5,
        },
    }
}

/// What one says that keeps nothing and gives nothing up, and that has these models.
fn bare(peer: &mut Peer, models: Models<'_>) {
    assert_eq!(peer.receive(), Some(ClientFrame::Models));
    peer.send(&ServerFrame::Models(models));
    assert_eq!(peer.receive(), Some(ClientFrame::Service));
    peer.send(&ServerFrame::Service(ServiceStatus {
        sandbox: SandboxStatus {
            landlock: SandboxLayer::Off,
            seccomp: SandboxLayer::Off,
        },
        spool: SpoolStatus::default(),
    }));
}

/// What a gateway says that is hot and whose broker is away.
fn health() -> HealthStatus {
    HealthStatus {
        degraded: [Degraded::Throttled, Degraded::BrokerLost]
            .into_iter()
            .collect(),
        memory: MemoryStatus {
            budget_bytes: Some(3 << 30),
            promised_bytes: 1 << 30,
            left_bytes: Some(1 << 29),
        },
    }
}

#[test]
fn status_without_a_model_or_a_broker() {
    let server = Server::welcoming(|peer| {
        assert_eq!(peer.receive(), Some(ClientFrame::Draft));
        peer.send(&ServerFrame::Draft(None));
        assert_eq!(peer.receive(), Some(ClientFrame::Health));
        peer.send(&ServerFrame::Health(HealthStatus::default()));
        bare(peer, Models::default());
        peer.receive();
        peer.send(&ServerFrame::Status(Status {
            readiness: Readiness::Starting,
            model: None,
            mqtt: MqttStatus {
                link: MqttLink::Off,
                broker: "",
                reconnects: 0,
            },
            ..status()
        }));
    });
    let outcome = server.run(["status"]);
    assert!(outcome.stdout.contains(": starting, "), "{outcome:?}");
    assert!(
        outcome.stdout.contains("model     none loaded\n"),
        "{outcome:?}"
    );
    let end = "mqtt      off\n  memory    0 B promised\n  spool     0 waiting, 0 running, 0 to deliver, 0 delivered, \
        0 B, in memory only\n  sandbox   Landlock off, seccomp off\n";
    assert!(outcome.stdout.ends_with(end), "{outcome:?}");
}

#[test]
fn status_for_programs() {
    let outcome = Server::welcoming(serve).run(["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "software": "andond 9.9.9",
            "gateway": "gw1",
            "uptime_s": 3725,
            "readiness": "ready",
            "model": {
                "name": "smollm2", "architecture": "llama", "file_bytes": 98_304_000,
                "context_tokens_max": 2048, "isa": "avx2", "threads": 2
            },
            "requests": {
                "accepted": 11, "answered": 7, "refused": 3, "failed": 2, "cancelled": 1
            },
            "tokens": {"prompt": 1234, "completion": 5678},
            "queue": {"waiting": 4, "waiting_max": 64, "active": 1, "active_max": 8},
            "speed": {"prefill_tokens_per_s": 812.5, "decode_tokens_per_s": 98.25},
            "mqtt": {"link": "connected5", "broker": "localhost:1883", "reconnects": 2},
            "draft": {"name": "small", "used": false, "bytes": 0, "translated": false, "reason": "cannot open it"},
            "degraded": ["throttled", "broker_lost"],
            "memory": {"budget_bytes": 3_221_225_472_u64, "promised_bytes": 1_073_741_824, "left_bytes": 536_870_912},
            "models": ["smollm2"],
            "sandbox": {
                "landlock": {"on": true, "level": 7},
                "seccomp": {"on": false, "missing": "the kernel has none"}
            },
            "spool": {
                "durable": true, "accepted": 1, "running": 2, "answered": 3, "delivered": 4, "bytes": 5
            },
        })
    );
}

#[test]
fn a_draft_that_guesses_by_text_says_so() {
    let server = Server::welcoming(|peer| {
        assert_eq!(peer.receive(), Some(ClientFrame::Draft));
        peer.send(&ServerFrame::Draft(Some(DraftStatus {
            name: "small",
            used: true,
            bytes: 98_304_000,
            reason: "",
            translated: true,
        })));
        assert_eq!(peer.receive(), Some(ClientFrame::Health));
        peer.send(&ServerFrame::Health(HealthStatus::default()));
        bare(peer, models());
        peer.receive();
        peer.send(&ServerFrame::Status(status()));
    });
    let outcome = server.run(["status"]);
    let says = "draft     small guesses, 93.8 MiB, by text, since its vocabulary is another\n";
    assert!(outcome.stdout.contains(says), "{outcome:?}");
}

#[test]
fn answers_that_are_not_erased_are_told_of() {
    for (shared, code) in [(0, 0), (2, 1)] {
        let server = Server::welcoming(move |peer| {
            let Some(ClientFrame::CorpusTask(task)) = peer.receive() else {
                panic!("another frame");
            };
            let id = task.id.clone();
            let erased = CorpusErased {
                id,
                count: 3,
                shared,
            };
            peer.send(&ServerFrame::CorpusErased(erased));
        });
        let outcome = server.run(["corpus", "erase", "--client", "plc1"]);
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert_eq!(outcome.stdout, "3 erased\n");
        let told = outcome.stderr.contains("to 2 tasks are kept together");
        assert_eq!(told, shared > 0, "{outcome:?}");
    }
}

#[test]
fn status_is_shown_again_and_again() {
    let server = Server::welcoming(serve);
    let mut child = server
        .andonctl(["status", "--json", "--watch"])
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(2);
    for line in lines {
        let json: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(json["gateway"], "gw1");
    }
    // Its reader is gone, so it ends by itself.
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn models_are_listed() {
    let server = Server::welcoming(serve);
    assert_eq!(
        server.run(["models"]).stdout,
        "\
smollm2    llama       93.8 MiB  context   2048  loaded, default
org/other  llama       93.8 MiB  context   2048  on demand
"
    );
    let outcome = server.run(["models", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json["models"][0]["name"], "smollm2");
    assert_eq!(json["models"][1]["loaded"], false);
}

#[test]
fn cancel_tells_whether_there_was_something() {
    let server = Server::welcoming(serve);
    let outcome = server.run(["cancel", "17"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    let outcome = server.run(["cancel", "18"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("no open request 18"), "{outcome:?}");
    assert_eq!(server.run(["cancel", "a/b"]).code, Some(2));
}

#[test]
fn completions_and_manual_need_no_daemon() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_andonctl"))
            .args(arguments)
            .output()
            .unwrap();
        Outcome::from(output)
    };
    for shell in ["bash", "zsh", "fish"] {
        let outcome = run(&["completions", shell]);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.contains("tokens-max"), "{shell}");
    }
    let page = run(&["man"]);
    assert_eq!(page.code, Some(0), "{page:?}");
    assert!(page.stdout.contains(".TH andonctl 1"), "{page:?}");
    assert!(page.stdout.contains("Exit status"), "{page:?}");

    let directory = tempfile::tempdir().unwrap();
    assert_eq!(
        run(&["man", directory.path().to_str().unwrap()]).code,
        Some(0)
    );
    for file in [
        "andonctl.1",
        "andonctl-ask.1",
        "andonctl-chat.1",
        "andonctl-status.1",
    ] {
        assert!(directory.path().join(file).is_file(), "{file}");
    }
    assert_eq!(run(&["--help"]).code, Some(0));
    assert_eq!(run(&["--version"]).code, Some(0));
    assert_eq!(run(&[]).code, Some(2));
    assert_eq!(run(&["fly"]).code, Some(2));
}

/// What the shipped file makes bash offer for a command line that ends in `word`.
fn offered(words: &str, word: &str) -> String {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_andonctl"));
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../systemd/completions/andonctl.bash"
    );
    // What bash itself does when Tab is pressed.
    let script = format!(
        "PATH=\"{}:$PATH\"; source {file}; COMP_WORDS=({words} {word}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
         complete -p andonctl >&2 && _andonctl andonctl '{word}' andonctl; echo \"${{COMPREPLY[@]}}\"",
        program.parent().unwrap().display()
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("-F _andonctl andonctl"), "{said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_shipped_completion_offers_commands_and_options() {
    assert_eq!(offered("andonctl", "mod"), "models model");
    assert_eq!(offered("andonctl ask", "--tok"), "--tokens-max");
    assert_eq!(offered("andonctl", "nothing-of-this-kind"), "");
}
