//! How far something is that takes long, as bars show it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::union::escaped_path::escaped;

/// What is done by then needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);

const OF_KNOWN: &str = "{msg} [{wide_bar}] {bytes:>11}/{total_bytes:11}";
const OF_UNKNOWN: &str = "{msg} {bytes} ({bytes_per_sec})";

// The templates are constants; that they are well-formed is what the test below says.

/// Returns the style of what is known how much it will be.
pub(crate) fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template(OF_KNOWN).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Returns the style of what comes from a pipe: nobody knows how much it will be.
fn stream_style() -> ProgressStyle {
    ProgressStyle::with_template(OF_UNKNOWN).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Adds a bar; without a size nobody knows how much it will be. It gets its style first, for what is added is drawn at once. What
/// the message has of names is shown as a terminal may be given it.
pub(crate) fn added(to: &MultiProgress, size: Option<u64>, message: String) -> ProgressBar {
    let bar = match size {
        Some(size) => ProgressBar::new(size).with_style(bar_style()),
        None => ProgressBar::no_length().with_style(stream_style()),
    };
    to.add(bar.with_message(escaped(&message)))
}

/// A bar of what is mostly done before anybody would look at one: it comes after a second, and goes with this.
pub(crate) struct LateBar {
    /// `None`: nobody looks.
    to: Option<MultiProgress>,
    size: u64,
    message: String,
    began: Instant,
    bar: OnceLock<ProgressBar>,
}

impl LateBar {
    /// Begins now.
    pub(crate) fn new(to: Option<&MultiProgress>, size: u64, message: String) -> LateBar {
        LateBar { to: to.cloned(), size, message, began: Instant::now(), bar: OnceLock::new() }
    }

    /// Says how far it is.
    pub(crate) fn at(&self, position: u64) {
        let Some(to) = &self.to else { return };
        if self.bar.get().is_some() || self.began.elapsed() >= PATIENCE {
            let bar = self.bar.get_or_init(|| added(to, Some(self.size), self.message.clone()));
            bar.set_position(position);
        }
    }
}

impl Drop for LateBar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::ProgressDrawTarget;

    #[test]
    fn what_takes_no_time_gets_no_bar() {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let mut bar = LateBar::new(Some(&bars), 10, String::new());
        bar.at(5);
        assert!(bar.bar.get().is_none());
        bar.began = Instant::now().checked_sub(PATIENCE).unwrap();
        bar.at(6);
        assert_eq!(bar.bar.get().unwrap().position(), 6);
    }

    #[test]
    fn a_name_commands_no_terminal() {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        assert_eq!(added(&bars, None, "a\u{1b}[2J\n".to_owned()).message(), r"a\u{1b}[2J\n");
    }

    #[test]
    fn the_bars_are_well_formed() {
        for template in [OF_KNOWN, OF_UNKNOWN] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
