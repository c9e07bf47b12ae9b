//! `unionmount snapshotter` in a build without it: says how to get one that has it.

use std::ffi::OsString;
use std::process::ExitCode;

use super::Failure;

/// Keep containerd's snapshots (not in this build)
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Snapshotter {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

impl Snapshotter {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        Err(Failure::failed(
            "this program was built without the snapshotter; build it with: cargo install --locked --features snapshotter --path .",
        ))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    #[test]
    fn whatever_is_asked_the_way_out_is_told() {
        for line in [&["snapshotter"][..], &["snapshotter", "--address", "/s.sock", "--root", "/r", "-v"]] {
            let cli = super::super::Cli::try_parse_from([&["unionmount"], line].concat()).unwrap();
            let failure = cli.verb.unwrap().run().unwrap_err();
            assert_eq!(failure.code, 1);
            assert!(failure.message.contains("--features snapshotter"), "{}", failure.message);
        }
    }
}
