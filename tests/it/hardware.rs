//! Heat and a lack of memory, as trees of files like the system's say it, and what follows from them; and a model that hangs.

use std::fs;
use std::path::Path;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;
use andon_tests::http::Reply;
use andon_tests::tiny_model::TinyModel;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::metrics::sample;

/// Far longer than the daemon's samples are apart.
const PATIENCE: Duration = Duration::from_secs(60);

fn write(sys: &Path, name: &str, text: &str) {
    let path = sys.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
    fs::write(path, format!("{text}\n")).expect("writable");
}

/// The value of a metric, once `wanted` likes it.
fn metric(daemon: &Daemon, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    let until = Instant::now() + PATIENCE;
    loop {
        let value = sample(daemon, name);
        if let Some(value) = value.filter(|&value| wanted(value)) {
            return value;
        }
        assert!(Instant::now() < until, "{name} is {value:?}");
        sleep(Duration::from_millis(20));
    }
}

/// Asks for so many tokens with this priority.
fn ask(daemon: &Daemon, priority: &str, tokens: usize) -> Reply {
    let body = json!({
        "prompt": "hello", "max_tokens": tokens, "ignore_eos": true, "temperature": 0, "priority": priority,
    });
    daemon
        .http()
        .post("/v1/completions", &body)
        .expect("a reply")
}

#[test]
fn batch_work_waits_while_the_processor_is_hot_and_nobody_else_does() {
    let sys = tempfile::tempdir().expect("a folder");
    let zone = "class/thermal/thermal_zone0";
    let heat = |mc: u32| write(sys.path(), &format!("{zone}/temp"), &mc.to_string());
    write(sys.path(), &format!("{zone}/type"), "cpu-thermal");
    write(sys.path(), &format!("{zone}/trip_point_0_type"), "passive");
    write(sys.path(), &format!("{zone}/trip_point_0_temp"), "99000");
    heat(99_500);
    let rail = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1";
    write(sys.path(), &format!("{rail}/in1_label"), "VDD_IN");
    write(sys.path(), &format!("{rail}/in1_input"), "5000");
    write(sys.path(), &format!("{rail}/curr1_input"), "1500");
    let daemon = Daemon::builder()
        .config(&format!(
            "[hardware]\nsample-ms = 100\nsys-dir = \"{}\"",
            sys.path().display()
        ))
        .start()
        .expect("a daemon");
    assert_eq!(metric(&daemon, "andon_throttle", |value| value > 0.0), 2.0);
    let celsius = metric(
        &daemon,
        "andon_temperature_celsius{zone=\"cpu-thermal\"}",
        |_| true,
    );
    assert_eq!(celsius, 99.5);
    assert_eq!(metric(&daemon, "andon_power_watts{}", |_| true), 7.5);
    metric(&daemon, "andon_energy_joules_total{}", |joules| {
        joules > 0.5
    });
    scope(|scope| {
        let batch = scope.spawn(|| ask(&daemon, "batch", 4));
        metric(&daemon, "andon_waiting", |waiting| waiting == 1.0);
        for priority in ["interactive", "alarm"] {
            let reply = ask(&daemon, priority, 4);
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        assert!(!batch.is_finished());
        assert_eq!(metric(&daemon, "andon_waiting", |_| true), 1.0);
        let health = daemon.http().get("/healthz").expect("a reply");
        assert_eq!(
            health.status, 200,
            "whoever waits for a cooler machine is not stuck"
        );
        assert_eq!(
            metric(&daemon, "andon_degraded{mode=\"throttled\"}", |_| true),
            1.0
        );
        // Half of the time comes back first.
        heat(60_000);
        let reply = batch.join().expect("no panic");
        assert_eq!(reply.status, 200, "{}", reply.text());
    });
}

#[test]
fn batch_work_is_refused_first_where_memory_is_short_and_alarms_never() {
    let proc = tempfile::tempdir().expect("a folder");
    let left = |mib: u64| {
        let text = format!("MemAvailable: {} kB", mib << 10);
        write(proc.path(), "meminfo", &text);
    };
    left(8_000);
    let daemon = Daemon::builder()
        .config(&format!(
            "[hardware]\nsample-ms = 100\nproc-dir = \"{}\"\n[memory]\nreserve-bytes = {}",
            proc.path().display(),
            1u64 << 30,
        ))
        .start()
        .expect("a daemon");
    for part in ["weights", "working"] {
        let name = format!("andon_memory_promised_bytes{{part=\"{part}\"}}");
        metric(&daemon, &name, |bytes| bytes > 0.0);
    }
    let refused = |priority: &str| {
        let reply = ask(&daemon, priority, 2);
        let short = reply.text().contains("memory is too short");
        assert_eq!(reply.status == 200, !short, "{}", reply.text());
        short
    };
    for (mib, shortage, batch, interactive) in [
        (8_000, 0.0, false, false),
        (900, 1.0, false, false),
        (600, 2.0, false, false),
        (400, 3.0, true, false),
        (100, 4.0, true, true),
    ] {
        left(mib);
        metric(&daemon, "andon_memory_shortage", |value| value == shortage);
        assert_eq!(refused("batch"), batch, "{mib} MiB");
        assert_eq!(refused("interactive"), interactive, "{mib} MiB");
        assert!(!refused("alarm"), "{mib} MiB");
    }
}

#[test]
fn a_model_that_the_budget_does_not_hold_is_not_served() {
    let mut daemon = Daemon::builder()
        .config("[memory]\nbudget-bytes = 67108864\n[limits]\nqueue-max = 8\n[model]\nkv-tokens-max = 1000000")
        .spawn()
        .expect("a daemon");
    let status = daemon.wait(PATIENCE).expect("it ends");
    let log = daemon.log();
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(
        log.contains("working of") && log.contains("budget-bytes"),
        "{log}"
    );
}

/// The thread of the daemon that computes.
fn engine(daemon: &Daemon) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("its threads");
    let mut tasks = tasks.map(|task| task.expect("an entry").path());
    let path = tasks
        .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "worker\n"))
        .expect("one computes");
    let number = path.file_name().and_then(|name| name.to_str());
    let number = number.and_then(|number| number.parse().ok());
    Pid::from_raw(number.expect("threads are numbered"))
}

#[test]
fn a_daemon_that_hangs_says_that_it_is_not_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("slow.gguf");
    let tiny = TinyModel {
        context_tokens_max: 2048,
        idle_layer_count: 30,
        ..TinyModel::default()
    };
    tiny.write(&path).expect("writable");
    let daemon = Daemon::builder()
        .model(&path)
        .config("[gateway]\nstall-ms = 1000")
        .start()
        .expect("a daemon");
    let health = || daemon.http().get("/healthz").expect("a reply").status;
    let until = |status: u16| {
        let end = Instant::now() + PATIENCE;
        while health() != status {
            assert!(Instant::now() < end, "/healthz never gave {status}");
            sleep(Duration::from_millis(20));
        }
    };
    scope(|scope| {
        let answer = scope.spawn(|| ask(&daemon, "interactive", 1500));
        metric(&daemon, "andon_running", |running| running == 1.0);
        let engine = engine(&daemon);
        match ptrace::attach(engine) {
            // Some containers let nobody look into their children.
            Err(Errno::EPERM) => {}
            attached => {
                attached.expect("a thread of a child can be stopped");
                waitpid(engine, Some(WaitPidFlag::__WALL)).expect("it stops");
                until(503);
                let stalled = "andon_degraded{mode=\"stalled\"}";
                assert_eq!(metric(&daemon, stalled, |_| true), 1.0);
                ptrace::detach(engine, None).expect("it goes on");
                until(200);
            }
        }
        assert_eq!(answer.join().expect("no panic").status, 200);
    });
}
