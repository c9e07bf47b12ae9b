//! Digests: what blobs, layers and images are known by.
//!
//! OCI allows several algorithms; sha256 is the one that is used, and the only one that this program computes. A digest
//! of another one is refused with a message of its own, rather than trusted.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A sha256 digest, shown as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text that is no digest this program can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Another algorithm.
    #[error("digest {0:?}: only sha256 digests can be checked here")]
    Algorithm(String),
    /// Not 64 lower-case hexadecimal digits.
    #[error("{0:?} is not a digest: sha256: and 64 hexadecimal digits are expected")]
    Form(String),
}

impl Digest {
    /// The prefix of a digest's text.
    pub const PREFIX: &'static str = "sha256:";

    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Reads 64 hexadecimal digits, the name of a blob's file.
    pub fn from_hex(text: &str) -> Result<Digest, DigestError> {
        let mut bytes = [0; 32];
        let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lower => Ok(Digest(bytes)),
            _ => Err(DigestError::Form(text.to_owned())),
        }
    }

    /// Returns the 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Returns the first twelve digits, as tables show them.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Digest::PREFIX, self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        match text.split_once(':') {
            Some(("sha256", digits)) => {
                Digest::from_hex(digits).map_err(|_| DigestError::Form(text.to_owned()))
            }
            Some(_) => Err(DigestError::Algorithm(text.to_owned())),
            None => Err(DigestError::Form(text.to_owned())),
        }
    }
}

impl TryFrom<&oci_spec::image::Digest> for Digest {
    type Error = DigestError;

    fn try_from(digest: &oci_spec::image::Digest) -> Result<Digest, DigestError> {
        digest.as_ref().parse()
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Counts and hashes what is read or written through it.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    count: u64,
}

impl<T> Hashing<T> {
    /// Wraps `inner`.
    pub fn new(inner: T) -> Hashing<T> {
        Hashing { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Returns how many bytes have passed.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns what was wrapped, the digest and the count of all bytes that passed.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest(self.hasher.finalize().into()), self.count)
    }

    /// Reads past the hasher.
    pub(super) fn read_unhashed(&mut self, buffer: &mut [u8]) -> io::Result<usize>
    where
        T: Read,
    {
        self.inner.read(buffer)
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.count += bytes.len() as u64;
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.passed(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.passed(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_and_back() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        for bad in ["", "sha256:", "sha256:e3", &EMPTY[7..], &EMPTY.to_uppercase(), "sha256:../../etc/passwd"]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let upper = format!("sha256:{}", EMPTY[7..].to_uppercase());
        assert!(matches!(upper.parse::<Digest>(), Err(DigestError::Form(_))));
        assert!(matches!("sha512:00".parse::<Digest>(), Err(DigestError::Algorithm(_))));
    }

    #[test]
    fn hashing_on_the_way() {
        let mut writer = Hashing::new(Vec::new());
        writer.write_all(b"some bytes").unwrap();
        let (bytes, digest, count) = writer.finish();
        assert_eq!((digest, count), (Digest::of(b"some bytes"), 10));
        let mut reader = Hashing::new(&bytes[..]);
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        assert_eq!(reader.finish().1, digest);
    }
}
