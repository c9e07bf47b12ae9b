//! What names an image in a registry: a name with a tag, or with a digest.

use std::fmt;
use std::str::FromStr;

use crate::image::digest::Digest;
use crate::image::name::{ImageName, NameError};

/// `NAME[:TAG][@DIGEST]`. With a digest the tag is for people alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The name with its tag.
    pub name: ImageName,
    /// The digest of the manifest, or of an index for several platforms.
    pub digest: Option<Digest>,
    /// Whether the tag was written.
    pub is_tagged: bool,
    /// The name as it was written, without tag and digest, where the registry wasn't.
    pub short: Option<String>,
}

/// A text that names nothing in a registry.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The digest is none that can be checked here.
    #[error("{0:?}: the digest after @ is not of the form sha256: and 64 hexadecimal digits")]
    Digest(String),
}

impl Reference {
    /// Returns what the registry calls it: its digest, or its tag.
    pub fn tag_or_digest(&self) -> String {
        self.digest.map_or_else(|| self.name.tag().to_owned(), |digest| digest.to_string())
    }

    /// Returns the name that the image gets: none, where only a digest was asked for.
    pub fn given_name(&self) -> Option<&ImageName> {
        (self.digest.is_none() || self.is_tagged).then_some(&self.name)
    }

    /// Returns the same image under another name.
    #[must_use]
    pub(super) fn with_name(&self, name: ImageName) -> Reference {
        Reference { name, short: None, ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        let bare = text.strip_prefix("docker://").unwrap_or(text);
        let (name, digest) = match bare.split_once('@') {
            Some((name, digest)) => {
                let parsed = digest.parse().map_err(|_| ReferenceError::Digest(text.to_owned()))?;
                (name, Some(parsed))
            }
            None => (bare, None),
        };
        let parsed: ImageName = name.parse()?;
        let last = name.rsplit('/').next().unwrap_or_default();
        let host = name.split_once('/').map(|(host, _)| host);
        let is_qualified = host.is_some_and(|host| host.contains(['.', ':']) || host == "localhost");
        let is_tagged = last.contains(':');
        let untagged = name.rsplit_once(':').filter(|_| is_tagged).map_or(name, |(name, _)| name);
        let short = (!is_qualified).then(|| untagged.to_owned());
        Ok(Reference { name: parsed, digest, is_tagged, short })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.digest, self.is_tagged) {
            (None, _) => write!(f, "{}", self.name),
            (Some(digest), true) => write!(f, "{}@{digest}", self.name),
            (Some(digest), false) => write!(f, "{}@{digest}", self.name.repository()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, shown, asked, given, short) in [
            ("busybox", "busybox:latest", "latest", true, Some("busybox")),
            ("docker://a/b:1", "a/b:1", "1", true, Some("a/b")),
            (&format!("a:1@{digest}"), &format!("a:1@{digest}"), &digest, true, Some("a")),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1", "1", true, None),
            (&format!("q.io/a@{digest}"), &format!("q.io/a@{digest}"), &digest, false, None),
            (&format!("q.io/a:1@{digest}"), &format!("q.io/a:1@{digest}"), &digest, true, None),
            ("docker://q.io/a:1", "q.io/a:1", "1", true, None),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), shown);
            assert_eq!(reference.tag_or_digest(), asked);
            assert_eq!(
                (reference.given_name().is_some(), reference.short.as_deref()),
                (given, short),
                "{text}"
            );
        }
        for text in ["", "a@", "a@md5:00", &format!("@{digest}"), "a b", &"a".repeat(64)] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
