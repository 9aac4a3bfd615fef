//! How far a long command is, on a terminal's standard error and nowhere else.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::printable;

/// Redraws per second.
const REDRAWS_PER_S: u8 = 5;

/// A bar that counts bytes; invisible where standard error is no terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar of `what`, whose size may not be known.
    pub(crate) fn bytes(what: &str, total: Option<u64>) -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_S);
        let bar = ProgressBar::with_draw_target(total, target);
        let template = if total.is_some() {
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
        } else {
            "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}"
        };
        // The templates are ours; a bar in the library's own style is better than none.
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_message(printable(what).into_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    /// The size has become known.
    pub(crate) fn length(&self, total: u64) {
        self.0.set_length(total);
    }

    /// So many bytes are done.
    pub(crate) fn at(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// So many more bytes are done.
    pub(crate) fn forward(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// What is being done now.
    pub(crate) fn now(&self, what: &str) {
        self.0.set_message(printable(what).into_owned());
    }

    /// A line above the bar; on standard error in any case.
    pub(crate) fn say(&self, line: &str) {
        let line = format!("andonctl: {}", printable(line));
        if self.0.is_hidden() {
            eprintln!("{line}");
        } else {
            self.0.println(line);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
