//! A connection with the kernel, from the first word to the last.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Errno, InitFlags};

use super::device::Device;
use super::gate::Gate;
use super::init::{self, Agreed, Versions};
use super::interrupts::Interrupts;
use super::notifier::Notifier;
use super::parting::Parting;
use super::ring;
use super::serve::{Admission, Filesystem, Served};
use super::spin::Spinner;
use super::worker::Worker;
use crate::fuse::dispatch::DispatchPolicy;
use crate::fuse::wire::operation::{Dialect, Init};
use crate::fuse::wire::{Operation, Reply, Request};
use crate::sys::fuse::Pages;

/// How it is served.
#[derive(Debug, Clone)]
pub(super) struct How {
    /// How many threads answer requests from the device.
    pub(super) threads: usize,
    /// Each of them has a descriptor of its own.
    pub(super) apart: bool,
    pub(super) admission: Admission,
    /// Somebody else has mounted it, and it isn't known how.
    pub(super) given: bool,
    pub(super) pairing: Option<Arc<DispatchPolicy>>,
    /// Requests are to come over io_uring.
    pub(super) uring: bool,
}

impl How {
    /// Returns whether the mount may be idmapped: all requests but those that make inodes then come in nobody's name,
    /// and the kernel refuses the connection of a mount without `default_permissions`.
    fn idmaps(&self) -> bool {
        self.admission == Admission::All && !self.given
    }
}

/// One that both sides agreed on.
#[derive(Debug)]
pub(super) struct Connection<F: Filesystem> {
    device: Arc<Device>,
    served: Served<F>,
    agreed: Agreed,
    how: How,
    gate: Arc<Gate>,
}

impl<F: Filesystem> Connection<F> {
    /// Agrees with the kernel that has mounted `device`.
    ///
    /// # Errors
    ///
    /// The kernel is too old, the filesystem doesn't begin, or the mount has gone.
    pub(super) fn begin(mut filesystem: F, device: Arc<Device>, how: How) -> io::Result<Connection<F>> {
        let agreed = match agree(&mut filesystem, &device, &how) {
            Ok(agreed) => agreed,
            Err(e) => {
                filesystem.destroy();
                return Err(e);
            }
        };
        Ok(Connection::resume(filesystem, device, agreed, how))
    }

    /// Goes on with what another process has agreed on.
    pub(super) fn resume(filesystem: F, device: Arc<Device>, agreed: Agreed, how: How) -> Connection<F> {
        let served = Served {
            filesystem,
            admission: how.admission,
            dialect: agreed.dialect,
            pairing: how.pairing.clone().filter(|_| !agreed.uring),
            interrupts: Arc::new(Interrupts::default()),
        };
        Connection { device, served, agreed, how, gate: Arc::default() }
    }

    /// Returns what it is handed over by. `mounted_on`: the number of the filesystem's device.
    pub(super) fn parting(&self, mounted_on: Option<(u32, u32)>) -> Parting {
        Parting {
            gate: self.gate.clone(),
            device: self.device.clone(),
            agreed: self.agreed,
            threads: if self.agreed.uring { 1 } else { self.how.threads.max(1) },
            given: self.how.given,
            mounted_on,
        }
    }

    /// Returns what the kernel can be told by.
    pub(super) fn notifier(&self) -> Notifier {
        Notifier::new(self.device.clone())
    }

    /// Starts all that answers. It waits for [`Running::answer`], so that whoever is told that the filesystem is there can
    /// rely on it: what could be missing is had by then.
    ///
    /// # Errors
    ///
    /// Threads, their memory or rings can't be had. The filesystem is left as it is, as by a process that was killed; the
    /// caller's process is to end.
    pub(super) fn start(self) -> io::Result<Running<F>> {
        let Connection { device, served, agreed, how, gate } = self;
        let served = Arc::new(served);
        let workers = Workers::start(&served, (&device, &gate), &agreed, &how)?;
        Ok(Running { served, workers })
    }
}

/// A connection whose threads are there.
pub(super) struct Running<F: Filesystem> {
    served: Arc<Served<F>>,
    workers: Workers<F>,
}

impl<F: Filesystem> Running<F> {
    /// Answers until the filesystem is unmounted.
    ///
    /// # Errors
    ///
    /// The connection broke. `broken` takes the mount away then, and with it what other threads ask; they have ended when this
    /// returns, unless [`PARTING`] is too short. Those of a ring may still answer, so the filesystem is left as it is, as by
    /// [`Connection::start`].
    pub(super) fn answer(self, broken: impl FnOnce()) -> io::Result<()> {
        self.workers.answer(broken)?;
        self.served.filesystem.destroy();
        Ok(())
    }
}

/// Exchanges the first word: reads FUSE_INIT and answers it.
fn agree<F: Filesystem>(filesystem: &mut F, device: &Arc<Device>, how: &How) -> io::Result<Agreed> {
    let mut buffer = Pages::new(64 << 10)?;
    loop {
        let len = match device.receive(&mut buffer) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => continue,
            received => received?,
        };
        let request = Request::parse(&buffer[..len], Dialect::default()).map_err(io::Error::other)?;
        let reply = Reply::new(request.header.unique, device.clone());
        let Operation::Init(offer) = request.operation else {
            reply.error(Errno::EIO);
            return Err(io::Error::other("the kernel asks before it was greeted"));
        };
        match init::versions(&offer) {
            Versions::Fit => {}
            Versions::AskAgain => {
                reply.init(&init::own_version());
                continue;
            }
            Versions::TooOld => {
                reply.error(Errno::EPROTO);
                return Err(init::too_old(&offer));
            }
        }
        let wanted = match filesystem.negotiate(&offer) {
            Ok(wanted) => wanted,
            Err(e) => {
                reply.error(Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO)));
                return Err(e);
            }
        };
        let rings = how.uring && has_rings(&offer);
        let (agreed, out) = init::agree(&offer, &wanted, rings, how.idmaps());
        reply.init(&out);
        return Ok(agreed);
    }
}

/// Returns whether requests can come over io_uring. Once that is agreed on there is no way back.
fn has_rings(offer: &Init) -> bool {
    let usable = match offer.flags.contains(InitFlags::FUSE_OVER_IO_URING) {
        true => ring::usable(),
        false => Err(io::Error::other("the kernel doesn't offer it")),
    };
    match &usable {
        Ok(()) => log::info!("requests come over io_uring"),
        Err(e) => log::info!("requests don't come over io_uring: {e}"),
    }
    usable.is_ok()
}

/// How long the threads that answer have to end once one of them has ended by an error.
const PARTING: Duration = Duration::from_secs(5);

/// The threads that answer.
struct Workers<F: Filesystem> {
    threads: Vec<JoinHandle<()>>,
    rings: Option<Arc<ring::Queues<F>>>,
    /// Lets each begin.
    go: Vec<mpsc::Sender<()>>,
    /// How each ended.
    told: mpsc::Receiver<io::Result<()>>,
}

impl<F: Filesystem> Workers<F> {
    fn start(
        served: &Arc<Served<F>>,
        (device, gate): (&Arc<Device>, &Arc<Gate>),
        agreed: &Agreed,
        how: &How,
    ) -> io::Result<Workers<F>> {
        let rings = match agreed.uring {
            true => Some(ring::start(served.clone(), device.clone(), agreed.payload_size)?),
            false => None,
        };
        // Over the device then comes only what is to be forgotten.
        let count = if rings.is_some() { 1 } else { how.threads.max(1) };
        let spinner = (rings.is_none() && (how.apart || count == 1)).then(Arc::<Spinner>::default);
        let (tell, told) = mpsc::channel();
        let (arrive, arrived) = mpsc::channel();
        let (mut threads, mut go) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for number in 0..count {
            let device = match how.apart && number + 1 < count {
                true => device.another().map_err(io::Error::other)?,
                false => device.clone(),
            };
            let worker = Worker {
                served: served.clone(),
                device,
                gate: gate.clone(),
                number,
                request_size: agreed.request_size,
                spinner: spinner.clone(),
                pause: rings.as_ref().map(|_| ring::FORGET_PAUSE),
            };
            let (begin, wait) = mpsc::channel();
            let (tell, arrive) = (tell.clone(), arrive.clone());
            let thread = std::thread::Builder::new().name(format!("fuse-{number}")).spawn(move || {
                // Nobody listens any more when another could not be started, or ended by an error.
                let buffer = match worker.buffer() {
                    Ok(buffer) => buffer,
                    Err(e) => return arrive.send(Err(e)).unwrap_or_default(),
                };
                arrive.send(Ok(())).unwrap_or_default();
                drop(arrive);
                if wait.recv().is_ok() {
                    tell.send(worker.run(buffer)).unwrap_or_default();
                }
            })?;
            threads.push(thread);
            go.push(begin);
        }
        drop(arrive);
        arrived.into_iter().collect::<io::Result<()>>()?;
        Ok(Workers { threads, rings, go, told })
    }

    /// Answers until the end. The first thread that ends by an error ends the session: the others would go on with what
    /// only it did left undone.
    fn answer(self, broken: impl FnOnce()) -> io::Result<()> {
        let Workers { threads, rings, go, told } = self;
        for begin in go {
            begin.send(()).map_err(|_| io::Error::other("a thread that answers has ended"))?;
        }
        if let Some(Err(error)) = told.iter().find(Result::is_err) {
            broken();
            // Whichever lets go of the filesystem last closes it, and would be cut off by the end of the process.
            let end = Instant::now() + PARTING;
            while told.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok() {}
            return Err(error);
        }
        for thread in threads {
            thread.join().map_err(|_| io::Error::other("a thread that answers panicked"))?;
        }
        if let Some(rings) = rings {
            rings.join()?;
        }
        Ok(())
    }
}
