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
