//! Names of images: OCI's rules for what a name may be, Docker's for what may be left out of it.
//!
//! `busybox` is short for `docker.io/library/busybox:latest`. Tables, `save` and the store's index use the shortest form
//! with its tag, `busybox:latest`, as Docker does.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference;

use super::digest::Digest;

const HUB: &str = "docker.io";
const OFFICIAL: &str = "library/";

/// A name with its tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    registry: String,
    path: String,
    tag: String,
}

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot name an image: {why}; an example of a name is registry.example/team/app:1.0")]
pub struct NameError {
    text: String,
    why: String,
}

impl ImageName {
    /// The name without its tag, as short as it may be.
    pub fn repository(&self) -> String {
        match self.path.strip_prefix(OFFICIAL) {
            _ if self.registry != HUB => format!("{}/{}", self.registry, self.path),
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name with everything that may be left out.
    pub fn full(&self) -> String {
        format!("{}/{}:{}", self.registry, self.path, self.tag)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository(), self.tag)
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<ImageName, NameError> {
        let error = |why: &str| NameError { text: text.to_owned(), why: why.to_owned() };
        if Digest::from_hex(text).is_ok() {
            return Err(error("64 hexadecimal digits are the id of an image"));
        }
        let reference = Reference::try_from(text).map_err(|problem| match problem {
            // The crate's wording tells nothing about the text.
            oci_spec::distribution::ParseError::ReferenceInvalidFormat => error(
                "the parts of a name are lower-case letters and digits with single . _ or - between, the tag is at \
                 most 128 letters, digits, . _ or -",
            ),
            problem => error(&problem.to_string()),
        })?;
        match (reference.tag(), reference.digest()) {
            (Some(tag), None) => Ok(ImageName {
                registry: reference.registry().to_owned(),
                path: reference.repository().to_owned(),
                tag: tag.to_owned(),
            }),
            _ => Err(error("a digest is no name")),
        }
    }
}

impl serde::Serialize for ImageName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_full() {
        for (text, short, full) in [
            ("busybox", "busybox:latest", "docker.io/library/busybox:latest"),
            ("docker.io/library/busybox:1.36", "busybox:1.36", "docker.io/library/busybox:1.36"),
            ("team/app", "team/app:latest", "docker.io/team/app:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("quay.io:443/a/b/c:V1", "quay.io:443/a/b/c:V1", "quay.io:443/a/b/c:V1"),
            ("latest", "latest:latest", "docker.io/library/latest:latest"),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!((name.to_string().as_str(), name.full().as_str()), (short, full));
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn what_is_no_name() {
        let hex = "0".repeat(64);
        let digest = format!("a@sha256:{hex}");
        for text in
            ["", "UPPER", "a b", "a:", ":a", "a//b", "../x", "a:b:c", "-a", "a:b/c", "é", &hex, &digest]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
        assert!("a".repeat(300).parse::<ImageName>().is_err());
    }
}
