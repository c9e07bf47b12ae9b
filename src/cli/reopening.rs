//! Opening the layers of a mount anew, while programs use it: what it takes, and what is in the way.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::upgrade::state::AgainState;
use crate::control::protocol::{Request, Restacked};
use crate::fuse::live::{Live, LiveError};
use crate::fuse::policy::{IoMode, Policy};
use crate::union::Limits;
use crate::union::current::{Current, LayerPlace, NotNow};
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::branch::Place;
use crate::union::live::layers::{Coming, NotChanged, Restacking};
use crate::union::live::rollback::RollingBack;
use crate::union::live::snapshot::{Freezing, branch_at_once};
use crate::union::live::{How, Unchanged};
use crate::union::options::{FsOptions, Lazy};
use crate::union::stack::layer::{LowerSource, StackOptions};

/// What a mount's layers were opened by.
pub(super) struct Reopening {
    upper: Option<PathBuf>,
    /// The lowers as they were named; none: those that are recorded with the upper.
    lowers: Mutex<Vec<LowerSource>>,
    point: PathBuf,
    how: How,
    /// Why its places can't be found again.
    unresolved: Option<String>,
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
        let never = unresolved.clone().or_else(|| in_the_way(&fs, policy)).or_else(|| {
            let union = current.get().ok()?;
            let covered = union.layer_places().into_iter().find(|place| place.path.starts_with(point));
            if let Some(covered) = covered {
                return Some(format!(
                    "it covers its own layer {}",
                    EscapedPath::from(covered.path.as_path())
                ));
            }
            union.holds_itself().then(|| "a lower holds the mount's own directories".to_owned())
        });
        let how = How { limits, options: fs };
        let (upper, lowers, point) = (stack.upper, Mutex::new(stack.lowers), point.to_owned());
        Reopening { upper, lowers, point, how, unresolved, never, live: Arc::downgrade(live), current }
    }

    /// Returns what another process can open the layers anew by.
    pub(super) fn state(&self) -> AgainState {
        let (mut lowers, mut archives) = (Vec::new(), Vec::new());
        for (at, lower) in self.lowers.lock().iter().enumerate() {
            match lower {
                LowerSource::Directory(path) => lowers.push(EscapedPath::from(path.as_path())),
                LowerSource::Tree { path, .. } => archives.push((at, EscapedPath::from(path.as_path()))),
            }
        }
        let upper = self.upper.as_deref().map(EscapedPath::from);
        AgainState { upper, lowers, unresolved: self.unresolved.clone(), archives }
    }

    /// Takes a snapshot of the upper, and goes on above it.
    pub(super) fn snapshot(&self, name: Option<&str>) -> Result<String, String> {
        self.can("take a snapshot", "take one of its upper")?;
        self.freeze(name).map(|frozen| frozen.layer().name.clone())
    }

    /// Makes a new upper over what is shown. Returns the name of the snapshot that was taken for it.
    pub(super) fn branch(&self, new: &Path) -> Result<Option<String>, String> {
        self.can("be branched", "branch its upper")?;
        let place = Place::of(new).map_err(|error| error.to_string())?;
        let (_, upper) = self.live()?;
        let union = self.current.get().map_err(|why| why.to_string())?;
        if branch_at_once(&union, upper, &place).map_err(|error| error.to_string())? {
            return Ok(None);
        }
        drop(union);
        let frozen = self.freeze(None)?;
        let name = frozen.layer().name.clone();
        match frozen.stand_on(&place) {
            Ok(()) => Ok(Some(name)),
            Err(error) => Err(format!("the snapshot {name} was taken, and no branch made: {error}")),
        }
    }

    fn freeze(&self, name: Option<&str>) -> Result<Freezing, String> {
        let refused = |why: String| format!("no snapshot was taken, and the mount goes on: {why}");
        let (live, upper) = self.live()?;
        // Whoever has the union keeps it from being exchanged.
        let mut freezing = {
            let union = self.current.get().map_err(|why| refused(why.to_string()))?;
            are_in_their_places(&union.layer_places()).map_err(refused)?;
            Freezing::prepare(&union, upper, &self.lowers.lock(), name)
                .map_err(|error| refused(error.to_string()))?
        };
        match live.exchange(|union| freezing.take(union, &self.how)) {
            Ok(()) => match freezing.sync() {
                Ok(()) => Ok(freezing),
                Err(error) => Err(format!(
                    "the snapshot {} was taken, and what was written last may not be on the disk: {error}",
                    freezing.layer().name
                )),
            },
            Err(LiveError::Failed(error @ Unchanged::Lost(_))) => Err(error.to_string()),
            Err(error) => {
                freezing.give_up();
                Err(refused(error.to_string()))
            }
        }
    }

    /// Goes back to a snapshot.
    pub(super) fn rollback(&self, name: Option<&str>) -> Result<String, String> {
        self.can("go back to a snapshot", "roll that back")?;
        let refused = |why: String| format!("nothing was thrown away, and the mount goes on: {why}");
        let (live, upper) = self.live()?;
        if !live.can_doubt_names() {
            return Err(refused(
                "this kernel can't be told that names mean something else now, which Linux 6.16 and later can; unmount it, \
                 and roll its upper back"
                    .to_owned(),
            ));
        }
        let back = {
            let union = self.current.get().map_err(|why| refused(why.to_string()))?;
            are_in_their_places(&union.layer_places()).map_err(refused)?;
            RollingBack::prepare(&union, upper, name).map_err(|error| refused(error.to_string()))?
        };
        match live.replace(|union| back.go(union, &self.how)) {
            Ok(untold) => {
                let done = back.end();
                if let Some(left) = done.left {
                    log::warn!("{left}; what was thrown away is removed by the next snapshot or rollback");
                }
                match untold {
                    None => Ok(done.to),
                    Some(why) => Err(not_told(&format!("the mount went back to {}", done.to), &why)),
                }
            }
            Err(LiveError::Failed(error @ Unchanged::Lost(_))) => Err(error.to_string()),
            Err(error) => {
                back.give_up();
                Err(refused(error.to_string()))
            }
        }
    }

    /// Refuses what can't be done with this mount.
    fn can(&self, what: &str, instead: &str) -> Result<(), String> {
        let without_upper = || self.upper.is_none().then(|| "it has no upper".to_owned());
        match self.never.clone().or_else(without_upper) {
            None => Ok(()),
            Some(why) => {
                Err(format!("this mount can't {what} while it is mounted: {why}; unmount it, and {instead}"))
            }
        }
    }

    /// Returns what exchanges the layers, and the upper.
    fn live(&self) -> Result<(Arc<Live>, &Path), String> {
        let live = self.live.upgrade().ok_or_else(|| NotNow::Ended.to_string())?;
        Ok((live, self.upper.as_deref().ok_or("the mount has no upper")?))
    }

    /// Has a lower come, or go.
    pub(super) fn restack(&self, request: Request) -> Result<Restacked, String> {
        let refused = |why: String| format!("the layers stay as they are, and the mount goes on: {why}");
        if let Some(why) = &self.never {
            return Err(format!(
                "the layers of this mount can't be changed while it is mounted: {why}; unmount it, and mount it over others"
            ));
        }
        let live = self.live.upgrade().ok_or_else(|| NotNow::Ended.to_string())?;
        let union = self.current.get().map_err(|why| refused(why.to_string()))?;
        union.may_change_layers().map_err(|error| refused(error.to_string()))?;
        let prepared = match &request {
            Request::AddLayer { directory, id, place, .. } => {
                self.source(directory.as_path(), *id).and_then(|source| {
                    let coming = Coming { source: &source, id: *id, point: &self.point };
                    Restacking::add(&union, coming, place, &self.how)
                })
            }
            Request::RemoveLayer { layer, .. } => Restacking::remove(&union, layer, &self.how),
            _ => Err(NotChanged::Refused("not understood".to_owned())),
        };
        let restacking = prepared.map_err(|error| refused(error.to_string()))?;
        let mut lowers = self.lowers.lock();
        // Whoever has the union keeps it from being exchanged.
        drop(union);
        let (Request::AddLayer { used, .. } | Request::RemoveLayer { used, .. }) = &request else {
            return Err("not understood".to_owned());
        };
        let untold = match live.restack(|union| restacking.go(union, &self.how, used.as_ref())) {
            Ok(untold) => untold,
            Err(LiveError::Failed(Unchanged::AsBefore(NotChanged::Used(lost)))) => {
                return Ok(Restacked::Used(lost));
            }
            Err(error) => return Err(refused(error.to_string())),
        };
        // What snapshots record from now on. Where the mount has ended there are none.
        if let Ok(union) = self.current.get() {
            *lowers = union.lower_sources();
        }
        match untold {
            None => Ok(Restacked::Done),
            Some(why) => Err(not_told("the layers are others now", &why)),
        }
    }

    /// Returns what is to become a lower.
    fn source(&self, path: &Path, id: (u64, u64)) -> Result<LowerSource, NotChanged> {
        // Whatever is mounted there: by the next mount it is covered.
        if path.starts_with(&self.point) {
            return Err(NotChanged::Refused(format!("{}: lies in the mount", EscapedPath::from(path))));
        }
        super::lowers::one_more(path.to_owned(), id).map_err(|failure| NotChanged::Refused(failure.message))
    }
}

/// Says that something was done of which the kernel doesn't know.
fn not_told(done: &str, why: &std::io::Error) -> String {
    format!(
        "{done}, but the kernel can't be told: {why}; it may show names from before: unmount it, and mount again"
    )
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
fn in_the_way(fs: &FsOptions, policy: &Policy) -> Option<String> {
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
