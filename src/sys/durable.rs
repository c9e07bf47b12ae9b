//! Small files that are whole whenever the power fails.

use std::fs::{File, rename};
use std::io::{Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes `file` in `dir` so that it has the old content or the new one, on the disk. Nobody else may write in `dir`, and nobody
/// at the same time the same file.
///
/// # Errors
/// Those of writing and of rename(2).
pub fn write_durably(dir: &Path, file: &Path, content: &[u8]) -> Result<()> {
    let new = file.with_extension("new");
    let mut writing = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    writing.write_all(content)?;
    writing.sync_all()?;
    rename(&new, file)?;
    File::open(dir)?.sync_all()
}
