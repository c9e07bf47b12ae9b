//! What takes long shows how far it is, where a terminal reads; prune tells how much would go before it asks.

use std::process::Command;

use crate::lab::{Lab, program};
use support::cli::{Ended, run};

/// Runs the program on a terminal (script(1) makes it), and answers its questions. What it writes comes with the terminal's
/// own line ends and colours.
fn on_a_terminal(lab: &Lab, arguments: &str, answer: &str) -> Ended {
    let line = format!("stty rows 40 cols 100 -echo; {} {arguments}", program().to_str().unwrap());
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"printf "$ANSWER" | script -qefc "$LINE" /dev/null"#])
        .env("ANSWER", answer)
        .env("LINE", line)
        .env("TERM", "xterm")
        .env("UNIONMOUNT_ROOT", lab.store())
        .env_remove("RUST_LOG")
        .current_dir(lab.path());
    run(&mut command)
}

/// A store with an image without a name, of 3 MB that compress badly, and the same in an archive that is compressed as a whole.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.out(
        r#"mkdir tree; head -c 3000000 /dev/urandom >tree/noise
        "$UM" import tree web:1 >/dev/null; "$UM" save -o web.tar web:1; gzip -1 <web.tar >web.tar.gz
        echo more >tree/more; "$UM" import tree web:1 >/dev/null"#,
    );
    lab
}

#[test]
fn prune_tells_how_much_would_go_before_it_asks() {
    let lab = lab();
    let before = lab.out("find store -type f | sort | sha256sum");
    let asked = on_a_terminal(&lab, "prune", r"n\n");
    assert!(asked.out.contains("Delete all images without a name, and what nothing needs: 1 image, 1 layer, 3 blobs and 0 leftovers, "), "{asked:?}");
    assert!(asked.out.contains("MiB? [y/N]"), "{asked:?}");
    assert_eq!(lab.out("find store -type f | sort | sha256sum"), before, "a no is a no");
    let pruned = on_a_terminal(&lab, "prune", r"y\n");
    assert!(pruned.out.contains("Removed 1 image, 1 layer, 3 blobs and 0 leftovers: "), "{pruned:?}");
    // What it said before is what it did.
    let size = |text: &str, before: &str, after: &str| {
        let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}"));
        rest.split_once(after).unwrap().0.to_owned()
    };
    assert_eq!(size(&asked.out, "leftovers, ", "?"), size(&pruned.out, "leftovers: ", " freed"));
    let nothing = on_a_terminal(&lab, "prune", "");
    assert!(nothing.out.contains("There is nothing to remove"), "{nothing:?}");
}

#[test]
fn a_compressed_archive_shows_from_the_beginning_how_far_it_is() {
    let lab = lab();
    let loaded = on_a_terminal(&lab, "load web.tar.gz", "");
    assert!(loaded.out.contains("reading [") && loaded.out.contains("Loaded image: "), "{loaded:?}");
    let piped = on_a_terminal(&lab, "load < web.tar", "");
    assert!(!piped.out.contains("reading ["), "a plain archive is not read twice: {piped:?}");
    // Where no terminal reads, nothing is drawn.
    lab.um(&["load", "web.tar.gz"]).ok();
}

#[test]
fn verify_shows_how_far_it_is() {
    let lab = lab();
    let verified = on_a_terminal(&lab, "verify", "");
    assert!(verified.out.contains("checking [") && verified.out.contains("all is well"), "{verified:?}");
    lab.um(&["verify"]).ok();
}
