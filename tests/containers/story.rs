//! The story of docs/images.md is true.

use std::fs;
use std::path::Path;

use crate::{Bed, Success, lacking};

#[test]
fn the_story_of_images_happens_as_it_is_told() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let chapter = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images.md")).unwrap();
    let block =
        |at| chapter.split("```sh").nth(at).and_then(|rest| rest.split("```").next()).expect("commands");
    let bed = Bed::new();
    let run = |script| bed.sh(&format!("PATH=$PWD:$PATH; set -e; {script}")).success().out;
    let out = run(block(1));
    for told in [
        "A /etc/app.conf\n",
        "A /srv/index\n",
        "\nport = 8080\n",
        "C /srv/index\n",
        "D /etc/os\n",
        "\nwelcome\nsold\n",
        "port 8080",
        "demo         4",
    ] {
        assert!(out.contains(told), "{told:?} is not told in:\n{out}");
    }
    // The layers of demo:2 begin those of demo:3.
    let lists: Vec<&str> = out.lines().filter(|line| line.starts_with("[\"sha256:")).collect();
    assert_eq!(lists.len(), 2);
    assert!(lists[1].starts_with(lists[0].trim_end_matches(']')), "{lists:?}");
    // Five layers on disk: the bed's image has one, demo:4 has four.
    assert_eq!(fs::read_dir(bed.place.at("home/store/layers")).unwrap().count(), 5);

    // The second block goes on where the first ended.
    let out = run(block(2));
    for told in ["Loaded image: demo:4\n", "Untagged: demo:4\n", "all is well\n"] {
        assert!(out.contains(told), "{told:?} is not told in:\n{out}");
    }
    let names = bed.um(&["images"]).ok().out;
    assert!(names.contains("registry.example/team/demo"), "{names}");
    assert!(!names.contains("demo         4"), "{names}");
    assert_eq!(bed.um(&["ps", "-aq"]).ok().out, "");
    bed.place.wait_for_no_daemon();
}
