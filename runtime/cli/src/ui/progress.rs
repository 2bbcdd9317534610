//! A progress bar on standard error, shown only on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// How far something has come.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar that counts bytes, with a word for what is going on. It draws nothing before the first [`set`](Self::set).
    pub fn bytes(what: &str) -> Self {
        Self::new(what, "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }

    /// A bar that counts steps.
    pub fn steps(what: &str) -> Self {
        Self::new(what, "{prefix} [{bar:30}] {pos}/{len} {eta}")
    }

    fn new(what: &str, template: &str) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        // `set_prefix` would draw a bar of nothing, which looks full.
        let bar = ProgressBar::with_draw_target(Some(0), target).with_prefix(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }

    /// Changes the word for what is going on.
    pub fn say(&self, what: String) {
        if self.bar.prefix() != what {
            self.bar.set_prefix(what);
        }
    }

    /// `done` of `total`; a `total` of `None` is not known yet.
    pub fn set(&self, done: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }

    /// Tells something on standard error without disturbing the bar.
    pub fn note(&self, message: impl std::fmt::Display) {
        self.bar.suspend(|| super::note(message));
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
