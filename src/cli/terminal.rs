//! How wide the terminal is.

use ratatui::crossterm::terminal::size;

use super::page::is_terminal;

/// What is assumed where no terminal reads, and nobody says otherwise.
const ELSEWHERE: usize = 100;

/// Returns how many columns a line has: the terminal's, or else what COLUMNS says.
pub(super) fn columns() -> usize {
    let of_terminal =
        || is_terminal().then(size).and_then(Result::ok).map(|(columns, _)| usize::from(columns));
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    of_terminal().filter(|columns| *columns > 0).or_else(said).unwrap_or(ELSEWHERE)
}
