//! `unionmount status --watch`: a mount, live.

use std::process::ExitCode;

use super::Failure;
use crate::explain::mounts::Mount;

pub(super) fn run(_mount: &Mount) -> Result<ExitCode, Failure> {
    Err(Failure::failed("in work"))
}
