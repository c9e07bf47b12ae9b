//! What the program says to people, in each language: one file a language.
//!
//! Texts have keys, `lesson.welcome`; what stands in braces is filled in. A further language is a further file beside
//! `en.toml`, with the same keys, and its line in `LANGUAGES`. What programs read (JSON, names of options, words of
//! filters) isn't here: it is the same in every language.

mod spoken;
pub mod wrap;

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

/// The languages: code, texts. The first has what another lacks.
const LANGUAGES: &[(&str, &str)] = &[("en", include_str!("en.toml")), ("zh", include_str!("zh.toml"))];

/// The texts of a language.
#[derive(Debug)]
pub struct Texts {
    code: &'static str,
    texts: HashMap<String, String>,
}

impl Texts {
    /// Returns the texts of a language: `zh`, or as a locale is written, `zh_CN.UTF-8`, `zh-Hans`.
    ///
    /// # Errors
    /// In words, for a language that there is not.
    pub fn of(language: &str) -> Result<&'static Texts, String> {
        let known = all();
        let wanted = language_of(language);
        known.iter().find(|texts| wanted.eq_ignore_ascii_case(texts.code)).ok_or_else(|| {
            let codes: Vec<&str> = known.iter().map(|texts| texts.code).collect();
            format!("there are no texts in the language {language:?}; there are {}", codes.join(", "))
        })
    }

    /// Returns the texts in the language of a locale, else English.
    pub fn of_locale(locale: &str) -> &'static Texts {
        Texts::of(locale).unwrap_or_else(|_| Texts::english())
    }

    /// Returns the texts that everything is written in first.
    pub fn english() -> &'static Texts {
        &all()[0]
    }

    /// Returns those of all languages.
    pub fn languages() -> &'static [Texts] {
        all()
    }

    /// Returns the code of the language.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns a text, or, of a key that no language has, the key.
    pub fn say<'a>(&'a self, key: &'a str) -> &'a str {
        self.find(key).unwrap_or(key)
    }

    /// Returns a text if there is one.
    pub fn find(&self, key: &str) -> Option<&str> {
        self.texts.get(key).or_else(|| Texts::english().texts.get(key)).map(String::as_str)
    }

    /// Returns a text with its `{name}`s filled in.
    pub fn fill(&self, key: &str, values: &[(&str, &str)]) -> String {
        fill(self.say(key), values)
    }

    /// Returns the text of a key and those of the table of that name, with their keys.
    pub fn below(&'static self, table: &str) -> BTreeMap<&'static str, &'static str> {
        let is_in =
            |key: &str| key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let texts = self.texts.iter().filter(|(key, _)| is_in(key));
        texts.map(|(key, text)| (key.as_str(), text.as_str())).collect()
    }

    /// Returns the texts of a list, `key.1`, `key.2` and so on.
    pub fn list(&self, key: &str) -> Vec<&str> {
        (1..).map_while(|number| self.find(&format!("{key}.{number}"))).collect()
    }
}

/// Returns the language of a locale.
fn language_of(locale: &str) -> &str {
    locale.split(['_', '.', '@', '-']).next().unwrap_or_default()
}

/// Returns a text with its `{name}`s filled in. What is filled in is not looked at again.
fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        out += before;
        let named = after.split_once('}').and_then(|(name, behind)| {
            let value = values.iter().find(|(known, _)| *known == name)?;
            Some((value.1, behind))
        });
        match named {
            Some((value, behind)) => {
                out += value;
                rest = behind;
            }
            None => {
                out.push('{');
                rest = after;
            }
        }
    }
    out + rest
}

fn all() -> &'static [Texts] {
    static ALL: OnceLock<Vec<Texts>> = OnceLock::new();
    ALL.get_or_init(|| {
        // That each of them can be read, a test proves: they are part of the program.
        let read = |text: &str| toml::from_str::<toml::Table>(text).unwrap_or_default();
        LANGUAGES
            .iter()
            .map(|(code, text)| {
                let mut texts = HashMap::new();
                flatten("", &toml::Value::Table(read(text)), &mut texts);
                Texts { code, texts }
            })
            .collect()
    })
}

/// Gives each text its key: the names of the tables, and in lists the number from 1.
fn flatten(key: &str, value: &toml::Value, texts: &mut HashMap<String, String>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        toml::Value::Table(table) => {
            table.iter().for_each(|(name, value)| flatten(&below(name), value, texts));
        }
        toml::Value::Array(list) => {
            (1..).zip(list).for_each(|(number, value)| flatten(&below(&number.to_string()), value, texts));
        }
        other => {
            texts.insert(key.to_owned(), other.as_str().unwrap_or_default().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Commands and names, which are the same in every language.
    const SAME: [&str; 1] = ["lesson.puzzle.history.choices."];

    fn holes(text: &str) -> BTreeSet<&str> {
        text.split('{')
            .skip(1)
            .filter_map(|part| Some(part.split_once('}')?.0))
            .filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            .collect()
    }

    #[test]
    fn every_language_has_every_text_with_the_same_holes() {
        for (code, text) in LANGUAGES {
            toml::from_str::<toml::Table>(text).unwrap_or_else(|error| panic!("{code}.toml: {error}"));
        }
        let english = &all()[0].texts;
        for Texts { code, texts } in all() {
            let (here, there): (BTreeSet<_>, BTreeSet<_>) =
                (texts.keys().collect(), english.keys().collect());
            assert_eq!(here, there, "{code}: other keys than in English");
            for (key, text) in texts {
                assert!(!text.trim().is_empty(), "{code}: {key} is empty");
                assert_eq!(holes(text), holes(&english[key]), "{code}: {key}");
                assert!(
                    *code == "en" || *text != english[key] || SAME.iter().any(|start| key.starts_with(start)),
                    "{code}: {key} is not translated"
                );
            }
        }
    }

    fn of_page(text: &str) -> String {
        text.replace("{{", "\"").replace("}}", "\"").replace('`', "\"").replace("${", "{")
    }

    /// The keys that are written in the program, and those that are put together there, up to their first hole.
    fn used() -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut whole, mut begun) = (BTreeSet::new(), BTreeSet::new());
        let first: BTreeSet<&str> = all()[0].texts.keys().map(|key| key.split('.').next().unwrap()).collect();
        let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "js" || kind == "html")
                && !path.ends_with("texts/mod.rs")
            {
                // In pages they stand in `{{KEY}}`, in scripts also in templates.
                let text = std::fs::read_to_string(&path).unwrap();
                let text =
                    if path.extension().is_some_and(|kind| kind == "rs") { text } else { of_page(&text) };
                for part in text.split('"') {
                    let key = part.chars().all(|c| c.is_ascii_alphanumeric() || "._-{}".contains(c));
                    let is_file = [".css", ".html", ".js"].iter().any(|end| part.ends_with(end));
                    if key && !is_file && part.split_once('.').is_some_and(|(table, _)| first.contains(table))
                    {
                        match part.split_once('{') {
                            Some((start, _)) => begun.insert(start.to_owned()),
                            None => whole.insert(part.to_owned()),
                        };
                    }
                }
            }
        }
        (whole, begun)
    }

    #[test]
    fn every_text_is_used_and_every_key_that_is_used_has_one() {
        let (whole, begun) = used();
        let texts = &all()[0].texts;
        for key in &whole {
            let list = || texts.contains_key(&format!("{key}.1"));
            assert!(texts.contains_key(key) || list(), "{key} has no text");
        }
        for key in texts.keys().filter(|key| *key != "language") {
            let list = key.rsplit_once('.').is_some_and(|(list, _)| whole.contains(list));
            let put_together = begun.iter().any(|start| key.starts_with(start));
            assert!(whole.contains(key) || list || put_together, "nothing says {key}");
        }
    }

    #[test]
    fn a_locale_and_a_code_choose_the_language() {
        for (locale, code) in [
            ("zh_CN.UTF-8", "zh"),
            ("zh_CN", "zh"),
            ("zh-Hans-CN", "zh"),
            ("ZH", "zh"),
            ("zh", "zh"),
            ("en_US.UTF-8", "en"),
            ("C", "en"),
            ("C.UTF-8", "en"),
            ("", "en"),
            ("de_DE", "en"),
        ] {
            assert_eq!(Texts::of_locale(locale).code(), code, "{locale}");
        }
        assert_eq!(Texts::of("zh_CN").unwrap().code(), "zh");
        assert!(Texts::of("xx").unwrap_err().contains("en, zh"));
    }

    #[test]
    fn what_is_filled_in_is_not_filled_in_again() {
        assert_eq!(fill("{a} and {b}, {c} {", &[("a", "{b}"), ("b", "2")]), "{b} and 2, {c} {");
    }
}
