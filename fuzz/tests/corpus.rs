//! The targets on what is kept of their inputs, and on what little changes make of it.

use std::fs;
use std::path::Path;

use unionmount_fuzz::{TARGETS, Target};

/// A target on the files of its corpus, by name. Returns how many there are.
fn run(name: &str, target: Target) -> usize {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in &files {
        let data = fs::read(file).unwrap();
        let ended = std::panic::catch_unwind(|| target(&data));
        assert!(ended.is_ok(), "{name}: see above, by {}", file.display());
    }
    files.len()
}

#[test]
fn nothing_is_found_in_the_corpora() {
    std::thread::scope(|scope| {
        for (name, target) in TARGETS {
            scope.spawn(move || {
                let count = run(name, *target);
                assert!(count > 0, "{name} has no corpus");
                println!("{name}: {count} inputs");
            });
        }
    });
}
