//! Heat, as a tree of files like the system's says it, and what follows from it.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;

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
        let text = daemon.http().get("/metrics").expect("metrics").text();
        let value = text.lines().find_map(|line| {
            let (metric, value) = line.rsplit_once(' ')?;
            (metric == name).then(|| value.parse().expect("a number"))
        });
        if let Some(value) = value.filter(|&value| wanted(value)) {
            return value;
        }
        assert!(Instant::now() < until, "{name} is {value:?}\n{text}");
        sleep(Duration::from_millis(20));
    }
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
}
