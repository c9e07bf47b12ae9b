//! The text of options: where one ends, what is quoted and what is escaped, and the values of known ones.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use super::error::OptionError;
use crate::union::stack::layer::StackError;

/// The layers that a list names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lowers {
    /// Those that are merged, topmost first.
    pub merged: Vec<PathBuf>,
    /// Those that hold data alone: `a:b::data::more`.
    pub data_only: Vec<PathBuf>,
}

/// Splits the value of `lowerdir` or `--lower` at its colons. After two that follow each other come layers of data alone, each
/// after two more.
///
/// The colon of a digest that a layer must have (`FILE,layer=sha256:HEX`) is none of them.
pub fn split_lowers(list: &[u8]) -> Result<Lowers, StackError> {
    let parts = with_digests(list, &split_at(list, b':'));
    let inner = 1..parts.len().saturating_sub(1);
    let first = parts.iter().enumerate().position(|(at, part)| inner.contains(&at) && part.is_empty());
    let (merged, data) = parts.split_at(first.unwrap_or(parts.len()));
    let (pairs, []) = data.as_chunks::<2>() else { return Err(StackError::DataOnly) };
    if pairs.iter().any(|[gap, _]| !gap.is_empty()) {
        return Err(StackError::DataOnly);
    }
    let merged = paths(merged.iter().copied())?;
    Ok(Lowers { merged, data_only: paths(pairs.iter().map(|[_, path]| *path))? })
}

/// Puts the parts of a list together again that the colon of a digest has parted.
fn with_digests<'a>(list: &'a [u8], parts: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let is_hex = |part: &[u8]| part.len() == 64 && part.iter().all(u8::is_ascii_hexdigit);
    let mut whole: Vec<&[u8]> = Vec::new();
    let mut end = 0;
    for part in parts {
        end += part.len();
        match whole.last_mut() {
            Some(before) if before.ends_with(b",layer=sha256") && is_hex(part) => {
                *before = &list[end - part.len() - 1 - before.len()..end];
            }
            _ => whole.push(part),
        }
        end += 1; // its colon
    }
    whole
}

/// Splits what names a place and something in it at the first colon that isn't escaped.
pub fn split_place(text: &[u8]) -> (PathBuf, Option<&[u8]>) {
    let place = split_at(text, b':')[0];
    (unescape_path(place), text.get(place.len() + 1..))
}

fn paths<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<Vec<PathBuf>, StackError> {
    parts
        .map(|part| match part.first() {
            None => Err(StackError::EmptyLower),
            Some(b'"') => Err(StackError::QuoteInside),
            Some(_) => Ok(unescape_path(part)),
        })
        .collect()
}

/// The value of an option, quotes taken off, escapes still in it.
#[derive(Clone, Copy)]
pub(super) struct Value<'a>(pub(super) Option<&'a [u8]>);

impl<'a> Value<'a> {
    pub(super) fn required(self, name: &'static str) -> Result<&'a [u8], OptionError> {
        self.0.filter(|value| !value.is_empty()).ok_or(OptionError::NoValue(name))
    }

    pub(super) fn path(self, name: &'static str) -> Result<PathBuf, OptionError> {
        Ok(unescape_path(self.required(name)?))
    }

    pub(super) fn text(self, name: &'static str) -> Result<OsString, OptionError> {
        Ok(self.path(name)?.into_os_string())
    }

    pub(super) fn parsed<T: FromStr>(
        self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<T, OptionError> {
        let text = std::str::from_utf8(self.required(name)?).ok();
        text.and_then(|text| text.parse().ok()).ok_or_else(|| self.bad(name, expected))
    }

    /// Reads a number that is 0 or not; the option alone means 1.
    pub(super) fn flag(self, name: &'static str) -> Result<bool, OptionError> {
        match self.0 {
            None => Ok(true),
            Some(_) => Ok(self.parsed::<i64>(name, "give 0 or 1")? != 0),
        }
    }

    /// Reads one of several words.
    pub(super) fn one_of<T: Copy>(
        self,
        name: &'static str,
        words: &[(&str, T)],
        expected: &'static str,
    ) -> Result<T, OptionError> {
        let given = self.required(name)?;
        let found = words.iter().find(|(word, _)| word.as_bytes() == given);
        found.map(|(_, meant)| *meant).ok_or_else(|| self.bad(name, expected))
    }

    pub(super) fn bad(self, name: &'static str, expected: &'static str) -> OptionError {
        let value = OsStr::from_bytes(self.0.unwrap_or_default()).to_owned();
        OptionError::BadValue { name, value, expected }
    }
}

/// Splits an option string at the commas that are neither quoted nor escaped; leaves out what is empty.
pub fn split(text: &[u8]) -> Vec<&[u8]> {
    let mut options = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = option_end(rest);
        if end > 0 {
            options.push(&rest[..end]);
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    options
}

/// Tells where the first option of `text` ends.
fn option_end(text: &[u8]) -> usize {
    let mut at = 0;
    let mut in_name = true;
    while at < text.len() && text[at] != b',' {
        if in_name && text[at] == b'=' {
            in_name = false;
            if let Some(length) = quoted(&text[at + 1..]) {
                return at + 1 + length;
            }
        }
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

/// Returns the length of a quoted value at the front of `text`, quotes included. A quote that is never closed is a
/// character like others.
fn quoted(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    (1..text.len())
        .find(|&at| text[at] == b'"' && matches!(text.get(at + 1), None | Some(b',')))
        .map(|at| at + 1)
}

pub(super) fn unquote(value: &[u8]) -> &[u8] {
    match quoted(value) {
        Some(length) if length == value.len() => &value[1..length - 1],
        _ => value,
    }
}

/// Splits at each `separator` that no backslash precedes.
fn split_at(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        match text[at] {
            b'\\' => at += 1,
            byte if byte == separator => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(&text[start..]);
    parts
}

fn unescape_path(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        if text[at] == b'\\' && matches!(text.get(at + 1), Some(b',' | b':' | b'"' | b'\\')) {
            at += 1;
        }
        path.push(text[at]);
        at += 1;
    }
    PathBuf::from(OsString::from_vec(path))
}
