//! `--filter` of images and containers: `KEY=VALUE`, as Docker has it. Values of one key are alternatives, keys add up;
//! of labels each must be there.

use super::Failure;

/// Conditions, by key.
#[derive(Debug, Default)]
pub(super) struct Filter {
    conditions: Vec<(String, String)>,
}

impl Filter {
    /// Reads the options.
    ///
    /// # Errors
    /// When one is no condition, or its key is not among `keys`.
    pub(super) fn read(given: &[String], keys: &[&str]) -> Result<Filter, Failure> {
        let mut conditions = Vec::new();
        for text in given {
            let wrong = || {
                Failure::usage(format!("--filter {text}: give KEY=VALUE; the keys are {}", keys.join(", ")))
            };
            let (key, value) = text.split_once('=').ok_or_else(wrong)?;
            if !keys.contains(&key) {
                return Err(wrong());
            }
            conditions.push((key.to_owned(), value.to_owned()));
        }
        Ok(Filter { conditions })
    }

    /// Returns the values of a key.
    pub(super) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.conditions.iter().filter(move |(known, _)| known == key).map(|(_, value)| &value[..])
    }

    /// Tells whether one of the key's values is right, or none asked for.
    pub(super) fn any(&self, key: &str, right: impl Fn(&str) -> bool) -> bool {
        self.values(key).next().is_none() || self.values(key).any(right)
    }

    /// Tells whether there is each label that is asked for.
    pub(super) fn labels(&self, has: impl Fn(&str) -> Option<String>) -> bool {
        self.values("label").all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => has(name).is_some_and(|own| own == value),
            None => has(wanted).is_some(),
        })
    }

    /// Reads a key that is true or false.
    ///
    /// # Errors
    /// When its value is neither.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Failure> {
        match self.values(key).last() {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => Err(Failure::usage(format!("--filter {key}={other}: give true or false"))),
        }
    }
}

/// Tells whether a text matches a pattern: `*` any letters but a slash, `?` one, `[a-z]` one of these, `\` takes the
/// next as it is.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // How far each beginning of the text goes with the pattern so far.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; text.len() + 1];
        if pattern[at] == '*' {
            let mut open = false;
            for (end, was) in reached.iter().enumerate() {
                open = *was || (open && end > 0 && text[end - 1] != '/');
                next[end] = open;
            }
            at += 1;
        } else {
            let (one, used) = one_of(&pattern[at..]);
            for end in 0..text.len() {
                next[end + 1] = reached[end] && one(text[end]);
            }
            at += used;
        }
        reached = next;
    }
    reached[text.len()]
}

/// Returns what a pattern that begins with no star has first: which letters fit, and how much of the pattern tells it.
fn one_of(pattern: &[char]) -> (Box<dyn Fn(char) -> bool + '_>, usize) {
    match pattern {
        ['?', ..] => (Box::new(|c| c != '/'), 1),
        ['\\', escaped, ..] => (Box::new(move |c| c == *escaped), 2),
        ['[', rest @ ..] => match rest.iter().skip(1).position(|c| *c == ']') {
            Some(at) => {
                let set = &rest[..=at];
                let (not, set) = match set {
                    ['^', set @ ..] => (true, set),
                    set => (false, set),
                };
                let holds = move |c: char| {
                    let range = set.windows(3).any(|w| w[1] == '-' && (w[0]..=w[2]).contains(&c));
                    (range || set.contains(&c)) != not
                };
                (Box::new(holds), at + 3)
            }
            None => (Box::new(|c| c == '['), 1),
        },
        [plain, ..] => (Box::new(move |c| c == *plain), 1),
        [] => (Box::new(|_| false), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("demo", "demo", true),
            ("dem*", "demo", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("d?mo", "demo", true),
            ("d[a-f]mo:[0-9]", "demo:4", true),
            ("d[^a-f]mo", "demo", false),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            ("a[", "a[", true),
            ("", "a", false),
            ("**", "ab", true),
            ("*:1", "web:1", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn conditions() {
        let given = ["label=a=1", "label=b", "name=x", "name=y", "dangling=true"].map(str::to_owned);
        let filter = Filter::read(&given, &["label", "name", "dangling"]).unwrap();
        let labels = |name: &str| ["a", "b"].contains(&name).then(|| "1".to_owned());
        assert!(filter.labels(labels));
        assert!(!filter.labels(|name| (name == "a").then(|| "1".to_owned())));
        assert!(filter.any("name", |value| value == "y") && !filter.any("name", |value| value == "z"));
        assert!(filter.any("id", |_| false), "not asked for");
        assert_eq!(filter.flag("dangling").unwrap(), Some(true));
        for bad in ["x=1", "name"] {
            assert_eq!(Filter::read(&[bad.to_owned()], &["name"]).unwrap_err().code, 2);
        }
    }
}
