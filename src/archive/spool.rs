//! What a stream was decoded to, kept in a file without a name: it goes with the mount, whatever its end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, openat};

/// A stream that is kept as it is read.
pub(super) struct Spool<'a> {
    stream: Box<dyn Read + Send + 'a>,
    file: File,
}

impl<'a> Spool<'a> {
    /// Makes the file in the cache directory; on an error, its place is told.
    pub(super) fn new(stream: Box<dyn Read + Send + 'a>) -> Result<Spool<'a>, (PathBuf, io::Error)> {
        let dir = cache_dir();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        let file = made.and_then(|()| nameless(&dir)).map_err(|error| (dir, error))?;
        Ok(Spool { stream, file })
    }

    /// Returns the file with all that was read.
    pub(super) fn finish(self) -> File {
        self.file
    }
}

impl Read for Spool<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.file.write_all(&buffer[..count])?;
        Ok(count)
    }
}

/// `$XDG_CACHE_HOME/unionmount`, or `~/.cache/unionmount`; /var/cache/unionmount of root, and where there is no home.
fn cache_dir() -> PathBuf {
    let env = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home =
        || env("HOME").filter(|_| !rustix::process::geteuid().is_root()).map(|home| home.join(".cache"));
    env("XDG_CACHE_HOME").or_else(home).unwrap_or_else(|| "/var/cache".into()).join("unionmount")
}

fn nameless(dir: &PathBuf) -> io::Result<File> {
    let opened = openat(
        rustix::fs::CWD,
        dir,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    );
    match opened {
        Ok(file) => Ok(file.into()),
        // A filesystem that knows no such files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => tempfile::tempfile_in(dir),
        Err(errno) => Err(errno.into()),
    }
}
