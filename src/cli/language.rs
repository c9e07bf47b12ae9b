//! In which language a verb speaks.

use clap::Args;

use super::Failure;
use crate::texts::Texts;

/// The option `--lang`.
#[derive(Debug, Args)]
pub(super) struct Language {
    /// The language, en or zh; zh_CN is zh [default: that of LC_ALL, LC_MESSAGES or LANG]
    #[arg(long, value_name = "LANGUAGE")]
    lang: Option<String>,
}

impl Language {
    /// Returns the texts in the language that is wanted.
    pub(super) fn texts(&self) -> Result<&'static Texts, Failure> {
        match &self.lang {
            Some(language) => Texts::of(language).map_err(Failure::usage),
            None => Ok(Texts::of_locale(&locale())),
        }
    }
}

/// Returns what the environment says of the language of messages.
fn locale() -> String {
    let set = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().filter_map(|name| std::env::var(name).ok());
    set.into_iter().find(|value| !value.is_empty()).unwrap_or_default()
}
