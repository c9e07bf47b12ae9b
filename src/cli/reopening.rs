//! Opening the layers of a mount anew, while programs use it: what it takes, and what is in the way.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::Failure;
use crate::fuse::live::{Live, LiveError};
use crate::fuse::policy::{IoMode, Policy};
use crate::union::current::Current;
use crate::union::frozen::snapshot::{Target, snapshot};
use crate::union::options::{FsOptions, Lazy};
use crate::union::stack::layer::{LowerSource, Stack, StackOptions};
use crate::union::{Limits, Union};

/// What a mount's layers were opened by.
pub(super) struct Reopening {
    stack: StackOptions,
    fs: FsOptions,
    limits: Limits,
    /// Why it can't be done with this mount at all.
    never: Option<String>,
    /// Weak: who only asks must not keep the layers open.
    live: Weak<Live>,
}

/// The stack of a mount by paths that mean the same wherever the process is.
///
/// # Errors
/// When one can't be resolved.
pub(super) fn from_everywhere(stack: &StackOptions) -> Result<StackOptions, Failure> {
    let whole = |path: &PathBuf| {
        std::fs::canonicalize(path)
            .map_err(|error| Failure::failed(format!("{}: cannot be resolved: {error}", path.display())))
    };
    let lower = |lower: &LowerSource| match lower {
        LowerSource::Directory(path) => whole(path).map(LowerSource::Directory),
        tree => Ok(tree.clone()),
    };
    let work = match &stack.work {
        // Made where it isn't there.
        Some(work) => Some(std::path::absolute(work).map_err(Failure::failed)?),
        None => None,
    };
    Ok(StackOptions {
        lowers: stack.lowers.iter().map(lower).collect::<Result<_, _>>()?,
        data_only: stack.data_only.iter().map(whole).collect::<Result<_, _>>()?,
        upper: stack.upper.as_ref().map(whole).transpose()?,
        work,
        // By then it is the mount itself.
        mount_point: None,
        ..stack.clone()
    })
}

impl Reopening {
    /// Returns what opens the layers of a mount anew. `stack` is [`from_everywhere`].
    pub(super) fn of(
        (stack, fs, limits): (StackOptions, FsOptions, Limits),
        policy: &Policy,
        point: &Path,
        (live, current): (&Arc<Live>, Arc<Current>),
    ) -> Reopening {
        let never = in_the_way(&stack, &fs, policy, point);
        let never = never.or_else(|| {
            let holds = current.get().is_some_and(|union| union.holds_itself());
            holds.then(|| "a lower holds the mount's own directories".to_owned())
        });
        Reopening { stack, fs, limits, never, live: Arc::downgrade(live) }
    }

    /// Takes a snapshot of the upper, and opens the layers anew above it.
    pub(super) fn snapshot(&self, name: Option<&str>) -> Result<String, String> {
        if let Some(why) = &self.never {
            return Err(format!(
                "this mount can't take a snapshot while it is mounted: {why}; unmount it, and take one of its upper"
            ));
        }
        let live = self.live.upgrade().ok_or("the mount has ended")?;
        let upper = self.stack.upper.clone().ok_or("the mount has no upper")?;
        let target = Target {
            upper,
            work: self.stack.work.clone(),
            lowers: self.stack.lowers.clone(),
            xattr: self.stack.xattr,
        };
        let take = || snapshot(&target, name).map_err(|error| error.to_string());
        let open = || {
            let stack = Stack::open(&self.stack).map_err(|error| error.to_string())?;
            Union::with_options(stack, self.limits, &self.fs).map_err(|error| error.to_string())
        };
        let refused = |error: crate::error::FsError| {
            format!("a deleted file that is open has its data in another layer: {error}; close it first")
        };
        match live.reopen(take, open, refused) {
            Ok(taken) => Ok(taken.name),
            Err(error @ LiveError::Lost(_)) => {
                log::error!("{error}");
                Err(error.to_string())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Tells why the layers of such a mount can't be opened anew, if so.
fn in_the_way(stack: &StackOptions, fs: &FsOptions, policy: &Policy, point: &Path) -> Option<String> {
    if stack.upper.is_none() {
        return Some("it has no upper".into());
    }
    if matches!(policy.io, IoMode::Passthrough | IoMode::PassthroughLower) {
        return Some("with passthrough the kernel writes to files of the upper by itself".into());
    }
    if fs.lazy != Lazy::Off {
        return Some("with lazy, files of the upper are being filled".into());
    }
    if fs.volatile {
        return Some("with volatile it isn't known what is on the disk".into());
    }
    if fs.quota.are_set() {
        return Some("with size and inodes, what is counted is that one upper".into());
    }
    let lowers = stack.lowers.iter().filter_map(|lower| match lower {
        LowerSource::Directory(path) => Some(path),
        LowerSource::Tree { .. } => None,
    });
    let mut paths = lowers.chain(&stack.data_only).chain(&stack.upper).chain(&stack.work);
    let covered = paths.find(|path| path.starts_with(point))?;
    Some(format!("it covers its own layer {}", covered.display()))
}
