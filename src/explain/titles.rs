//! What layers are called in sentences.

use crate::control::explanation::LayerReport;

/// Says "the upper", "layer 2 (debian)".
pub fn layer_title(layers: &[LayerReport], number: u16) -> String {
    match layers.iter().find(|layer| layer.layer == number) {
        _ if number == 0 => "the upper".to_owned(),
        Some(layer) => format!("layer {number} ({})", layer.name),
        None => format!("layer {number}"),
    }
}

/// Says "layer 2", "layers 2 and 3", "the upper and layers 1, 2 and 3".
pub fn layer_list(numbers: impl IntoIterator<Item = u16>) -> String {
    let numbers: Vec<u16> = numbers.into_iter().collect();
    let lowers: Vec<String> = numbers.iter().filter(|n| **n > 0).map(u16::to_string).collect();
    let lowers = match &lowers[..] {
        [] => String::new(),
        [one] => format!("layer {one}"),
        [first @ .., last] => format!("layers {} and {last}", first.join(", ")),
    };
    match (numbers.contains(&0), lowers.is_empty()) {
        (true, true) => "the upper".into(),
        (true, false) => format!("the upper and {lowers}"),
        (false, true) => "no layer".into(),
        (false, false) => lowers,
    }
}
