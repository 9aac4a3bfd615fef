//! Figures of the daemon's metrics.

use std::str::FromStr;

use andon_tests::daemon::Daemon;

/// The value of a sample, named as it stands in the text, with its labels; `None` if there is none.
pub(crate) fn sample<T: FromStr>(daemon: &Daemon, name: &str) -> Option<T> {
    let text = daemon.http().get("/metrics").unwrap().text();
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The same of a sample that must be there.
#[track_caller]
pub(crate) fn metric<T: FromStr>(daemon: &Daemon, name: &str) -> T {
    sample(daemon, name).unwrap_or_else(|| panic!("no metric {name}"))
}

/// The sum of a metric's samples that have `label` among their labels.
pub(crate) fn sum(daemon: &Daemon, name: &str, label: &str) -> f64 {
    let text = daemon.http().get("/metrics").unwrap().text();
    let samples = text.lines().filter_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        let labels = sample.strip_prefix(name)?;
        let is_it = labels.is_empty() || labels.starts_with('{') && labels.contains(label);
        is_it.then(|| value.parse::<f64>().unwrap())
    });
    samples.sum()
}
