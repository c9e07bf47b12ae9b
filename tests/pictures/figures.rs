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
    assert_eq!(lines[3], ["7", "B", "2", "3", "1", "deleted", "srv/"], "{text}");
    assert!(lines.last().unwrap().join(" ").contains("efficiency 80.7 %"), "{text}");
    assert!(!text.contains('\x1b'), "no colours into a pipe");
}

/// Three layers whose files are deleted, replaced, and copied for another mode alone.
fn wasteful() -> Stack {
    let stack = Stack::new(3);
    for name in ["a", "b/c"] {
        for (layer, mode) in [(2, 0o644), (0, 0o755)] {
            stack.lower(layer).file(format!("usr/share/{name}"), vec![b's'; 4000]);
            stack.lower(layer).mode(format!("usr/share/{name}"), mode);
        }
    }
    stack.lower(2).file("var/lib/apt/lists/debian", vec![b'l'; 3000]).file("tmp/src.tar", vec![b't'; 2000]);
    stack.lower(2).file("etc/version", vec![b'1'; 1000]);
    stack
        .lower(1)
        .whiteout("tmp/src.tar", WhiteoutForm::Device)
        .whiteout("var/lib/apt/lists/debian", WhiteoutForm::Device);
    stack.lower(1).file("etc/version", vec![b'2'; 1000]);
    stack
}

#[test]
fn waste_is_told_by_its_causes() {
    let stack = wasteful();
    let text = text(&layers(&stack, &[]));
    let (_, waste) = text.split_once("\nWaste\n").unwrap();
    let names: Vec<&str> =
        stack.lowers().iter().map(|l| l.root().file_name().unwrap().to_str().unwrap()).collect();
    let expected = format!(
        "    7.81 KiB  2 files  usr/share/
              the same bytes, only the mode differs
              made in layer 3: {2}
              wasted in layer 1: {0}
              saved by: COPY --chmod, or chmod in the step that brings the files
    2.93 KiB  1 file  var/lib/apt/lists/debian
              package lists and caches, deleted in a later step
              made in layer 3: {2}
              wasted in layer 2: {1}
              saved by: delete in the step that makes it, with && in one RUN
    1.95 KiB  1 file  tmp/src.tar
              deleted in a later step
              made in layer 3: {2}
              wasted in layer 2: {1}
              saved by: delete in the step that makes it, with && in one RUN
      1000 B  1 file  etc/version
              replaced by another version
",
        names[0], names[1], names[2]
    );
    assert!(waste.starts_with(&expected), "{waste}\nis not\n{expected}");
    assert!(text.trim_end().lines().last().unwrap().contains("efficiency"), "{text}");
    assert!(text.contains("\nLargest files\nlayer 1  "), "{text}");
}

/// `rm -r DIR && mkdir DIR` in one step leaves an opaque directory: what was in it is deleted, unless it is there again.
#[test]
fn a_directory_that_is_made_anew_deletes_what_is_not_there_again() {
    for (again, told) in [("other", "deleted in a later step"), ("file", "replaced by another version")] {
        let stack = Stack::new(2);
        stack.lower(1).file("srv/site/file", vec![b'1'; 3000]);
        stack.lower(0).opaque("srv/site", OpaqueForm::of_process()).file(format!("srv/site/{again}"), "2");
        let text = text(&layers(&stack, &[]));
        assert!(text.contains(&format!("2.93 KiB  1 file  srv/site/\n              {told}\n")), "{text}");
    }
}

#[test]
fn what_is_shown_fits_the_terminal() {
    let stack = Stack::new(2);
    let deep = format!("usr/lib/{}/the-end", "a-rather-long-name/".repeat(6).trim_end_matches('/'));
    stack
        .lower(1)
        .file(&deep, vec![b'x'; 5000])
        .file("写时复制/写时复制写时复制写时复制写时复制写时复制写时复制写时复制/f", "x");
    stack.lower(0).file(&deep, vec![b'y'; 5001]);
    let lowers: Vec<String> = stack.lowers().iter().map(|l| l.root().display().to_string()).collect();
    for columns in [60usize, 80, 200] {
        for view in ["", "--waste", "--depth 2"] {
            let line = format!(
                "stty rows 50 cols {columns}; {} layers --lower {} {view}",
                unionmount().display(),
                lowers.join(":")
            );
            let shown =
                std::process::Command::new("script").args(["-qefc", &line, "/dev/null"]).output().unwrap();
            let shown = String::from_utf8(shown.stdout).unwrap();
            let plain = anstream::adapter::strip_str(&shown).to_string();
            assert!(plain.contains("efficiency"), "{plain}");
            for line in plain.lines().filter(|line| !line.contains("efficiency")) {
                let line = line.trim_end_matches('\r');
                let width = unicode_width::UnicodeWidthStr::width(line);
                assert!(width <= columns && !line.ends_with(' '), "{columns} {view}: {width}: {line:?}");
            }
            assert!(
                columns > 80 || view == "--depth 2" || plain.contains("…") && plain.contains("the-end"),
                "{plain}"
            );
        }
    }
}

#[test]
fn a_tree_is_as_deep_as_it_is_asked_for() {
    let stack = Stack::new(1);
    stack.lower(0).file("a/b/c/d", "x").file("a/e", "y");
    let text = text(&layers(&stack, &["--depth", "2"]));
    assert!(text.contains("─ a/\n") && text.contains("b/  1 file\n") && !text.contains("─ c/"), "{text}");
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
    let output = layers(&stack, &["--tree"]);
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
    let folded = text(&layers(&stack, &["--tree"]));
    assert!(
        folded.lines().any(|line| line.contains("300 B") && line.ends_with("doc/  300 files")),
        "{folded}"
    );
    assert!(folded.contains("─ a\n") && folded.contains("─ b\n"), "{folded}");
    assert!(folded.lines().count() < 20, "{folded}");
    assert!(text(&layers(&stack, &["--tree", "--all"])).lines().count() > 300);
}

#[test]
fn names_cannot_act_on_the_terminal() {
    let stack = Stack::new(1);
    stack.lower(0).file("a\x1b[2J\nb", "x");
    for arguments in [&[][..], &["--tree"], &["--all"]] {
        let text = text(&layers(&stack, arguments));
        assert!(text.contains(r"a\u{1b}[2J\nb"), "{text}");
    }
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
