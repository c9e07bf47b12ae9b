//! Which layers images share, and how their trees differ.

use std::fs;

use serde_json::Value;
use support::cli::Place;

use crate::{on_a_terminal, um};

/// `base:1`, on it `left:1` and `right:1`, on that `right:2`; and the container `c` of `right:2`.
fn family() -> Place {
    let place = Place::new();
    fs::write(place.at("a/f"), "of base\n").unwrap();
    fs::write(place.at("a/same"), "").unwrap();
    fs::create_dir(place.at("a/d")).unwrap();
    fs::write(place.at("a/d/old"), "old\n").unwrap();
    um(&place, "import -m 'the base' a base:1").ok();
    let build = |from: &str, to: &str, script: &str| {
        um(&place, &format!("create --pull never --name c {from} sh -c 'a  long  line'")).ok();
        place.sh(&format!("cd store/containers/*/diff && {script}")).ok();
        um(&place, &format!("commit -m 'made {to}' c {to}")).ok();
        um(&place, "rm c").ok();
    };
    build("base:1", "left:1", "echo left > g");
    build("base:1", "right:1", "echo right > g && mknod f c 0 0 && mkdir -p d && echo new > d/new");
    build("right:1", "right:2", "echo right > h");
    um(&place, "create --pull never --name c right:2 sh").ok();
    place
}

/// Without ids, which differ by the time at which an image was made.
fn without_ids(text: &str) -> String {
    let is_id = |word: &str| word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let word = |word: &str| if is_id(word) { "ID".to_owned() } else { word.to_owned() };
    text.lines()
        .map(|line| line.split(' ').map(word).collect::<Vec<_>>().join(" ").trim_end().to_owned() + "\n")
        .collect()
}

#[test]
fn images_that_begin_with_the_same_layers_share_a_branch() {
    let place = family();
    let tree = without_ids(&um(&place, "image tree").ok().out);
    let expected = "\
ID        12 B  in 4 images  the base (unionmount import)
├─ ▸ base:1  ID
├─ ID      5 B               made left:1 (sh -c a long line)
│  └─ ▸ left:1  ID
└─ ID     10 B  in 2 images  made right:1 (sh -c a long line)
   ├─ ▸ right:1  ID
   └─ ID   6 B               made right:2 (sh -c a long line)
      └─ ▸ right:2  ID  (c)
4 images, 4 layers: 33 B, 22 B of it in layers that several images share
";
    assert_eq!(tree, expected, "{tree}");
    assert_eq!(tree, without_ids(&um(&place, "images --tree").ok().out));
    // Only some of them.
    let some = um(&place, "images --tree --filter reference=left").ok().out;
    assert!(some.contains("▸ left:1") && !some.contains("right") && !some.contains("in 2"), "{some}");
    um(&place, "import b other:1").ok();
    let related = um(&place, "image tree right:1").ok().out;
    assert!(related.contains("base:1") && !related.contains("other:1"), "{related}");
    let json: Value = serde_json::from_str(&um(&place, "image tree --json left:1").ok().out).unwrap();
    assert_eq!(json[0]["in_images"], 4);
    assert_eq!(json[0]["above"][1]["above"][0]["images"][0]["containers"][0], "c");
    um(&place, "image tree nosuch").refused(1, &["nosuch"]);
    // Nothing is wider than the terminal.
    for columns in [60, 80] {
        let seen = on_a_terminal(&place, columns, "./unionmount --root store image tree");
        for line in seen.out.lines().map(|line| line.trim_end_matches('\r')) {
            assert!(line.chars().count() <= columns.into() && !line.ends_with(' '), "{line:?}");
        }
        assert!(columns > 60 || seen.out.contains('…'), "{seen:?}");
    }
}

#[test]
fn an_image_is_compared_with_another() {
    let place = family();
    let diff = |line: &str| um(&place, &format!("image diff {line}")).ok().out;
    assert_eq!(diff("base:1 base:1"), "");
    assert_eq!(diff("base:1 left:1"), "A /g\n");
    assert_eq!(diff("left:1 base:1"), "D /g\n");
    assert_eq!(diff("left:1 right:2"), "C /d\nA /d/new\nD /f\nC /g\nA /h\n");
    assert!(diff("--patch left:1 right:2").contains("-left\n+right\n"));
    assert!(diff("--stat left:1 right:2").contains("/g | +1 -1"));
    let json: Value = serde_json::from_str(&diff("--json left:1 right:2")).unwrap();
    assert_eq!(json[0]["path"], "/d");
    assert_eq!((&json[2]["change"], &json[2]["type"]), (&"deleted".into(), &"file".into()));
    // The same content in other layers, at another time.
    place.sh("mkdir flat && cp -r a/. flat && rm flat/f && touch -d 2001-01-01 flat/same && echo new > flat/d/new && echo right > flat/g && echo right > flat/h").ok();
    um(&place, "import flat flat:1").ok();
    assert_eq!(diff("right:2 flat:1"), "");
    place.sh("chmod 600 flat/same && rm -r flat/d && echo x > flat/d").ok();
    um(&place, "import flat flat:2").ok();
    assert_eq!(diff("right:2 flat:2"), "C /d\nC /same\n");
    // What took the place of a file is told with all that is in it.
    assert_eq!(diff("flat:2 right:2"), "C /d\nA /d/new\nA /d/old\nC /same\n");
    um(&place, "image diff right:2 nosuch").refused(1, &["nosuch"]);
    um(&place, "image diff right:2").refused(2, &["IMAGE"]);
}
