//! The control socket: what a client sends, what a daemon answers.

use std::fs;
use std::sync::{LazyLock, Mutex};

use unionmount::control::explanation::Explanation;
use unionmount::control::protocol::{Reply, Request, Status, Told};
use unionmount::explain::report::explain;
use unionmount::union::events::EventKind;
use unionmount::union::stack::layer::{Stack, StackOptions};
use unionmount::union::{Limits, Union};

use crate::yard::Yard;

/// A mount that is asked, for as long as the process lives.
static ASKED: LazyLock<Mutex<(Yard, Union)>> = LazyLock::new(|| {
    let yard = Yard::new();
    for path in ["0/a", "1/a/b", "2/a/b/c"] {
        fs::create_dir_all(yard.path().join(path)).unwrap();
    }
    fs::write(yard.path().join("1/a/.wh.c"), "").unwrap();
    fs::write(yard.path().join("2/a/c"), "").unwrap();
    std::os::unix::fs::symlink("../a", yard.path().join("2/a/b/up")).unwrap();
    let lowers = ["0", "1", "2"].map(|name| yard.path().join(name).into()).into();
    let stack = Stack::open(&StackOptions { lowers, ..StackOptions::default() }).unwrap();
    Mutex::new((yard, Union::new(stack, Limits::default()).unwrap()))
});

/// Lines of either side.
pub fn socket(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        asked(line);
        if let Ok(told) = serde_json::from_slice::<Told>(line) {
            assert_eq!(again(&told), told);
        }
        if let Ok(reply) = serde_json::from_slice::<Reply<Status>>(line) {
            assert_eq!(again(&reply), reply);
        }
        serde_json::from_slice::<Reply<Explanation>>(line).ok();
    }
}

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(message: &T) -> T {
    serde_json::from_slice(&serde_json::to_vec(message).unwrap()).unwrap()
}

fn asked(line: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Request>(line) else { return };
    assert_eq!(again(&request), request);
    match request {
        Request::Explain { path, .. } => {
            let asked = ASKED.lock().unwrap();
            if let Ok(explained) = explain(asked.1.inspector(), &path.0) {
                serde_json::to_vec(&Reply::Ok(explained)).unwrap();
            }
        }
        Request::Trace { filter } => {
            filter.wants(&EventKind::List { path: b"a/b".as_slice().into() });
        }
        // It is the daemon's, whose mount isn't here.
        Request::Status | Request::Snapshot { .. } | Request::Rollback { .. } | Request::Branch { .. } => {}
        Request::AddLayer { .. } | Request::RemoveLayer { .. } | Request::Upgrade { .. } => {}
    }
}
