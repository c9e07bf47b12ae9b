//! A union to try in a browser, without a mount: `unionmount demo --html FILE`, and docs/simulator.html.
//!
//! The page is `simulator.html` with `simulator.css` and two scripts: `union.js` is a union of layers in memory, which
//! tests/pictures/browser/simulator.rs holds against a mount; `simulator.js` shows it. It has the texts of all languages, and
//! begins with the reader's.

use std::collections::BTreeMap;

use super::web::{Words, fill, head, inert};
use crate::texts::Texts;

/// Which texts the scripts say.
const SAID: [&str; 6] = ["simulator", "called", "kind.whiteout", "explain.upper", "page.colon", "language"];

/// Returns the page.
pub fn draw() -> String {
    let english = Texts::english();
    let texts: BTreeMap<&str, BTreeMap<&str, &str>> = Texts::languages()
        .iter()
        .map(|texts| (texts.code(), SAID.iter().flat_map(|table| texts.below(table)).collect()))
        .collect();
    // Serialising strings to a string does not fail.
    let texts = inert(&serde_json::to_string(&texts).unwrap_or_default());
    let head = head(english, english.say("simulator.title"), include_str!("simulator.css"));
    let (words, of_pages) = (Words::new(english, "simulator"), Words::new(english, "page"));
    let mut parts = vec![("{{head}}", head.as_str())];
    parts.extend(words.parts());
    parts.extend(of_pages.parts());
    parts.extend([
        ("{{texts}}", texts.as_str()),
        ("{{union}}", include_str!("union.js")),
        ("{{script}}", include_str!("simulator.js")),
    ]);
    fill(include_str!("simulator.html"), &parts)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// `scripts/pictures` writes it.
    #[test]
    fn the_page_of_the_manual_is_this_one() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/simulator.html");
        let page = super::draw();
        assert!(
            !page.contains("{{"),
            "a text is missing: {:?}",
            page.split("{{").nth(1).map(|rest| &rest[..40])
        );
        if std::env::var_os("UNIONMOUNT_WRITE_PICTURES").is_some() {
            std::fs::write(file, page).unwrap();
            return;
        }
        assert!(
            std::fs::read_to_string(file).unwrap() == page,
            "docs/simulator.html is old: scripts/pictures makes it anew"
        );
    }
}
