//! Names and paths as text: what is not UTF-8 survives in JSON, and nothing reaches a terminal that it would obey.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name or a path. In JSON it is a string, or, where it is not UTF-8, an object `{"hex": "…"}` of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EscapedPath(pub Vec<u8>);

impl From<&[u8]> for EscapedPath {
    fn from(bytes: &[u8]) -> EscapedPath {
        EscapedPath(bytes.to_vec())
    }
}

impl From<Vec<u8>> for EscapedPath {
    fn from(bytes: Vec<u8>) -> EscapedPath {
        EscapedPath(bytes)
    }
}

impl From<&std::path::Path> for EscapedPath {
    fn from(path: &std::path::Path) -> EscapedPath {
        use std::os::unix::ffi::OsStrExt;
        EscapedPath(path.as_os_str().as_bytes().to_vec())
    }
}

impl EscapedPath {
    /// Returns it as a path of the operating system.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }
}

/// As a person reads it: control characters and bytes that are not UTF-8 are escaped.
impl fmt::Display for EscapedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(&escaped(chunk.valid()))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Tells whether a terminal may be given that character. Not what moves its cursor, and not what turns the direction of
/// writing.
pub fn is_tame(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Returns a text without what is not tame, line breaks and tabs included: in its place is how Rust writes it.
pub fn escaped(text: &str) -> String {
    let mut tame = String::with_capacity(text.len());
    for c in text.chars() {
        match is_tame(c) {
            true => tame.push(c),
            false => tame.extend(c.escape_default()),
        }
    }
    tame
}

/// Returns JSON as it was written, without what is not tame: it can stand in strings only, where `\uXXXX` means the
/// same. Line breaks are layout, since strings have none.
pub fn json_escaped(json: &str) -> String {
    let mut tame = String::with_capacity(json.len());
    for c in json.chars() {
        match is_tame(c) || c == '\n' {
            true => tame.push(c),
            // All of them are below U+10000.
            false => tame += &format!("\\u{:04x}", u32::from(c)),
        }
    }
    tame
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Plain(String),
    Bytes { hex: String },
}

impl Serialize for EscapedPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("hex", &hex::encode(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for EscapedPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EscapedPath, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Plain(text) => Ok(EscapedPath(text.into_bytes())),
            Form::Bytes { hex } => hex::decode(hex).map(EscapedPath).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_survives_json() {
        for name in [&b"plain"[..], b"d\xff", b"\xe4\xbd\xa0", b"", b"new\nline"] {
            let text = EscapedPath::from(name);
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<EscapedPath>(&json).unwrap(), text, "{json}");
        }
        assert_eq!(serde_json::to_string(&EscapedPath::from(&b"\xff"[..])).unwrap(), r#"{"hex":"ff"}"#);
    }

    #[test]
    fn a_terminal_is_never_commanded() {
        assert_eq!(EscapedPath::from(&b"a\x1b[31m\xff\n"[..]).to_string(), r"a\u{1b}[31m\xff\n");
        assert_eq!(EscapedPath::from("é你".as_bytes()).to_string(), "é你");
    }
}
