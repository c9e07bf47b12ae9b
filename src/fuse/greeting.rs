//! What is agreed on with the kernel when it greets (FUSE_INIT).

use std::fmt;

use fuser::{InitFlags, KernelConfig};

use super::policy::{IoMode, Policy, READ_AHEAD};

/// How many requests that nobody waits for (reading ahead, writing back) may be under way.
const MAX_BACKGROUND: u16 = 64;

/// Asks for what the policy wants, and changes the policy where the kernel has no such thing.
pub(super) fn greet(policy: &mut Policy, config: &mut KernelConfig) {
    let mut want = InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_DONT_MASK
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        // Lets the session tell an aborted connection, whose mount stays, from an unmount.
        | InitFlags::FUSE_ABORT_ERROR
        | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
    if !policy.no_acl && !policy.no_xattrs {
        want |= InitFlags::FUSE_POSIX_ACL;
    }
    if policy.io == IoMode::Passthrough && !config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH) {
        log::warn!(
            "the kernel has no passthrough (Linux 6.9 and later, CONFIG_FUSE_PASSTHROUGH): files are cached"
        );
        policy.io = IoMode::WriteThrough;
    }
    want |= match policy.io {
        IoMode::WriteThrough => InitFlags::FUSE_NO_OPEN_SUPPORT,
        IoMode::WriteBack => InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_WRITEBACK_CACHE,
        IoMode::Passthrough => InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_ATOMIC_O_TRUNC,
    };
    if policy.io == IoMode::Passthrough {
        // Real files on plain filesystems; so another overlay can still be stacked on this mount.
        settle("max_stack_depth", 1, |depth| config.set_max_stack_depth(depth));
    }
    let have = want & config.capabilities();
    if let Err(missing) = config.add_capabilities(have) {
        log::warn!("the kernel refused {missing:?}");
    }
    settle("max_background", MAX_BACKGROUND, |requests| config.set_max_background(requests));
    settle("max_write", policy.max_write, |bytes| config.set_max_write(bytes));
    // Without privileges the kernel offers less.
    settle("max_readahead", READ_AHEAD, |bytes| config.set_max_readahead(bytes));
}

/// Sets a number, or the nearest one that is allowed.
fn settle<T: Copy + fmt::Display>(name: &str, wanted: T, mut set: impl FnMut(T) -> Result<T, T>) {
    let Err(nearest) = set(wanted) else { return };
    log::info!("{name}={wanted}: {nearest} is used");
    if set(nearest).is_err() {
        log::warn!("{name}: neither {wanted} nor {nearest} is allowed");
    }
}
