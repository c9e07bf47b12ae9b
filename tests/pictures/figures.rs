//! Waste, on a stack whose figures are known.

use std::ffi::OsString;

use crate::agreement::{survey, unionmount};
use support::{self, OpaqueForm, Stack, WhiteoutForm};

/// 1000 bytes and a bit in the lowest layer, of which 100 are replaced, 30 deleted, 7 below an opaque directory; one of
/// the replacements is replaced again.
fn stack() -> Stack {
    let stack = Stack::new(3);
    let opaque = OpaqueForm::of_process();
    stack.lower(2).file("keep", vec![b'k'; 863]).file("twice", vec![b'a'; 100]).file("gone", vec![b'g'; 30]);
    stack.lower(2).file("srv/a", "12345").file("srv/b/c", "67").file("linked", vec![b'l'; 50]);
    stack.lower(2).hardlink("link", "linked");
    stack.lower(1).file("twice", vec![b'b'; 110]).whiteout("gone", WhiteoutForm::Device);
    stack.lower(1).whiteout("link", WhiteoutForm::Aufs);
    stack.lower(0).file("twice", vec![b'c'; 120]).opaque("srv", opaque).file("srv/new", "8");
    stack
}

fn layers(stack: &Stack, arguments: &[&str]) -> std::process::Output {
    let mut all: Vec<OsString> = vec!["layers".into()];
    for lower in stack.lowers() {
        all.extend(["--lower".into(), lower.root().into()]);
    }
    all.extend(arguments.iter().map(OsString::from));
    support::output(unionmount(), &all)
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn waste_is_what_no_name_of_the_merged_view_leads_to() {
    let stack = stack();
    let json = survey(None, stack.lowers());
    let total = 863 + 100 + 30 + 7 + 50 + 110 + 120 + 1;
    assert_eq!(json["bytes"], total);
    // The linked file is in use by its other name.
    assert_eq!(json["wasted_bytes"], 100 + 110 + 30 + 7);
    let layer =
        |number: usize| json["layers"].as_array().unwrap().iter().find(|l| l["layer"] == number).unwrap();
    assert_eq!(layer(3)["wasted"]["bytes"], 100 + 30 + 7);
    assert_eq!(layer(2)["wasted"]["bytes"], 110);
    assert_eq!(layer(1)["wasted"]["bytes"], 0);
    assert_eq!(layer(3)["holds"]["bytes"], 863 + 100 + 30 + 7 + 50);
    assert_eq!(layer(2)["changed"]["files"], 1);
    assert_eq!(layer(2)["deleted"], 2);
    assert_eq!(layer(1)["opaque"], 1);
    assert_eq!(layer(1)["added"]["files"], 1);
    assert_eq!(json["waste_percent"], 19.3);
    assert_eq!(json["efficiency"], 80.7);
}

#[test]
fn waste_is_listed_by_size_and_directories_as_a_whole() {
    let stack = stack();
    let output = layers(&stack, &["--waste"]);
    assert!(output.status.success());
    let text = text(&output);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["210", "B", "2", "2,", "3", "1,", "2", "replaced", "twice"], "{text}");
    assert_eq!(lines[2], ["30", "B", "1", "3", "2", "deleted", "gone"], "{text}");
    assert_eq!(lines[3], ["7", "B", "2", "3", "1", "replaced", "srv/"], "{text}");
    assert!(lines[4].join(" ").contains("efficiency 80.7 %"), "{text}");
    assert!(!text.contains('\x1b'), "no colours into a pipe");
}

#[test]
fn a_pipeline_stops_at_too_much_waste() {
    let stack = stack();
    let output = layers(&stack, &["--ci", "--max-waste", "19%"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("unionmount: too much waste 19.28 %, 19 % allowed"), "{error}");
    assert_eq!(error.lines().count(), 1);
    let output = layers(&stack, &["--ci", "--max-waste", "19.5"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output).starts_with("waste 19.28 %"), "{}", text(&output));
    assert_eq!(layers(&stack, &["--ci"]).status.code(), Some(1), "5 % by default");
    for bad in ["x", "-1%", "101%", ""] {
        assert_eq!(layers(&stack, &["--ci", "--max-waste", bad]).status.code(), Some(2), "{bad}");
    }
    assert_eq!(
        layers(&stack, &["--max-waste", "3%"]).status.code(),
        Some(2),
        "without --ci it has no meaning"
    );
}

#[test]
fn the_tree_names_the_layer_of_each_path() {
    let stack = stack();
    let output = layers(&stack, &[]);
    let text = text(&output);
    let line = |name: &str| {
        text.lines()
            .find(|line| line.ends_with(&format!("─ {name}")))
            .unwrap_or_else(|| panic!("{name} in\n{text}"))
    };
    assert!(line("twice").starts_with("~ 1>2>3           120 B"), "{text}");
    assert!(line("keep").starts_with("  3               863 B"), "{text}");
    assert!(line("gone").starts_with("- 2>3"), "{text}");
    assert!(text.contains("srv/  opaque in layer 1"), "{text}");
    assert!(line("new").starts_with("+ 1                 1 B"), "{text}");
}

#[test]
fn large_trees_are_folded_where_nothing_happens() {
    let stack = Stack::new(2);
    for number in 0..300 {
        stack.lower(1).file(format!("doc/d/{number}"), "x");
    }
    stack.lower(1).file("etc/a", "1").file("etc/b", "2");
    stack.lower(0).file("etc/a", "3");
    let folded = text(&layers(&stack, &[]));
    assert!(
        folded.lines().any(|line| line.contains("300 B") && line.ends_with("doc/  300 files")),
        "{folded}"
    );
    assert!(folded.contains("─ a\n") && folded.contains("─ b\n"), "{folded}");
    assert!(folded.lines().count() < 20, "{folded}");
    assert!(text(&layers(&stack, &["--all"])).lines().count() > 300);
}

#[test]
fn names_cannot_act_on_the_terminal() {
    let stack = Stack::new(1);
    stack.lower(0).file("a\x1b[2J\nb", "");
    let text = text(&layers(&stack, &[]));
    assert!(text.contains(r"a\u{1b}[2J\nb"), "{text}");
}

/// A name that is a piece of a page is text in pages and pictures.
#[test]
fn names_are_text_in_pages_and_pictures() {
    const HOSTILE: [&str; 3] = ["</script><script>alert(1)", "<img src=x onerror=alert(2)>", "]]>&lt;\"'-->"];
    let stack = Stack::new(2);
    for (n, name) in HOSTILE.iter().enumerate() {
        stack.lower(0).file(format!("{name}/{n}"), "x");
        stack.lower(1).file(format!("{name}/{n}"), "y");
    }
    let at = |name: &str| stack.scratch().path().join(name).to_str().unwrap().to_owned();
    let lowers = format!("{}:{}", stack.lower(0).root().display(), stack.lower(1).root().display());
    let drawn = support::output(
        support::built(),
        &["layers", "--lower", &lowers, "--html", &at("page.html"), "--svg", &at("picture.svg")],
    );
    assert!(drawn.status.success(), "{drawn:?}");
    for file in ["page.html", "picture.svg"] {
        let text = std::fs::read_to_string(at(file)).unwrap();
        for piece in ["<script>alert", "<img", "onerror=alert(2)>", "]]>&lt;"] {
            assert!(!text.contains(piece), "{file} has {piece}");
        }
    }
}
