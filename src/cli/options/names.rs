//! The names of options: what each does, in a few words, and which one somebody may have meant.

use super::super::nearest::nearest;

/// The options that have an effect, with `=` where they need a value, and what they do.
pub const KNOWN: [(&str, &str); 60] = [
    ("lowerdir=", "the read-only layers, topmost first"),
    ("lowerdir+=", "one more layer below"),
    ("datadir+=", "one more layer of data alone"),
    ("upperdir=", "the writable layer"),
    ("workdir=", "where changes are prepared"),
    ("userxattr", "marks in user.overlay.*"),
    ("uidmapping=", "user ids on disk are shown as others"),
    ("gidmapping=", "group ids on disk are shown as others"),
    ("squash_to_root", "everything belongs to root"),
    ("squash_to_uid=", "everything belongs to one user"),
    ("squash_to_gid=", "everything belongs to one group"),
    ("xattr_permissions=", "owner and mode are kept in an attribute"),
    ("force_mask=", "the mode that files have on disk"),
    ("volatile", "nothing is synced"),
    ("fsync=", "0: nothing is synced"),
    ("redirect_dir=", "whether directories of lowers can be renamed"),
    ("metacopy=", "on: changes of attributes and names copy no data"),
    (
        "lazy=",
        "keep: writes to large files copy the blocks that they touch; on: the others follow in the background",
    ),
    ("verity=", "whether digests of data are checked"),
    ("lower=", "checked: others may change the lowers meanwhile"),
    ("noacl", "no POSIX ACLs"),
    ("acl", "POSIX ACLs"),
    ("noxattrs", "no extended attributes"),
    ("timeout=", "how long the kernel may keep names"),
    ("writeback", "writes stay in the kernel's cache"),
    ("passthrough", "the kernel reads and writes files itself"),
    ("passthrough=", "lower: also those of lowers"),
    ("size=", "what the upper may take, in bytes"),
    ("inodes=", "how many objects the upper may have"),
    ("max_write=", "the largest write request"),
    ("threaded=", "0: one thread answers"),
    ("max_threads=", "how many threads answer"),
    ("pairing=", "0: any thread answers"),
    ("uring", "requests come over io_uring"),
    ("static_nlink", "every directory has link count 1"),
    ("ino32_t", "inode numbers of 32 bits"),
    ("xino=", "how inode numbers of filesystems are kept apart"),
    ("allow_other", "let others in"),
    ("noallow_other", "let nobody else in"),
    ("allow_root", "let root in"),
    ("default_permissions", "the kernel checks permissions, as always"),
    ("context=", "the SELinux context of all files"),
    ("fsname=", "what mount(8) shows as device"),
    ("debug", "stay in the foreground and log"),
    ("remount", "change a mount: ro or rw"),
    ("ro", "read-only"),
    ("rw", "read and write"),
    ("suid", "setuid programs have their effect"),
    ("nosuid", "setuid programs have no effect"),
    ("dev", "device nodes can be opened"),
    ("nodev", "device nodes can't be opened"),
    ("exec", "programs run"),
    ("noexec", "programs don't run"),
    ("atime", "access times are kept"),
    ("relatime", "access times are kept now and then"),
    ("noatime", "access times are not kept"),
    ("diratime", "those of directories are kept"),
    ("nodiratime", "those of directories are not kept"),
    ("sync", "every write is synced"),
    ("dirsync", "every change of a directory is synced"),
];

/// What other programs understand and this one has no use for: words for mount(8), systemd and podman themselves; libfuse's
/// tuning; the kernel's wording of what is so anyway.
const OF_OTHERS: [&str; 45] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "comment",
    "private",
    "rprivate",
    "shared",
    "slave",
    "strictatime",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "mand",
    "nomand",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "subtype",
    "nonempty",
    "kernel_cache",
    "auto_cache",
    "big_writes",
    "large_read",
    "clone_fd",
    "splice_read",
    "splice_write",
    "splice_move",
    "no_splice_read",
    "no_splice_write",
    "no_splice_move",
    "max_read",
    "max_idle_threads",
    "max_background",
    "congestion_threshold",
    "fast_ino",
    "fast_ino_check",
];

/// Other words for known options.
const OTHER_WORDS: [(&str, &str); 6] = [
    ("lower", "lowerdir"),
    ("upper", "upperdir"),
    ("work", "workdir"),
    ("readonly", "ro"),
    ("read_only", "ro"),
    ("allow_others", "allow_other"),
];

/// Tells whether it is a word for others, which has no effect here and needs no warning.
pub(super) fn is_of_others(name: &str) -> bool {
    OF_OTHERS.contains(&name) || name.starts_with("x-") || name.starts_with("X-")
}

/// Returns the known option that is written almost like this one.
pub fn like(name: &str) -> Option<&'static str> {
    let other = OTHER_WORDS.iter().find(|(word, _)| *word == name).map(|(_, meant)| *meant);
    let known = || KNOWN.iter().map(|(name, _)| name.trim_end_matches('='));
    other.or_else(|| nearest(name, known()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::super::Options;
    use super::*;

    #[test]
    fn every_known_name_is_known_and_documented() {
        // The words in the table that are written as code.
        let manual = include_str!("../../../docs/options.md").lines().filter(|line| line.starts_with('|'));
        let manual: Vec<&str> = manual
            .flat_map(|line| line.split('`').skip(1).step_by(2))
            .filter_map(|code| code.split([',', ' ', '=']).next())
            .map(|word| word.trim_end_matches('+'))
            .collect();
        for (name, what) in KNOWN {
            let mut options = Options::default();
            // A value that fits, or not: but the name is known.
            let text = if name.ends_with('=') { format!("{name}1") } else { name.to_owned() };
            if options.read(OsStr::new(&text)).is_ok() {
                assert!(options.ignored.is_empty(), "{name} is not known");
            }
            assert!(!what.is_empty());
            let bare = name.trim_end_matches('=').trim_end_matches('+');
            let switch = bare.trim_start_matches("no");
            // An option and its opposite are told together.
            let told = [bare, switch, &format!("no{switch}"), &format!("[no]{switch}")]
                .iter()
                .any(|word| manual.contains(word));
            assert!(told, "{name} is not in docs/options.md");
        }
        for name in OF_OTHERS {
            assert!(Options::means_nothing(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn what_is_almost_a_known_name_is_told() {
        for (given, meant) in [
            ("uperdir", Some("upperdir")),
            ("lowedir", Some("lowerdir")),
            ("lower", Some("lowerdir")),
            ("passthru", None),
            ("pasthrough", Some("passthrough")),
            ("noatmie", Some("noatime")),
            ("metacpoy", Some("metacopy")),
            ("x-systemd.automount", None),
            ("zstd", None),
        ] {
            assert_eq!(like(given), meant, "{given}");
        }
    }
}
