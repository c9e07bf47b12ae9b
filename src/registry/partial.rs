//! Blobs that come in parts: after a break the rest is asked for, in this process or in a later one.
//!
//! What was read lies in a file of the store's `tmp/`, locked while somebody reads on; it stays there until the load publishes
//! it as a blob. Its content is checked with the rest, as if all had come at once: whoever finds it wrong throws it away.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use super::client::Client;
use super::error::RegistryError;
use super::transport::{TRIES, pause};
use crate::image::digest::{Digest, Hashing};
use crate::image::error::StoreError;
use crate::sys::flock::{Access, try_lock};

/// A file that grows to a blob, and belongs to one process as long as that lives.
#[derive(Debug, Clone)]
pub(super) struct Partial {
    path: PathBuf,
    file: Arc<File>,
    /// How much of it was there.
    had: u64,
}

impl Partial {
    /// Takes the file, with what it has; `None` while another process does.
    ///
    /// # Errors
    /// When it can't be made.
    pub(super) fn take(path: &Path, size: u64) -> io::Result<Option<Partial>> {
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = match open() {
            // Whoever had it was killed when it was just becoming a blob, which nobody writes to.
            Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied => {
                fs::set_permissions(path, Permissions::from_mode(0o600))?;
                open()?
            }
            opened => opened?,
        };
        if !try_lock(&file, Access::Exclusive)? {
            return Ok(None);
        }
        // Another process has adopted it between the two calls.
        let is_there = fs::symlink_metadata(path)
            .is_ok_and(|named| file.metadata().is_ok_and(|own| is_same(&named, &own)));
        if !is_there {
            return Ok(None);
        }
        let mut had = file.metadata()?.len();
        if had > size {
            file.set_len(0)?;
            had = 0;
        }
        Ok(Some(Partial { path: path.to_owned(), file: Arc::new(file), had }))
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells whether a part of it comes from before.
    pub(super) fn is_resumed(&self) -> bool {
        self.had > 0
    }

    /// Tells whether it is all there, and something else than it should be.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn is_wrong(&self, digest: &Digest, size: u64) -> io::Result<bool> {
        if self.file.metadata()?.len() != size {
            return Ok(false);
        }
        let mut hashing = Hashing::new(io::sink());
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(0))?;
        io::copy(&mut file, &mut hashing)?;
        Ok(hashing.finish().1 != *digest)
    }

    /// Throws it away.
    ///
    /// # Errors
    /// When it can't be removed.
    pub(super) fn discard(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.path) {
            // Adopted, and begun anew by somebody else.
            Ok(named) if !is_same(&named, &self.file.metadata()?) => return Ok(()),
            _ => {}
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Says which file failed: that it did says nothing of the registry.
    fn failed(&self, what: &'static str, error: io::Error) -> io::Error {
        RegistryError::Store(StoreError::io(what, &self.path)(error)).into()
    }
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// A blob as it is read: what is kept first, then what the registry sends.
pub(super) struct Resumed {
    client: Arc<Client>,
    digest: Digest,
    size: u64,
    at: u64,
    partial: Option<Partial>,
    stream: Option<Box<dyn Read + Send>>,
    /// How often nothing came since something came.
    vain: u32,
    failed: bool,
}

impl Resumed {
    pub(super) fn new(client: Arc<Client>, digest: Digest, size: u64, partial: Option<Partial>) -> Resumed {
        Resumed { client, digest, size, at: 0, partial, stream: None, vain: 0, failed: false }
    }

    /// Asks for what is missing.
    fn reach(&mut self) -> io::Result<&mut Box<dyn Read + Send>> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let (mut stream, begins) = self.client.blob(&self.digest, self.at)?;
                let skip = self.at.checked_sub(begins);
                let skip =
                    skip.ok_or_else(|| io::Error::other("the registry sends another part of the blob"))?;
                // A registry that knows no ranges sends all again.
                let skipped = io::copy(&mut stream.by_ref().take(skip), &mut io::sink())?;
                if skipped != skip {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                stream
            }
        };
        Ok(self.stream.insert(stream))
    }

    fn fetch(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let came = match self.reach() {
                Ok(stream) => stream.read(buffer),
                Err(error) => Err(error),
            };
            match came {
                Ok(count) if count > 0 => {
                    self.vain = 0;
                    return Ok(count);
                }
                came => {
                    self.stream = None;
                    self.vain += 1;
                    let error = came.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                    // What the registry answers has been tried often enough by the client.
                    let final_answer = error.get_ref().is_some_and(|inner| inner.is::<RegistryError>());
                    if final_answer || self.vain >= TRIES {
                        let broke_off = |error: &io::Error| RegistryError::Unreachable {
                            host: self.client.host().to_owned(),
                            why: format!(
                                "blob {} broke off at {} of {}: {error}",
                                self.digest, self.at, self.size
                            ),
                        };
                        return Err(RegistryError::of_reading(error, broke_off).into());
                    }
                    log::debug!("blob {}: broke off at {}: {error}; going on", self.digest, self.at);
                    thread::sleep(pause(self.vain, None).unwrap_or_default());
                }
            }
        }
    }
}

impl Read for Resumed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        if self.failed {
            return Err(io::Error::other("it could not be read before"));
        }
        let buffer = &mut buffer[..most];
        let had = self.partial.as_ref().map_or(0, |partial| partial.had);
        let read = if self.at < had {
            let partial = self.partial.as_ref();
            partial.map_or(Ok(0), |partial| {
                partial.file.read_at(buffer, self.at).map_err(|error| partial.failed("read it", error))
            })
        } else {
            self.fetch(buffer).and_then(|count| {
                if let Some(partial) = &self.partial {
                    let written = partial.file.write_all_at(&buffer[..count], self.at);
                    written.map_err(|error| partial.failed("write", error))?;
                }
                Ok(count)
            })
        };
        let count = read.and_then(|count| match count {
            // The file was cut meanwhile.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        });
        let count = count.inspect_err(|_| self.failed = true)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Gid, Uid, geteuid};

    #[test]
    fn what_was_just_becoming_a_blob_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("partial");
        fs::write(&path, "half").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        // Root opens anything.
        let nobody = 65534;
        if geteuid().is_root() {
            for path in [dir.path(), &path] {
                std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).unwrap();
            }
        }
        let taken = thread::spawn(move || {
            if geteuid().is_root() {
                let (uid, gid) = (Uid::from_raw(nobody), Gid::from_raw(nobody));
                rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            }
            let taken = Partial::take(&path, 10).unwrap().unwrap();
            taken.file.write_all_at(b"!", 4).unwrap();
            (taken.had, fs::read_to_string(&path).unwrap())
        });
        assert_eq!(taken.join().unwrap(), (4, "half!".to_owned()));
    }
}
