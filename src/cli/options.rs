//! The `-o` option string of mount(8), fuse-overlayfs and the kernel's overlayfs.
//!
//! ```text
//! lowerdir=/a\:b:/c,upperdir=/up,workdir=/w,context="system_u:object_r:x_t:s0:c1,c2",ro,,
//! ```
//!
//! - Options are parted by commas; empty ones count for nothing.
//! - A value that begins with `"` goes to the next `"` that a comma or the end follows, commas included.
//! - `\,` `\:` `\"` and `\\` stand for the second character; any other backslash for itself (paths of systemd units
//!   hold some).
//! - `lowerdir` is parted by colons, topmost first; a second `lowerdir` replaces the first, `lowerdir+` adds one
//!   directory below.
//! - An option that is not known is kept aside to be warned of; engines add new ones, and the mount must go on. A bad
//!   value of a known option is an error.
//!
//! Names and values are bytes throughout.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

mod error;
mod names;
mod text;

use super::branches;
use super::store::parse_size;
use crate::fuse::mount::MountFlags;
use crate::union::options::{FsOptions, Lazy, Passthrough, RedirectDir, Verity, XattrPermissions, Xino};
use crate::union::stack::layer::XattrChoice;

pub use self::error::OptionError;
pub use self::names::{KNOWN, like};
pub use self::text::{Lowers, split, split_lowers, split_place};
use self::text::{Value, unquote};

/// What all the `-o` strings of a call say together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// `lowerdir`, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Layers of data alone: `lowerdir=a::b`, `datadir+`.
    pub data_only: Vec<PathBuf>,
    /// `upperdir`.
    pub upper: Option<PathBuf>,
    /// `workdir`.
    pub work: Option<PathBuf>,
    /// `userxattr`.
    pub xattr: XattrChoice,
    /// What the mount itself is given.
    pub mount: MountFlags,
    /// How the merged view behaves.
    pub fs: FsOptions,
    /// `fsname`.
    pub source: Option<OsString>,
    /// `debug`: in the foreground, with all messages.
    pub debug: bool,
    /// `threaded=0`.
    pub single_thread: bool,
    /// `max_threads`.
    pub max_threads: Option<usize>,
    /// `uring`.
    pub uring: bool,
    /// `pairing=0`.
    pub no_pairing: bool,
    /// `suid`.
    pub suid_asked: bool,
    /// `dev`.
    pub dev_asked: bool,
    /// What was not understood, to be warned of.
    pub ignored: Vec<Ignored>,
    squash_to_root: bool,
}

/// An option that has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The option as given.
    pub option: OsString,
    /// Why it has none; empty when it is simply not known.
    pub why: &'static str,
}

impl Ignored {
    /// Returns the known option that somebody who wrote this one may have meant.
    pub(super) fn meant(&self) -> Option<&'static str> {
        let name = self.option.as_bytes().split(|byte| *byte == b'=').next()?;
        like(std::str::from_utf8(name).ok()?).filter(|_| self.why.is_empty())
    }
}

impl Options {
    /// Reads one option string and adds what it says; later options win.
    pub fn read(&mut self, text: &OsStr) -> Result<(), OptionError> {
        for option in split(text.as_bytes()) {
            self.apply(option)?;
        }
        self.settle();
        Ok(())
    }

    fn apply(&mut self, option: &[u8]) -> Result<(), OptionError> {
        let (name, raw) = match option.iter().position(|&b| b == b'=') {
            Some(at) => (&option[..at], Some(unquote(&option[at + 1..]))),
            None => (option, None),
        };
        // No known name is anything but ASCII.
        let Ok(name) = std::str::from_utf8(name) else { return self.unknown(option, "") };
        let value = Value(raw);
        match name {
            "lowerdir" => {
                let lowers = split_lowers(value.required("lowerdir")?)?;
                (self.lowers, self.data_only) = (lowers.merged, lowers.data_only);
            }
            "lowerdir+" => self.lowers.push(value.path("lowerdir+")?),
            "datadir+" => self.data_only.push(value.path("datadir+")?),
            "upperdir" => self.upper = Some(value.path("upperdir")?),
            "workdir" => self.work = Some(value.path("workdir")?),
            "userxattr" => self.xattr = XattrChoice::User,
            "fsname" | "source" => self.source = Some(value.text("fsname")?),
            "debug" => self.debug = true,
            "threaded" => self.single_thread = !value.flag("threaded")?,
            "uring" => self.uring = value.flag("uring")?,
            "pairing" => self.no_pairing = !value.flag("pairing")?,
            "max_threads" => {
                self.max_threads = Some(value.parsed("max_threads", "give a number of threads")?);
            }
            "context" => self.mount.context = Some(value.text("context")?),
            _ => return self.apply_fs(name, value, option),
        }
        Ok(())
    }

    /// Takes the options about the merged view.
    fn apply_fs(&mut self, name: &str, value: Value<'_>, option: &[u8]) -> Result<(), OptionError> {
        const TIMEOUT: &str = "give seconds, such as 1 or 0.5";
        const SIZE: &str = "give a number of bytes, or a number with K, M, G or T";
        let fs = &mut self.fs;
        match name {
            "volatile" => fs.volatile = true,
            "fsync" => fs.volatile = !value.flag("fsync")?,
            "timeout" => {
                let seconds: f64 = value.parsed("timeout", TIMEOUT)?;
                let timeout = Duration::try_from_secs_f64(seconds);
                fs.timeout = Some(timeout.map_err(|_| value.bad("timeout", TIMEOUT))?);
            }
            "noacl" => fs.no_acl = true,
            "acl" => fs.no_acl = false,
            "static_nlink" => fs.static_nlink = true,
            "ino32_t" => fs.ino32 = true,
            "xino" => fs.xino = value.one_of("xino", &XINO, "give on, off or auto")?,
            "redirect_dir" => {
                let expected = "give on, off, follow or nofollow";
                fs.redirect_dir = value.one_of("redirect_dir", &REDIRECT_DIR, expected)?;
            }
            "metacopy" => {
                let words = [("on", true), ("off", false)];
                fs.metacopy = value.one_of("metacopy", &words, "give on or off")?;
            }
            "lower" => {
                let words = [("checked", true), ("fixed", false)];
                fs.check_lowers = value.one_of("lower", &words, "give checked or fixed")?;
            }
            "lazy" => fs.lazy = value.one_of("lazy", &LAZY, "give on, off or keep")?,
            "verity" => fs.verity = value.one_of("verity", &VERITY, "give on, off or require")?,
            "noxattrs" => fs.no_xattrs = value.flag("noxattrs")?,
            "writeback" => fs.writeback = value.flag("writeback")?,
            "passthrough" => fs.passthrough = passthrough(value)?,
            "squash_to_root" => self.squash_to_root = true,
            "squash_to_uid" => fs.squash.uid = Some(value.parsed("squash_to_uid", "give a user id")?),
            "squash_to_gid" => fs.squash.gid = Some(value.parsed("squash_to_gid", "give a group id")?),
            "uidmapping" => {
                fs.uid_map = Some(value.parsed("uidmapping", "give ON_DISK:SHOWN:LENGTH triples")?)
            }
            "gidmapping" => {
                fs.gid_map = Some(value.parsed("gidmapping", "give ON_DISK:SHOWN:LENGTH triples")?)
            }
            "xattr_permissions" => {
                let expected = "give 0, 1 or 2";
                fs.xattr_permissions = value.one_of("xattr_permissions", &XATTR_PERMISSIONS, expected)?;
            }
            "force_mask" => fs.force_mask = Some(force_mask(value)?),
            "size" => {
                let text = value.required("size")?;
                let size = std::str::from_utf8(text).ok().and_then(|text| parse_size(text).ok());
                fs.quota.bytes = Some(size.ok_or_else(|| value.bad("size", SIZE))?);
            }
            "inodes" => fs.quota.inodes = Some(value.parsed("inodes", "give a number of files")?),
            "max_write" => fs.max_write = Some(value.parsed("max_write", "give a number of bytes")?),
            _ => return self.apply_mount(name, option),
        }
        Ok(())
    }

    /// Takes the options that every filesystem has.
    fn apply_mount(&mut self, name: &str, option: &[u8]) -> Result<(), OptionError> {
        let mount = &mut self.mount;
        match name {
            "ro" => mount.read_only = true,
            "rw" => mount.read_only = false,
            "suid" | "nosuid" => {
                mount.no_suid = name == "nosuid";
                self.suid_asked = name == "suid";
            }
            "dev" | "nodev" => {
                mount.no_dev = name == "nodev";
                self.dev_asked = name == "dev";
            }
            "exec" => mount.no_exec = false,
            "noexec" => mount.no_exec = true,
            "atime" | "relatime" | "noatime" => {
                mount.no_atime = name == "noatime";
                self.fs.no_atime = mount.no_atime;
            }
            "diratime" => mount.no_dir_atime = false,
            "nodiratime" => mount.no_dir_atime = true,
            "sync" => mount.sync = true,
            "async" => mount.sync = false,
            "dirsync" => mount.dir_sync = true,
            "allow_other" => (mount.allow_other, mount.deny_other) = (true, false),
            "noallow_other" => (mount.allow_other, mount.deny_other) = (false, true),
            "allow_root" => mount.allow_root = true,
            // Always so.
            "default_permissions" => {}
            "remount" => {
                return Err(OptionError::Refused {
                    name: "remount",
                    why: "a mount cannot be changed; unmount it and mount again with the new options",
                });
            }
            _ => return self.apply_without_effect(name, option),
        }
        Ok(())
    }

    /// Takes what other programs understand and this one has no use for.
    fn apply_without_effect(&mut self, name: &str, option: &[u8]) -> Result<(), OptionError> {
        const KERNEL: &str = "hardlinks are kept and file handles last, whatever it says";
        match name {
            name if names::is_of_others(name) => Ok(()),
            "br" | "dirs" | "branches" => {
                let list = OsStr::from_bytes(option.get(name.len() + 1..).unwrap_or_default());
                match branches::spelled(list) {
                    Some(ours) => Err(OptionError::Branches { name: name.to_owned(), ours }),
                    None => self.unknown(option, "name the layers by lowerdir=, upperdir= and workdir="),
                }
            }
            "index" | "nfs_export" | "uuid" => self.unknown(option, KERNEL),
            "auto_unmount" => self.unknown(option, "a mount whose daemon has died must be unmounted by hand"),
            "plugins" => self.unknown(option, "there are no plugins"),
            _ => self.unknown(option, ""),
        }
    }

    /// Tells whether this option changes nothing, as those for mount(8) itself.
    pub(super) fn means_nothing(option: &OsStr) -> bool {
        let mut options = Options::default();
        options.read(option).is_ok() && options == Options::default()
    }

    fn unknown(&mut self, option: &[u8], why: &'static str) -> Result<(), OptionError> {
        self.ignored.push(Ignored { option: OsString::from_vec(option.to_vec()), why });
        Ok(())
    }

    /// Lets squash_to_uid and squash_to_gid go before squash_to_root, in whatever order they come.
    fn settle(&mut self) {
        if self.squash_to_root {
            self.fs.squash.uid.get_or_insert(0);
            self.fs.squash.gid.get_or_insert(0);
        }
    }
}

const XINO: [(&str, Xino); 3] = [("on", Xino::On), ("off", Xino::Off), ("auto", Xino::Auto)];

const LAZY: [(&str, Lazy); 3] = [("off", Lazy::Off), ("keep", Lazy::Keep), ("on", Lazy::On)];

const VERITY: [(&str, Verity); 3] = [("on", Verity::On), ("off", Verity::Off), ("require", Verity::Require)];

const REDIRECT_DIR: [(&str, RedirectDir); 4] = [
    ("on", RedirectDir::On),
    // As in the kernel with its default configuration: not made, but followed.
    ("off", RedirectDir::Follow),
    ("follow", RedirectDir::Follow),
    ("nofollow", RedirectDir::NoFollow),
];

const XATTR_PERMISSIONS: [(&str, XattrPermissions); 3] =
    [("0", XattrPermissions::Off), ("1", XattrPermissions::Privileged), ("2", XattrPermissions::User)];

/// Reads which files the kernel reads and writes itself.
fn passthrough(value: Value<'_>) -> Result<Passthrough, OptionError> {
    match value.0 {
        None => Ok(Passthrough::Settled),
        Some(b"lower") => Ok(Passthrough::Lower),
        Some(_) => Ok(match value.parsed::<i64>("passthrough", "give lower, 1 or 0")? {
            0 => Passthrough::Off,
            _ => Passthrough::Settled,
        }),
    }
}

/// Reads the mode that files have on disk.
fn force_mask(value: Value<'_>) -> Result<u32, OptionError> {
    match value.required("force_mask")? {
        b"shared" => Ok(0o755),
        b"private" => Ok(0o700),
        octal => std::str::from_utf8(octal)
            .ok()
            .and_then(|text| u32::from_str_radix(text, 8).ok())
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| value.bad("force_mask", "give shared, private or an octal mode")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::options::{IdRange, Squash};
    use proptest::prelude::*;

    fn read(text: &str) -> Options {
        read_bytes(text.as_bytes()).unwrap()
    }

    fn read_bytes(text: &[u8]) -> Result<Options, OptionError> {
        let mut options = Options::default();
        options.read(OsStr::from_bytes(text)).map(|()| options)
    }

    fn paths(list: &[&str]) -> Vec<PathBuf> {
        list.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn what_podman_passes() {
        let options = read(
            "lowerdir=/s/l/AB:/s/l/../l/CD,upperdir=/s/x/diff,workdir=/s/x/work,nodev,,volatile,\
             context=\"system_u:object_r:container_file_t:s0:c1,c2\",uidmapping=:0:100000:65536,xattr_permissions=2,private,",
        );
        assert_eq!(options.lowers, paths(&["/s/l/AB", "/s/l/../l/CD"]));
        assert_eq!(options.upper, Some("/s/x/diff".into()));
        assert_eq!(options.work, Some("/s/x/work".into()));
        assert!(options.mount.no_dev && options.fs.volatile);
        assert_eq!(options.mount.context, Some("system_u:object_r:container_file_t:s0:c1,c2".into()));
        let range = IdRange { on_disk: 0, shown: 100_000, length: 65536 };
        assert_eq!(options.fs.uid_map.unwrap().0, [range]);
        assert_eq!(options.fs.xattr_permissions, XattrPermissions::User);
        assert!(options.ignored.is_empty());
    }

    #[test]
    fn escapes_and_quotes() {
        let options = read(r#"lowerdir=/a\:b:/c\,d:/e\\f:/dev\x2dg:/q"r,upperdir=/u\:p\,\"x"#);
        assert_eq!(options.lowers, paths(&["/a:b", "/c,d", r"/e\f", r"/dev\x2dg", r#"/q"r"#]));
        assert_eq!(options.upper, Some(r#"/u:p,"x"#.into()));
        // A quote that opens nothing, one inside a quoted value, a last backslash.
        assert_eq!(read(r#"upperdir="/a,ro"#).upper, Some(r#""/a"#.into()));
        assert!(read(r#"upperdir="/a,ro"#).mount.read_only);
        assert_eq!(read(r#"context="a"b,c",ro"#).mount.context, Some(r#"a"b,c"#.into()));
        assert_eq!(read(r"upperdir=/a\").upper, Some(r"/a\".into()));
        // An equals sign within a value, and quotes after a second one.
        assert_eq!(read(r"upperdir=/a=b").upper, Some("/a=b".into()));
        assert_eq!(read(r#"upperdir=/a="b,workdir=c""#).upper, Some(r#"/a="b"#.into()));
    }

    #[test]
    fn names_are_bytes() {
        let options = read_bytes(b"lowerdir=/\xff\n:/b,\xfe=1").unwrap();
        assert_eq!(options.lowers[0].as_os_str().as_bytes(), b"/\xff\n");
        assert_eq!(options.ignored[0].option.as_bytes(), b"\xfe=1");
    }

    #[test]
    fn later_options_win_and_strings_add_up() {
        let mut options = read("ro,lowerdir=/a,nosuid,xino=on");
        options.read(OsStr::new("rw,lowerdir=/b:/c,xino=off,lowerdir+=/d:e")).unwrap();
        assert_eq!(options.lowers, paths(&["/b", "/c", "/d:e"]));
        assert!(!options.mount.read_only && options.mount.no_suid);
        assert_eq!(options.fs.xino, Xino::Off);
    }

    #[test]
    fn squash_to_root_is_the_weakest() {
        assert_eq!(read("squash_to_root").fs.squash, Squash { uid: Some(0), gid: Some(0) });
        for text in ["squash_to_root,squash_to_uid=7", "squash_to_uid=7,squash_to_root"] {
            assert_eq!(read(text).fs.squash, Squash { uid: Some(7), gid: Some(0) }, "{text}");
        }
    }

    #[test]
    fn values_of_the_merged_view() {
        let fs =
            read("timeout=0.5,noacl,static_nlink,ino32_t,noxattrs=1,writeback=1,passthrough,fsync=0,redirect_dir=off").fs;
        let expected = FsOptions {
            timeout: Some(Duration::from_millis(500)),
            no_acl: true,
            static_nlink: true,
            ino32: true,
            no_xattrs: true,
            writeback: true,
            passthrough: Passthrough::Settled,
            volatile: true,
            redirect_dir: RedirectDir::Follow,
            ..FsOptions::default()
        };
        assert_eq!(fs, expected);
    }

    #[test]
    fn what_an_upper_may_take_is_told_in_bytes_and_files() {
        let quota = read("size=10G,inodes=7").fs.quota;
        assert_eq!((quota.bytes, quota.inodes), (Some(10 << 30), Some(7)));
        assert_eq!(read("size=1,size=4096").fs.quota.bytes, Some(4096), "the later wins");
        assert!(!read("ro").fs.quota.are_set());
    }

    #[test]
    fn which_files_are_passed_through_is_a_word_of_passthrough() {
        let told = |text| read(text).fs.passthrough;
        assert_eq!(told("passthrough=0"), Passthrough::Off);
        assert_eq!(told("passthrough=1"), Passthrough::Settled);
        assert_eq!(told("passthrough=lower"), Passthrough::Lower);
        assert_eq!(told("passthrough=lower,passthrough"), Passthrough::Settled, "the later wins");
        let wrong = read_bytes(b"passthrough=upper").unwrap_err().to_string();
        assert!(wrong.contains("give lower, 1 or 0"), "{wrong}");
    }

    #[test]
    fn unknown_options_are_kept_aside() {
        let options = read("frobnicate,foo=bar,index=on,defaults,x-systemd.automount,_netdev,rw");
        let ignored: Vec<_> = options.ignored.iter().map(|i| i.option.to_str().unwrap()).collect();
        assert_eq!(ignored, ["frobnicate", "foo=bar", "index=on"]);
    }

    #[test]
    fn bad_values_are_refused_with_the_reason() {
        for (text, message) in [
            ("upperdir", "option upperdir needs a value"),
            ("lowerdir=", "option lowerdir needs a value"),
            ("lowerdir=/a::/d:/e", "layers of data alone come last"),
            ("lowerdir=/a:", "empty name"),
            ("lowerdir=:/a", "empty name"),
            (r#"lowerdir=/a:"/b,c""#, "quote the whole list"),
            (r#"lowerdir="/a":"/b""#, "quote the whole list"),
            ("br=/a=rw:/b=ro", "option br: write -o lowerdir=/b,upperdir=/a,workdir=/a.work"),
            ("dirs=/a:/b", "option dirs: write -o lowerdir=/a:/b"),
            ("timeout=-1", "bad value \"-1\"; give seconds"),
            ("timeout=nan", "give seconds"),
            ("timeout=1e300", "give seconds"),
            ("xino=maybe", "give on, off or auto"),
            ("uidmapping=1:2", "triples"),
            ("squash_to_uid=root", "give a user id"),
            ("noxattrs=x", "give 0 or 1"),
            ("force_mask=888", "an octal mode"),
            ("max_threads=many", "a number of threads"),
            ("uring=x", "give 0 or 1"),
            ("pairing=x", "give 0 or 1"),
            ("size=much", "a number with K, M, G or T"),
            ("size=-1", "a number with K, M, G or T"),
            ("inodes=x", "give a number of files"),
            ("remount,rw", "unmount it and mount again"),
        ] {
            let error = read_bytes(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn the_colon_of_a_digest_parts_nothing() {
        let hex = "0123456789abcdef".repeat(4);
        let pinned = format!("a.tar,layer=sha256:{hex}");
        // Commas part options, and not lowers.
        let lowers = |list: &str| split_lowers(list.as_bytes()).unwrap();
        let of = |list: &[&str]| paths(list);
        assert_eq!(lowers(&pinned).merged, of(&[&pinned]));
        assert_eq!(lowers(&format!("x:{pinned}:{pinned}:y")).merged, of(&["x", &pinned, &pinned, "y"]));
        assert_eq!(lowers(&format!("{pinned}::data")).data_only, of(&["data"]));
        assert_eq!(lowers(&format!(r"a.tar,layer=sha256\:{hex}")).merged, of(&[&pinned]));
        // What isn't all of one is a directory.
        assert_eq!(lowers("a.tar,layer=sha256:0123:b").merged, of(&["a.tar,layer=sha256", "0123", "b"]));
        assert_eq!(lowers(&format!("sha256:{hex}")).merged, of(&["sha256", &hex]));
    }

    #[test]
    fn eight_kilobytes_of_lowers() {
        let list: Vec<String> = (0..500).map(|i| format!("/var/lib/{i:07}")).collect();
        assert_eq!(read(&format!("lowerdir={}", list.join(":"))).lowers.len(), 500);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_bytes(&text);
        }

        #[test]
        fn any_mix_of_the_special_is_read_or_refused(text in r#"(lowerdir|upperdir|context|uidmapping|timeout|x|[=,:\\"/a1.]){0,40}"#) {
            let _ = read_bytes(text.as_bytes());
        }

        #[test]
        fn escaped_paths_come_back(names in prop::collection::vec(r#"[a:,\\"= ]{1,12}"#, 1..5)) {
            let escape = |name: &String| name.chars().flat_map(|c| {
                let special = matches!(c, ',' | ':' | '"' | '\\');
                special.then_some('\\').into_iter().chain([c])
            }).collect::<String>();
            let list = names.iter().map(escape).collect::<Vec<_>>().join(":");
            let options = read(&format!("ro,lowerdir={list},nosuid"));
            prop_assert_eq!(options.lowers, names.iter().map(PathBuf::from).collect::<Vec<_>>());
            prop_assert!(options.mount.read_only && options.mount.no_suid);
        }
    }
}
