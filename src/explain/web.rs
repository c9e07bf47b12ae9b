//! What the pages have in common: their head and colours, and how texts and data are put into them.

use crate::explain::svg;
use crate::texts::Texts;

/// Texts of the catalogue for a template, in which they stand by their keys: `{{page.title}}`.
pub(super) struct Words(Vec<(String, String)>);

impl Words {
    /// Takes the texts of a table.
    pub(super) fn new(texts: &'static Texts, table: &str) -> Words {
        let marked = |(key, text): (&str, &str)| (format!("{{{{{key}}}}}"), svg::escape(text));
        Words(texts.below(table).into_iter().map(marked).collect())
    }

    /// Returns them as parts for [`fill`].
    pub(super) fn parts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(mark, text)| (mark.as_str(), text.as_str()))
    }
}

/// Returns the head of a page. `title` is markup, `style` what it has beside the colours of all.
pub(super) fn head(texts: &Texts, title: &str, style: &str) -> String {
    let style = [include_str!("colours.css"), style].concat();
    let parts = [("{{language}}", texts.code()), ("{{title}}", title), ("{{style}}", &style)];
    fill(include_str!("head.html"), &parts)
}

/// Puts the parts into the template; what a part holds is never looked at again.
pub(super) fn fill(template: &str, parts: &[(&str, &str)]) -> String {
    let mut page =
        String::with_capacity(template.len() + parts.iter().map(|(_, part)| part.len()).sum::<usize>());
    let mut rest = template;
    while let Some((at, mark, part)) = parts
        .iter()
        .filter_map(|(mark, part)| Some((rest.find(mark)?, mark, part)))
        .min_by_key(|found| found.0)
    {
        page.push_str(&rest[..at]);
        page.push_str(part);
        rest = &rest[at + mark.len()..];
    }
    page.push_str(rest);
    page
}

/// Returns JSON that can stand inside a `<script>`: the characters that could end it are only found within strings,
/// where they can be written as escapes.
pub(super) fn inert(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_the_script() {
        let json = serde_json::to_string(&["</script><!--", "a&b\u{2028}"]).unwrap();
        let inert = inert(&json);
        assert!(!inert.contains(['<', '>', '&', '\u{2028}']), "{inert}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&inert).unwrap(), ["</script><!--", "a&b\u{2028}"]);
    }

    #[test]
    fn parts_are_put_in_once() {
        assert_eq!(fill("a {{x}} b {{y}}", &[("{{x}}", "{{y}}"), ("{{y}}", "2")]), "a {{y}} b 2");
    }
}
