//! Where messages go: stderr, or a file; how many: `-v`, or RUST_LOG.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use env_logger::{Builder, Env, Target};
use log::{LevelFilter, Log, Metadata, Record};

use super::{Failure, say};
use crate::sys::output::open_to_append;
use crate::union::escaped_path::escaped;

/// What the user wants to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// 0: warnings; 1: what the daemon does; 2: why; 3: all.
    pub verbosity: u8,
    /// The file to which messages are added.
    pub file: Option<PathBuf>,
}

/// Starts logging for a verb that works and ends: warnings go to stderr, in the form of its errors. Does nothing when logging
/// has been started already.
pub(super) fn start_for_verb() {
    let mut builder = Builder::new();
    builder.filter_level(LevelFilter::Warn);
    builder.parse_env(Env::new());
    builder.format(|line, record| writeln!(line, "{}: {}", super::NAME, escaped(&record.args().to_string())));
    builder.try_init().unwrap_or_default();
}

/// The file to which messages go, for another process that goes on with the mount.
static FILE: OnceLock<File> = OnceLock::new();

/// Returns the file to which messages go, if it is one.
pub(super) fn file() -> Option<&'static File> {
    FILE.get()
}

/// Starts logging, once. RUST_LOG goes before `-v`.
pub(super) fn start(options: &LogOptions) -> Result<(), Failure> {
    let file = options.file.as_ref().map(|path| {
        open_to_append(path).map_err(|error| {
            Failure::failed(format!("log file {}: cannot be opened: {error}", path.display()))
        })
    });
    start_in(options, file.transpose()?)
}

/// Does the same in a file that is open.
pub(super) fn start_in(options: &LogOptions, file: Option<File>) -> Result<(), Failure> {
    let level = match options.verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let mut builder = Builder::new();
    builder.filter_level(level);
    builder.parse_env(Env::new());
    // Names in messages come from anywhere.
    builder.format(|out, record| {
        let (level, target) = (record.level(), record.target());
        let message = escaped(&record.args().to_string());
        writeln!(out, "[{} {level:<5} {target}] {message}", out.timestamp())
    });
    if let Some(file) = file {
        let other = file.try_clone().map_err(|error| Failure::failed(format!("log file: {error}")))?;
        // There is one a process.
        FILE.set(other).unwrap_or_default();
        builder.target(Target::Pipe(Box::new(file)));
    }
    builder.try_init().map_err(Failure::failed)
}

/// Tells warnings as errors are told, one line each: for verbs that end by themselves.
pub(super) fn tell_warnings() {
    if log::set_logger(&Told).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

struct Told;

impl Log for Told {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say(&record.args().to_string());
        }
    }

    fn flush(&self) {}
}
