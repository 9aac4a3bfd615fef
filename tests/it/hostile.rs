//! A model file that is cut off under the running daemon: the request fails, the daemon says so and lives on.

use std::fs::File;
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
use serde_json::json;

/// Large enough that an answer takes many passes after the file was cut.
fn model() -> TinyModel {
    TinyModel {
        layer_count: 2,
        embedding: 256,
        feed_forward: 512,
        context_tokens_max: 4096,
        ..TinyModel::default()
    }
}

#[test]
fn a_file_cut_off_while_it_is_used_fails_requests_and_not_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    model().write(&path).unwrap();
    let mut daemon = Daemon::builder()
        .model(&path)
        .config("[limits]\ntokens-max = 3000\n")
        .start()
        .unwrap();
    let http = daemon.http();
    assert_eq!(http.get("/readyz").unwrap().status, 200);

    let ask = |tokens: u32| {
        let body = json!({ "prompt": "hello", "max_tokens": tokens, "temperature": 0 });
        http.post("/v1/completions", &body).unwrap()
    };
    // Warm: everything is mapped and used once.
    assert_eq!(ask(4).status, 200);
    let long = std::thread::scope(|scope| {
        let long = scope.spawn(|| ask(3000));
        // Until it runs; if the machine is so fast that it has ended, the next request meets the cut file.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            let metrics = http.get("/metrics").unwrap().text();
            if metrics
                .lines()
                .any(|line| line.starts_with("andon_running") && line.ends_with(" 1"))
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        long.join().unwrap()
    });
    let short = ask(4);
    if long.status != 200 {
        assert_eq!(long.status, 500, "{}", long.text());
        assert!(
            long.text().contains("the model file changed under the map"),
            "{}",
            long.text()
        );
    }
    // By now somebody has met the cut, and whoever comes next is told at once.
    assert!(short.status >= 500, "{}", short.text());
    let late = ask(4);
    assert_eq!(late.status, 503, "{}", late.text());
    assert!(
        late.text().contains("the model file changed under the map"),
        "{}",
        late.text()
    );

    let ready = http.get("/readyz").unwrap();
    assert_eq!(ready.status, 503);
    assert!(
        ready
            .text()
            .contains("the model file changed under the map"),
        "{}",
        ready.text()
    );
    assert_eq!(http.get("/healthz").unwrap().status, 200);
    assert!(daemon.is_running());
    assert!(daemon.log().contains("the model is of no use any more"));

    // A sound file and a new start, and all is well.
    model().write(&path).unwrap();
    daemon.restart().unwrap();
    assert_eq!(ask(4).status, 200);
    daemon.terminate().unwrap();
    assert!(daemon.wait(Duration::from_secs(30)).unwrap().success());
}
