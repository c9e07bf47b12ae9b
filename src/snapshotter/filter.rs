//! containerd's filter language, as far as snapshots have fields.
//!
//! ```text
//! filter    = selector { "," selector }            all of them must hold; of several filters one must
//! selector  = path [ ("==" | "!=" | "~=") value ]  without an operator: the field is there
//! path      = field { "." field }                  name, parent, kind, labels.KEY, labels."a.key/with.dots"
//! field     = quoted | letters, digits, "-", "_"
//! value     = quoted | all up to a space or a comma
//! quoted    = "…" or /…/ or |…|, with Go's escapes
//! ```

use std::iter::Peekable;
use std::str::CharIndices;

use regex::Regex;

use super::error::{Error, Result};
use super::store::{SnapshotKind, SnapshotRecord};

/// Several filters, of which one must hold. None: everything passes.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Reads the filters that containerd sends.
    pub fn parse(filters: &[String]) -> Result<Filters> {
        filters.iter().map(|filter| parse(filter)).collect::<Result<_>>().map(Filters)
    }

    /// Returns whether the snapshot passes.
    pub fn pass(&self, name: &str, record: &SnapshotRecord) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|one| one.holds(name, record)))
    }
}

impl Selector {
    fn holds(&self, name: &str, record: &SnapshotRecord) -> bool {
        let value = field(&self.path, name, record);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            // These two take a field that is missing for an empty one, as containerd does.
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(pattern) => pattern.is_match(value.unwrap_or_default()),
        }
    }
}

fn field<'a>(path: &[String], name: &'a str, record: &'a SnapshotRecord) -> Option<&'a str> {
    match path.first()?.as_str() {
        "name" => Some(name),
        "parent" => Some(record.parent.as_deref().unwrap_or_default()),
        "kind" => Some(match record.kind {
            SnapshotKind::Active => "active",
            SnapshotKind::View => "view",
            SnapshotKind::Committed => "committed",
        }),
        "labels" => record.labels.get(&path[1..].join(".")).map(String::as_str),
        _ => None,
    }
}

fn parse(filter: &str) -> Result<Vec<Selector>> {
    if filter.is_empty() {
        return Ok(Vec::new());
    }
    let mut reader = Reader { text: filter, chars: filter.char_indices().peekable() };
    let mut selectors = vec![reader.selector()?];
    while let Some(next) = reader.after_spaces() {
        if next != ',' {
            return Err(reader.expected("a comma"));
        }
        reader.chars.next();
        selectors.push(reader.selector()?);
    }
    Ok(selectors)
}

struct Reader<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<char> {
        self.chars.peek().map(|(_, next)| *next)
    }

    fn after_spaces(&mut self) -> Option<char> {
        while self.chars.next_if(|(_, next)| next.is_whitespace()).is_some() {}
        self.peek()
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        std::iter::from_fn(|| self.chars.next_if(|(_, next)| wanted(*next))).map(|(_, next)| next).collect()
    }

    fn expected(&mut self, what: &str) -> Error {
        let at = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
        Error::Invalid(format!("filter {:?}: {what} was expected at byte {at}", self.text))
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.after_spaces() == Some('.') {
            self.chars.next();
            path.push(self.field()?);
        }
        let test = match self.after_spaces() {
            None | Some(',') => Test::Present,
            _ => match self.take_while(|next| matches!(next, '=' | '!' | '~')).as_str() {
                "==" => Test::Equal(self.value()?),
                "!=" => Test::NotEqual(self.value()?),
                "~=" => Test::Matches(self.pattern()?),
                _ => return Err(self.expected("==, != or ~=")),
            },
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        match self.after_spaces() {
            Some(quote @ ('"' | '/' | '|')) => self.quoted(quote),
            _ => {
                let field = self.take_while(|next| next.is_ascii_alphanumeric() || matches!(next, '-' | '_'));
                if field.is_empty() { Err(self.expected("a field")) } else { Ok(field) }
            }
        }
    }

    fn value(&mut self) -> Result<String> {
        match self.after_spaces() {
            Some(quote @ ('"' | '/' | '|')) => self.quoted(quote),
            _ => {
                let value = self.take_while(|next| next != ',' && !next.is_whitespace());
                if value.is_empty() { Err(self.expected("a value")) } else { Ok(value) }
            }
        }
    }

    fn pattern(&mut self) -> Result<Regex> {
        let pattern = self.value()?;
        Regex::new(&pattern).map_err(|error| Error::Invalid(format!("filter {:?}: {error}", self.text)))
    }

    /// Returns a quoted text, with the escapes of a Go string.
    fn quoted(&mut self, quote: char) -> Result<String> {
        self.chars.next();
        let mut text = Vec::new();
        let push = |text: &mut Vec<u8>, next: char| text.extend(next.encode_utf8(&mut [0; 4]).as_bytes());
        loop {
            match self.chars.next().map(|(_, next)| next) {
                None | Some('\n') => return Err(self.expected("the closing quote")),
                Some(next) if next == quote => break,
                Some('\\') => match self.chars.next().map(|(_, next)| next) {
                    Some('a') => text.push(7),
                    Some('b') => text.push(8),
                    Some('f') => text.push(12),
                    Some('n') => text.push(b'\n'),
                    Some('r') => text.push(b'\r'),
                    Some('t') => text.push(b'\t'),
                    Some('v') => text.push(11),
                    Some('\\') => text.push(b'\\'),
                    Some(next) if next == quote => push(&mut text, next),
                    Some('x') => text.push(self.digits(None, 16, 2)? as u8),
                    Some('u') => push(&mut text, self.code_point(4)?),
                    Some('U') => push(&mut text, self.code_point(8)?),
                    Some(first) if first.is_digit(8) => {
                        let byte = self.digits(Some(first), 8, 2)?;
                        text.push(u8::try_from(byte).map_err(|_| self.expected("a byte"))?);
                    }
                    _ => return Err(self.expected("an escape")),
                },
                Some(next) => push(&mut text, next),
            }
        }
        String::from_utf8(text).map_err(|_| self.expected("UTF-8"))
    }

    fn code_point(&mut self, count: usize) -> Result<char> {
        let number = self.digits(None, 16, count)?;
        char::from_u32(number).ok_or_else(|| self.expected("a Unicode character"))
    }

    fn digits(&mut self, first: Option<char>, base: u32, count: usize) -> Result<u32> {
        let mut number = first.and_then(|first| first.to_digit(base)).unwrap_or(0);
        for _ in 0..count {
            let digit = self.chars.next_if(|(_, next)| next.is_digit(base));
            let digit = digit.and_then(|(_, digit)| digit.to_digit(base));
            // Eight hexadecimal digits fit.
            number = number << base.ilog2() | digit.ok_or_else(|| self.expected("a digit"))?;
        }
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::{Labels, Usage};
    use super::*;
    use std::time::SystemTime;

    fn record() -> SnapshotRecord {
        SnapshotRecord {
            number: 1,
            kind: SnapshotKind::Active,
            parent: Some("base".into()),
            labels: Labels::from([
                ("plain".into(), "1".into()),
                ("containerd.io/snapshot.ref".into(), "sha256:abc".into()),
                ("empty".into(), String::new()),
            ]),
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
            usage: Usage::default(),
        }
    }

    fn passes(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        Filters::parse(&filters).unwrap().pass("default/7/c1", &record())
    }

    #[test]
    fn selectors() {
        for (filter, passes_it) in [
            ("", true),
            ("name", true),
            ("name==default/7/c1", true),
            ("name == default/7/c1", true),
            ("name==\"default/7/c1\"", true),
            ("name!=default/7/c1", false),
            ("kind==active", true),
            ("kind==committed", false),
            ("kind!=committed", true),
            ("parent==base", true),
            ("parent", true),
            ("parent~=^ba", true),
            ("parent~=/^b.se$/", true),
            ("parent~=|^x|", false),
            ("labels.plain", true),
            ("labels.plain==1", true),
            ("labels.other", false),
            ("labels.other!=1", true),
            ("labels.other==\"\"", false),
            ("labels.empty", true),
            ("labels.\"containerd.io/snapshot.ref\"", true),
            ("labels.\"containerd.io/snapshot.ref\"==sha256:abc", true),
            ("labels.\"containerd.io/snapshot.ref\"~=\"^sha256:\"", true),
            ("kind==active,parent==base", true),
            ("kind==active,parent==other", false),
            ("kind==active, labels.plain", true),
            ("size==1", false),
        ] {
            assert_eq!(passes(&[filter]), passes_it, "{filter}");
        }
    }

    #[test]
    fn one_of_several_filters_must_hold() {
        assert!(passes(&[]));
        assert!(passes(&["kind==view", "kind==active"]));
        assert!(!passes(&["kind==view", "kind==committed"]));
    }

    #[test]
    fn quotes_and_escapes_are_those_of_go() {
        for (quoted, text) in [
            (r#""a,b c""#, "a,b c"),
            (r#""a\"b""#, "a\"b"),
            (r#""\x41\102\u00e9\U0001F600\n""#, "ABé😀\n"),
            (r#""\xc3\xa9""#, "é"),
            (r"/a\/b/", "a/b"),
            (r"|a\|b|", "a|b"),
        ] {
            let selectors = parse(&format!("name=={quoted}")).unwrap();
            assert!(
                matches!(&selectors[0].test, Test::Equal(found) if found == text),
                "{quoted}: {selectors:?}"
            );
        }
    }

    #[test]
    fn what_is_malformed_is_an_invalid_argument() {
        for filter in [
            "==x",
            "name==",
            "name=x",
            "name===x",
            "name==x,",
            ",",
            "name==\"x",
            "name==\"\\q\"",
            "name~=(",
            "name x",
            "labels.",
            "name==\"\\xff\"",
            "name==\"\\400\"",
            "name==\"\\ud800\"",
            "name==\"a\"b",
        ] {
            let error = parse(filter).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{filter}: {error}");
        }
    }
}
