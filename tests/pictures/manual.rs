//! The pictures of the manual, of real output: `scripts/pictures` makes them anew, and here they are found current.
//!
//! What differs from run to run (times, sizes of directories) doesn't count: see [`crate::screen::shape`].

use std::path::{Path, PathBuf};

use crate::screen::{draw, shape};
use crate::terminal::Terminal;
use support::{self, Scratch};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures")
}

/// Writes the picture where `scripts/pictures` asks for that; else compares.
#[track_caller]
fn check(name: &str, svg: &str) {
    let file = directory().join(name);
    if std::env::var_os("UNIONMOUNT_WRITE_PICTURES").is_some() {
        std::fs::create_dir_all(directory()).unwrap();
        std::fs::write(file, svg).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert_eq!(
        shape(&there),
        shape(svg),
        "{} shows no longer what the program prints: scripts/pictures makes it anew",
        file.display()
    );
}

/// The layers of the README's session, and what was written on top of them.
fn session(scratch: &Scratch) {
    let made = "mkdir -p base/etc app/etc patch/etc rw/etc
        echo debian >base/etc/os; echo 'port = 80' >app/etc/app.conf; echo 'port = 8080' >patch/etc/app.conf
        cp patch/etc/app.conf rw/etc/app.conf; echo 'tls = on' >>rw/etc/app.conf; mknod rw/etc/os c 0 0";
    let output =
        std::process::Command::new("sh").args(["-euc", made]).current_dir(scratch.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// An image whose build has left 30 MiB behind.
fn fat(scratch: &Scratch) {
    let made = "mkdir -p base/etc base/usr/bin base/var/lib/apt/lists tools/usr/bin tools/src clean app/srv/app
        head -c 4000000 /dev/zero >base/usr/bin/bash; echo debian >base/etc/os
        head -c 9000000 /dev/zero >base/var/lib/apt/lists/debian_main
        head -c 31457280 /dev/zero >tools/src/toolchain.tar.xz; head -c 6000000 /dev/zero >tools/usr/bin/cc
        mkdir -p clean/var/lib/apt/lists clean/src
        mknod clean/src/toolchain.tar.xz c 0 0; mknod clean/var/lib/apt/lists/debian_main c 0 0
        head -c 250000 /dev/zero >app/srv/app/server; echo 'port = 80' >app/srv/app/app.conf; ln -s server app/srv/app/run";
    let output =
        std::process::Command::new("sh").args(["-euc", made]).current_dir(scratch.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What a terminal shows after a command, which stands above it as it was typed.
fn after(scratch: &Scratch, (columns, lines): (u32, u32), command: &str, until: &[&str]) -> String {
    let typed = format!("printf '\\033[2m$\\033[0m \\033[1m%s\\033[0m\\n' \"{command}\"; {command}");
    let terminal = Terminal::run(scratch.path(), columns, lines, &typed);
    terminal.shows(until);
    terminal.looks()
}

#[test]
fn explain_is_as_the_manual_shows_it() {
    let scratch = Scratch::new();
    session(&scratch);
    let command = "unionmount explain --lower patch:app:base --upper rw /etc/app.conf /etc/os";
    let screen =
        after(&scratch, (112, 40), command, &["create  makes it in the upper in place of the whiteout"]);
    check(
        "explain.svg",
        &draw(&screen, "unionmount explain tells what each layer has of a path, and which one is shown"),
    );
}

#[test]
fn layers_are_as_the_manual_shows_them() {
    let scratch = Scratch::new();
    fat(&scratch);
    let command = "unionmount layers --no-pager --lower app:clean:tools:base";
    let screen = after(&scratch, (96, 60), command, &["efficiency"]);
    check(
        "layers.svg",
        &draw(
            &screen,
            "unionmount layers: a table of the layers, their largest files, and why bytes are wasted",
        ),
    );
}

#[test]
fn the_interactive_view_is_as_the_manual_shows_it() {
    let scratch = Scratch::new();
    fat(&scratch);
    let terminal = Terminal::run(scratch.path(), 96, 26, "unionmount layers -i --lower app:clean:tools:base");
    terminal.shows(&["all layers"]);
    terminal.keys(&["w"]);
    terminal.shows(&["/src/toolchain.tar.xz", "wasted"]);
    check(
        "interactive.svg",
        &draw(
            &terminal.looks(),
            "unionmount layers --interactive: the layers, the tree with a deleted file chosen, and its history",
        ),
    );
}

#[test]
fn the_textbooks_picture_is_as_the_manual_shows_it() {
    let scratch = Scratch::new();
    session(&scratch);
    let output = std::process::Command::new(crate::agreement::unionmount())
        .args(["layers", "--lower", "patch:app:base", "--upper", "rw", "--svg", "stack.svg"])
        .current_dir(scratch.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    check("stack.svg", &std::fs::read_to_string(scratch.path().join("stack.svg")).unwrap());
}
