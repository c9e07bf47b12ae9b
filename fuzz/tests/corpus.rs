//! The targets on what is kept of their inputs, and on what little changes make of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use unionmount_fuzz::{TARGETS, Target};

/// The files of a target's corpus.
fn corpus(name: &str) -> Vec<PathBuf> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// A target on the files of its corpus, by name. Returns how many there are.
fn run(name: &str, target: Target) -> usize {
    let files = corpus(name);
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

/// So much may one input take, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a target reads now, and since when.
type Current = Mutex<Option<(Instant, Vec<u8>)>>;

/// For `UNIONMOUNT_FUZZ_SECONDS` (default: 2), all targets at once. `UNIONMOUNT_FUZZ_SEED` chooses the changes. What finds something
/// is kept beside the build, as `scripts/fuzz` keeps it.
#[test]
fn nothing_is_found_near_the_corpora() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let length = Duration::from_secs(number("UNIONMOUNT_FUZZ_SECONDS").unwrap_or(2));
    let seed = number("UNIONMOUNT_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("UNIONMOUNT_FUZZ_SEED={seed}");
    let end = Instant::now() + length;
    let current: Vec<Current> = TARGETS.iter().map(|_| Mutex::default()).collect();
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        let (send, ended) = mpsc::channel();
        for ((name, target), current) in TARGETS.iter().zip(&current) {
            let send = send.clone();
            scope.spawn(move || {
                let outcome = std::panic::catch_unwind(|| vary(name, *target, seed, end, current));
                send.send((name, outcome.unwrap_or_else(|_| kept(name, current)))).unwrap();
            });
        }
        drop(send);
        loop {
            match ended.recv_timeout(Duration::from_secs(1)) {
                Ok((name, Outcome::Ran(inputs))) => println!("{name}: {inputs} inputs"),
                Ok((name, Outcome::Found(at))) => found.push(format!("{name}: {}", at.display())),
                Err(RecvTimeoutError::Timeout) => end_if_stuck(&current),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    assert!(found.is_empty(), "see above, by {}", found.join(", "));
}

/// What became of a target.
enum Outcome {
    Ran(usize),
    Found(PathBuf),
}

/// Changes what is in a corpus, and lets the target read it, until the end: each once, however long that takes.
fn vary(name: &str, target: Target, seed: u64, end: Instant, current: &Current) -> Outcome {
    let inputs: Vec<_> = corpus(name).iter().map(|file| fs::read(file).unwrap()).collect();
    let mut rng = Rng::with_seed(seed);
    let mut count = 0;
    while count < inputs.len() || Instant::now() < end {
        let mut data = inputs[count % inputs.len()].clone();
        for _ in 0..rng.usize(1..=4) {
            change(&mut data, &inputs, &mut rng);
        }
        data.truncate(8192);
        *current.lock().unwrap() = Some((Instant::now(), data.clone()));
        target(&data);
        count += 1;
    }
    *current.lock().unwrap() = None;
    Outcome::Ran(count)
}

/// Makes one change: of bytes, of length, or by a piece of another input.
fn change(data: &mut Vec<u8>, inputs: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.usize(..=data.len());
    match rng.u8(..8) {
        0 if at < data.len() => data[at] ^= 1 << rng.u8(..8),
        1 if at < data.len() => data[at] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'.', b'0'][rng.usize(..8)],
        2 if at < data.len() => data[at] = data[at].wrapping_add(1),
        3 => data.truncate(at),
        4 => data.insert(at, rng.u8(..)),
        5 => {
            let end = rng.usize(at..=data.len().min(at + 64));
            data.drain(at..end);
        }
        6 => {
            let end = rng.usize(at..=data.len().min(at + 64));
            let piece = data[at..end].to_vec();
            data.splice(at..at, piece);
        }
        _ => {
            let other = &inputs[rng.usize(..inputs.len())];
            let from = rng.usize(..=other.len());
            let piece = &other[from..rng.usize(from..=other.len())];
            let end = data.len().min(at + if rng.bool() { piece.len() } else { 0 });
            data.splice(at..end, piece.iter().copied());
        }
    }
}

/// Keeps the input that a target ended with.
fn kept(name: &str, current: &Current) -> Outcome {
    let current = current.lock().unwrap_or_else(PoisonError::into_inner);
    let data = current.as_ref().map_or(&[][..], |(_, data)| data);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../fuzz/found");
    fs::create_dir_all(&dir).unwrap();
    let at = dir.join(format!("{name}-near-{}", std::process::id()));
    fs::write(&at, data).unwrap();
    Outcome::Found(at)
}

/// Ends the program where a target doesn't come to an end with an input, which is kept.
fn end_if_stuck(current: &[Current]) {
    for ((name, _), current) in TARGETS.iter().zip(current) {
        let since = current.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(since, _)| *since);
        if since.is_some_and(|since| since.elapsed() > PATIENCE)
            && let Outcome::Found(at) = kept(name, current)
        {
            eprintln!("{name}: not over after {PATIENCE:?}: {}", at.display());
            std::process::abort();
        }
    }
}
