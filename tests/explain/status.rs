//! `status`, and the output for people.

use std::fs;

use serde_json::Value;

use crate::drive::{ends_with, run, status};
use support::{Stack, WhiteoutForm};

#[test]
fn status_counts_what_happened() {
    let stack = Stack::new(2);
    stack.lower(0).file("a", vec![0; 1000]).whiteout("b", WhiteoutForm::Aufs);
    stack.lower(1).file("d/low", vec![0; 500]).file("b", "");
    let mount = stack.mount();
    fs::write(mount.join("a"), vec![1; 3000]).unwrap();
    fs::remove_file(mount.join("d/low")).unwrap();
    fs::write(mount.join("new"), vec![1; 100]).unwrap();
    fs::rename(mount.join("new"), mount.join("newer")).unwrap();
    rustix::fs::syncfs(fs::File::open(mount.path()).unwrap()).unwrap();

    let text = ends_with(0, &["status".as_ref(), "--json".as_ref(), mount.path().as_os_str()]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["mount_point"], mount.path().to_str().unwrap());
    assert_eq!(json["pid"], mount.daemon());
    assert!(json["memory"].as_u64().unwrap() > 1 << 20);
    assert!(json["requests"]["lookup"].as_u64().unwrap() > 0);
    assert_eq!(json["counters"]["creates"], 1);
    assert_eq!(json["counters"]["renames"], 1);
    assert_eq!(json["counters"]["whiteouts"], 1);
    // The file, and the directory of the whiteout.
    assert_eq!(json["counters"]["copy_ups"], 2);
    let layers: Vec<_> =
        json["layers"].as_array().unwrap().iter().map(|l| l["layer"].as_u64().unwrap()).collect();
    assert_eq!(layers, [0, 1, 2]);
    let usage = &json["usage"];
    for (layer, files, whiteouts, bytes) in [(0, 2, 1, 3100), (1, 1, 1, 1000), (2, 2, 0, 500)] {
        let counted = ["files", "whiteouts", "bytes"].map(|field| usage[layer][field].as_u64().unwrap());
        assert_eq!(counted, [files, whiteouts, bytes], "layer {layer}: {usage}");
        assert_eq!(usage[layer]["complete"], true);
    }
    assert_eq!(usage[0]["changed_files"], 2);
    assert_eq!(usage[0]["changed_bytes"], 3100);

    // All mounts, other tests' among them; one that ends meanwhile is no matter here.
    let all = String::from_utf8(run(&["status", "--json", "--count", "0"]).stdout).unwrap();
    let mine = all.lines().filter(|line| line.contains(mount.path().to_str().unwrap())).count();
    assert_eq!(mine, 1);

    let person = ends_with(0, &["status".as_ref(), mount.path().as_os_str()]);
    for part in ["upper", "lower0", "3.03 KiB in 2 files of the upper", "1 whiteout", "copied up"] {
        assert!(person.contains(part), "{part:?} is not in\n{person}");
    }
    assert!(!person.contains('\x1b'), "colours without a terminal");
    mount.unmount();
}

#[test]
fn a_read_only_mount_says_so() {
    let stack = Stack::new(1);
    stack.lower(0).file("a", "");
    let mount = stack.mount_read_only();
    assert_eq!(status(&mount).layers[0].layer, 1);
    let text = ends_with(0, &["explain".as_ref(), mount.join("a").as_os_str()]);
    assert!(text.contains("layer 1 (lower0) is the topmost layer that has it"), "{text}");
    assert!(text.contains("without an upper layer the mount is read-only"), "{text}");
    mount.unmount();
}

#[test]
fn explanations_are_drawn_for_people() {
    let stack = Stack::new(2);
    stack.lower(0).whiteout("bin/ls", WhiteoutForm::Aufs).file("etc/\u{1b}[31mred", "x");
    stack.lower(1).file("bin/ls", vec![0; 2048]);
    let top = stack.scratch().path().to_str().unwrap();
    let lowers = format!("{top}/lower0:{top}/lower1");
    let offline = |path: &str| {
        let output = run(&["explain", "--lower", &lowers, "--upper", &format!("{top}/upper"), path]);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = offline("/bin/ls");
    assert_eq!(code, 1);
    let expected = "\
/bin/ls  not in the merged view
a whiteout in layer 1 (lower0) hides it

  upper  upper   ·  nothing
      1  lower0  ✗  whiteout .wh.ls                                         hides what is below
      2  lower1  ○  file             2.00 KiB  rw-r--r--  TIME              hidden by the whiteout in layer 1 (lower0)

  create  makes it in the upper; copies up the parent bin/ for it
";
    let time =
        text.lines().find_map(|line| Some(line.split_once("rw-r--r--  ")?.1.get(..16)?.to_owned())).unwrap();
    assert_eq!(text.replace(&time, "TIME            "), expected);
    // A name can't command the terminal.
    let (_, text) = offline("/etc/\u{1b}[31mred");
    assert!(!text.contains('\u{1b}') && text.contains(r"\u{1b}[31mred"), "{text}");
    // Nothing was made beside the upper.
    assert!(!stack.scratch().path().join(".upper.work").exists());
}

/// The live view, on a terminal that script(1) makes; it goes with the mount.
#[test]
fn a_mount_is_watched_live() {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    let stack = Stack::new(1);
    stack.lower(0).file("hot", "x");
    let mount = stack.mount();
    let watch = format!(
        "stty rows 40 cols 120; exec {} status --watch {}",
        crate::drive::binary().display(),
        mount.path().display()
    );
    let spawned = Command::new("script")
        .args(["-qefc", &watch, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else { support::skip!("script(1) is missing") };
    let listens = || status(&mount).listeners == 1;
    assert!(support::wait_until(support::PATIENCE, listens), "it listens");
    fs::write(mount.join("hot"), "xx").unwrap();
    fs::remove_file(mount.join("hot")).unwrap();

    // What the screen was told, until all of it was there; the screen is drawn ten times a second.
    let mut out = child.stdout.take().unwrap();
    let (sender, screen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut buffer) {
            if sender.send(String::from_utf8_lossy(&buffer[..n]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut text = String::new();
    let all = ["hottest paths", "since the mount", "lower0", "copy-up", "/hot"];
    while !all.iter().all(|part| text.contains(part)) {
        let part = screen.recv_timeout(support::PATIENCE);
        text.push_str(&part.unwrap_or_else(|e| panic!("{e}, with {text:?}")));
    }
    child.stdin.take().unwrap().write_all(b"q").unwrap();
    assert!(child.wait().unwrap().success());
    mount.unmount();

    let refused = run(&["status".as_ref(), "--watch".as_ref(), stack.mountpoint().as_os_str()]);
    assert_eq!(refused.status.code(), Some(1));
}

/// A copy-up that takes long is told for as long as it takes, with its file.
#[test]
fn a_long_copy_up_is_told_while_it_runs() {
    let stack = Stack::new(1);
    let files = 12;
    for number in 0..files {
        stack.lower(0).file(format!("large{number}"), vec![b'x'; 64 << 20]);
    }
    let mount = stack.mount();
    assert_eq!(status(&mount).copying, []);
    let (mut seen, mut explained) = (None, false);
    // How fast a machine copies nobody knows: of one of them status tells, and of one explain.
    for number in 0..files {
        let path = mount.join(format!("large{number}"));
        let writer = std::thread::spawn(move || {
            let file = fs::OpenOptions::new().append(true).open(path).unwrap();
            std::io::Write::write_all(&mut &file, b"y").unwrap();
        });
        while !(writer.is_finished() || seen.is_some() && explained) {
            if seen.is_none() {
                seen = status(&mount).copying.first().cloned();
                continue;
            }
            let output = run(&["explain".as_ref(), mount.join(format!("large{number}")).as_os_str()]);
            explained |=
                String::from_utf8_lossy(&output.stdout).contains(" % of 64.00 MiB from layer 1, for ");
        }
        writer.join().unwrap();
        if seen.is_some() && explained {
            break;
        }
    }
    assert!(explained, "no copy-up was seen by explain while it ran");
    let seen = seen.expect("no copy-up was seen by status while it ran");
    assert!(seen.path.to_string().starts_with("/large") && seen.bytes == 64 << 20, "{seen:?}");
    assert_eq!(seen.layer, Some(1));
    assert!(seen.done.is_some_and(|done| done <= seen.bytes), "{seen:?}");
    assert_eq!(status(&mount).copying, [], "it is done");
}

/// `layers` reads the layers itself, with the marks that the mount believes, whoever mounted it and whoever asks.
#[test]
fn layers_believes_the_marks_that_the_mount_believes() {
    support::needs_root!();
    for (options, believed) in [(&[][..], false), (&["userxattr"], true)] {
        let stack = Stack::new(2);
        stack.lower(0).file("d/above", "x").xattr("d", "user.overlay.opaque", "y");
        stack.lower(1).file("d/below", "x");
        let mount = stack.mount_with(options);
        assert_eq!(mount.join("d/below").exists(), !believed, "{options:?}");
        let output = run(&["layers", "--json", mount.path().to_str().unwrap()]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let opaque = told.to_string().contains("\"opaque\":true");
        assert_eq!(opaque, believed, "{options:?}");
        mount.unmount();
    }
}

#[test]
fn what_another_user_calls_layers_is_not_looked_into() {
    support::needs_root!();
    let place = support::cli::Place::of_user();
    place.sh_as_user("echo x > a/f && ./unionmount --lower a:b --upper up mnt").ok();
    let asked = |json: &str| -> Value { serde_json::from_str(json).unwrap() };
    let theirs = asked(&place.sh_as_user("./unionmount status --json mnt").ok().out);
    assert_eq!(theirs["usage"][1]["files"], 1, "{theirs}");
    // Those of other tests are listed as well, and may end meanwhile.
    let listed = place.sh("./unionmount status --json").out;
    let seen = asked(listed.lines().find(|line| line.contains(place.path().to_str().unwrap())).unwrap());
    assert_eq!((&seen["usage"], seen["layers"].as_array().unwrap().len()), (&Value::Null, 3), "{seen}");
    place.umount("mnt");
    place.wait_for_no_daemon();
}
