//! Killed at any moment, the snapshotter comes back with the state before or after each call that was under way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Signal, kill_process};

use crate::client::{ACTIVE, COMMITTED, Client, VIEW};
use crate::server::Server;
use support::Scratch;

const ROUNDS: usize = 12;
const THREADS: usize = 3;

/// What a client has seen of its snapshots: name → kind. The last call's outcome may be unknown: name → before, after.
#[derive(Default)]
struct Seen {
    known: BTreeMap<String, i32>,
    unknown: BTreeMap<String, (Option<i32>, Option<i32>)>,
}

impl Seen {
    /// Notes a call's changes as facts if it was answered, as possible if not. False: the server is gone.
    fn note(&mut self, answered: bool, changes: &[(&str, Option<i32>)]) -> bool {
        for (name, after) in changes {
            let before = self.known.remove(*name);
            match (answered, after) {
                (true, Some(kind)) => drop(self.known.insert(name.to_string(), *kind)),
                (true, None) => {}
                (false, after) => drop(self.unknown.insert(name.to_string(), (before, *after))),
            }
        }
        answered
    }
}

/// Makes, commits, views and removes snapshots until the server is gone.
fn work(client: &mut Client, thread: usize, round: usize, calls: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    for number in 0.. {
        let [active, committed, view] =
            ["a", "c", "v"].map(|kind| format!("{kind}-{round}-{thread}-{number}"));
        let prepared = client.prepare(&active, "base");
        if !seen.note(prepared.is_ok(), &[(&active, Some(ACTIVE))]) {
            break;
        }
        calls.fetch_add(1, Ordering::Relaxed);
        let options = prepared.unwrap().options;
        let upper = options.iter().find_map(|option| option.strip_prefix("upperdir=")).unwrap();
        fs::write(Path::new(upper).join("name"), &committed).unwrap();
        let done = client.commit(&committed, &active).is_ok();
        if !seen.note(done, &[(&active, None), (&committed, Some(COMMITTED))]) {
            break;
        }
        calls.fetch_add(1, Ordering::Relaxed);
        if !seen.note(client.view(&view, &committed).is_ok(), &[(&view, Some(VIEW))]) {
            break;
        }
        calls.fetch_add(1, Ordering::Relaxed);
        if !seen.note(client.remove(&view).is_ok(), &[(&view, None)]) {
            break;
        }
        if number % 2 == 0 && !seen.note(client.remove(&committed).is_ok(), &[(&committed, None)]) {
            break;
        }
        calls.fetch_add(1, Ordering::Relaxed);
    }
    seen
}

/// Asserts that what the server tells is what the clients may expect, and that the directories agree with it.
fn verify(server: &Server, seen: &[Seen], older: &BTreeMap<String, i32>) -> BTreeMap<String, i32> {
    let infos = server.client().list(&[]).unwrap();
    let found: BTreeMap<String, i32> = infos.iter().map(|info| (info.name.clone(), info.kind)).collect();
    let mut names: BTreeSet<&String> = older.keys().collect();
    for seen in seen {
        for (name, kind) in &seen.known {
            assert_eq!(found.get(name), Some(kind), "{name}");
            names.insert(name);
        }
        let mut moments = BTreeSet::new();
        for (name, (before, after)) in &seen.unknown {
            let now = found.get(name).copied();
            assert!(now == *before || now == *after, "{name}: {now:?}, not {before:?} or {after:?}");
            if before != after {
                moments.insert(now == *after);
            }
            names.insert(name);
        }
        assert!(moments.len() <= 1, "half of a call: {:?} in {found:?}", seen.unknown);
    }
    for (name, kind) in older {
        assert_eq!(found.get(name), Some(kind), "{name}");
    }
    let strange: Vec<_> = found.keys().filter(|name| !names.contains(name)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    let places = fs::read_dir(server.root().join("snapshots")).unwrap();
    let places: Vec<_> = places.map(|place| place.unwrap().path()).collect();
    assert_eq!(places.len(), found.len(), "{places:?}");
    for place in places {
        assert!(place.join("fs").is_dir(), "{}", place.display());
    }
    let mut client = server.client();
    for name in found.keys().filter(|name| name.starts_with("c-")) {
        // A view of one layer is that layer, bound on the base's.
        let view = client.view("look", name).unwrap();
        let layers = view.options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
        let layer = Path::new(layers.split(':').next().unwrap());
        assert_eq!(&fs::read_to_string(layer.join("name")).unwrap(), name);
        assert!(!layer.with_file_name("work").exists(), "the workdir of {name}");
        client.remove("look").unwrap();
    }
    found
}

#[test]
fn killed_at_any_moment_it_comes_back_whole() {
    let scratch = Scratch::new();
    let mut server = Server::start(scratch.path());
    let mut client = server.client();
    client.prepare("tmp", "").unwrap();
    client.commit("base", "tmp").unwrap();
    let mut older = BTreeMap::from([("base".to_string(), COMMITTED)]);
    for round in 0..ROUNDS {
        let calls = AtomicUsize::new(0);
        let seen: Vec<Seen> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (mut client, calls) = (server.client(), &calls);
                    scope.spawn(move || work(&mut client, thread, round, calls))
                })
                .collect();
            // Another place among the calls each time; where within a call, the scheduler says.
            let ended = || clients.iter().any(|client| client.is_finished());
            while calls.load(Ordering::Relaxed) < round * 2 && !ended() {
                std::thread::yield_now();
            }
            kill_process(server.pid(), Signal::KILL).unwrap();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        server.wait();
        server = Server::start(scratch.path());
        older = verify(&server, &seen, &older);
    }
    assert!(older.len() > ROUNDS, "hardly anything was done: {older:?}");
}
