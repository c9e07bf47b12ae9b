//! What can go wrong with registries.

use std::io;

use serde::Deserialize;

use crate::image::digest::DigestError;
use crate::image::error::StoreError;

/// The result of an operation on a registry.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// Why a registry did not do what was asked: one line each, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It can't be reached.
    #[error("{host}: cannot be reached: {why}")]
    Unreachable {
        /// The registry.
        host: String,
        /// What failed, and what may be done.
        why: String,
    },
    /// It wants to know who asks, or refuses who does.
    #[error("{what}: {host} refuses it{said}; {way_out}")]
    Denied {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// Its own words, after a colon and a space.
        said: String,
        /// What may be done.
        way_out: String,
        /// Whether nobody was named who asks.
        is_anonymous: bool,
    },
    /// It doesn't have it.
    #[error("{what}: {host} has no such image{said}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// Its own words, after a colon and a space.
        said: String,
    },
    /// It answers with something else.
    #[error("{what}: {host} answers {status}{said}")]
    Answer {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// The status of HTTP.
        status: u16,
        /// Its own words, after a colon and a space.
        said: String,
    },
    /// What it sent is not what it should be.
    #[error("{what}: {host} sent something else: {why}")]
    Wrong {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// Why the search for a short name ended before all its registries were asked.
    #[error(
        "{why}; the others that a name without a registry may mean are not asked then: write it out, as {others}"
    )]
    SearchEnded {
        /// What the one that ended it said.
        why: Box<RegistryError>,
        /// The names that were not tried.
        others: String,
    },
    /// The user's settings forbid it, or can't be read.
    #[error("{0}")]
    Settings(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DigestError> for RegistryError {
    fn from(error: DigestError) -> RegistryError {
        RegistryError::Store(error.into())
    }
}

impl RegistryError {
    /// Tells whether a registry says that it doesn't have something: plainly, or by refusing whoever doesn't log in, as some
    /// do with what isn't there. One that refuses a user it knows may have it.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, RegistryError::NotFound { .. } | RegistryError::Denied { is_anonymous: true, .. })
    }

    /// Takes an error of this room out of one of reading, into which it was put on its way; `otherwise` says what any other
    /// means.
    pub(super) fn of_reading(
        error: io::Error,
        otherwise: impl FnOnce(&io::Error) -> RegistryError,
    ) -> RegistryError {
        error.downcast::<RegistryError>().unwrap_or_else(|error| otherwise(&error))
    }
}

impl From<RegistryError> for io::Error {
    fn from(error: RegistryError) -> io::Error {
        io::Error::other(error)
    }
}

/// Returns what a registry says of an error, after a colon and a space.
pub(super) fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Error {
        code: String,
        message: String,
    }
    let parsed: Option<Errors> = serde_json::from_slice(body).ok();
    let first = parsed.and_then(|parsed| parsed.errors.into_iter().next()).unwrap_or_default();
    let text = if first.message.is_empty() { first.code } else { first.message };
    // Foreign words go onto a terminal.
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}
