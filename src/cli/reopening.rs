//! Opening the layers of a mount anew, while programs use it: what it takes, and what is in the way.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crate::fuse::live::{Live, LiveError};
use crate::fuse::policy::{IoMode, Policy};
use crate::union::current::{Current, LayerPlace};
use crate::union::escaped_path::EscapedPath;
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
    current: Arc<Current>,
}

/// The stack of a mount by paths that mean the same wherever the process is.
///
/// # Errors
/// When one can't be resolved.
pub(super) fn from_everywhere(stack: &StackOptions) -> Result<StackOptions, String> {
    let whole = |path: &PathBuf| {
        std::fs::canonicalize(path)
            .map_err(|error| format!("{}: cannot be resolved: {error}", EscapedPath::from(path.as_path())))
    };
    let lower = |lower: &LowerSource| match lower {
        LowerSource::Directory(path) => whole(path).map(LowerSource::Directory),
        tree => Ok(tree.clone()),
    };
    let work = match &stack.work {
        // Made where it isn't there.
        Some(work) => Some(std::path::absolute(work).map_err(|error| error.to_string())?),
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
        (stack, fs, limits): (Result<StackOptions, String>, FsOptions, Limits),
        policy: &Policy,
        point: &Path,
        (live, current): (&Arc<Live>, Arc<Current>),
    ) -> Reopening {
        let (stack, unresolved) = match stack {
            Ok(stack) => (stack, None),
            Err(why) => (StackOptions::default(), Some(why)),
        };
        let never = unresolved.or_else(|| in_the_way(&stack, &fs, policy)).or_else(|| {
            let union = current.get()?;
            let covered = union.layer_places().into_iter().find(|place| place.path.starts_with(point));
            if let Some(covered) = covered {
                return Some(format!(
                    "it covers its own layer {}",
                    EscapedPath::from(covered.path.as_path())
                ));
            }
            union.holds_itself().then(|| "a lower holds the mount's own directories".to_owned())
        });
        Reopening { stack, fs, limits, never, live: Arc::downgrade(live), current }
    }

    /// Takes a snapshot of the upper, and opens the layers anew above it.
    pub(super) fn snapshot(&self, name: Option<&str>) -> Result<String, String> {
        if let Some(why) = &self.never {
            return Err(format!(
                "this mount can't take a snapshot while it is mounted: {why}; unmount it, and take one of its upper"
            ));
        }
        let live = self.live.upgrade().ok_or("the mount has ended")?;
        let places = self.current.get().ok_or("the mount has ended")?.layer_places();
        are_in_their_places(&places)?;
        let known = places.first().map(|upper| upper.id);
        let target = Target {
            upper: self.stack.upper.clone().ok_or("the mount has no upper")?,
            work: self.stack.work.clone(),
            lowers: self.stack.lowers.clone(),
            xattr: self.stack.xattr,
            known,
        };
        let ids: Vec<(u64, u64)> = places.iter().map(|place| place.id).collect();
        let take = || snapshot(&target, name).map_err(|error| error.to_string());
        let open = || {
            let stack = Stack::open(&self.stack).map_err(|error| error.to_string())?;
            let union =
                Union::with_options(stack, self.limits, &self.fs).map_err(|error| error.to_string())?;
            let now: Vec<(u64, u64)> = union.layer_places().iter().map(|place| place.id).collect();
            // As they were, below a new upper if there is one.
            match now == ids || now.get(1..) == Some(&ids[..]) {
                true => Ok(union),
                false => Err("other directories are in the places of the layers".to_owned()),
            }
        };
        let refused = |why: String| format!("no snapshot was taken, and the mount goes on: {why}");
        match live.reopen(take, open, refused) {
            Ok(taken) => Ok(taken.name),
            Err(error) => {
                if matches!(error, LiveError::Lost(_)) {
                    log::error!("{error}");
                }
                Err(error.to_string())
            }
        }
    }
}

/// Checks that the layers can be found again by their paths.
fn are_in_their_places(places: &[LayerPlace]) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    for place in places {
        let shown = EscapedPath::from(place.path.as_path());
        let found = std::fs::metadata(&place.path).map_err(|error| format!("layer {shown}: {error}"))?;
        if (found.dev(), found.ino()) != place.id {
            return Err(format!(
                "layer {shown}: another directory is in its place since it was mounted; put it back, or mount again"
            ));
        }
    }
    Ok(())
}

/// Tells why the layers of such a mount can't be opened anew, if so.
fn in_the_way(stack: &StackOptions, fs: &FsOptions, policy: &Policy) -> Option<String> {
    if stack.upper.is_none() {
        return Some("it has no upper".into());
    }
    if matches!(policy.io, IoMode::Passthrough | IoMode::PassthroughLower) {
        return Some("with passthrough the kernel writes to files of the upper by itself".into());
    }
    if policy.io == IoMode::WriteBack {
        return Some("with writeback the kernel holds what was written".into());
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
    None
}
