//! A mount whose layers are opened anew while programs use it.
//!
//! Requests are answered by one [`UnionFs`] after another. Between two of them none is: whoever exchanges them waits until those
//! that came before are answered, also the ones that went to threads of their own, and those that come wait for the exchange. What
//! the kernel knows by number stays known (see [`crate::union::nodes::skeleton`]), so a program notices nothing but the moment.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Errno;
use parking_lot::{RwLock, RwLockWriteGuard};

use super::adaptor::UnionFs;
use super::session::Filesystem;
use super::session::init::Wanted;
use super::wire::operation::Init;
use super::wire::{Reply, Request};
use crate::union::Union;

/// How long requests that are under way may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long those that come wait for them at a time.
const AT_A_TIME: Duration = Duration::from_millis(5);
/// And at the most.
const LONGEST_AT_A_TIME: Duration = Duration::from_millis(640);
/// How long the layers may be another's before the mount is given up.
const PATIENCE_TO_OPEN: Duration = Duration::from_secs(30);

/// What a mount shows, now.
#[derive(Debug)]
pub struct Live {
    /// None: its layers could not be opened again.
    shown: RwLock<Option<UnionFs>>,
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
    /// What was to be done in between failed; the mount goes on as before.
    #[error("{0}")]
    Failed(E),
    /// The layers can't be opened any more: the mount answers nothing from now on.
    #[error("the layers can't be opened again: {0}; unmount it, and mount again")]
    Lost(E),
}

impl LiveFs {
    /// Serves this one first.
    pub fn new(first: UnionFs) -> LiveFs {
        LiveFs(Arc::new(Live { shown: RwLock::new(Some(first)) }))
    }

    /// Returns what exchanges it.
    pub fn live(&self) -> Arc<Live> {
        self.0.clone()
    }
}

impl Live {
    /// Does something to the layers while none of them is open, and opens them anew. `open` is tried again for a while if it fails:
    /// another may have the upper's lock for a moment.
    ///
    /// # Errors
    /// See [`LiveError`].
    pub fn reopen<T, E: fmt::Display + fmt::Debug>(
        &self,
        change: impl FnOnce() -> Result<T, E>,
        open: impl Fn() -> Result<Union, E>,
        refused: impl Fn(String) -> E,
    ) -> Result<T, LiveError<E>> {
        let mut shown = self.parked()?;
        let Some(before) = shown.take() else { return Err(LiveError::Busy) };
        // What the disk doesn't take is told, and nothing has happened.
        let ready = before.union.sync_upper().map_err(|error| error.to_string());
        let skeleton = match ready.and_then(|()| before.union.skeleton().map_err(str::to_owned)) {
            Ok(skeleton) => skeleton,
            Err(why) => {
                before.current().show(None);
                *shown = Some(before);
                return Err(LiveError::Failed(refused(why)));
            }
        };
        let (policy, kept) = before.let_go();
        let done = change();
        let since = Instant::now();
        let mut union = loop {
            match open() {
                Ok(union) => break union,
                Err(error) if since.elapsed() < PATIENCE_TO_OPEN => {
                    log::warn!("the layers can't be opened again yet: {error}");
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) => {
                    log::error!(
                        "the layers can't be opened again, and the mount answers nothing any more: {error}"
                    );
                    kept.ended();
                    return Err(LiveError::Lost(error));
                }
            }
        };
        union.take_over(skeleton);
        *shown = Some(UnionFs::showing(Arc::new(union), policy, kept));
        done.map_err(LiveError::Failed)
    }

    /// Waits until no request is under way, and lets none begin.
    fn parked<E: fmt::Display + fmt::Debug>(
        &self,
    ) -> Result<RwLockWriteGuard<'_, Option<UnionFs>>, LiveError<E>> {
        let since = Instant::now();
        let mut at_a_time = AT_A_TIME;
        while since.elapsed() < PATIENCE {
            // Those that were read meanwhile wait; the longer it takes, the longer they do.
            if let Some(shown) = self.shown.try_write_for(at_a_time)
                && shown.as_ref().is_some_and(UnionFs::be_alone)
            {
                return Ok(shown);
            }
            std::thread::sleep(AT_A_TIME);
            at_a_time = (at_a_time * 2).min(LONGEST_AT_A_TIME);
        }
        Err(LiveError::Busy)
    }
}

impl Filesystem for LiveFs {
    fn negotiate(&mut self, offer: &Init) -> io::Result<Wanted> {
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

    fn destroy(&self) {
        if let Some(shown) = &*self.0.shown.read() {
            shown.destroy();
        }
    }
}
