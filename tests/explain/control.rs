//! Who may ask a daemon, and what becomes of its socket.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use unionmount::explain::{mounts, runtime};

use crate::common::{Mount, Stack, as_ids, output, wait_until};
use crate::drive::{binary, run, status};

/// Where the mount's socket is.
fn socket(mount: &Mount) -> PathBuf {
    let device = mounts::at(mount.path()).unwrap().unwrap().device;
    let sockets = runtime::sockets_of(&device);
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
    assert!(!socket.exists(), "{} was left behind", socket.display());
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
    crate::needs_root!();
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
    crate::needs_root!();
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
    assert!(wait_until(Duration::from_secs(20), asked), "the daemon answers again");
    mount.unmount();
}

/// Without a safe runtime directory there is a mount all the same.
#[test]
fn a_mount_does_without_a_socket() {
    crate::needs_root!();
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
