//! The words of the lesson, one file a language. A further language is a further file and a line in [`LANGUAGES`].

use serde::Deserialize;

/// The languages: code, texts.
pub const LANGUAGES: &[(&str, &str)] = &[("en", include_str!("en.toml")), ("zh", include_str!("zh.toml"))];

/// All texts of a language. That none is missing and none is too many, reading them proves.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each is what en.toml says
pub struct Texts {
    pub language: String,
    pub welcome: String,
    pub enter: String,
    pub question: String,
    pub answer: String,
    pub changed: String,
    pub nothing: String,
    pub same: String,
    pub made: String,
    pub made_dir: String,
    pub copied_up: String,
    pub copied_dir: String,
    pub whiteout: String,
    pub opaque: String,
    pub rewritten: String,
    pub gone: String,
    pub stopped: String,
    pub done: String,
    pub kept: String,
    pub steps: Steps,
}

/// The steps by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Steps {
    pub layers: StepTexts,
    pub mount: StepTexts,
    pub write: StepTexts,
    pub delete: StepTexts,
    pub opaque: StepTexts,
    pub containers: StepTexts,
    pub commit: StepTexts,
}

/// What one step says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTexts {
    /// A few words.
    pub title: String,
    /// What this is about.
    pub text: String,
    /// What the learner is asked before anything is shown.
    pub question: String,
    /// What the commands have shown.
    pub answer: String,
}

impl Texts {
    /// Returns the texts of a language.
    ///
    /// # Errors
    /// In words, for a language that there is not.
    pub fn of(code: &str) -> Result<Texts, String> {
        let codes: Vec<&str> = LANGUAGES.iter().map(|(code, _)| *code).collect();
        let found = LANGUAGES.iter().find(|(known, _)| *known == code);
        let (_, text) =
            found.ok_or_else(|| format!("no language {code:?}; there are {}", codes.join(", ")))?;
        toml::from_str(text).map_err(|error| format!("the texts of {code}: {error}"))
    }

    /// Returns the language that a locale (`zh_CN.UTF-8`) asks for, else English.
    pub fn language_of(locale: &str) -> &'static str {
        let wanted = locale.split(['_', '.', '@', '-']).next().unwrap_or_default();
        LANGUAGES.iter().map(|(code, _)| *code).find(|code| *code == wanted).unwrap_or("en")
    }
}

/// Returns a text with its `{name}`s filled in.
pub fn fill(text: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use unicode_width::UnicodeWidthStr;

    use super::*;

    /// Returns every text by its key.
    fn all(text: &str) -> Vec<(String, String)> {
        fn walk(prefix: &str, value: &toml::Value, all: &mut Vec<(String, String)>) {
            match value {
                toml::Value::Table(table) => {
                    table.iter().for_each(|(key, value)| walk(&format!("{prefix}.{key}"), value, all));
                }
                toml::Value::String(text) => all.push((prefix.to_owned(), text.clone())),
                other => panic!("{prefix}: {other:?}"),
            }
        }
        let mut found = Vec::new();
        walk("", &toml::from_str(text).unwrap(), &mut found);
        found
    }

    fn holes(text: &str) -> BTreeSet<String> {
        text.split('{').skip(1).filter_map(|part| Some(part.split_once('}')?.0.to_owned())).collect()
    }

    #[test]
    fn every_language_has_every_text_with_the_same_holes() {
        let english = all(LANGUAGES[0].1);
        for (code, text) in LANGUAGES {
            Texts::of(code).unwrap();
            let texts = all(text);
            assert_eq!(texts.len(), english.len(), "{code}");
            for ((key, here), (english_key, english)) in texts.iter().zip(&english) {
                assert_eq!(key, english_key, "{code}");
                assert!(!here.trim().is_empty(), "{code}: {key} is empty");
                assert_eq!(holes(here), holes(english), "{code}: {key}");
                assert!(
                    *code == "en" || key == ".language" || here != english,
                    "{code}: {key} is not translated"
                );
                for line in here.lines() {
                    assert!(line.width() <= 78, "{code}: {key}: {} columns: {line}", line.width());
                }
            }
        }
    }

    #[test]
    fn the_locale_chooses_the_language() {
        for (locale, code) in
            [("zh_CN.UTF-8", "zh"), ("zh", "zh"), ("en_US.UTF-8", "en"), ("C", "en"), ("de_DE", "en")]
        {
            assert_eq!(Texts::language_of(locale), code);
        }
        assert!(Texts::of("xx").unwrap_err().contains("en, zh"));
    }
}
