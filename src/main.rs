//! Parse, run, print one error, exit.
fn main() {}
