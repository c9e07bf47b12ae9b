//! What layers are called in sentences.

use super::survey::{Number, Survey};
use crate::control::explanation::LayerReport;
use crate::sys::object::Kind;
use crate::texts::Texts;
use crate::union::events::KindName;

/// Says "the upper", "layer 2 (debian)".
pub fn layer_title(texts: &Texts, layers: &[LayerReport], number: u16) -> String {
    match layers.iter().find(|layer| layer.layer == number) {
        _ if number == 0 => texts.say("called.upper").to_owned(),
        Some(layer) => named_layer(texts, number, &layer.name.to_string()),
        None => texts.fill("called.one", &[("numbers", &number.to_string())]),
    }
}

/// Says "the upper", "layer 2" of a survey's layer.
pub fn called(texts: &Texts, survey: &Survey, number: Number) -> String {
    layer_list(texts, [survey.told(number)])
}

/// Says "layer 2 (debian)".
pub fn named_layer(texts: &Texts, number: u16, name: &str) -> String {
    texts.fill("called.named", &[("number", &number.to_string()), ("name", name)])
}

/// Says "layer 2", "layers 2 and 3", "the upper and layers 1, 2 and 3".
pub fn layer_list(texts: &Texts, numbers: impl IntoIterator<Item = u16>) -> String {
    let numbers: Vec<u16> = numbers.into_iter().collect();
    let lowers: Vec<String> = numbers.iter().filter(|n| **n > 0).map(u16::to_string).collect();
    let lowers = match &lowers[..] {
        [] => String::new(),
        [one] => texts.fill("called.one", &[("numbers", one)]),
        [first @ .., last] => {
            let first = first.join(texts.say("called.comma"));
            texts.fill("called.several", &[("first", &first), ("last", last)])
        }
    };
    match (numbers.contains(&0), lowers.is_empty()) {
        (true, true) => texts.say("called.upper").to_owned(),
        (true, false) => texts.fill("called.upper_and", &[("lowers", &lowers)]),
        (false, true) => texts.say("called.none").to_owned(),
        (false, false) => lowers,
    }
}

/// Says what an object is, "file", or "whiteout".
pub fn what_word(texts: &'static Texts, kind: Option<Kind>) -> &'static str {
    kind.map_or(texts.say("kind.whiteout"), |kind| kind_word(texts, KindName::from(kind)))
}

/// Says "file", "character device".
pub fn kind_word(texts: &'static Texts, kind: KindName) -> &'static str {
    texts.find(&format!("kind.{}", kind.word().replace(' ', "-"))).unwrap_or(kind.word())
}
