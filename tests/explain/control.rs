//! Who may ask a daemon, and what becomes of its socket.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use unionmount::control::{mounts, runtime_dir};

use crate::drive::{binary, run, status};
use support::{Mount, Stack, as_ids, output, wait_until};

/// Where the mount's socket is.
fn socket(mount: &Mount) -> PathBuf {
    let device = mounts::at(mount.path()).unwrap().unwrap().device;
    let sockets = runtime_dir::sockets_of(&device);
    sockets.into_iter().find(|socket| socket.exists()).expect("the mount has a socket")
}

#[test]
fn a_socket_is_its_owners_alone_and_goes_with_the_mount() {
    let stack = Stack::new(1);
    let mount = stack.mount();
    let socket = socket(&mount);
    let stat = socket.symlink_metadata().unwrap();
    assert_eq!(stat.mode() & 0o777, 0o600);
    assert_eq!(stat.uid(), rustix::process::geteuid().as_raw());
    let dir = socket.parent().unwrap().metadata().unwrap();
    assert_eq!((dir.uid(), dir.mode() & 0o022), (stat.uid(), 0));
    mount.unmount();
    // Another test's mount may have got the device number, and so the name, meanwhile.
    // Where /run is on a disk, the inode number as well.
    let is_same = |now: fs::Metadata| {
        (now.ino(), now.mtime(), now.mtime_nsec()) == (stat.ino(), stat.mtime(), stat.mtime_nsec())
    };
    let left = socket.symlink_metadata().is_ok_and(is_same);
    assert!(!left, "{} was left behind", socket.display());
}

#[test]
fn a_socket_of_a_killed_daemon_is_swept() {
    let stack = Stack::new(1);
    let mount = stack.mount();
    let socket = socket(&mount);
    mount.kill();
    assert!(UnixStream::connect(&socket).is_err());
    // Another test's daemon or status may have swept it already.
    run(&["status", "--count", "0"]);
    assert!(!socket.exists() || UnixStream::connect(&socket).is_ok(), "{} is still there", socket.display());
}

#[test]
fn others_are_refused() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("a", "");
    let mount = stack.mount();
    // The build directory may be closed to others.
    let copy = stack.scratch().path().join("unionmount");
    output("cp", &[binary(), copy.clone()]);
    for (verb, path) in
        [("explain", mount.join("a")), ("status", mount.path().into()), ("trace", mount.path().into())]
    {
        let said = as_ids(4321, 4321, 0o022, || output(&copy, &[verb.as_ref(), path.as_os_str()]));
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(1), "{text}");
        assert!(text.contains("belongs to uid 0; only that user and root may ask"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    assert_eq!(status(&mount).listeners, 0);
    mount.unmount();
}

/// The modes keep others out; should they fail, the daemon asks who it is.
#[test]
fn the_daemon_asks_who_it_is() {
    support::needs_root!();
    let stack = Stack::new(1);
    let mount = stack.mount();
    let socket = socket(&mount);
    // A way to the socket that its directory's mode doesn't close.
    let open = stack.scratch().path().join("socket");
    fs::hard_link(&socket, &open).unwrap_or_else(|_| {
        fs::write(&open, "").unwrap();
        output("mount", &["--bind".as_ref(), socket.as_os_str(), open.as_os_str()]);
    });
    fs::set_permissions(&open, PermissionsExt::from_mode(0o666)).unwrap();
    let said = as_ids(4321, 4321, 0o022, || {
        use std::io::{Read, Write};
        let mut stream = UnixStream::connect(&open).unwrap();
        // It may have hung up already.
        stream.write_all(b"{\"ask\":\"status\"}\n").unwrap_or_default();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap_or_default();
        said
    });
    fs::set_permissions(&socket, PermissionsExt::from_mode(0o600)).unwrap();
    output("umount", &[open.as_os_str()]);
    assert_eq!(said, "{\"error\":\"only the user who mounted it and root may ask\"}\n");
    mount.unmount();
}

#[test]
fn nonsense_is_answered_and_harms_nobody() {
    use std::io::{Read, Write};
    let stack = Stack::new(1);
    let mount = stack.mount();
    for nonsense in [
        &b"hello\n"[..],
        b"{\"ask\":\"all\"}\n",
        b"\xff\xfe\n",
        &[b'x'; 100_000],
        b"{\"ask\":\"explain\",\"path\":\"..\"}\n",
    ] {
        let mut stream = UnixStream::connect(socket(&mount)).unwrap();
        stream.write_all(nonsense).unwrap_or_default();
        stream.shutdown(std::net::Shutdown::Write).unwrap_or_default();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap_or_default();
        assert!(said.is_empty() || said.starts_with("{\"error\":"), "{said}");
    }
    let silent: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(socket(&mount)).unwrap()).collect();
    fs::write(mount.join("alive"), "").unwrap();
    drop(silent);
    let asked = || run(&["status".as_ref(), mount.path().as_os_str(), "--count=0".as_ref()]).status.success();
    assert!(wait_until(support::PATIENCE, asked), "the daemon answers again");
    mount.unmount();
}

/// Without a safe runtime directory there is a mount all the same.
#[test]
fn a_mount_does_without_a_socket() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("a", "content");
    let top = stack.scratch().path().display();
    // A mount namespace in which neither place is the user's own.
    let script = format!(
        "mount -t tmpfs none /run
         for dir in /run/unionmount /run/user /run/user/unionmount; do mkdir $dir; chmod 777 $dir; done
         export XDG_RUNTIME_DIR=/run/user
         mkdir -p -m 700 /tmp/unionmount-0
         mount --bind /run/unionmount /tmp/unionmount-0
         {} -v --lower {top}/lower0 {top}/merged 2>{top}/log
         cat {top}/merged/a
         umount {top}/merged
         umount /tmp/unionmount-0
         rmdir /tmp/unionmount-0 || true",
        binary().display()
    );
    let said = output("unshare", &["--mount", "sh", "-ec", &script]);
    assert_eq!(String::from_utf8_lossy(&said.stdout), "content", "{said:?}");
    let log = fs::read_to_string(stack.scratch().path().join("log")).unwrap();
    assert!(log.contains("no control socket: /run/unionmount: others may write to it"), "{log}");
}

/// A directory of a user's own, in which root looks for the sockets of their mounts.
fn runtime_dir_of(uid: u32) -> PathBuf {
    let dir = PathBuf::from(format!("/tmp/unionmount-{uid}"));
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&dir, Some(uid), Some(uid)).unwrap();
    dir
}

/// How a false daemon treats who asks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hostility {
    /// A line without an end.
    Endless,
    /// A byte now and then.
    Trickle,
    /// Nobody is accepted, and the backlog is full.
    Full,
}

/// Listens in the place of a mount's daemon until the returned sender is dropped.
fn false_daemon(socket: PathBuf, uid: u32, how: Hostility) -> std::sync::mpsc::Sender<()> {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (ready, listens) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        as_ids(uid, uid, 0o077, move || {
            let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let mut waiting = Vec::new();
            if how == Hostility::Full {
                rustix::net::listen(&listener, 0).unwrap();
                waiting.push(UnixStream::connect(&socket).unwrap());
            } else {
                listener.set_nonblocking(true).unwrap();
            }
            ready.send(()).unwrap();
            while stopped.recv_timeout(Duration::from_millis(20))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                if how != Hostility::Full
                    && let Ok((client, _)) = listener.accept()
                {
                    std::thread::spawn(move || talk(client, how));
                }
            }
            fs::remove_file(&socket).unwrap();
        });
    });
    listens.recv().unwrap();
    stop
}

fn talk(mut client: UnixStream, how: Hostility) {
    use std::io::Write;
    let many = vec![b'x'; 1 << 16];
    // Until the client has had enough.
    while match how {
        Hostility::Endless => client.write_all(&many),
        _ => client.write_all(b"x"),
    }
    .is_ok()
    {
        if how == Hostility::Trickle {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn false_daemons_hold_nobody_up_and_are_listed() {
    support::needs_root!();
    const UID: u32 = 4322;
    let dir = runtime_dir_of(UID);
    let honest = Stack::new(1);
    let honest = honest.mount();
    // What root sees of a user's mount: its line in the table. Nobody answers behind it, nor needs to.
    let scratch = support::Scratch::new();
    let mut devices = Vec::new();
    let mut stops = Vec::new();
    for how in [Hostility::Endless, Hostility::Trickle, Hostility::Full] {
        let point = scratch.dir(&format!("{how:?}"));
        let device =
            rustix::fs::open("/dev/fuse", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap();
        let data = format!(
            "fd={},rootmode=40000,user_id={UID},group_id={UID}",
            std::os::fd::AsRawFd::as_raw_fd(&device)
        );
        let data = std::ffi::CString::new(data).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &point, "fuse.unionmount", flags, data.as_c_str()).unwrap();
        let name = runtime_dir::socket_name(&mounts::device_at(&point).unwrap());
        stops.push(false_daemon(dir.join(name), UID, how));
        devices.push((point, device));
    }
    let began = std::time::Instant::now();
    let output = run(&["status", "--count", "0"]);
    let took = began.elapsed();
    drop(stops);
    for (point, _) in &devices {
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let row = |point: &std::path::Path| {
        text.lines().find(|line| line.split_whitespace().next() == point.to_str()).unwrap_or_default()
    };
    assert_eq!(output.status.code(), Some(1), "{text}{said}");
    // Each of three has two seconds, and all of them the same two.
    assert!(took < Duration::from_millis(5500), "{took:?}");
    for ((point, _), state) in devices.iter().zip(["can't be asked", "doesn't answer", "doesn't answer"]) {
        assert!(row(point).ends_with(state), "{text}");
        assert!(said.contains(point.to_str().unwrap()), "{said}");
    }
    assert!(row(honest.path()).contains("1 + upper"), "{text}");
    honest.unmount();
    // A socket goes when its listener has seen the end; the directory then.
    assert!(wait_until(support::PATIENCE, || fs::remove_dir(&dir).is_ok()));
}

#[test]
fn a_dead_mount_is_named_with_what_heals_it() {
    let stack = Stack::new(1);
    let mount = stack.mount();
    let point = mount.path().to_str().unwrap().to_owned();
    mount.kill_daemon();
    for arguments in [
        &["status", &point][..],
        &["explain", &format!("{point}/x")],
        &["layers", &point],
        &["trace", &point],
    ] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        let words = format!("a dead FUSE mount, its daemon has ended; take it away with `umount -l {point}`");
        assert!(said.contains(&words), "{arguments:?}: {said}");
    }
    let list = run(&["status", "--count", "0"]);
    let list = String::from_utf8_lossy(&list.stdout);
    assert!(list.lines().any(|line| line.starts_with(&point) && line.ends_with("dead")), "{list}");
    let json = run(&["status", "--json", "--count", "0"]);
    let json = String::from_utf8_lossy(&json.stdout);
    let line = json.lines().find(|line| line.contains(&point)).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(line).unwrap()["dead"], true);
    mount.kill_dead();
}
