//! Pulling from a hub, on its good and bad days, and from folders that mirror one.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::hub::{COMMIT, Hub, Manner, REPOSITORY, sha256};

/// Bytes of a file that nothing would guess, the same every time.
fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// The head of a GGUF file and noise: enough of a model to be pulled and packed.
pub(crate) fn gguf(bytes: usize, seed: u32) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(0u64.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    for (text, kind) in [("general.architecture", Some(8u32)), ("llama", None)] {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
        file.extend(kind.map(u32::to_le_bytes).into_iter().flatten());
    }
    file.extend(noise(bytes, seed));
    file
}

fn pull(endpoint: &str, folder: &Path, arguments: &[&str]) -> Output {
    command(endpoint, folder, arguments).output().unwrap()
}

fn command(endpoint: &str, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_andonctl"));
    command
        .current_dir(folder)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", folder)
        .env_remove("HF_TOKEN")
        .env_remove("HF_TOKEN_PATH")
        .env("NO_PROXY", "*")
        .arg("pull")
        .args(arguments);
    command
}

#[track_caller]
fn good(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn bad(output: &Output, status: i32, why: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.contains(why), "{stderr}");
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_is_pulled_by_how_its_weights_are_stored() {
    let (small, large) = (gguf(3000, 1), gguf(50_000, 2));
    let hub = Hub::start(
        &[
            ("README.md", b"a model"),
            ("m-Q4_0.gguf", &small),
            ("m-Q8_0.gguf", &large),
            ("mmproj-m-f16.gguf", b"x"),
        ],
        Manner::default(),
    );
    let folder = tempfile::tempdir().unwrap();
    let said = good(&pull(
        &hub.endpoint(),
        folder.path(),
        &["org/model-GGUF:q8_0"],
    ));
    assert_eq!(said, "m-Q8_0.gguf\n");
    assert_eq!(fs::read(folder.path().join("m-Q8_0.gguf")).unwrap(), large);
    assert_eq!(names(folder.path()), ["m-Q8_0.gguf"]);
    assert!(
        hub.seen()
            .iter()
            .any(|seen| { seen.path == format!("/{REPOSITORY}/resolve/{COMMIT}/m-Q8_0.gguf") })
    );

    // Once more: nothing is moved.
    let before = hub.stored().len();
    good(&pull(
        &hub.endpoint(),
        folder.path(),
        &["org/model-GGUF:Q8_0"],
    ));
    assert_eq!(hub.stored().len(), before);

    // By default, and by file, and to a name.
    let out = folder.path().join("other.gguf");
    let arguments = ["org/model-GGUF", "--out", out.to_str().unwrap()];
    good(&pull(&hub.endpoint(), folder.path(), &arguments));
    assert_eq!(fs::read(&out).unwrap(), small);
    good(&pull(
        &hub.endpoint(),
        folder.path(),
        &["org/model-GGUF/m-Q4_0.gguf", "--out", "new/folder/"],
    ));
    assert_eq!(names(&folder.path().join("new/folder")), ["m-Q4_0.gguf"]);
    // Another file of that name is left alone.
    fs::write(&out, b"mine").unwrap();
    bad(
        &pull(&hub.endpoint(), folder.path(), &arguments),
        2,
        "exists",
    );
    assert_eq!(fs::read(&out).unwrap(), b"mine");
}

#[test]
fn what_there_is_can_be_listed() {
    let hub = Hub::start(
        &[
            ("m-Q4_0.gguf", &noise(2048, 1)),
            ("big-Q6_K-00001-of-00002.gguf", b"a"),
            ("big-Q6_K-00002-of-00002.gguf", b"b"),
        ],
        Manner::default(),
    );
    let folder = tempfile::tempdir().unwrap();
    let said = good(&pull(
        &hub.endpoint(),
        folder.path(),
        &["org/model-GGUF", "--list"],
    ));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].starts_with("Q6_K") && lines[0].ends_with("(2 parts)"),
        "{said}"
    );
    assert!(
        lines[1].contains("Q4_0") && lines[1].contains("2.0 KiB"),
        "{said}"
    );
    assert!(names(folder.path()).is_empty());
}

#[test]
fn all_parts_of_a_split_model_come() {
    let parts = [gguf(5000, 3), gguf(6000, 4)];
    let hub = Hub::start(
        &[
            ("Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", &parts[0]),
            ("Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", &parts[1]),
        ],
        Manner::default(),
    );
    let folder = tempfile::tempdir().unwrap();
    good(&pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]));
    for (index, bytes) in parts.iter().enumerate() {
        let path = format!("m-Q4_K_M-0000{}-of-00002.gguf", index + 1);
        assert_eq!(&fs::read(folder.path().join(path)).unwrap(), bytes);
    }
    let file = ["org/model-GGUF", "--out", "one.gguf"];
    bad(
        &pull(&hub.endpoint(), folder.path(), &file),
        2,
        "a folder that exists",
    );
}

#[test]
fn a_broken_connection_is_continued() {
    let model = gguf(100_000, 5);
    let hub = Hub::start(
        &[("m.gguf", &model)],
        Manner {
            breaks: [10_000, 0, 30_000].into(),
            statuses: [503].into(),
            ..Manner::default()
        },
    );
    let folder = tempfile::tempdir().unwrap();
    good(&pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]));
    assert_eq!(fs::read(folder.path().join("m.gguf")).unwrap(), model);
    let ranges: Vec<Option<String>> = hub.stored().into_iter().map(|seen| seen.range).collect();
    let from = |byte: &str| Some(format!("bytes={byte}-"));
    assert_eq!(ranges, [None, from("10000"), from("10000"), from("40000")]);
    assert_eq!(names(folder.path()), ["m.gguf"]);
}

#[test]
fn a_second_run_continues_the_first() {
    let model = gguf(60_000, 6);
    let hub = Hub::start(
        &[("m.gguf", &model)],
        Manner {
            breaks: [20_000].into(),
            ..Manner::default()
        },
    );
    let folder = tempfile::tempdir().unwrap();
    let impatient = ["org/model-GGUF", "--retries", "0"];
    bad(
        &pull(&hub.endpoint(), folder.path(), &impatient),
        3,
        "continues",
    );
    assert_eq!(names(folder.path()), ["m.gguf.part"]);
    good(&pull(&hub.endpoint(), folder.path(), &impatient));
    assert_eq!(fs::read(folder.path().join("m.gguf")).unwrap(), model);
    assert_eq!(hub.stored()[1].range.as_deref(), Some("bytes=20000-"));

    // A part that is whole already needs no bytes; one that is too long begins anew.
    let part = folder.path().join("m.gguf.part");
    fs::rename(folder.path().join("m.gguf"), &part).unwrap();
    good(&pull(&hub.endpoint(), folder.path(), &impatient));
    assert_eq!(hub.stored().len(), 2);
    fs::remove_file(folder.path().join("m.gguf")).unwrap();
    fs::write(&part, noise(70_000, 7)).unwrap();
    good(&pull(&hub.endpoint(), folder.path(), &impatient));
    assert_eq!(fs::read(folder.path().join("m.gguf")).unwrap(), model);
}

#[test]
fn wrong_bytes_do_not_become_a_model() {
    let model = gguf(30_000, 8);
    let hub = Hub::start(
        &[("m.gguf", &model)],
        Manner {
            wrong_bytes: true,
            ..Manner::default()
        },
    );
    let folder = tempfile::tempdir().unwrap();
    bad(
        &pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]),
        1,
        &sha256(&model),
    );
    assert!(names(folder.path()).is_empty());

    // A part of something else, such as an older file of that name, is found out when it is whole, and the file is
    // fetched anew: once, since a source that announces what it does not have would never end.
    for (bytes, wrong_bytes, status) in [(1000, false, 0), (model.len(), false, 0), (1000, true, 1)]
    {
        let before = hub.stored().len();
        hub.change(|manner| manner.wrong_bytes = wrong_bytes);
        fs::write(folder.path().join("m.gguf.part"), noise(bytes, 9)).unwrap();
        let output = pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]);
        bad(&output, status, "beginning anew");
        let fetched = usize::from(bytes < model.len()) + 1;
        assert_eq!(hub.stored().len() - before, fetched);
        if status == 0 {
            assert_eq!(fs::read(folder.path().join("m.gguf")).unwrap(), model);
            fs::remove_file(folder.path().join("m.gguf")).unwrap();
        }
        assert!(names(folder.path()).is_empty());
    }
}

#[test]
fn a_listing_without_digests_leaves_those_of_the_file() {
    let model = gguf(30_000, 10);
    let manner = Manner {
        plain_listing: true,
        wrong_bytes: true,
        ..Manner::default()
    };
    let hub = Hub::start(&[("m.gguf", &model)], manner);
    let folder = tempfile::tempdir().unwrap();
    bad(
        &pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]),
        1,
        &sha256(&model),
    );
    hub.change(|manner| manner.wrong_bytes = false);
    good(&pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]));
}

#[test]
fn a_source_without_ranges_is_begun_anew_but_not_for_ever() {
    let model = gguf(30_000, 11);
    let hub = Hub::start(
        &[("m.gguf", &model)],
        Manner {
            no_ranges: true,
            breaks: [10_000].into(),
            ..Manner::default()
        },
    );
    let folder = tempfile::tempdir().unwrap();
    good(&pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]));
    assert_eq!(fs::read(folder.path().join("m.gguf")).unwrap(), model);
    fs::remove_file(folder.path().join("m.gguf")).unwrap();
    hub.change(|manner| manner.breaks = vec![10_000; 9].into());
    let arguments = ["org/model-GGUF", "--retries", "1"];
    bad(
        &pull(&hub.endpoint(), folder.path(), &arguments),
        3,
        "does not continue",
    );
}

#[test]
fn refusals_say_what_to_do() {
    let hub = Hub::start(
        &[("m-Q4_0.gguf", b"GGUF"), ("m-Q8_0.gguf", b"GGUF")],
        Manner::default(),
    );
    let folder = tempfile::tempdir().unwrap();
    let of = |arguments: &[&str]| pull(&hub.endpoint(), folder.path(), arguments);
    bad(&of(&["org/other"]), 1, "there is no repository org/other");
    bad(&of(&["org/model-GGUF:Q5_K_M"]), 1, "it has Q4_0, Q8_0");
    bad(
        &of(&["org/model-GGUF", "--revision", "no-such-branch"]),
        1,
        "no revision no-such-branch",
    );
    bad(&of(&["../../etc:x"]), 2, "names no model");
    bad(&of(&["org/model-GGUF/x.gguf"]), 1, "does not have x.gguf");

    hub.change(|manner| (manner.token, manner.gated) = (Some("secret"), true));
    bad(&of(&["org/model-GGUF"]), 1, "is gated: accept its terms");
    hub.change(|manner| manner.gated = false);
    bad(&of(&["org/model-GGUF"]), 1, "private or gated");
    let wrong = command(&hub.endpoint(), folder.path(), &["org/model-GGUF"])
        .env("HF_TOKEN", "wrong")
        .output()
        .unwrap();
    bad(&wrong, 1, "the token is not valid");
    assert!(!String::from_utf8_lossy(&wrong.stderr).contains("wrong"));

    drop(hub);
    let gone = pull(
        "http://127.0.0.1:1",
        folder.path(),
        &["org/m", "--retries", "0"],
    );
    bad(&gone, 3, "127.0.0.1");
    bad(&pull("ftp://x", folder.path(), &["org/m"]), 2, "endpoint");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn the_token_goes_to_the_hub_and_no_further() {
    let model = gguf(2000, 12);
    let manner = Manner {
        token: Some("secret"),
        ..Manner::default()
    };
    let hub = Hub::start(&[("m.gguf", &model)], manner);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "secret\n").unwrap();
    // The hub's own place is in HF_HOME; then a file that is named.
    good(&pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]));
    for seen in hub.seen() {
        let expected = (!seen.path.starts_with("/store/")).then(|| "Bearer secret".to_owned());
        assert_eq!(seen.authorization, expected, "{}", seen.path);
    }
    fs::rename(folder.path().join("token"), folder.path().join("t2")).unwrap();
    let out = ["org/model-GGUF", "--token-file", "t2", "--out", "b.gguf"];
    good(&pull(&hub.endpoint(), folder.path(), &out));
    // Unencrypted, to another machine.
    bad(
        &pull(
            "http://hub.invalid",
            folder.path(),
            &["org/m", "--token-file", "t2"],
        ),
        2,
        "unencrypted",
    );
}

#[test]
fn two_at_once_do_not_write_one_file() {
    let model = gguf(200_000, 13);
    let manner = Manner {
        pause: std::time::Duration::from_millis(20),
        ..Manner::default()
    };
    let hub = Hub::start(&[("m.gguf", &model)], manner);
    let folder = tempfile::tempdir().unwrap();
    let mut first = command(&hub.endpoint(), folder.path(), &["org/model-GGUF"])
        .spawn()
        .unwrap();
    while hub.stored().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let second = pull(&hub.endpoint(), folder.path(), &["org/model-GGUF"]);
    // The first is still at it, or has just finished.
    if !second.status.success() {
        bad(&second, 2, "another program");
    }
    assert!(first.wait().unwrap().success());
    assert_eq!(fs::read(folder.path().join("m.gguf")).unwrap(), model);
}

#[test]
fn folders_stand_in_for_the_hub() {
    let model = gguf(9000, 14);
    let mirror = tempfile::tempdir().unwrap();
    let plain = mirror.path().join("org/model-GGUF");
    fs::create_dir_all(&plain).unwrap();
    fs::write(plain.join("m-Q4_0.gguf"), &model).unwrap();
    let endpoint = mirror.path().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    good(&pull(endpoint, folder.path(), &["org/model-GGUF:Q4_0"]));
    assert_eq!(fs::read(folder.path().join("m-Q4_0.gguf")).unwrap(), model);
    bad(
        &pull(endpoint, folder.path(), &["org/other"]),
        1,
        "no repository org/other",
    );

    // The cache of the hub's own programs: links to blobs that are named by their digests.
    let cache = mirror.path().join("models--org--cached");
    let snapshot = cache.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(cache.join("blobs")).unwrap();
    fs::create_dir_all(cache.join("refs")).unwrap();
    fs::write(cache.join("refs/main"), COMMIT).unwrap();
    let blob = cache.join("blobs").join(sha256(&model));
    fs::write(&blob, &model).unwrap();
    std::os::unix::fs::symlink(
        format!("../../blobs/{}", sha256(&model)),
        snapshot.join("c.gguf"),
    )
    .unwrap();
    let url = format!("file://{endpoint}");
    good(&pull(&url, folder.path(), &["org/cached"]));
    assert_eq!(fs::read(folder.path().join("c.gguf")).unwrap(), model);
    fs::write(&blob, noise(9000, 15)).unwrap();
    fs::remove_file(folder.path().join("c.gguf")).unwrap();
    bad(&pull(&url, folder.path(), &["org/cached"]), 1, "digest");
}

#[test]
fn a_model_is_pulled_as_a_bundle() {
    let model = gguf(20_000, 16);
    let hub = Hub::start(
        &[("m-Q4_0.gguf", &model), ("LICENSE", b"Do as you like.\n")],
        Manner::default(),
    );
    let folder = tempfile::tempdir().unwrap();
    let said = good(&pull(
        &hub.endpoint(),
        folder.path(),
        &["org/model-GGUF", "--bundle"],
    ));
    assert_eq!(said, "m-Q4_0.andon\n");
    assert_eq!(names(folder.path()), ["m-Q4_0.andon"]);
    let show = Command::new(env!("CARGO_BIN_EXE_andonctl"))
        .current_dir(folder.path())
        .args(["bundle", "show", "--json", "m-Q4_0.andon"])
        .output()
        .unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&good(&show)).unwrap();
    assert_eq!(manifest["source"]["repository"], REPOSITORY);
    assert_eq!(manifest["source"]["revision"], COMMIT);
    assert_eq!(manifest["license"], "apache-2.0");
    assert_eq!(manifest["members"][0]["sha256"], sha256(&model));
    assert_eq!(manifest["members"][1]["path"], "LICENSE");
}
