//! Running the verbs and reading what they print.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use unionmount::control::client::Client;
use unionmount::control::explanation::Explanation;
use unionmount::control::mounts;
use unionmount::control::protocol::Status;

use support::{Mount, Program};

/// The binary.
pub fn binary() -> std::path::PathBuf {
    match Program::under_test() {
        Program::Unionmount(path) => path,
        other => panic!("these tests are of unionmount's own verbs, not of {other:?}"),
    }
}

/// A command line of the binary.
pub fn command<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// Runs the binary to its end.
pub fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    command(arguments).output().unwrap()
}

/// stdout of a run that must end with this status, silently on stderr.
#[track_caller]
pub fn ends_with<S: AsRef<OsStr>>(status: i32, arguments: &[S]) -> String {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), &*said),
        (Some(status), ""),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The explanations in the output of `explain --json`.
#[track_caller]
pub fn explanations(output: &Output) -> Vec<Explanation> {
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let all: Vec<Explanation> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown = all.iter().all(|explanation| explanation.kind.is_some());
    assert_eq!(output.status.code(), Some(if shown { 0 } else { 1 }), "{text}");
    all
}

/// Explains one path of a mount, by the binary.
#[track_caller]
pub fn explain(path: &Path) -> Explanation {
    let output = run(&[OsStr::new("explain"), OsStr::new("--json"), path.as_os_str()]);
    assert!(output.stderr.is_empty(), "{}: {output:?}", path.display());
    explanations(&output).pop().unwrap()
}

/// A connection to the daemon of a mount.
pub fn client(mount: &Mount) -> Client {
    Client::connect(&mounts::at(mount.path()).unwrap().unwrap()).unwrap()
}

/// How the mount is doing.
pub fn status(mount: &Mount) -> Status {
    client(mount).status().unwrap()
}
