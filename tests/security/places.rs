//! What a daemon of root's opens, waits for and locks.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{OWNER, SECRET, as_owner, with_home, write_own};
use support::{Mount, Options, Stack, output, wait_until};

/// A program of the owner's, killed when it is dropped.
struct Program(Child);

impl Program {
    fn start(line: &[&str]) -> Program {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]).args(line);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Program(command.spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().unwrap();
    }
}

#[test]
fn fifos_in_place_of_files_hold_nobody_up() {
    support::needs_root!();
    const FILES: usize = 16;
    for options in [&[][..], &["passthrough"], &["pairing=0", "max_threads=2"]] {
        let (stack, home) = with_home();
        stack.upper().file("bystander", "x");
        for n in 0..FILES {
            write_own(&home.join(format!("f{n}")), "x");
        }
        let mount = stack.mount_with(options);
        for n in 0..FILES {
            assert!(fs::metadata(mount.join(format!("home/f{n}"))).unwrap().is_file());
        }
        as_owner(|| {
            for n in 0..FILES {
                let path = home.join(format!("f{n}"));
                fs::remove_file(&path).unwrap();
                let mode = rustix::fs::Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            }
        });
        let readers: Vec<_> = (0..FILES)
            .map(|n| Program::start(&["cat", mount.join(format!("home/f{n}")).to_str().unwrap()]))
            .collect();
        let bystander = output("timeout", &["10", "cat", mount.join("bystander").to_str().unwrap()]);
        assert!(bystander.status.success(), "{options:?}: {}", bystander.status);
        drop(readers);
        mount.unmount();
    }
}

#[test]
fn a_lease_holds_nobody_up() {
    support::needs_root!();
    let (stack, home) = with_home();
    write_own(&home.join("f"), "x");
    stack.upper().file("bystander", "x");
    let mount = stack.mount_with(&["pairing=0", "max_threads=2"]);
    assert!(fs::metadata(mount.join("home/f")).unwrap().is_file());
    const LEASE: &str = "import fcntl,os,signal,sys,time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n\
                         f=os.open(sys.argv[1],os.O_RDWR)\nfcntl.fcntl(f,fcntl.F_SETLEASE,fcntl.F_WRLCK)\n\
                         open(sys.argv[2],'w').close()\ntime.sleep(60)";
    const PYTHON: &str = "/usr/bin/python3";
    if !std::path::Path::new(PYTHON).exists() {
        support::skip!("no {PYTHON} to take a lease with");
    }
    let taken = home.join("taken");
    let _lease =
        Program::start(&[PYTHON, "-c", LEASE, home.join("f").to_str().unwrap(), taken.to_str().unwrap()]);
    assert!(wait_until(support::PATIENCE, || taken.exists()), "no lease was taken");
    let _readers: Vec<_> =
        (0..4).map(|_| Program::start(&["cat", mount.join("home/f").to_str().unwrap()])).collect();
    let begun = Instant::now();
    let bystander = output("timeout", &["20", "cat", mount.join("bystander").to_str().unwrap()]);
    assert!(bystander.status.success() && begun.elapsed() < Duration::from_secs(15), "{}", bystander.status);
}

/// Locks directories as the owner, until it is dropped.
fn lock(dirs: &[&std::path::Path]) -> Vec<Program> {
    let locked: Vec<_> =
        dirs.iter().map(|dir| Program::start(&["flock", dir.to_str().unwrap(), "sleep", "120"])).collect();
    for dir in dirs {
        let is_locked = || !output("flock", &["-n", dir.to_str().unwrap(), "true"]).status.success();
        assert!(wait_until(support::PATIENCE, is_locked), "{} isn't locked", dir.display());
    }
    locked
}

#[test]
fn a_lock_that_anyone_can_take_keeps_no_mount_away() {
    support::needs_root!();
    let stack = Stack::new(1);
    let _locks = lock(&[stack.upper().root(), stack.work()]);
    let mount = stack.mount();
    let other = stack.scratch().dir("other");
    let second = Mount::try_with_program(mount.program(), &stack.options(), &other);
    assert!(second.is_err(), "one upper is mounted twice");
    mount.unmount();
    // And again, with the workdir that nobody named.
    let options = Options { work: None, ..stack.options() };
    let mount = Mount::new(&options, stack.mountpoint());
    assert!(
        Mount::try_with_program(mount.program(), &options, &other).is_err(),
        "one upper is mounted twice"
    );
    mount.unmount();
}

#[test]
fn a_log_file_is_no_link_and_no_fifo_of_somebody_elses() {
    support::needs_root!();
    let stack = Stack::new(1);
    // Not a sticky directory, for which the kernel has rules of its own (fs.protected_symlinks).
    let shared = stack.scratch().dir("shared");
    chown(&shared, Some(OWNER), Some(OWNER)).unwrap();
    let target = stack.scratch().path().join("target");
    fs::write(&target, SECRET).unwrap();
    as_owner(|| {
        symlink(&target, shared.join("link")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, shared.join("fifo"), rustix::fs::FileType::Fifo, mode, 0)
            .unwrap();
        fs::write(shared.join("theirs"), "").unwrap();
    });
    for name in ["link", "fifo", "theirs"] {
        let options = Options { log: Some(shared.join(name)), ..stack.options() };
        let program = support::Program::under_test();
        let mut command = options.command(&program, stack.mountpoint());
        command.arg("-v"); // something is logged
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let ended = support::wait_for_exit(child.id(), support::PATIENCE);
        if !ended {
            child.kill().unwrap();
        }
        let said = child.wait_with_output().unwrap();
        if said.status.success() {
            output("umount", &[stack.mountpoint()]);
        }
        assert!(ended, "{name}: it waits");
        assert!(!said.status.success(), "{name} was written to");
        let told = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(told.contains("log file") && told.contains("directory of your own"), "{name}: {told}");
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), SECRET);
}

#[test]
fn a_workdir_full_of_links_leads_nowhere() {
    support::needs_root!();
    let stack = Stack::new(1);
    let victim = stack.scratch().dir("victim");
    fs::write(victim.join("kept"), "x").unwrap();
    chown(stack.work(), Some(OWNER), Some(OWNER)).unwrap();
    for name in ["work", "index.unionmount", "index"] {
        as_owner(|| symlink(&victim, stack.work().join(name)).unwrap());
        let mount =
            Mount::try_with_program(&support::Program::under_test(), &stack.options(), stack.mountpoint());
        if let Ok(mount) = mount {
            fs::write(mount.join("f"), "x").unwrap();
            mount.unmount();
        }
        let kept = fs::read_dir(&victim).unwrap().count();
        assert_eq!((kept, victim.join("kept").exists()), (1, true), "{name}");
        as_owner(|| fs::remove_file(stack.work().join(name)).unwrap_or_default());
        fs::remove_file(stack.upper().root().join("f")).unwrap_or_default();
    }
}

#[test]
fn a_staging_directory_of_somebody_elses_is_not_used() {
    support::needs_root!();
    let stack = Stack::new(1);
    chown(stack.work(), Some(OWNER), Some(OWNER)).unwrap();
    as_owner(|| fs::create_dir(stack.work().join("work")).unwrap());
    as_owner(|| fs::write(stack.work().join("work/planted"), "x").unwrap());
    let mount = stack.mount();
    let staging = fs::metadata(stack.work().join("work")).unwrap();
    assert_eq!((staging.uid(), staging.mode() & 0o777), (0, 0o700));
    assert!(!stack.work().join("work/planted").exists());
    mount.unmount();
}
