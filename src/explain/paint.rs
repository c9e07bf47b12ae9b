//! Colours, where there is a terminal that wants them.

use std::fmt::Display;
use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// Paints text, or leaves it as it is.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Uses colours if stdout is a terminal and NO_COLOR (no-color.org) is not set.
    #[allow(clippy::disallowed_methods, reason = "nothing is printed")]
    pub fn of_stdout() -> Paint {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Paint { on: !unwanted && std::io::stdout().is_terminal() }
    }

    /// Uses no colours.
    pub fn plain() -> Paint {
        Paint { on: false }
    }

    /// Tells whether there are colours.
    pub fn is_on(self) -> bool {
        self.on
    }

    fn style(self, style: Style, text: impl Display) -> String {
        let text = text.to_string();
        if self.on && !text.is_empty() { format!("{style}{text}{style:#}") } else { text }
    }

    /// Returns what matters most.
    pub fn bold(self, text: impl Display) -> String {
        self.style(Style::new().bold(), text)
    }

    /// Returns what matters least.
    pub fn dim(self, text: impl Display) -> String {
        self.style(Style::new().dimmed(), text)
    }

    /// Returns what is shown, what is new.
    pub fn green(self, text: impl Display) -> String {
        self.style(AnsiColor::Green.on_default().bold(), text)
    }

    /// Returns what is deleted.
    pub fn red(self, text: impl Display) -> String {
        self.style(AnsiColor::Red.on_default(), text)
    }

    /// Returns what is changed or copied.
    pub fn yellow(self, text: impl Display) -> String {
        self.style(AnsiColor::Yellow.on_default(), text)
    }

    /// Returns what is merged; names of layers.
    pub fn cyan(self, text: impl Display) -> String {
        self.style(AnsiColor::Cyan.on_default(), text)
    }
}

/// Text and how many columns it takes on the terminal, so that columns can be padded with colours in them.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    width: usize,
}

impl Cell {
    /// Returns how many columns it takes.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Makes painted text; `plain` is the same without colours.
    pub fn new(plain: &str, painted: String) -> Cell {
        Cell { text: painted, width: unicode_width::UnicodeWidthStr::width(plain) }
    }

    /// Makes plain text.
    pub fn plain(text: impl Display) -> Cell {
        let text = text.to_string();
        Cell { width: unicode_width::UnicodeWidthStr::width(&text[..]), text }
    }
}

/// Makes lines of rows of cells, the columns aligned; those of `right` to the right.
pub fn align(rows: &[Vec<Cell>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.width);
            let gap = if column == 0 || *width == 0 { "" } else { "  " };
            match right.contains(&column) {
                true => line.extend([gap, &pad, &cell.text]),
                false => line.extend([gap, &cell.text, &pad]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_what_the_terminal_shows() {
        let paint = Paint { on: true };
        let rows = [
            vec![Cell::plain("你"), Cell::new("1", paint.red("1")), Cell::plain("x")],
            vec![Cell::plain("a"), Cell::plain("20"), Cell::plain("y")],
        ];
        assert_eq!(align(&rows, &[1]), "你   \u{1b}[31m1\u{1b}[0m  x\na   20  y\n");
        assert_eq!(Paint::plain().red("x"), "x");
    }
}
