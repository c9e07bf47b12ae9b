//! How far something is that takes long, as bars show it.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

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

/// Adds a bar; without a size nobody knows how much it will be. It gets its style first, for what is added is drawn at once.
pub(crate) fn added(to: &MultiProgress, size: Option<u64>, message: String) -> ProgressBar {
    let bar = match size {
        Some(size) => ProgressBar::new(size).with_style(bar_style()),
        None => ProgressBar::no_length().with_style(stream_style()),
    };
    to.add(bar.with_message(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_are_well_formed() {
        for template in [OF_KNOWN, OF_UNKNOWN] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
