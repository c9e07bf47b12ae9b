//! How wide the terminal is.

use ratatui::Frame;
use ratatui::crossterm::terminal::size;
use ratatui::style::Color;

use super::page::is_terminal;

/// What is assumed where no terminal reads, and nobody says otherwise.
const ELSEWHERE: usize = 100;

/// More columns than a text has.
const UNBOUNDED: usize = 1 << 20;

/// Returns how many columns a line has: the terminal's, or else what COLUMNS says.
pub(super) fn columns() -> usize {
    known().unwrap_or(ELSEWHERE)
}

/// Returns how much of a line may be used: all that there is where no terminal reads, so that a program is given what is whole.
pub(super) fn room() -> usize {
    known().unwrap_or(UNBOUNDED)
}

fn known() -> Option<usize> {
    let of_terminal =
        || is_terminal().then(size).and_then(Result::ok).map(|(columns, _)| usize::from(columns));
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    of_terminal().filter(|columns| *columns > 0).or_else(said)
}

/// Takes the colours out of what was drawn; bold and reversed are none.
pub(super) fn without_colours(frame: &mut Frame<'_>) {
    for cell in &mut frame.buffer_mut().content {
        cell.fg = Color::Reset;
        cell.bg = Color::Reset;
    }
}
