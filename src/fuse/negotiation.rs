//! What is asked of the kernel with the first word (FUSE_INIT), by the policy.

use fuser::InitFlags;

use super::policy::{IoMode, Policy, READ_AHEAD};
use super::session::init::Wanted;
use super::wire::operation::Init;

/// How many requests that nobody waits for (reading ahead, writing back) may be under way.
const MAX_BACKGROUND: u16 = 64;

/// Returns what the policy wants; the policy changes where the kernel has no such thing.
pub(super) fn wanted(policy: &mut Policy, offer: &Init) -> Wanted {
    // Not FUSE_ASYNC_DIO: a buffered reader beside an asynchronous O_DIRECT write would go on seeing the old bytes after the
    // write has ended, for the kernel drops the page cache only after a synchronous one.
    let mut flags = InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_DONT_MASK
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        // Tells when somebody outside of a file's group sets its ACL.
        | InitFlags::FUSE_SETXATTR_EXT
        // An engine may idmap the mount. From then on only what makes inodes says who asks.
        | InitFlags::FUSE_ALLOW_IDMAP
        // A handle would be stale when the kernel has forgotten the node.
        | InitFlags::FUSE_NO_EXPORT_SUPPORT
        | InitFlags::FUSE_CACHE_SYMLINKS;
    flags |= match policy.lowers_change {
        true => InitFlags::FUSE_AUTO_INVAL_DATA,
        // A listing that the kernel keeps, as it does where opening a directory is no request, lasts as long as the directory's
        // time, which is that of its topmost part.
        false => InitFlags::FUSE_EXPLICIT_INVAL_DATA | InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    };
    if !policy.no_acl && !policy.no_xattrs {
        flags |= InitFlags::FUSE_POSIX_ACL;
    }
    if policy.opens() && !offer.flags.contains(InitFlags::FUSE_PASSTHROUGH) {
        log::warn!(
            "the kernel has no passthrough (Linux 6.9 and later, CONFIG_FUSE_PASSTHROUGH): files are cached"
        );
        policy.io = IoMode::WriteThrough;
    }
    flags |= match policy.io {
        IoMode::WriteThrough => InitFlags::FUSE_NO_OPEN_SUPPORT,
        IoMode::WriteBack => InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_WRITEBACK_CACHE,
        IoMode::Passthrough | IoMode::PassthroughLower => {
            InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_ATOMIC_O_TRUNC
        }
    };
    Wanted {
        flags,
        max_background: MAX_BACKGROUND,
        max_write: policy.max_write,
        max_readahead: READ_AHEAD,
        // Real files on plain filesystems; so another overlay can still be stacked on this mount.
        max_stack_depth: 1,
    }
}
