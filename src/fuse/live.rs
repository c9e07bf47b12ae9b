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
    /// Does something to the layers while none of them is open, and opens them anew. `open` is called once after it, and once
    /// more if that fails.
    ///
    /// # Errors
    /// See [`LiveError`].
    pub fn reopen<T, E: fmt::Display + fmt::Debug>(
        &self,
        change: impl FnOnce() -> Result<T, E>,
        open: impl Fn() -> Result<Union, E>,
        refused: impl FnOnce(crate::error::FsError) -> E,
    ) -> Result<T, LiveError<E>> {
        let mut shown = self.parked()?;
        let Some(before) = shown.take() else { return Err(LiveError::Busy) };
        let skeleton = match before.union.skeleton() {
            Ok(skeleton) => skeleton,
            Err(error) => {
                *shown = Some(before);
                return Err(LiveError::Failed(refused(error)));
            }
        };
        let (policy, kept) = before.let_go();
        let done = change();
        let mut union = match open().or_else(|_| open()) {
            Ok(union) => union,
            Err(error) => {
                log::error!(
                    "the layers can't be opened again, and the mount answers nothing any more: {error}"
                );
                return Err(LiveError::Lost(error));
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
        while since.elapsed() < PATIENCE {
            if let Some(shown) = self.shown.try_write_for(AT_A_TIME)
                && shown.as_ref().is_some_and(UnionFs::is_alone)
            {
                return Ok(shown);
            }
            std::thread::sleep(AT_A_TIME);
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
