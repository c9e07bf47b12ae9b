//! Data of files: descriptors that follow copy-up.
//!
//! A descriptor belongs to the node, not to an open: reads and writes name an offset, so all opens share it, and when
//! the node is copied up the descriptor of the lower's file is forgotten and the next read opens the copy. So a file
//! that was opened before the copy-up sees what is written after it.
//!
//! The descriptors are kept in a bounded cache.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::copy::write_all_at;
use crate::sys::object::{At, Kind, SetTime, Stat, Writable, set_unnoticed};
use crate::sys::splice::Pipe;
use crate::union::Union;
use crate::union::change::copy_up::completion::{METACOPY, REDIRECT};
use crate::union::change::lend::{open_owned, upper_marks};
use crate::union::change::part::Part;
use crate::union::change::upper::changed;
use crate::union::data::content::Content;
use crate::union::data::fitting::{Fitted, together};
use crate::union::data::half::Half;
use crate::union::data::half_mark::HALF;
use crate::union::events::EventKind;
use crate::union::lookup::found::DataAt;
use crate::union::nodes::deferred_free::is_full;
use crate::union::nodes::node::Node;
use crate::union::nodes::verified::Object;
use crate::union::quota::taken::Growth;
use crate::union::second_chance::{SecondChance, Since};
use crate::union::stack::access::LayerData;

/// A descriptor for the data of a node.
#[derive(Debug, Clone)]
struct DataFd {
    data: LayerData,
    writable: bool,
    used: Arc<AtomicBool>,
}

/// The descriptors of file data, by node number.
#[derive(Debug)]
pub struct Files {
    open: DashMap<u64, DataFd>,
    order: SecondChance<u64>,
}

impl Files {
    /// Makes a cache of about `limit` descriptors.
    pub fn new(limit: usize) -> Files {
        Files { open: DashMap::new(), order: SecondChance::new(limit) }
    }

    /// Closes the node's descriptor: it is copied up, or forgotten.
    pub fn forget(&self, ino: u64) {
        self.open.remove(&ino);
    }

    /// Closes all descriptors.
    pub fn close(&self) {
        self.open.clear();
    }

    /// Closes those that are open for writing of files that `wanted` holds of. Returns the files (O_PATH).
    pub(in crate::union) fn close_those(&self, wanted: impl Fn(&Stat) -> bool) -> Vec<OwnedFd> {
        let written = self.open.iter().filter(|known| known.writable);
        let open: Vec<_> = written.map(|known| (*known.key(), known.data.clone())).collect();
        let close = |(ino, data): (u64, LayerData)| {
            let at = At::Fd(data.host()?.as_fd());
            at.stat().ok().filter(&wanted)?;
            let file = at.pin_apart().ok()?;
            self.forget(ino);
            Some(file)
        };
        open.into_iter().filter_map(close).collect()
    }

    /// Returns how many descriptors are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Tells whether none are open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(in crate::union) fn get(&self, ino: u64, write: bool) -> Option<LayerData> {
        let known = self.open.get(&ino)?;
        if write && !known.writable {
            return None;
        }
        known.used.store(true, Ordering::Relaxed);
        Some(known.data.clone())
    }

    fn keep(&self, ino: u64, data: LayerData, writable: bool) -> LayerData {
        let known = DataFd { data: data.clone(), writable, used: Arc::new(AtomicBool::new(true)) };
        if self.open.insert(ino, known).is_some() {
            return data;
        }
        let over = self.order.add(ino, |oldest| match self.open.get(oldest) {
            Some(known) if known.used.swap(false, Ordering::Relaxed) => Since::Used,
            Some(_) => Since::Idle,
            None => Since::Gone,
        });
        for ino in over {
            self.open.remove(&ino);
        }
        data
    }
}

/// The error of a call that needs a descriptor.
const NO_FD: FsError = FsError::Unsupported("that on a file of a layer which is not a directory");

/// What the marks of a file say of its data.
enum Opened {
    /// Some of its blocks are its own.
    Half(Arc<Half>),
    /// All of them are below.
    Below,
    /// All of them are its own.
    Whole,
}

/// A file of the host that holds all data of a node.
#[derive(Debug, Clone)]
pub struct RealFile {
    /// A descriptor of it.
    pub fd: Arc<OwnedFd>,
    /// Whether it holds them as long as the mount lives.
    pub settled: bool,
}

/// How a write is to be done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Write {
    /// The writer's privileges ask for setuid and setgid to go.
    pub kill: bool,
    /// The kernel wrote the data to its cache earlier, and tells the time of that itself: the modification time stays.
    pub late: bool,
    /// The kernel had the data in its cache: how much of them was written can't be told, only that not all was.
    pub cached: bool,
}

impl Union {
    /// Returns a descriptor for the node's data, copied up first if it is to be written.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for data of a layer that is no directory of the host.
    pub fn data_fd(&self, node: &Arc<Node>, write: bool) -> Result<Arc<OwnedFd>> {
        self.data(node, write)?.host().cloned().ok_or(NO_FD)
    }

    /// Returns the node's data, open, copied up whole first if they are to be written.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for reading what is in two files: see [`Union::content`].
    pub fn data(&self, node: &Arc<Node>, write: bool) -> Result<LayerData> {
        if write && self.files.get(node.ino, write).is_none() {
            self.ensure_upper(node)?;
        }
        match self.parts(node, write)? {
            Content::One(data) => Ok(data),
            Content::Half(_) => Err(FsError::Unsupported("that on a half-copied file")),
        }
    }

    /// Returns where the node's data are, which are copied up first as far as a write needs them if they are to be
    /// written.
    pub(in crate::union) fn parts(&self, node: &Arc<Node>, write: bool) -> Result<Content> {
        match node.kind {
            Kind::File => {}
            Kind::Directory => return Err(FsError::IsADirectory),
            _ => return Err(FsError::Invalid("not a regular file")),
        }
        loop {
            if let Some(data) = self.files.get(node.ino, write) {
                return Ok(Content::One(data));
            }
            if let Some(half) = self.halves.get(node.ino)
                && (!write || self.in_upper(node))
            {
                return Ok(Content::Half(half));
            }
            if write {
                self.ensure_upper_part(node, Part::Written)?;
            }
            let place = node.place.read();
            if let Some(data) = self.files.get(node.ino, write) {
                return Ok(Content::One(data));
            }
            if let Some(half) = self.halves.get(node.ino) {
                return Ok(Content::Half(half));
            }
            if let Some(data) = self.metacopies.get(&node.ino).map(|d| d.clone()) {
                // A lookup may have met it before it got its data, and told of it after.
                let object = self.object_at(node, &place)?;
                match self.open_half(node, &object, &data)? {
                    Opened::Half(half) => return Ok(Content::Half(half)),
                    Opened::Whole => {}
                    Opened::Below if write => continue, // a lookup told of it only now
                    Opened::Below => {
                        let elsewhere = self.open_data_elsewhere(&data)?;
                        return Ok(Content::One(self.files.keep(node.ino, elsewhere, false)));
                    }
                }
            }
            let (data, writable) = self.open_data(node, &place, write)?;
            if writable
                && !node.has_no_stray_marks()
                && let Some(file) = data.host()
            {
                self.unmark_empty(node, self.upper()?.own_file(file.as_fd()))?;
            }
            self.note_lending(node);
            return Ok(Content::One(self.files.keep(node.ino, data, writable)));
        }
    }

    /// Takes the marks of a metacopy from an empty file of the upper that is about to be written to: its data would be taken for
    /// those below. A file that was being truncated when the daemon was killed has them still.
    fn unmark_empty(&self, node: &Node, object: Writable<'_>) -> Result<()> {
        let upper = self.upper()?;
        let is_plain = object.at().stat()?.size > 0 || !upper.caps().xattr || {
            let marks = upper_marks(object, self.belief)?;
            !marks.metacopy && marks.half.is_none()
        };
        if is_plain {
            // What becomes of it from now on takes its marks away.
            node.set_no_stray_marks();
            return Ok(());
        }
        for mark in [METACOPY, REDIRECT, HALF] {
            upper.drop_mark(object, mark)?;
        }
        // On the disk before any data are.
        upper.sync(open_owned(object, false, true)?.as_fd(), false)?;
        node.set_no_stray_marks();
        self.changed_by_itself(node);
        Ok(())
    }

    /// Opens what may be a half-copied file, whose place the caller has locked.
    fn open_half(&self, node: &Node, object: &Object, data: &DataAt) -> Result<Opened> {
        let mut otherwise = Opened::Whole;
        let half = self.halves.open(node.ino, || {
            // Read now: who had it open before may have made it shorter.
            let marks = self.marks_of(object)?;
            if marks.metacopy {
                otherwise = Opened::Below;
            }
            let Some(mark) = marks.half.filter(|_| marks.metacopy) else { return Ok(None) };
            let own = match object.writable() {
                Ok(own) => open_owned(own, true, self.no_atime)?,
                Err(_) => object.host()?.open_read()?,
            };
            // What is in no directory of the host isn't the file that it was when the copy was begun.
            let below = self.open_data_elsewhere(data)?.host().cloned().ok_or(FsError::Os(Errno::IO))?;
            Half::open(own, below, mark).map(Some)
        })?;
        if half.is_some() && object.writable().is_ok() {
            // Also one that an earlier mount has left.
            self.waiting.note(node.ino);
        }
        Ok(half.map_or(otherwise, Opened::Half))
    }

    /// Returns the node's file, if some of its blocks are its own and the others below: its own mark tells.
    pub(in crate::union) fn half(&self, node: &Arc<Node>) -> Result<Option<Arc<Half>>> {
        let Some(data) = self.metacopies.get(&node.ino).map(|data| data.clone()) else { return Ok(None) };
        if let Some(half) = self.halves.get(node.ino) {
            return Ok(Some(half));
        }
        let place = node.place.read();
        match self.open_half(node, &self.object_at(node, &place)?, &data)? {
            Opened::Half(half) => Ok(Some(half)),
            Opened::Below | Opened::Whole => Ok(None),
        }
    }

    /// Tells whether the file's data are in two places, so that no answer can be made of one.
    pub fn is_half(&self, node: &Node) -> bool {
        self.halves.get(node.ino).is_some()
    }

    /// Tells whether [`Union::read_to_pipe`] may be asked for the file.
    pub fn fits_pipes(&self, node: &Node) -> bool {
        self.halves.get(node.ino).is_none_or(|half| half.fits_pipes())
    }

    /// Returns a descriptor of a file of the upper itself, wherever its data are.
    pub(in crate::union) fn own_fd(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if node.kind != Kind::File || !self.metacopies.contains_key(&node.ino) {
            return self.data_fd(node, false);
        }
        self.with_object(node, |object| Ok(Arc::new(open_owned(object.writable()?, false, true)?)))
    }

    /// Takes a descriptor that was opened with the file's creation.
    pub(in crate::union) fn keep_data_fd(&self, node: &Node, fd: OwnedFd) {
        node.set_no_stray_marks();
        // Who reads the file while it is open reads by this one. An upper that refuses that has its access times noted, as
        // when the file is opened later.
        if self.no_atime
            && let Err(e) = set_unnoticed(fd.as_fd())
        {
            log::debug!("the access time of a new file is noted: {e}");
        }
        self.files.keep(node.ino, fd.into(), true);
    }

    /// Makes a file ready to be opened: copies it up if it is to be written, and truncates it if asked to. `kill`: setuid
    /// and setgid go then.
    pub fn open(&self, node: &Arc<Node>, flags: OFlags, kill: bool) -> Result<()> {
        if flags.contains(OFlags::TRUNC) {
            self.truncate(node, 0, false)?;
            self.tell_attribute(node, "size");
            return if kill { self.kill_privilege_bits(node) } else { Ok(()) };
        }
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            self.ensure_upper_part(node, Part::Written)?;
        }
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR) && !node.has_no_stray_marks() {
            // The kernel may write to it by itself.
            self.with_object(node, |object| self.unmark_empty(node, object.writable()?))?;
        }
        Ok(())
    }

    /// Makes a file so long. `kill`: setuid and setgid go.
    pub(in crate::union) fn truncate(&self, node: &Arc<Node>, size: u64, kill: bool) -> Result<()> {
        if !self.ensure_upper_part(node, Part::Beginning(size))? {
            self.upper()?.set_length(self.data_fd(node, true)?.as_fd(), size)?;
        }
        if kill { self.kill_privilege_bits(node) } else { Ok(()) }
    }

    /// Returns the one file that holds the node's data; `None` where no file of the host does, or several do. `unsettled`: also
    /// one from which a copy-up may move them, if no more than its place tells that it is there.
    pub fn real_file(&self, node: &Arc<Node>, unsettled: bool) -> Result<Option<RealFile>> {
        let settled = self.upper.is_none() || !self.in_lower(node);
        if !settled && (!unsettled || self.metacopies.contains_key(&node.ino)) {
            return Ok(None);
        }
        // A copy-up that comes between gives the copy, which is as good.
        Ok(self.data(node, false)?.host().cloned().map(|fd| RealFile { fd, settled }))
    }

    /// Tells whether the data of a file are those of a lower.
    pub fn in_lower(&self, node: &Node) -> bool {
        !self.in_upper(node) || self.metacopies.contains_key(&node.ino)
    }

    /// Tells whether the file can be read past the page cache (O_DIRECT).
    pub fn allows_direct(&self, node: &Arc<Node>) -> Result<bool> {
        let data = self.data(node, false)?;
        let Some(fd) = data.host() else { return Ok(false) };
        match At::Fd(fd.as_fd()).open_direct() {
            Err(Errno::INVAL) => Ok(false),
            opened => Ok(opened.map(|_| true)?),
        }
    }

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    pub fn read(&self, node: &Arc<Node>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.read_from(&self.parts(node, false)?, node, offset, buffer)
    }

    /// Does as [`Union::read`], for a program that opened the file with O_NOATIME: its access time stays.
    pub fn read_unnoticed(&self, node: &Arc<Node>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if node.kind != Kind::File || !self.in_upper(node) || self.metacopies.contains_key(&node.ino) {
            return self.read(node, offset, buffer);
        }
        let data = Content::One(self.with_object(node, |object| Ok(object.at().open()?))?);
        self.read_from(&data, node, offset, buffer)
    }

    fn read_from(&self, data: &Content, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        // Also after a part an error is one: the kernel takes a short answer for the end of the file and fills its pages with
        // zeros. It asks again, page by page, for what a failed readahead left out.
        let done = data.read_at(buffer, offset)?;
        self.events.tell(|| EventKind::Read { path: self.path_of(node).into(), offset, bytes: done as u64 });
        Ok(done)
    }

    /// Does as [`Union::read`], untold: [`Union::read_to_pipe`] has told of it, and the pipe can't be used.
    pub fn read_again(&self, node: &Arc<Node>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.parts(node, false)?.read_at(buffer, offset)
    }

    /// Does as [`Union::read`], but into an empty pipe, behind what `header` makes for the number of bytes that follow.
    /// `None` when that can't be done, for whatever reason: [`Union::read`] will tell, and the pipe is not empty then.
    pub fn read_to_pipe<H: AsRef<[u8]>>(
        &self,
        node: &Arc<Node>,
        (offset, size): (u64, u32),
        pipe: &Pipe,
        header: impl FnOnce(u32) -> H,
    ) -> Result<Option<u32>> {
        let len = match self.parts(node, false)? {
            Content::One(data) => {
                let Some(fd) = data.host() else { return Ok(None) };
                let there = At::Fd(fd.as_fd()).stat()?.size.saturating_sub(offset);
                let len = size.min(u32::try_from(there).unwrap_or(u32::MAX));
                if !pipe.fill(header(len).as_ref(), fd.as_fd(), offset, len as usize)? {
                    return Ok(None);
                }
                len
            }
            Content::Half(half) => match half.read_to_pipe((offset, size), pipe, header)? {
                Some(len) => len,
                None => return Ok(None),
            },
        };
        self.events.tell(|| EventKind::Read { path: self.path_of(node).into(), offset, bytes: len.into() });
        Ok(Some(len))
    }

    /// Writes `data` at `offset`. Returns how much of it: less than all only where there is no room for the rest, and never of what
    /// the kernel had cached, which is an error then.
    pub fn write(&self, node: &Arc<Node>, offset: u64, data: &[u8], how: Write) -> Result<usize> {
        let (written, refused) = self.put(node, offset, data, how)?;
        if written > 0 {
            self.events.tell(|| EventKind::Write {
                path: self.path_of(node).into(),
                offset,
                bytes: written as u64,
            });
        }
        match refused {
            Some(error) => Err(error),
            None => Ok(written),
        }
    }

    /// Does as [`Union::write`], untold. Returns how much was written, and the error that is to be answered nevertheless.
    pub(in crate::union) fn put(
        &self,
        node: &Arc<Node>,
        offset: u64,
        data: &[u8],
        how: Write,
    ) -> Result<(usize, Option<FsError>)> {
        let to = self.parts(node, true)?;
        if how.kill {
            self.kill_privilege_bits(node)?;
        }
        let own = match &to {
            Content::One(data) => data.host().ok_or(FsError::Stale)?.as_fd(),
            Content::Half(half) => half.own(),
        };
        let upper = self.upper()?;
        let put = |offset: u64, data: &[u8]| match &to {
            Content::One(_) => {
                let growth = Growth::Range(offset, data.len() as u64);
                let write = || write_all_at(own, data, offset);
                (None, upper.growing(At::Fd(own), growth, write).map_err(FsError::from))
            }
            Content::Half(half) => half.write(upper, offset, data),
        };
        let put_all = || Fitted::write(offset, data, how.cached, &put);
        let Fitted { bytes: written, new, refused } = if how.late {
            // Who gives the file its data meanwhile would take the time of now for one that must stay.
            let _place = node.place.read();
            let before = At::Fd(own).stat()?;
            let fitted = put_all();
            changed();
            self.upper()?.own_file(own).utimens(None, Some(SetTime::At(before.mtime)))?;
            fitted
        } else {
            let fitted = put_all();
            // Before less is written than was asked for.
            let wants_room =
                fitted.refused.as_ref().is_some_and(is_full) && self.give_back_what_is_set_aside();
            match wants_room {
                true => {
                    let again = put_all();
                    Fitted { new: together(fitted.new, again.new), ..again }
                }
                false => fitted,
            }
        };
        self.tell_copied_range(node, new);
        Ok((
            written,
            refused.filter(|error| {
                // All of it, where there will be room soon.
                written == 0 || how.cached || (is_full(error) && self.deferred.may_soon_be_less())
            }),
        ))
    }
}
