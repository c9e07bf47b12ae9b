//! Names of images: OCI's rules for what a name may be, Docker's for what may be left out of it.
//!
//! `busybox` is short for `docker.io/library/busybox:latest`. Tables, `save` and the store's index use the shortest form
//! with its tag, `busybox:latest`, as Docker does.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

const HUB: &str = "docker.io";
const LEGACY_HUB: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const LATEST: &str = "latest";
const LONGEST_PATH: usize = 255;
const LONGEST_TAG: usize = 128;

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
    /// Returns the names that a text may stand for, the likeliest first: without a registry it may also be one of
    /// podman's and buildah's, which call what they build `localhost/NAME`.
    pub fn meant_by(text: &str) -> Vec<ImageName> {
        let Ok(name) = text.parse::<ImageName>() else { return Vec::new() };
        let short = name.registry == HUB && !text.starts_with(HUB) && !text.starts_with(LEGACY_HUB);
        let local = if short { format!("localhost/{text}").parse().ok() } else { None };
        std::iter::once(name).chain(local).collect()
    }

    /// Returns the name without its tag, as short as it may be.
    pub fn repository(&self) -> String {
        // Left out, the registry would be what comes next.
        let looks_like_host = self.path.split_once('/').is_some_and(|(first, _)| names_host(first));
        match self.path.strip_prefix(OFFICIAL) {
            _ if self.registry != HUB || looks_like_host => format!("{}/{}", self.registry, self.path),
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// Returns the host of the registry, perhaps with a port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository at its registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Returns the name with everything that may be left out.
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

    /// Parses a name by the grammar of the distribution project's `reference` package, for names without a digest.
    /// `oci-spec` has it as a regular expression, whose compilation takes thirty milliseconds of every command that
    /// reads a name: longer than a whole `commit`. That both agree is what the tests say.
    fn from_str(text: &str) -> Result<ImageName, NameError> {
        let error = |why: &str| NameError { text: text.to_owned(), why: why.to_owned() };
        if Digest::from_hex(text).is_ok() {
            return Err(error("64 hexadecimal digits are the id of an image"));
        }
        if text.is_empty() {
            return Err(error("it is empty"));
        }
        if text.contains('@') {
            return Err(error("a digest is no name"));
        }
        let (name, tag) = match text.rsplit_once(':') {
            // The colon of a registry's port is before a slash.
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, LATEST),
        };
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if names_host(host) => (host, path),
            _ => (HUB, name),
        };
        if !is_host(registry) || !path.split('/').all(is_component) || !is_tag(tag) {
            return Err(error(
                "the parts of a name are lower-case letters and digits with single . _ or - between, the tag is at \
                 most 128 letters, digits, . _ or -",
            ));
        }
        let registry = if registry == LEGACY_HUB { HUB } else { registry };
        let official = if registry == HUB && !path.contains('/') { OFFICIAL } else { "" };
        let path = format!("{official}{path}");
        if path.len() > LONGEST_PATH {
            return Err(error("it is longer than 255 characters"));
        }
        Ok(ImageName { registry: registry.to_owned(), path, tag: tag.to_owned() })
    }
}

/// Returns whether the first part of a name is a registry, and no part of the path at the usual one.
fn names_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

/// Returns a domain's labels, and perhaps a port.
fn is_host(text: &str) -> bool {
    let (domain, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    domain.split('.').all(is_label) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns whether it is lower-case letters and digits; between them `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().next_back()) else { return false };
    let mut separators = text.as_bytes().split(is_plain).filter(|between| !between.is_empty());
    is_plain(&first)
        && is_plain(&last)
        && separators
            .all(|between| matches!(between, b"." | b"_" | b"__") || between.iter().all(|&byte| byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    text.len() <= LONGEST_TAG
        && !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

impl serde::Serialize for ImageName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::distribution::Reference;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for text in [
            "docker.io/host.io/app:1",
            "docker.io/localhost/app",
            "docker.io/team/app",
            "index.docker.io/a.b/c",
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.to_string().parse(), Ok(name), "{text}");
        }
        assert_eq!(
            "docker.io/host.io/app:1".parse::<ImageName>().unwrap().to_string(),
            "docker.io/host.io/app:1"
        );
    }

    #[test]
    fn a_short_name_may_be_local() {
        let meant = |text| ImageName::meant_by(text).iter().map(ImageName::full).collect::<Vec<_>>();
        assert_eq!(meant("app:1"), ["docker.io/library/app:1", "localhost/app:1"]);
        assert_eq!(meant("team/app"), ["docker.io/team/app:latest", "localhost/team/app:latest"]);
        assert_eq!(meant("docker.io/library/app"), ["docker.io/library/app:latest"]);
        assert_eq!(meant("localhost/app"), ["localhost/app:latest"]);
        assert_eq!(meant("A b"), Vec::<String>::new());
    }

    /// Returns what `oci-spec` makes of a text: registry, path and tag of one that is a name. It knows three things
    /// wrongly: letters of all scripts in tags, capitals in a path's first part, and underscores in a host.
    fn by_the_crate(text: &str) -> Option<(String, String, String)> {
        let reference = Reference::try_from(text).ok()?;
        let (path, tag) = (reference.repository(), reference.tag()?);
        let right = tag.is_ascii()
            && !path.bytes().any(|byte| byte.is_ascii_uppercase())
            && !reference.registry().contains('_');
        (right && reference.digest().is_none() && Digest::from_hex(text).is_err())
            .then(|| (reference.registry().to_owned(), path.to_owned(), tag.to_owned()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn names_are_read_as_the_crate_reads_them(
            text in prop_oneof!["[aB0./:_-]{0,9}", "(localhost|a\\.b|index\\.docker\\.io|a)[/:]?[a-b/:._-]{0,8}(:V\\.1)?"]
        ) {
            let name = text.parse::<ImageName>().ok().map(|name| (name.registry, name.path, name.tag));
            prop_assert_eq!(name, by_the_crate(&text), "{}", text);
        }
    }

    #[test]
    fn lengths_are_those_of_the_crate() {
        let (part, tag) = ("a".repeat(255 - OFFICIAL.len()), "t".repeat(128));
        for text in [part.clone(), part + "a", format!("a:{tag}"), format!("a:{tag}t")] {
            assert_eq!(text.parse::<ImageName>().is_ok(), by_the_crate(&text).is_some(), "{text}");
        }
    }

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
