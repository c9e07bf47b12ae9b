//! Every ordered pair of ways to have a file open and to change it, on files that start in a lower and in the upper,
//! with opens as requests (`passthrough`) and without: no open fails that may not, and everybody who has the file open
//! or mapped sees the same bytes after each step. With `passthrough=lower` those who had it open before its copy-up don't.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::for_writing;
use support::raw::{self, Mapping};
use support::{Mount, Program, Stack, output, wait_until};

/// Room for changes behind the program that each file is.
const TAIL: usize = 9000;
const PAGE: usize = 4096;

macro_rules! acts {
    ($($name:ident),* $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Act { $($name),* }

        use Act::*;

        const ACTS: &[Act] = &[$($name),*];
    };
}

acts! {
    Read,
    Write,
    Append,
    OpenTruncating,
    MapPrivate,
    MapShared,
    MapWritable,
    Exec,
    CopyUp,
    Truncate,
    Allocate,
    Copy,
    Unlink,
    Rename,
    Replace,
}

/// One who has a file open.
struct Holder {
    /// Which of the files that had the name.
    file: usize,
    by: By,
    /// What it shows for ever, where a copy-up left it behind (`passthrough=lower`).
    kept: Option<Vec<u8>>,
}

enum By {
    Open(File),
    OpenToWrite(File),
    Mapped(Mapping),
    MappedToWrite(Mapping),
    Running(Child),
}

/// A name, the files that had it, and what must be in each.
struct Scene<'a> {
    path: PathBuf,
    program: &'a [u8],
    contents: Vec<Vec<u8>>,
    holders: Vec<Holder>,
    marks: usize,
    /// Whether a copy-up leaves those behind who have the file open: it is in a lower still, and is passed through.
    leaves_behind: bool,
    /// Whether a program that runs kept the last act from writing.
    busy: Cell<bool>,
}

impl<'a> Scene<'a> {
    fn new(path: PathBuf, program: &'a [u8]) -> Self {
        let contents = vec![[program, &[b'-'; TAIL]].concat()];
        let (leaves_behind, busy) = (false, Cell::new(false));
        Scene { path, program, contents, holders: Vec::new(), marks: 0, leaves_behind, busy }
    }

    fn now(&self) -> usize {
        self.contents.len() - 1
    }

    fn content(&mut self) -> &mut Vec<u8> {
        self.contents.last_mut().unwrap()
    }

    /// A few bytes that weren't there, and a place for them.
    fn mark(&mut self) -> (usize, Vec<u8>) {
        self.marks += 1;
        let at = self.program.len() + 7 + self.marks * 131 % 150;
        (at, format!("<{}>", self.marks).into_bytes())
    }

    fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
        if content.len() < at + bytes.len() {
            content.resize(at + bytes.len(), 0);
        }
        content[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn held(&self, what: impl Fn(&By) -> bool) -> bool {
        let now = self.now();
        self.holders.iter().any(|holder| holder.file == now && what(&holder.by))
    }

    fn hold(&mut self, by: By) {
        let file = self.now();
        self.holders.push(Holder { file, by, kept: None });
    }

    /// Does what needs the right to write; a program that runs must make it fail, and nothing else may.
    fn writing<T>(&self, done: io::Result<T>) -> Option<T> {
        match done {
            Err(e) if e.raw_os_error() == Some(Errno::TXTBSY.raw_os_error()) => {
                assert!(self.held(|by| matches!(by, By::Running(_))), "ETXTBSY, but it doesn't run");
                self.busy.set(true);
                None
            }
            done => {
                // What was left behind runs from the lower.
                assert!(!self.runs_from_here(), "a running program may be written");
                Some(done.unwrap())
            }
        }
    }

    fn runs_from_here(&self) -> bool {
        let now = self.now();
        let here = |holder: &&Holder| holder.file == now && holder.kept.is_none();
        self.holders.iter().filter(here).any(|holder| matches!(holder.by, By::Running(_)))
    }

    fn length(&self) -> usize {
        self.contents[self.now()].len().div_ceil(PAGE) * PAGE
    }

    fn act(&mut self, act: Act) {
        let copies_up = !matches!(act, Read | MapPrivate | MapShared | Exec | Unlink | Replace);
        let before = (self.holders.len(), self.contents[self.now()].clone());
        self.busy.set(false);
        // What runs by then is left behind as soon as it is copied up.
        self.perform(act);
        if copies_up && self.leaves_behind && self.now() == 0 && !self.busy.get() {
            self.leaves_behind = false;
            let (held, content) = before;
            self.holders[..held].iter_mut().for_each(|holder| holder.kept = Some(content.clone()));
        }
    }

    fn perform(&mut self, act: Act) {
        let both = || OpenOptions::new().read(true).write(true).clone();
        match act {
            Read => self.hold(By::Open(File::open(&self.path).unwrap())),
            Write | OpenTruncating | MapWritable => {
                let opened = both().truncate(act == OpenTruncating).open(&self.path);
                let Some(file) = self.writing(opened) else { return };
                if act == OpenTruncating {
                    assert_eq!(file.metadata().unwrap().size(), 0);
                    let content = [self.program, b"truncated"].concat();
                    file.write_all_at(&content, 0).unwrap();
                    *self.content() = content;
                }
                if act == MapWritable {
                    let length = self.length();
                    self.hold(By::MappedToWrite(Mapping::shared(&file, length, true).unwrap()));
                } else {
                    self.hold(By::OpenToWrite(file));
                }
            }
            Append => {
                let opened = OpenOptions::new().read(true).append(true).open(&self.path);
                let Some(mut file) = self.writing(opened) else { return };
                file.write_all(b"appended").unwrap();
                self.content().extend_from_slice(b"appended");
                self.hold(By::Open(file));
            }
            MapPrivate | MapShared => {
                let file = File::open(&self.path).unwrap();
                let mapped = match act {
                    MapPrivate => Mapping::private(&file, self.length()),
                    _ => Mapping::shared(&file, self.length(), false),
                };
                self.hold(By::Mapped(mapped.unwrap()));
            }
            Exec => {
                if self.held(|by| matches!(by, By::OpenToWrite(_) | By::MappedToWrite(_)))
                    || self.held(|by| matches!(by, By::Open(file) if writable(file)))
                {
                    // May be refused: with passthrough, who only mapped it is not known to write it.
                    if let Ok(mut child) = run(&self.path) {
                        echo(&mut child, b"x");
                        end(child);
                    }
                    return;
                }
                // Another test's child may hold a copy of a descriptor that is closed here, until it has begun.
                let mut child = None;
                let runs = || {
                    child = run(&self.path).inspect_err(|e| assert!(busy(e), "{e}")).ok();
                    child.is_some()
                };
                assert!(wait_until(support::PATIENCE, runs), "cannot run it: ETXTBSY");
                self.hold(By::Running(child.unwrap()));
            }
            CopyUp => {
                let mode = if self.marks.is_multiple_of(2) { 0o755 } else { 0o775 };
                fs::set_permissions(&self.path, PermissionsExt::from_mode(mode)).unwrap();
            }
            Truncate => {
                let length = self.program.len() + 99;
                if self.writing(raw::truncate(&self.path, length as i64)).is_some() {
                    self.content().resize(length, 0);
                }
            }
            Allocate => {
                let Some(file) = self.writing(both().open(&self.path)) else { return };
                let at = self.program.len() + 200;
                fallocate(&file, FallocateFlags::empty(), 0, at as u64 + 50).unwrap();
                if self.content().len() < at + 50 {
                    self.content().resize(at + 50, 0);
                }
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, punch, at as u64, 50).unwrap();
                self.content()[at..at + 50].fill(0);
            }
            Copy => {
                let Some(file) = self.writing(both().open(&self.path)) else { return };
                let from = self.program.len();
                let bytes = self.contents[self.now()][from..].iter().copied().take(80).collect::<Vec<_>>();
                let (mut at, mut to) = (from as u64, from as u64 + 400);
                let copied =
                    rustix::fs::copy_file_range(&file, Some(&mut at), &file, Some(&mut to), bytes.len())
                        .unwrap();
                assert_eq!(copied, bytes.len());
                Self::put(self.content(), from + 400, &bytes);
            }
            Unlink => {
                fs::remove_file(&self.path).unwrap();
                let content = [self.program, b"a new file"].concat();
                make(&self.path, &content);
                self.contents.push(content);
            }
            Rename => {
                let other = self.path.with_extension("renamed");
                fs::rename(&self.path, &other).unwrap();
                assert_eq!(fs::read(&other).unwrap(), *self.content());
                fs::rename(&other, &self.path).unwrap();
            }
            Replace => {
                let (other, content) =
                    (self.path.with_extension("new"), [self.program, b"in its place"].concat());
                make(&other, &content);
                fs::rename(&other, &self.path).unwrap();
                self.contents.push(content);
            }
        }
    }

    /// All see what is there; then those who can write do, one after the other, and all see that.
    fn check(&mut self) {
        self.compare("before anybody writes");
        for index in 0..self.holders.len() {
            let (mut at, bytes) = self.mark();
            let Holder { file, by, .. } = &mut self.holders[index];
            let content = &mut self.contents[*file];
            match by {
                By::OpenToWrite(open) => open.write_all_at(&bytes, at as u64).unwrap(),
                By::MappedToWrite(mapped) => {
                    at = at.min(content.len().min(mapped.length()) - bytes.len());
                    mapped.write(at, &bytes);
                }
                _ => continue,
            }
            Self::put(content, at, &bytes);
            self.compare("after a write");
        }
    }

    fn compare(&mut self, when: &str) {
        for (index, holder) in self.holders.iter_mut().enumerate() {
            let size = self.contents[holder.file].len() as u64;
            let expected = holder.kept.as_ref().unwrap_or(&self.contents[holder.file]);
            let seen = match &mut holder.by {
                By::Open(file) | By::OpenToWrite(file) => {
                    assert_eq!(file.metadata().unwrap().size(), size, "{when}: size by {index}");
                    let mut seen = vec![0; expected.len() + 10];
                    let n = read_at(file, &mut seen);
                    seen.truncate(n);
                    seen
                }
                By::Mapped(mapped) | By::MappedToWrite(mapped) => {
                    let length = expected.len().min(mapped.length());
                    let mut seen = mapped.read(0, length);
                    seen.extend_from_slice(&expected[length..]);
                    seen
                }
                By::Running(child) => {
                    echo(child, b"still there");
                    continue;
                }
            };
            assert!(seen == *expected, "{when}: holder {index} sees {}", difference(&seen, expected));
        }
        let (seen, expected) = (fs::read(&self.path).unwrap(), &self.contents[self.now()]);
        assert!(seen == *expected, "{when}: a new reader sees {}", difference(&seen, expected));
        assert_eq!(fs::metadata(&self.path).unwrap().size(), expected.len() as u64, "{when}: size by name");
    }

    fn release(&mut self, index: usize) {
        if let By::Running(child) = self.holders.remove(index).by {
            end(child);
        }
    }
}

fn writable(file: &File) -> bool {
    let flags = rustix::fs::fcntl_getfl(file).unwrap();
    flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::RDWR)
}

fn busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::TXTBSY.raw_os_error())
}

fn read_at(file: &File, buffer: &mut [u8]) -> usize {
    let mut done = 0;
    loop {
        match file.read_at(&mut buffer[done..], done as u64).unwrap() {
            0 => return done,
            n => done += n,
        }
    }
}

fn make(path: &Path, content: &[u8]) {
    let mut file = File::create_new(path).unwrap();
    file.write_all(content).unwrap();
    file.set_permissions(PermissionsExt::from_mode(0o755)).unwrap();
}

fn run(path: &Path) -> io::Result<Child> {
    Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}

/// The program is cat.
fn echo(child: &mut Child, bytes: &[u8]) {
    child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    let mut seen = vec![0; bytes.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(seen, bytes);
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

fn difference(seen: &[u8], expected: &[u8]) -> String {
    let at = seen.iter().zip(expected).position(|(a, b)| a != b);
    let excerpt = |bytes: &[u8]| {
        let at = at.unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 12)]).into_owned()
    };
    format!(
        "{} bytes, not {}; {:?} at {at:?}, not {:?}",
        seen.len(),
        expected.len(),
        excerpt(seen),
        excerpt(expected)
    )
}

/// Each pair on a file of its own; then the first lets go, does it again, and all let go.
fn walk(mount: &Mount, program: &[u8], (from, leaves_behind): (&str, bool), acts: &[Act]) {
    for first in acts {
        for second in acts {
            let mut scene = Scene::new(mount.join(format!("{from}/{first:?}-{second:?}")), program);
            scene.leaves_behind = leaves_behind;
            let story = std::panic::AssertUnwindSafe(|| {
                scene.act(*first);
                scene.check();
                scene.act(*second);
                scene.check();
                if !scene.holders.is_empty() {
                    scene.release(0);
                    scene.check();
                }
                scene.act(*first);
                scene.check();
                while !scene.holders.is_empty() {
                    scene.release(0);
                }
                scene.act(*second);
                scene.check();
            });
            if let Err(panic) = std::panic::catch_unwind(story) {
                eprintln!("{from}: {first:?}, then {second:?}");
                std::panic::resume_unwind(panic);
            }
            while !scene.holders.is_empty() {
                scene.release(0);
            }
        }
    }
}

fn program() -> Vec<u8> {
    fs::read("/bin/cat").unwrap()
}

/// A file for each pair of acts in `dir` of the layer.
fn files(layer: &support::Layer, dir: &str, acts: &[Act], program: &[u8]) {
    let content = [program, &[b'-'; TAIL]].concat();
    for (first, second) in acts.iter().flat_map(|first| acts.iter().map(move |second| (first, second))) {
        let name = format!("{dir}/{first:?}-{second:?}");
        layer.file(&name, &content);
        fs::set_permissions(layer.place(&name), PermissionsExt::from_mode(0o755)).unwrap();
    }
}

fn walk_writable(option: &str) {
    if !Program::under_test().is_unionmount() {
        support::skip!("others don't promise this");
    }
    if std::env::var("UNIONMOUNT_OPTIONS").is_ok_and(|options| options.contains("passthrough")) {
        support::skip!("the options of the whole suite win");
    }
    let program = program();
    let stack = Stack::new(1);
    files(stack.lower(0), "lower", ACTS, &program);
    files(stack.upper(), "upper", ACTS, &program);
    let before = stack.lower_snapshots();
    let mount = stack.mount_with(&[option]);
    walk(&mount, &program, ("lower", option == "passthrough=lower"), ACTS);
    walk(&mount, &program, ("upper", false), ACTS);
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
}

#[test]
fn every_pair_with_passthrough() {
    walk_writable("passthrough");
}

/// Who has it open when it is copied up keeps what it was; all others see the same bytes.
#[test]
fn every_pair_with_files_of_lowers_passed_through() {
    support::needs_root!();
    walk_writable("passthrough=lower");
}

#[test]
fn every_pair_without_passthrough() {
    walk_writable("passthrough=0");
}

/// A mapping changes a file without a request, also when the file is closed.
#[test]
fn the_time_of_a_change_by_a_mapping_is_seen() {
    for option in ["passthrough", "passthrough=lower", "passthrough=0"] {
        let stack = Stack::new(1);
        stack.lower(0).file("f", vec![b'-'; PAGE]);
        let mount = stack.mount_with(&[option]);
        let path = mount.join("f");
        let modified = || fs::metadata(&path).unwrap().modified().unwrap();
        modified();
        let file = for_writing(&path);
        let mut mapping = Mapping::shared(&file, PAGE, true).unwrap();
        drop(file);
        for _ in 0..2 {
            let before = modified();
            let changed = || {
                mapping.write(9, b"x");
                mapping.sync().unwrap();
                modified() > before
            };
            assert!(wait_until(support::PATIENCE, changed), "{option}: the old time is kept");
        }
        drop(mapping);
        mount.unmount();
    }
}

#[test]
fn a_limit_on_the_size_of_files_holds() {
    for option in ["passthrough", "passthrough=lower", "passthrough=0"] {
        let stack = Stack::new(1);
        let mount = stack.mount_with(&[option]);
        let path = mount.join("f");
        let script = "trap '' XFSZ; head -c 3000 /dev/zero > \"$1\"";
        let said = output("prlimit", &["--fsize=1000", "sh", "-c", script, "sh", path.to_str().unwrap()]);
        assert!(!said.status.success(), "{option}: {said:?}");
        assert_eq!(fs::metadata(&path).unwrap().size(), 1000, "{option}");
        mount.unmount();
    }
}

#[test]
fn every_pair_of_reads_in_a_mount_without_upper() {
    const READS: [Act; 4] = [Read, MapPrivate, MapShared, Exec];
    if !Program::under_test().is_unionmount() {
        support::skip!("others don't promise this");
    }
    let program = program();
    let stack = Stack::new(1);
    files(stack.lower(0), "lower", &READS, &program);
    let options = support::Options { upper: None, work: None, ..stack.options_with(&["passthrough"]) };
    let mount = Mount::new(&options, stack.mountpoint());
    walk(&mount, &program, ("lower", false), &READS);
    mount.unmount();
}
