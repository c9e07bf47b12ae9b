//! Parse, run, print one error, exit.

fn main() -> std::process::ExitCode {
    unionmount::cli::main(std::env::args_os())
}
