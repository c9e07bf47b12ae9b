//! What goes to stdout: each kind of text has one door, and each door escapes what a terminal would obey and a reader would
//! take for something else, whoever chose it: the author of an image or a layer, a registry, another user. Beside it there are
//! archives (`save`), and what is drawn while it happens (`status --watch`, `demo`), with names as [`EscapedPath`].
//!
//! [`EscapedPath`]: crate::union::escaped_path::EscapedPath

use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ratatui::crossterm::terminal::size;
use serde_json::Value;

use super::Failure;
use crate::union::escaped_path::{escaped, is_tame, json_escaped};

/// Text for stdout, as it will be printed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page(String);

impl Page {
    /// Adds a line. Nothing in it is layout: a line break within is escaped like everything else.
    pub(super) fn line(&mut self, line: fmt::Arguments<'_>) {
        self.0 += &escaped(&line.to_string());
        self.0.push('\n');
    }

    /// Adds a word that a shell may complete, and what it means.
    pub(super) fn candidate(&mut self, word: &str, help: &str) {
        self.0 += &format!("{}\t{}\n", escaped(word), escaped(help));
    }

    /// Adds a line of JSON.
    pub(super) fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(Failure::failed)?;
        self.json_text(&text);
        self.0.push('\n');
        Ok(())
    }

    /// Adds JSON as it was written.
    pub(super) fn json_text(&mut self, text: &str) {
        self.0 += &json_escaped(text);
    }

    /// Adds what was drawn: lines and colours stay.
    pub(super) fn drawn(&mut self, text: &str) {
        self.0 += &keep_colours(text);
    }

    /// Adds what a template made of values that were [`veiled`].
    pub(super) fn unveiled(&mut self, text: &str) {
        self.0 += &unveil(text);
    }

    /// Makes a page of one line.
    pub(super) fn of_line(line: fmt::Arguments<'_>) -> Page {
        let mut page = Page::default();
        page.line(line);
        page
    }

    /// Returns its text.
    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Prints it.
    pub(super) fn print(self) -> Result<(), Failure> {
        self.print_to_reader().map(drop)
    }

    /// Prints it, and tells whether there is still somebody who reads.
    pub(super) fn print_to_reader(self) -> Result<bool, Failure> {
        written(stdout().lock(), self.0.as_bytes())
    }

    /// Prints it without its colours where no terminal reads or NO_COLOR is set.
    pub(super) fn print_styled(self) -> Result<(), Failure> {
        written(anstream::AutoStream::auto(stdout().lock()), self.0.as_bytes()).map(drop)
    }

    /// Does as [`Page::print_styled`], by the user's pager where a terminal has fewer lines.
    pub(super) fn print_by_screens(self) -> Result<(), Failure> {
        let lines = self.0.matches('\n').count();
        let fits = || size().is_ok_and(|(_, rows)| lines < usize::from(rows).max(1));
        let pager = std::env::var("PAGER").unwrap_or_else(|_| "less".to_owned());
        if !is_terminal() || fits() || matches!(pager.trim(), "" | "cat") {
            return self.print_styled();
        }
        let mut command = Command::new("sh");
        command.args(["-c", &pager]).stdin(Stdio::piped());
        if std::env::var_os("LESS").is_none() {
            // Colours are shown, and it ends by itself where all fits.
            command.env("LESS", "FRX");
        }
        let Ok(mut child) = command.spawn() else { return self.print_styled() };
        let told =
            child.stdin.take().map_or(Ok(true), |pipe| match anstream::AutoStream::choice(&stdout()) {
                anstream::ColorChoice::Never => {
                    written(pipe, anstream::adapter::strip_str(&self.0).to_string().as_bytes())
                }
                _ => written(pipe, self.0.as_bytes()),
            });
        let ended = child.wait().map_err(|error| Failure::failed(format!("{pager}: {error}")))?;
        // A shell says so of what isn't installed.
        if ended.code() == Some(127) { self.print_styled() } else { told.map(drop) }
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place for what is printed, as a page")]
fn stdout() -> std::io::Stdout {
    std::io::stdout()
}

/// Tells whether a terminal reads what is printed.
pub(super) fn is_terminal() -> bool {
    stdout().is_terminal()
}

/// Returns where archives go, and the lesson, which shows its own.
pub(super) fn own_stdout() -> std::io::Stdout {
    stdout()
}

/// Writes all. That the reader has gone is no failure, and told.
fn written(mut out: impl Write, text: &[u8]) -> Result<bool, Failure> {
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
        Ok(()) => Ok(true),
    }
}

/// Writes to stdout what this program alone has made. That the reader has gone is no failure.
pub(super) fn print_own(text: &[u8]) -> Result<(), Failure> {
    written(stdout().lock(), text).map(drop)
}

/// Writes a file, or, as `-`, to stdout what this program alone has made.
pub(super) fn write_file(path: &Path, content: &[u8]) -> Result<(), Failure> {
    if path.as_os_str() == "-" {
        return print_own(content);
    }
    std::fs::write(path, content)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

/// Lets line breaks, tabs and colours (ECMA-48's SGR) through, and nothing else that isn't text.
fn keep_colours(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| !is_tame(c)) {
        kept += &rest[..at];
        rest = &rest[at..];
        let colour = rest.strip_prefix("\x1b[").and_then(|inner| {
            let end = inner.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            inner[end..].starts_with('m').then_some(end + 3)
        });
        let length = colour.unwrap_or_else(|| rest.chars().next().map_or(0, char::len_utf8));
        match rest.as_bytes()[0] {
            b'\n' | b'\t' => kept += &rest[..1],
            _ if colour.is_some() => kept += &rest[..length],
            _ => kept += &escaped(&rest[..length]),
        }
        rest = &rest[length..];
    }
    kept + rest
}

/// Where characters of values hide while a template is applied: a plane for private use, which no value keeps.
const VEIL: u32 = 0xF_0000;

/// Returns a value whose texts can be told from a template's own: line breaks of the template are layout, those of a
/// value are not.
pub(super) fn veiled(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(veil(text)),
        Value::Array(list) => Value::Array(list.iter().map(veiled).collect()),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (veil(key), veiled(value))).collect())
        }
        plain => plain.clone(),
    }
}

fn veil(text: &str) -> String {
    text.chars()
        .map(|c| match u32::from(c) {
            // Of the plane itself, nothing is kept apart: it is shown as what has no meaning.
            VEIL..=0xF_FFFF => char::REPLACEMENT_CHARACTER,
            number if !is_tame(c) => char::from_u32(VEIL + number).unwrap_or(char::REPLACEMENT_CHARACTER),
            _ => c,
        })
        .collect()
}

/// Shows what was veiled, in a form that is right in JSON as well.
fn unveil(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            number @ VEIL..=0xF_FFFF => shown += &format!("\\u{:04x}", number - VEIL),
            _ => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b]0;t\x07\n\u{9b}31m\u{202e}b";

    #[test]
    fn no_door_lets_commands_through() {
        let mut page = Page::default();
        page.line(format_args!("{HOSTILE}"));
        page.json(&serde_json::json!({ "k": HOSTILE })).unwrap();
        page.drawn(&format!("\x1b[31mred\x1b[0m \x1b[2J{HOSTILE}"));
        page.unveiled(&unveil(&veil(HOSTILE)));
        let text = page.text();
        assert!(text.contains("\x1b[31mred\x1b[0m "), "{text:?}");
        let without_colours = text.replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert!(without_colours.chars().all(|c| c == '\n' || is_tame(c)), "{text:?}");
        // One line each, and the one that was drawn.
        assert_eq!(text.matches('\n').count(), 3, "{text:?}");
        let json = text.lines().nth(1).unwrap();
        assert_eq!(serde_json::from_str::<Value>(json).unwrap()["k"], HOSTILE);
    }

    #[test]
    fn what_a_value_says_is_told_from_what_a_template_says() {
        assert_eq!(unveil(&format!("x\n{}", veil("a\nb\u{9b}"))), "x\na\\u000ab\\u009b");
        assert_eq!(veil("\u{f0041}"), "\u{fffd}");
        assert_eq!(unveil(&veil("plain 你")), "plain 你");
    }
}
