//! What a terminal would obey, and what turns the direction of reading, from names and texts of others: it is escaped
//! wherever it is printed.

use std::fs;

use crate::{Bed, Success, lacking};

/// A title, a bell, a colour in one byte (C1), a turn of direction, and a line break that could forge a line.
const HOSTILE: &str = "a\x1b]0;t\x07\nD /etc/shadow\u{9b}31m\u{202e}b";

#[track_caller]
fn is_tame(what: &str, text: &str) {
    let wild = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.contains(wild), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("D /etc/shadow")), "{what}: a forged line in {text:?}");
}

#[test]
fn nothing_of_an_image_or_a_layer_commands_the_terminal() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let label = format!("LABEL {}", serde_json::json!(format!("key={HOSTILE}")));
    bed.um(&["import", "-m", HOSTILE, "-c", &label, "image.tar", "hostile"]).success();
    bed.um(&["create", "--name", "c", "--label", &format!("x={HOSTILE}"), "hostile", "sh", "-c", HOSTILE])
        .ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    fs::write(format!("{at}/{}", HOSTILE.replace('/', "_")), "").unwrap();
    fs::write(format!("{at}/plain 你"), "").unwrap();

    let diff = bed.um(&["diff", "c"]).ok().out;
    is_tame("diff", &diff);
    assert_eq!(diff.lines().count(), 2, "{diff:?}");
    assert!(diff.contains("A /plain 你\n"), "{diff:?}");
    for args in [
        &["history", "hostile"][..],
        &["history", "--no-trunc", "hostile"],
        &["history", "--format", "{{.Comment}}\t{{.CreatedBy}}", "hostile"],
        &["history", "--format", "json", "hostile"],
        &["inspect", "hostile"],
        &["inspect", "c"],
        &["inspect", "--format", "{{.Config.Labels}}", "hostile"],
        &["inspect", "--format", "{{json .Config}}", "hostile"],
        &["ps", "-a"],
        &["ps", "-a", "--no-trunc"],
        &["ps", "-a", "--format", "{{.Command}} {{.Labels}}"],
        &["ps", "-a", "--format", "json"],
        &["images"],
    ] {
        let ended = bed.um(args).ok();
        is_tame(&format!("{args:?}"), &ended.out.replace('\t', " "));
    }
    // What JSON says is what was said.
    let told: serde_json::Value = serde_json::from_str(&bed.um(&["inspect", "c"]).ok().out).unwrap();
    assert_eq!(told[0]["Args"][1], HOSTILE);
    let json = bed.um(&["inspect", "--format", "{{json .Args}}", "c"]).ok().out;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()[1], HOSTILE);
    // Errors too, whoever chose the name in them.
    for args in
        [&["tag", "hostile", HOSTILE][..], &["load", HOSTILE], &["inspect", HOSTILE], &["rm", HOSTILE]]
    {
        let ended = bed.um(args);
        assert_ne!(ended.code, Some(0), "{args:?}");
        assert_eq!(ended.err.matches('\n').count(), 1, "{ended:?}");
        is_tame(&format!("{args:?}"), &ended.err);
    }
    bed.um(&["rm", "-f", "c"]).ok();
}
