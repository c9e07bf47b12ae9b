//! The union against the reference model: random stacks, random sequences, the whole tree compared after each step.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod clients;
mod in_process;
mod memory;
mod mounted;
mod oracle;
mod plain;
mod regressions;
