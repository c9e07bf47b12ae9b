//! Requests of the kernel: parsed, and served by a union without one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use unionmount::fuse::UnionFs;
use unionmount::fuse::policy::{IoMode, Policy};
use unionmount::fuse::session::Filesystem;
use unionmount::fuse::wire::args::Args;
use unionmount::fuse::wire::operation::Dialect;
use unionmount::fuse::wire::reply::Fill;
use unionmount::fuse::wire::request::HEADER_SIZE;
use unionmount::fuse::wire::{Operation, Reply, Request, Transport};
use unionmount::union::stack::layer::{Stack, StackOptions};
use unionmount::union::{Limits, Union};

use crate::yard::Yard;

const DIALECTS: [Dialect; 2] = [Dialect { setxattr_ext: false }, Dialect { setxattr_ext: true }];

/// The request with the length that its header must tell.
fn with_length(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if let Some(length) = bytes.get_mut(..4) {
        length.copy_from_slice(&(data.len() as u32).to_le_bytes());
    }
    bytes
}

/// One request, as it comes and with a length that fits.
pub fn requests(data: &[u8]) {
    for dialect in DIALECTS {
        Request::parse(data, dialect).ok();
        let bytes = with_length(data);
        let Ok(request) = Request::parse(&bytes, dialect) else { continue };
        request.operation.data_size();
        if let Operation::BatchForget(forgets) = request.operation {
            assert!(forgets.iter().count() * 16 <= bytes.len());
        }
        // A ring has the arguments in two places.
        let (header, args) = bytes.split_at(HEADER_SIZE);
        let parted = Request::parse_parts(header, Args::new(args, &[]), bytes.len(), dialect);
        assert_eq!(parted, Ok(request));
    }
}

/// What carries replies: it keeps the nodes that they tell.
#[derive(Debug, Default)]
struct Told {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    answers: u64,
    nodes: Vec<u64>,
}

impl Transport for Told {
    fn answer(&self, _: u64, size: usize, fill: Fill<'_>) -> io::Result<()> {
        let mut room = vec![0; size];
        let filled = fill(&mut room);
        let mut state = self.state.lock().unwrap();
        // An entry begins with its node's number.
        if let (Ok(filled), Some(node)) = (filled, room.first_chunk()) {
            assert!(filled <= size, "a reply larger than its room");
            state.nodes.push(u64::from_le_bytes(*node));
        }
        state.answers += 1;
        self.answered.notify_all();
        Ok(())
    }
}

/// The place of the opcode and of the node in a header.
const CODE: usize = 4;
const NODE: usize = 16;

/// Requests, each after its length in two bytes, served one after the other. Each is answered, and the lower stays what it was.
pub fn served(data: &[u8]) {
    let Some((mode, mut rest)) = data.split_first() else { return };
    let yard = Yard::new();
    let lower = yard.dir("lower");
    fs::create_dir(lower.join("d")).unwrap();
    fs::write(lower.join("f"), "lower").unwrap();
    fs::hard_link(lower.join("f"), lower.join("d/g")).unwrap();
    std::os::unix::fs::symlink("f", lower.join("s")).unwrap();
    let seen = || {
        let stat = lower.join("f").metadata().unwrap();
        let names = |dir: &std::path::Path| fs::read_dir(dir).unwrap().count();
        (stat.mode(), stat.nlink(), stat.mtime(), stat.uid(), names(&lower), names(&lower.join("d")))
    };
    let before = seen();
    let options = StackOptions {
        lowers: vec![lower.clone().into()],
        upper: Some(yard.dir("upper")),
        work: Some(yard.dir("work")),
        volatile: true,
        ..StackOptions::default()
    };
    let union = Union::new(Stack::open(&options).unwrap(), Limits::default()).unwrap();
    let io = if mode & 1 == 0 { IoMode::WriteThrough } else { IoMode::WriteBack };
    let filesystem = UnionFs::new(Arc::new(union), Policy { io, ..Policy::default() });
    let told = Arc::new(Told::default());
    told.state.lock().unwrap().nodes.push(1);
    let mut asked = 0;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(tail.len());
        let (request, tail) = tail.split_at(length);
        rest = tail;
        let mut bytes = with_length(request);
        if bytes.len() < HEADER_SIZE {
            continue;
        }
        // FUSE_INIT and FUSE_DESTROY are the session's.
        if [26, 38].contains(&bytes[CODE]) {
            continue;
        }
        // A node that is known, mostly.
        let nodes = told.state.lock().unwrap().nodes.clone();
        if bytes[NODE] < 0xf0 {
            let node = nodes[usize::from(bytes[NODE]) % nodes.len()];
            bytes[NODE..NODE + 8].copy_from_slice(&node.to_le_bytes());
        }
        let Ok(request) = Request::parse(&bytes, DIALECTS[1]) else { continue };
        // What the kernel would not ask: it has looked up the node of what it forgets, as often as it says.
        if matches!(request.operation, Operation::Forget { .. } | Operation::BatchForget(_)) {
            continue;
        }
        let carrier: Arc<dyn Transport> = told.clone();
        filesystem.serve(&request, Reply::new(request.header.unique, carrier));
        if request.operation.is_unanswered() {
            continue;
        }
        asked += 1;
        let state = told.state.lock().unwrap();
        let wait =
            told.answered.wait_timeout_while(state, Duration::from_secs(20), |state| state.answers < asked);
        assert!(!wait.unwrap().1.timed_out(), "no answer to {request:?}");
    }
    assert_eq!(seen(), before, "a lower was changed");
    assert_eq!(fs::read(lower.join("f")).unwrap(), b"lower", "a lower was changed");
}
