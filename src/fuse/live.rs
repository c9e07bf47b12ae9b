//! A mount whose layers are exchanged while programs use it.
//!
//! Requests are answered by one [`UnionFs`] after another. Between two of them none is: whoever exchanges them waits until those
//! that came before are answered, also the ones that went to threads of their own, and those that come wait for the exchange. What
//! the kernel knows by number stays known (see [`crate::union::nodes::skeleton`]), so a program notices nothing but the moment.
//! The last request of all, that the mount has ended, waits likewise; after it nothing is exchanged any more.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fuser::{Errno, INodeNo};
use parking_lot::{RwLock, RwLockWriteGuard};

use super::adaptor::UnionFs;
use super::dispatch::start_thread;
use super::io_mode::OpenState;
use super::policy::Policy;
use super::session::init::Wanted;
use super::session::parting::Parting;
use super::session::{Filesystem, Notifier};
use super::wire::operation::Init;
use super::wire::{Reply, Request};
use crate::union::Union;
use crate::union::handover::{Stays, TreeState};
use crate::union::live::Unchanged;
use crate::union::live::layers::Outdated;

/// How long requests that are under way may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long those that come wait for them at a time.
const AT_A_TIME: Duration = Duration::from_millis(5);
/// And at the most.
const LONGEST_AT_A_TIME: Duration = Duration::from_millis(640);
/// Longer names nobody can look up, though a layer may hold some.
const LONGEST_NAME: usize = 255;
/// What a mount shows, now.
#[derive(Debug)]
pub struct Live {
    /// None: the mount has ended, or its layers can't be read any more.
    shown: RwLock<Option<UnionFs>>,
    /// Whether the kernel can be told to ask for all names anew.
    can_doubt_names: AtomicBool,
}

/// A filesystem that can be exchanged for another while it is served.
#[derive(Debug)]
pub struct LiveFs(Arc<Live>);

/// Why nothing was exchanged.
#[derive(Debug, thiserror::Error)]
pub enum LiveError<E: fmt::Display + fmt::Debug> {
    /// Something is under way that doesn't end.
    #[error("a request has been under way for {} seconds, such as the copy-up of a large file; try again later", PATIENCE.as_secs())]
    Busy,
    /// There is nothing to be exchanged any more.
    #[error("the mount has ended")]
    Ended,
    /// It failed, and the mount goes on as before or answers nothing from now on.
    #[error("{0}")]
    Failed(Unchanged<E>),
}

impl LiveFs {
    /// Serves this one first.
    pub fn new(first: UnionFs) -> LiveFs {
        LiveFs(Arc::new(Live { shown: RwLock::new(Some(first)), can_doubt_names: AtomicBool::new(false) }))
    }

    /// Returns what exchanges it.
    pub fn live(&self) -> Arc<Live> {
        self.0.clone()
    }
}

impl Live {
    /// Exchanges what is shown. `change` makes the union that takes over, and nobody asks the one before meanwhile.
    ///
    /// # Errors
    /// See [`LiveError`].
    pub fn exchange<E: fmt::Display + fmt::Debug>(
        &self,
        change: impl FnOnce(&Union) -> Result<Union, Unchanged<E>>,
    ) -> Result<(), LiveError<E>> {
        self.exchange_telling(change, |_| {}).map(drop)
    }

    /// Exchanges what is shown for something else: what the kernel knows of it is asked for anew. Returns why it couldn't be told so,
    /// where it couldn't: then it may go on showing names from before.
    ///
    /// # Errors
    /// See [`LiveError`].
    pub fn replace<E: fmt::Display + fmt::Debug>(
        &self,
        change: impl FnOnce(&Union) -> Result<Union, Unchanged<E>>,
    ) -> Result<Option<io::Error>, LiveError<E>> {
        // Names before anybody can ask for one; it takes no lock that a request which waits may have.
        let mut untold = Some(io::ErrorKind::NotConnected.into());
        let union = self.exchange_telling(change, |kernel| untold = kernel.doubt_all_names().err())?;
        if let Some(union) = union.upgrade()
            && let Some(kernel) = self.notifier()
        {
            forget_attributes(&union, &kernel);
        }
        Ok(untold)
    }

    /// Exchanges what is shown for what shows some things otherwise, of which the kernel is told. Until then, for a moment, it may show
    /// them as they were. Nothing is detached that is mounted on what stays. Returns what couldn't be told.
    ///
    /// # Errors
    /// See [`LiveError`].
    pub fn restack<E: fmt::Display + fmt::Debug>(
        &self,
        change: impl FnOnce(&Union) -> Result<(Union, Outdated), Unchanged<E>>,
    ) -> Result<Option<io::Error>, LiveError<E>> {
        let mut outdated = Outdated::default();
        self.exchange(|union| {
            let next;
            (next, outdated) = change(union)?;
            Ok(next)
        })?;
        let Some(kernel) = self.notifier() else { return Ok(Some(io::ErrorKind::NotConnected.into())) };
        // Not before requests are answered again: the kernel waits for those that look into the same directory.
        let can_be_known = outdated.names.iter().filter(|(_, name)| name.len() <= LONGEST_NAME);
        let names = can_be_known.map(|(dir, name)| kernel.inval_entry(INodeNo(*dir), name));
        let nodes = outdated.nodes.iter().map(|ino| kernel.inval_inode(INodeNo(*ino), 0, 0));
        let mut untold = None;
        names.chain(nodes).for_each(|told| untold = told.err().or(untold.take()));
        Ok(untold)
    }

    /// Lets another process go on: `hand` tells it what there is, while nothing is asked. Afterwards nothing is asked here any more, for
    /// the other one does; where `hand` fails all goes on as before.
    ///
    /// # Errors
    /// See [`LiveError`].
    pub fn hand_over<E: fmt::Display + fmt::Debug>(
        &self,
        parting: &Parting,
        hand: impl FnOnce(&Union, Policy, Vec<OpenState>) -> Result<(), E>,
    ) -> Result<(), LiveError<E>> {
        let since = Instant::now();
        let mut at_a_time = AT_A_TIME;
        while since.elapsed() < PATIENCE {
            let shown = parting.pause(at_a_time).then(|| self.shown.try_write_for(at_a_time)).flatten();
            if let Some(shown) = shown {
                let Some(now) = &*shown else {
                    parting.resume();
                    return Err(LiveError::Ended);
                };
                if now.be_alone() {
                    return match hand(&now.union, now.changer.policy, now.changer.opener.state()) {
                        Ok(()) => {
                            // Whoever waits for it waits for the end of this process.
                            std::mem::forget(shown);
                            Ok(())
                        }
                        Err(error) => {
                            now.current().show(None);
                            drop(shown);
                            parting.resume();
                            Err(LiveError::Failed(Unchanged::AsBefore(error)))
                        }
                    };
                }
            }
            parting.resume();
            // Meanwhile requests are answered.
            std::thread::sleep(at_a_time);
            at_a_time = (at_a_time * 2).min(LONGEST_AT_A_TIME);
        }
        Err(LiveError::Busy)
    }

    /// Returns the lowers that another process has to open again to go on.
    ///
    /// # Errors
    /// See [`Stays`]; and the mount may have ended.
    pub fn trees(&self) -> Result<Vec<TreeState>, LiveError<Stays>> {
        let shown = self.shown.read();
        let shown = shown.as_ref().ok_or(LiveError::Ended)?;
        shown.union.trees().map_err(|why| LiveError::Failed(Unchanged::AsBefore(why)))
    }

    /// Notes what is open of what another process has opened, before anything is asked.
    pub fn take_over_opens(&self, open: Vec<OpenState>, kernel: &Notifier) {
        if let Some(shown) = &*self.shown.read() {
            shown.changer.opener.take_over(open, kernel);
        }
    }

    /// Notes whether it can, as another process has found out.
    pub fn set_can_doubt_names(&self, can: bool) {
        self.can_doubt_names.store(can, Ordering::Release);
    }

    /// Tells whether the kernel can be told to ask for all names anew. It isn't tried: that would detach what is mounted on them.
    pub fn can_doubt_names(&self) -> bool {
        self.can_doubt_names.load(Ordering::Acquire)
    }

    fn notifier(&self) -> Option<Notifier> {
        self.shown.read().as_ref().and_then(|shown| shown.notifier().get().cloned())
    }

    fn exchange_telling<E: fmt::Display + fmt::Debug>(
        &self,
        change: impl FnOnce(&Union) -> Result<Union, Unchanged<E>>,
        tell: impl FnOnce(&Notifier),
    ) -> Result<Weak<Union>, LiveError<E>> {
        let mut shown = self.parked()?;
        let since = Instant::now();
        let Some(before) = shown.take() else { return Err(LiveError::Ended) };
        match change(&before.union) {
            Ok(union) => {
                let ((policy, kept), union) = (before.kept(), Arc::new(union));
                let (next, settle) = (Arc::downgrade(&union), union.settling());
                *shown = Some(UnionFs::showing(union, policy, kept));
                if let Some(kernel) = before.notifier().get() {
                    tell(kernel);
                }
                drop(shown);
                log::info!(
                    "the layers were exchanged; requests waited for {} µs",
                    since.elapsed().as_micros()
                );
                // The one before closes what was open, and what it knew is sorted: nobody waits for that.
                start_thread(move || {
                    settle();
                    drop(before);
                });
                Ok(next)
            }
            Err(error @ Unchanged::AsBefore(_)) => {
                before.current().show(None);
                *shown = Some(before);
                Err(LiveError::Failed(error))
            }
            Err(error @ Unchanged::Lost(_)) => {
                log::error!("the mount answers nothing any more: {error}");
                before.current().show(None);
                Err(LiveError::Failed(error))
            }
        }
    }

    /// Waits until no request is under way, and lets none begin.
    fn parked<E: fmt::Display + fmt::Debug>(
        &self,
    ) -> Result<RwLockWriteGuard<'_, Option<UnionFs>>, LiveError<E>> {
        let since = Instant::now();
        let mut at_a_time = AT_A_TIME;
        while since.elapsed() < PATIENCE {
            // Those that were read meanwhile wait; the longer it takes, the longer they do.
            if let Some(shown) = self.shown.try_write_for(at_a_time) {
                match &*shown {
                    None => return Err(LiveError::Ended),
                    Some(now) if now.be_alone() => return Ok(shown),
                    Some(_) => {}
                }
            }
            std::thread::sleep(AT_A_TIME);
            at_a_time = (at_a_time * 2).min(LONGEST_AT_A_TIME);
        }
        Err(LiveError::Busy)
    }
}

/// Lets the kernel forget the attributes of all that it knew, the listings of directories, and what it has read of files that are gone.
fn forget_attributes(union: &Union, kernel: &Notifier) {
    const NO_DATA: i64 = -1;
    let tell = |ino: u64, data: i64| {
        if let Err(error) = kernel.inval_inode(INodeNo(ino), data, 0) {
            log::debug!("the kernel keeps the attributes of {ino:#x}: {error}");
        }
    };
    tell(union.root().ino, 0);
    let mut known = Vec::new();
    union.for_each_before(|ino, has_other_data| known.push((ino, if has_other_data { 0 } else { NO_DATA })));
    known.into_iter().for_each(|(ino, data)| tell(ino, data));
}

impl Filesystem for LiveFs {
    fn negotiate(&mut self, offer: &Init) -> io::Result<Wanted> {
        let can = (offer.major, offer.minor) >= Notifier::DOUBTS_NAMES_SINCE;
        self.0.can_doubt_names.store(can, Ordering::Release);
        match &mut *self.0.shown.write() {
            Some(shown) => shown.negotiate(offer),
            None => Err(io::Error::other("the layers are gone")),
        }
    }

    fn serve(&self, request: &Request<'_>, reply: Reply) {
        match &*self.0.shown.read() {
            Some(shown) => shown.serve(request, reply),
            None => reply.error(Errno::EIO),
        }
    }

    /// Waits for an exchange that is under way. The union ends here.
    fn destroy(&self) {
        let ended = self.0.shown.write().take();
        if let Some(shown) = ended {
            shown.destroy();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use crate::fuse::policy::{IoMode, MAX_WRITE, Policy};
    use crate::union::Limits;
    use crate::union::stack::layer::{Stack, StackOptions};

    fn policy() -> Policy {
        Policy {
            timeout: Duration::ZERO,
            lowers_change: false,
            io: IoMode::WriteThrough,
            no_xattrs: false,
            no_acl: false,
            no_fsync: false,
            max_write: MAX_WRITE,
        }
    }

    fn union(top: &std::path::Path) -> Union {
        let lowers = vec![top.join("lower").into()];
        let options = StackOptions { lowers, ..StackOptions::default() };
        Union::new(Stack::open(&options).unwrap(), Limits::default()).unwrap()
    }

    #[test]
    fn a_mount_that_ended_is_not_exchanged_and_lets_go_of_its_layers() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("lower")).unwrap();
        let fs = LiveFs::new(UnionFs::new(Arc::new(union(top.path())), policy()));
        let (live, current) = (fs.live(), fs.0.shown.read().as_ref().unwrap().current());
        // One that fails leaves it, one that comes about is seen.
        let failed = live.exchange::<String>(|_| Err(Unchanged::AsBefore("no".into())));
        assert_eq!(failed.unwrap_err().to_string(), "no");
        let before = Arc::as_ptr(&current.get().unwrap());
        live.exchange::<String>(|_| Ok(union(top.path()))).unwrap();
        assert_ne!(Arc::as_ptr(&current.get().unwrap()), before);
        fs.destroy();
        assert!(current.get().is_err(), "the union is gone before whoever unmounted goes on");
        let ended = live.exchange::<String>(|_| panic!("nobody may be asked"));
        assert!(matches!(ended, Err(LiveError::Ended)), "{ended:?}");
    }
}
