//! Checks that a machine can't do: they say so, and are counted.

use std::fs::File;
use std::io::Write;

/// Names the file, which is there, to which each skipped check adds a line.
pub const SKIPS: &str = "UNIONMOUNT_SKIPS";

/// Prints why a check, or the rest of it, does not apply here, and counts it. [`skip!`](crate::skip) also returns.
pub fn skipped(reason: &str) {
    eprintln!("SKIP: {reason}");
    if let Some(path) = std::env::var_os(SKIPS) {
        let line = format!("{}\n", reason.replace('\n', " "));
        let file = File::options().append(true).open(&path);
        // One write, as others add theirs at the same time.
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Prints and counts why a test, or the rest of it, does not apply here, and returns from it.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::skipped(&format!($($reason)*));
        return;
    }};
}

/// Returns from a test, saying so, unless the process is root of the initial user namespace.
#[macro_export]
macro_rules! needs_root {
    () => {
        if $crate::Privilege::current() != $crate::Privilege::Root {
            $crate::skip!("{}: needs root of the initial user namespace", module_path!());
        }
    };
}

/// Returns from a test, saying so, unless a program is installed.
#[macro_export]
macro_rules! needs_program {
    ($name:literal) => {
        if !$crate::is_installed($name) {
            $crate::skip!("{}: needs {}", module_path!(), $name);
        }
    };
}

/// Returns from a test, saying so, where a peer is under test, of which less is expected.
#[macro_export]
macro_rules! needs_unionmount {
    () => {
        if !$crate::Program::under_test().is_unionmount() {
            $crate::skip!("{}: the peers are not held to that", module_path!());
        }
    };
}

/// Returns from a test, saying so, where who has a file of a lower open is left behind by its copy-up (`passthrough=lower`).
#[macro_export]
macro_rules! needs_opens_that_follow {
    () => {
        if std::env::var("UNIONMOUNT_OPTIONS").is_ok_and(|options| options.contains("passthrough=lower")) {
            $crate::skip!("{}: passthrough=lower gives that up", module_path!());
        }
    };
}

/// Whether a program is found on PATH, or where Debian puts those of root, which an ordinary user's PATH lacks.
pub fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|dir| dir.join(name).is_file())
}
