//! What has always held, to stay so.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::XattrFlags;
use support::cli::Place;
use support::{Stack, wait_until};

use crate::{OWNER, SECRET, with_home, write_own, write_root};

/// A file that says it was copied up from another is no other name of that one.
#[test]
fn a_forged_origin_makes_a_file_no_other_file() {
    support::needs_root!();
    const ORIGIN: &str = "trusted.overlay.unionmount.origin";
    let (stack, home) = with_home();
    write_root(&stack.lower(0).root().join("secret"), SECRET, 0o600);
    write_root(&stack.lower(0).root().join("copied"), SECRET, 0o600);
    let mount = stack.mount();
    // One whose copy keeps its origin, to have what an origin looks like.
    for name in ["secret", "copied"] {
        fs::set_permissions(mount.join(name), fs::Permissions::from_mode(0o640)).unwrap();
    }
    mount.unmount();
    let mut origin = [0; 256];
    let length = rustix::fs::lgetxattr(stack.upper().root().join("secret"), ORIGIN, &mut origin).unwrap();
    fs::remove_file(stack.upper().root().join("secret")).unwrap();
    write_own(&home.join("forged"), "mine");
    for forged in [home.join("forged"), home.clone()] {
        rustix::fs::lsetxattr(forged, ORIGIN, &origin[..length], XattrFlags::empty()).unwrap();
    }
    rustix::fs::lsetxattr(&home, "trusted.overlay.impure", b"y", XattrFlags::empty()).unwrap();
    for order in [["secret", "home/forged"], ["home/forged", "secret"]] {
        let mount = stack.mount();
        let known = order.map(|name| fs::metadata(mount.join(name)).unwrap());
        assert_ne!(known[0].ino(), known[1].ino(), "{order:?}");
        assert_eq!(fs::read_to_string(mount.join("home/forged")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(mount.join("secret")).unwrap(), SECRET);
        let of = |name| fs::metadata(mount.join(name)).map(|m| (m.uid(), m.mode() & 0o7777)).unwrap();
        assert_eq!((of("secret"), of("home/forged")), ((0, 0o600), (OWNER, 0o644)));
        crate::as_owner(|| {
            fs::set_permissions(mount.join("home/forged"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::set_permissions(mount.join("home/forged"), fs::Permissions::from_mode(0o644)).unwrap();
            fs::read(mount.join("secret")).unwrap_err();
        });
        mount.unmount();
    }
}

/// An ordinary user's mount, whatever the options say.
#[test]
fn a_users_mount_is_always_nosuid_and_nodev() {
    support::needs_root!();
    for options in ["suid,dev", "userxattr,suid,dev", "xattr_permissions=2,suid,dev", "suid", "volatile"] {
        let place = Place::of_user();
        let script = format!("./unionmount -o {options} --lower a --upper up mnt");
        let ended = place.sh_as_user(&script);
        let Some(mounted) = place.mounted("mnt") else {
            assert_ne!(ended.code, Some(0), "{ended:?}");
            continue;
        };
        for word in ["nosuid", "nodev"] {
            assert!(mounted.options.iter().any(|option| option == word), "{options}: {mounted:?}");
        }
        place.umount("mnt");
    }
}

/// Thousands of connections, silent and busy, to a mount's socket.
#[test]
fn thousands_of_connections_hold_neither_the_mount_nor_others_up() {
    use std::io::{Read, Write};
    support::needs_root!();
    let stack = Stack::new(1);
    let mount = stack.mount();
    let socket = wait_for_socket(mount.path());
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let before = memory();
    let mut open = Vec::new();
    for n in 0..5000 {
        // What the daemon doesn't take waits, or is refused.
        let Ok(mut stream) = UnixStream::connect(&socket) else { continue };
        stream.set_nonblocking(true).unwrap();
        stream.write_all(&vec![b'x'; n % 3 * 5000]).unwrap_or_default();
        open.push(stream);
        if open.len() > 200 {
            open.drain(..100);
        }
        if n % 500 == 0 {
            fs::write(mount.join(format!("alive-{n}")), "").unwrap();
        }
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more");
    drop(open);
    let answers = || {
        let Ok(mut stream) = UnixStream::connect(&socket) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut said = [0; 16];
        stream.write_all(b"{\"ask\":\"status\"}\n").is_ok() && stream.read(&mut said).is_ok_and(|n| n > 0)
    };
    assert!(wait_until(support::PATIENCE, answers), "the daemon answers again");
    mount.unmount();
}

fn wait_for_socket(mount: &std::path::Path) -> std::path::PathBuf {
    let device = format!("0:{}", support::mounted_at(mount).unwrap().minor);
    let found = unionmount::control::runtime_dir::sockets_of(&device);
    found.into_iter().find(|socket| socket.exists()).expect("the mount has a socket")
}

/// Each component of a redirect's path is a name that may have a redirect: nine layers of somebody else's would keep a lookup
/// busy for longer than anybody waits.
#[test]
fn redirects_that_lead_through_redirects_end() {
    support::needs_root!();
    const LAYERS: usize = 9;
    const DEPTH: usize = 12;
    let stack = Stack::new(LAYERS);
    let path = |depth: usize| vec!["a"; depth].join("/");
    for layer in 0..LAYERS {
        stack.lower(layer).dir(path(DEPTH));
        for depth in 1..=DEPTH {
            stack.lower(layer).xattr(path(depth), "trusted.overlay.redirect", format!("/{}", path(DEPTH)));
        }
    }
    let mount = stack.mount();
    let began = std::time::Instant::now();
    let looked = fs::metadata(mount.join("a"));
    assert_eq!(looked.unwrap_err().raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    mount.unmount();
}
