//! What happens in a mount, told to whoever listens.
//!
//! Without a listener an event costs one relaxed load and is not even built. With one, it is built where it happens
//! and put into the listener's queue, if that has room: a listener that is slow loses events, and is told how many;
//! the mount never waits.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::escaped_path::EscapedPath;
use crate::sys::object::Kind;

/// One thing that happened. In JSON: one object, with `event` saying which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When: microseconds since 1970, UTC.
    pub time_us: u64,
    /// The process that asked for it, where the kernel tells one that the daemon can see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What that process is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<EscapedPath>,
    /// What happened.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What can happen. Layers are numbered as a user does: 0 is the upper, 1 the topmost lower. Paths start with `/`, the
/// root of the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(missing_docs)] // each field is what its name says
pub enum EventKind {
    /// A name was looked up. The kernel remembers the answer, so this comes once for each name.
    Lookup {
        path: EscapedPath,
        kind: Option<KindName>,
        /// The layers that show it: one, for a directory all that are merged; none: no such name.
        layers: Vec<u16>,
    },
    /// A lookup met a whiteout that hides something.
    Whiteout { path: EscapedPath, layer: u16, hides: Vec<u16> },
    /// A lookup met an opaque directory that hides something.
    Opaque { path: EscapedPath, layer: u16, hides: Vec<u16> },
    /// A lookup met a directory that was renamed: layers below are asked elsewhere.
    Redirect { path: EscapedPath, layer: u16, to: EscapedPath },
    /// A file of which much is to be copied begins to be copied up; [`EventKind::CopyUp`] tells the end.
    CopyUpBegins { path: EscapedPath, bytes: u64, layer: Option<u16> },
    /// It goes on, and so many of its bytes are done; told once a second.
    CopyUpGoesOn { path: EscapedPath, done: u64, bytes: u64, layer: Option<u16> },
    /// Something was copied up.
    CopyUp { path: EscapedPath, kind: KindName, bytes: u64, layer: Option<u16>, micros: u64 },
    /// A write to a file whose blocks come up one by one copied those that it touches: what is its own from now on.
    CopyRange { path: EscapedPath, offset: u64, bytes: u64, layer: Option<u16> },
    /// A file of the upper has all its data now, of which some were below: its size.
    Seal { path: EscapedPath, bytes: u64, layer: Option<u16> },
    /// A directory's entries were listed, past the kernel's cache.
    List { path: EscapedPath },
    /// Data were read, past the kernel's cache and not by the kernel itself (`passthrough`).
    Read { path: EscapedPath, offset: u64, bytes: u64 },
    /// Data were written, not by the kernel itself (`passthrough`).
    Write { path: EscapedPath, offset: u64, bytes: u64 },
    /// Data were copied from one file to another, or within one, by a program that asked for it in one call
    /// (copy_file_range(2)): no [`EventKind::Read`] and [`EventKind::Write`] tell of them. Where the files of the host allow
    /// no such copy the program reads and writes instead, which those tell.
    Copy { path: EscapedPath, offset: u64, bytes: u64, from: EscapedPath, from_offset: u64 },
    /// Room was set aside for a range of a file, or the range made zeros (`zeroes`), a hole where it can be one.
    Allocate { path: EscapedPath, offset: u64, bytes: u64, zeroes: bool },
    /// A file was opened whose data the kernel itself reads and writes from now on (`passthrough`): no [`EventKind::Read`] and
    /// [`EventKind::Write`] tell of them. Other opens aren't told.
    Open {
        path: EscapedPath,
        /// Which has the data, and gets what is written.
        layer: Option<u16>,
        access: Access,
        size: u64,
    },
    /// The last of such opens has ended. How many bytes were read and written isn't known.
    Close {
        path: EscapedPath,
        /// At the first of them; unknown if nobody listened then.
        before: Option<u64>,
        size: u64,
    },
    /// An entry was made.
    Create { path: EscapedPath, kind: KindName },
    /// A further name was made.
    Link { path: EscapedPath, from: EscapedPath },
    /// A name was removed; `whiteout`: and hidden, since lowers have it.
    Remove { path: EscapedPath, kind: KindName, whiteout: bool },
    /// A name was changed; `whiteout`: the old one is hidden; `redirect`: where lowers have what was moved.
    Rename {
        path: EscapedPath,
        to: EscapedPath,
        exchange: bool,
        whiteout: bool,
        redirect: Option<EscapedPath>,
    },
    /// Owner, mode, size, times or inode flags were changed: those.
    Attributes { path: EscapedPath, changed: Vec<String> },
    /// An extended attribute was set or removed.
    Xattr { path: EscapedPath, name: EscapedPath },
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

impl From<OFlags> for Access {
    fn from(flags: OFlags) -> Access {
        match flags {
            _ if flags.contains(OFlags::RDWR) => Access::ReadWrite,
            _ if flags.contains(OFlags::WRONLY) => Access::Write,
            _ => Access::Read,
        }
    }
}

/// A type of file, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum KindName {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl From<Kind> for KindName {
    fn from(kind: Kind) -> KindName {
        match kind {
            Kind::File => KindName::File,
            Kind::Directory => KindName::Directory,
            Kind::Symlink => KindName::Symlink,
            Kind::Fifo => KindName::Fifo,
            Kind::Socket => KindName::Socket,
            Kind::CharDevice => KindName::CharDevice,
            Kind::BlockDevice => KindName::BlockDevice,
        }
    }
}

impl KindName {
    /// Returns the word.
    pub fn word(self) -> &'static str {
        match self {
            KindName::File => "file",
            KindName::Directory => "directory",
            KindName::Symlink => "symlink",
            KindName::Fifo => "fifo",
            KindName::Socket => "socket",
            KindName::CharDevice => "character device",
            KindName::BlockDevice => "block device",
        }
    }
}

impl EventKind {
    /// All kinds of events, as filters and JSON name them.
    pub const NAMES: &'static [&'static str] = &[
        "lookup",
        "whiteout",
        "opaque",
        "redirect",
        "copy-up-begins",
        "copy-up-goes-on",
        "copy-up",
        "copy-range",
        "seal",
        "list",
        "read",
        "write",
        "copy",
        "allocate",
        "open",
        "close",
        "create",
        "link",
        "remove",
        "rename",
        "attributes",
        "xattr",
    ];

    /// Returns its kind, as filters and JSON name it.
    pub fn name(&self) -> &'static str {
        match self {
            EventKind::Lookup { .. } => "lookup",
            EventKind::Whiteout { .. } => "whiteout",
            EventKind::Opaque { .. } => "opaque",
            EventKind::Redirect { .. } => "redirect",
            EventKind::CopyUpBegins { .. } => "copy-up-begins",
            EventKind::CopyUpGoesOn { .. } => "copy-up-goes-on",
            EventKind::CopyUp { .. } => "copy-up",
            EventKind::CopyRange { .. } => "copy-range",
            EventKind::Seal { .. } => "seal",
            EventKind::List { .. } => "list",
            EventKind::Read { .. } => "read",
            EventKind::Write { .. } => "write",
            EventKind::Copy { .. } => "copy",
            EventKind::Allocate { .. } => "allocate",
            EventKind::Open { .. } => "open",
            EventKind::Close { .. } => "close",
            EventKind::Create { .. } => "create",
            EventKind::Link { .. } => "link",
            EventKind::Remove { .. } => "remove",
            EventKind::Rename { .. } => "rename",
            EventKind::Attributes { .. } => "attributes",
            EventKind::Xattr { .. } => "xattr",
        }
    }

    /// Returns the path that it happened to.
    pub fn path(&self) -> &EscapedPath {
        match self {
            EventKind::Lookup { path, .. }
            | EventKind::Whiteout { path, .. }
            | EventKind::Opaque { path, .. }
            | EventKind::Redirect { path, .. }
            | EventKind::CopyUpBegins { path, .. }
            | EventKind::CopyUpGoesOn { path, .. }
            | EventKind::CopyUp { path, .. }
            | EventKind::CopyRange { path, .. }
            | EventKind::Seal { path, .. }
            | EventKind::List { path }
            | EventKind::Read { path, .. }
            | EventKind::Write { path, .. }
            | EventKind::Copy { path, .. }
            | EventKind::Allocate { path, .. }
            | EventKind::Open { path, .. }
            | EventKind::Close { path, .. }
            | EventKind::Create { path, .. }
            | EventKind::Link { path, .. }
            | EventKind::Remove { path, .. }
            | EventKind::Rename { path, .. }
            | EventKind::Attributes { path, .. }
            | EventKind::Xattr { path, .. } => path,
        }
    }
}

/// Which events a listener wants.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Kinds of events ([`EventKind::NAMES`]); empty: all.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// Paths: these and what lies below them; empty: all.
    #[serde(default)]
    pub paths: Vec<EscapedPath>,
}

impl Filter {
    /// Tells whether the event is wanted.
    pub fn wants(&self, what: &EventKind) -> bool {
        let below = |path: &[u8], top: &[u8]| {
            let top = top.strip_suffix(b"/").unwrap_or(top);
            path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        let at = |path: &EscapedPath| self.paths.iter().any(|top| below(&path.0, &top.0));
        (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == what.name()))
            && (self.paths.is_empty()
                || at(what.path())
                || matches!(what, EventKind::Rename { to: other, .. } | EventKind::Copy { from: other, .. } if at(other)))
    }
}

thread_local! {
    /// Whose request this thread answers; 0: nobody's that is known.
    static ASKED_BY: Cell<u32> = const { Cell::new(0) };
}

/// Notes whose request this thread answers from here on, for events that it will tell; 0: nobody's that is known.
pub fn answering(pid: u32) {
    ASKED_BY.set(pid);
}

/// Returns whose request this thread answers.
pub fn asked_by() -> u32 {
    ASKED_BY.get()
}

/// Returns what a process is called, unless it has ended. Looks into procfs, which no mount of this program's holds.
fn process_name(pid: u32) -> Option<EscapedPath> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(EscapedPath::from(name.strip_suffix(b"\n").unwrap_or(&name)))
}

/// The listeners of a union.
#[derive(Debug, Default)]
pub struct Events {
    /// How many there are.
    count: AtomicUsize,
    listeners: RwLock<Vec<Arc<Listener>>>,
}

#[derive(Debug)]
struct Listener {
    filter: Filter,
    queue: SyncSender<Message>,
    lost: AtomicU64,
}

/// An event, and how many were lost before it.
#[derive(Debug)]
struct Message {
    lost: u64,
    event: Event,
}

/// What a listener hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// An event.
    Event(Event),
    /// So many events were lost, because they weren't taken fast enough.
    Lost(u64),
    /// Nothing in the given time.
    Nothing,
    /// The union has ended.
    End,
}

/// A listener's end. When it is dropped the union tells it no more.
#[derive(Debug)]
pub struct Listening {
    events: Weak<Events>,
    listener: Arc<Listener>,
    queue: Receiver<Message>,
    next: Option<Event>,
}

impl Events {
    /// Tells whether anybody is listening.
    #[inline]
    pub fn listening(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0
    }

    /// Returns how many listen.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Tells what happened, if anybody listens.
    #[inline]
    pub(super) fn tell(&self, what: impl FnOnce() -> EventKind) {
        if self.listening() {
            self.send(what());
        }
    }

    /// Begins to listen, with a queue of so many events.
    pub fn listen(self: &Arc<Events>, filter: Filter, queue: usize) -> Listening {
        let (sender, receiver) = sync_channel(queue.max(1));
        let listener = Arc::new(Listener { filter, queue: sender, lost: AtomicU64::new(0) });
        let mut listeners = self.listeners.write();
        listeners.push(listener.clone());
        self.count.store(listeners.len(), Ordering::Relaxed);
        Listening { events: Arc::downgrade(self), listener, queue: receiver, next: None }
    }

    #[cold]
    pub(super) fn send(&self, what: EventKind) {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let pid = Some(ASKED_BY.get()).filter(|pid| *pid != 0);
        let event =
            Event { time_us: time.as_micros() as u64, pid, process: pid.and_then(process_name), what };
        for listener in &*self.listeners.read() {
            if !listener.filter.wants(&event.what) {
                continue;
            }
            let lost = listener.lost.swap(0, Ordering::Relaxed);
            match listener.queue.try_send(Message { lost, event: event.clone() }) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    listener.lost.fetch_add(lost + 1, Ordering::Relaxed);
                }
                Err(TrySendError::Disconnected(_)) => {} // it is about to leave the list
            }
        }
    }
}

impl Listening {
    /// Waits for the next event, no longer than `patience`.
    pub fn hear(&mut self, patience: Duration) -> Heard {
        if let Some(event) = self.next.take() {
            return Heard::Event(event);
        }
        match self.queue.recv_timeout(patience) {
            Ok(Message { lost: 0, event }) => Heard::Event(event),
            Ok(Message { lost, event }) => {
                self.next = Some(event);
                Heard::Lost(lost)
            }
            Err(RecvTimeoutError::Disconnected) => Heard::End,
            Err(RecvTimeoutError::Timeout) => match self.listener.lost.swap(0, Ordering::Relaxed) {
                _ if self.events.strong_count() == 0 => Heard::End,
                0 => Heard::Nothing,
                lost => Heard::Lost(lost),
            },
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(events) = self.events.upgrade() {
            let mut listeners = events.listeners.write();
            listeners.retain(|other| !Arc::ptr_eq(other, &self.listener));
            events.count.store(listeners.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(path: &str) -> EventKind {
        EventKind::List { path: path.as_bytes().into() }
    }

    #[test]
    fn a_slow_listener_loses_events_and_is_told_how_many() {
        let events = Arc::new(Events::default());
        events.tell(|| unreachable!("nobody listens"));
        let mut listening = events.listen(Filter::default(), 2);
        for path in ["/1", "/2", "/3", "/4"] {
            events.tell(|| list(path));
        }
        let mut hear = || match listening.hear(Duration::ZERO) {
            Heard::Event(event) => event.what.path().to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!((hear(), hear()), ("/1".into(), "/2".into()));
        events.tell(|| list("/5"));
        assert_eq!((hear(), hear(), hear()), ("Lost(2)".into(), "/5".into(), "Nothing".into()));
        for path in ["/6", "/7", "/8"] {
            events.tell(|| list(path));
        }
        assert_eq!((hear(), hear(), hear()), ("/6".into(), "/7".into(), "Lost(1)".into()));
        drop(listening);
        events.tell(|| unreachable!("nobody listens any more"));
    }

    #[test]
    fn filters_choose_by_kind_and_by_subtree() {
        let filter = Filter { kinds: vec!["list".into()], paths: vec![EscapedPath::from(&b"/etc"[..])] };
        for (path, wanted) in [("/etc", true), ("/etc/apt", true), ("/etcetera", false), ("/", false)] {
            assert_eq!(filter.wants(&list(path)), wanted, "{path}");
        }
        let root = Filter { kinds: Vec::new(), paths: vec![EscapedPath::from(&b"/"[..])] };
        assert!(root.wants(&list("/")) && root.wants(&list("/x")));
        assert!(!filter.wants(&EventKind::Write { path: b"/etc"[..].into(), offset: 0, bytes: 1 }));
        let copy = |from: &[u8], path: &[u8]| EventKind::Copy {
            path: path.into(),
            offset: 0,
            bytes: 1,
            from: from.into(),
            from_offset: 0,
        };
        let below = Filter { kinds: Vec::new(), paths: vec![EscapedPath::from(&b"/etc"[..])] };
        assert!(below.wants(&copy(b"/etc/a", b"/b")) && below.wants(&copy(b"/b", b"/etc/a")));
        assert!(!below.wants(&copy(b"/a", b"/b")));
    }

    #[test]
    fn names_are_those_of_the_json() {
        let event = Event {
            time_us: 1,
            pid: Some(7),
            process: None,
            what: EventKind::CopyUp {
                path: b"/a"[..].into(),
                kind: KindName::CharDevice,
                bytes: 2,
                layer: Some(1),
                micros: 3,
            },
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], event.what.name());
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
        assert!(EventKind::NAMES.contains(&event.what.name()));
    }
}
