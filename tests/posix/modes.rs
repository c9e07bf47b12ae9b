//! The whole suite again: as an ordinary user, as root of a user namespace, and with passthrough.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::{Program, Scratch, run};

/// The account `daemon`, which every Debian has and nothing uses: fusermount3 wants one that has a name.
const USER: u32 = 1;

/// Copies what the user must be able to run to where it can be reached.
fn copy_programs(scratch: &Scratch) -> (std::path::PathBuf, std::path::PathBuf) {
    let suite = scratch.path().join("suite");
    fs::copy(std::env::current_exe().unwrap(), &suite).unwrap();
    let program = match Program::under_test() {
        Program::Kernel => "kernel".into(),
        Program::Unionmount(path) | Program::FuseOverlayfs(path) => {
            let copy = scratch.path().join(path.file_name().unwrap());
            fs::copy(&path, &copy).unwrap();
            copy
        }
    };
    for path in [&suite, &program] {
        if path.is_file() {
            fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }
    (suite, program)
}

fn run_suite(mut command: Command, scratch: &Scratch, program: &Path) {
    let work = scratch.dir("scratch");
    std::os::unix::fs::chown(&work, Some(USER), Some(USER)).unwrap();
    let output = command
        .args(["--test-threads", "2", "--skip", "modes::"])
        .env("UNIONMOUNT_BIN", program)
        // What such a user can't do has been tried as root.
        .env_remove(support::SKIPS)
        .env("UNIONMOUNT_SCRATCH", &work)
        .env("TMPDIR", &work)
        .env("HOME", &work)
        .current_dir(&work)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}\n{errors}");
    assert!(output.status.success(), "the suite failed: {}", output.status);
    assert!(said.contains("test result: ok. ") && !said.contains(" 0 passed"), "no test ran");
}

/// Drops to the user, with no groups. Bounding sets stay: fusermount3 is setuid, and needs CAP_SYS_ADMIN.
fn as_user() -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={USER}")).arg(format!("--regid={USER}")).arg("--clear-groups");
    command
}

#[test]
fn as_an_ordinary_user() {
    support::needs_root!();
    if Program::under_test() == Program::Kernel {
        support::skip!("an ordinary user cannot mount the kernel's overlayfs");
    }
    let scratch = Scratch::new();
    let (suite, program) = copy_programs(&scratch);
    run("setfacl", &["-m", &format!("u:{USER}:rw"), "/dev/fuse"]);
    let mut command = as_user();
    command.arg(&suite);
    run_suite(command, &scratch, &program);
}

#[test]
fn with_passthrough() {
    support::needs_root!();
    if !Program::under_test().is_unionmount() {
        support::skip!("others have no such option");
    }
    let scratch = Scratch::new();
    let (suite, program) = copy_programs(&scratch);
    let mut command = Command::new(suite);
    command.env("UNIONMOUNT_OPTIONS", "passthrough");
    run_suite(command, &scratch, &program);
}

/// All but what `passthrough=lower` gives up.
#[test]
fn with_files_of_lowers_passed_through() {
    support::needs_root!();
    if !Program::under_test().is_unionmount() {
        support::skip!("others have no such option");
    }
    let scratch = Scratch::new();
    let (suite, program) = copy_programs(&scratch);
    let mut command = Command::new(suite);
    command.env("UNIONMOUNT_OPTIONS", "passthrough=lower");
    run_suite(command, &scratch, &program);
}

#[test]
fn as_root_of_a_user_namespace() {
    support::needs_root!();
    let scratch = Scratch::new();
    let (suite, program) = copy_programs(&scratch);
    run("setfacl", &["-m", &format!("u:{USER}:rw"), "/dev/fuse"]);
    let mut probe = as_user();
    probe.args(["unshare", "-Urm", "true"]);
    if !probe.status().unwrap().success() {
        support::skip!("no user namespaces for ordinary users here");
    }
    let mut command = as_user();
    command.args(["unshare", "-Urm"]).arg(&suite);
    run_suite(command, &scratch, &program);
}
