//! The colour of a layer: the same one wherever the layer is drawn, in the pile, the tree, a history, the picture, a terminal.
//!
//! All are equally bright, about half way between paper and ink in light and dark, so that each has the contrast of 3:1 with both
//! that signs need (WCAG 2.2, 1.4.11). A colour never says anything alone: the layer's number stands beside it.

use super::survey::Number;

/// For the web, and the nearest of a terminal's 256. Neighbours differ in hue.
const COLOURS: [(&str, u8); 12] = [
    ("#2c80e1", 32),
    ("#ce6011", 166),
    ("#24915b", 29),
    ("#d34f91", 168),
    ("#997d0c", 100),
    ("#178ca3", 31),
    ("#a463d2", 134),
    ("#dd513c", 167),
    ("#508f24", 64),
    ("#6e77db", 68),
    ("#ba5fab", 133),
    ("#438c80", 66),
];

fn colour(layer: Number) -> (&'static str, u8) {
    COLOURS[usize::from(layer.saturating_sub(1)) % COLOURS.len()]
}

/// Returns a layer's colour as `#rrggbb`. Layers are counted from the lowest, so that a layer keeps its colour when more are put
/// on top.
pub fn hex(layer: Number) -> &'static str {
    colour(layer).0
}

/// Returns a layer's colour among a terminal's 256.
pub fn indexed(layer: Number) -> u8 {
    colour(layer).1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As WCAG 2.2 defines it.
    fn luminance(hex: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.03928 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    #[test]
    fn every_colour_is_seen_on_light_and_on_dark() {
        for layer in 1..=12 {
            for paper in ["#ffffff", "#f1f4f9", "#12161d", "#222a37"] {
                let (one, other) = (luminance(hex(layer)) + 0.05, luminance(paper) + 0.05);
                assert!(one.max(other) / one.min(other) >= 3.0, "{} on {paper}", hex(layer));
            }
            assert_ne!(hex(layer), hex(layer + 1));
        }
        assert_eq!(hex(1), hex(13));
    }
}
