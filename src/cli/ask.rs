//! Questions to whoever sits at the terminal.

use std::io::{BufRead, IsTerminal, Write};

use super::Failure;
use crate::union::escaped_path::escaped;

/// Asks a question on stderr, and reads a line. `None`: nobody is there any more.
///
/// # Errors
/// A usage error when stdin is no terminal.
pub(super) fn line(question: &str) -> Result<Option<String>, Failure> {
    answer(question, "see --help for the option that answers")
}

/// Does the same; `otherwise` says what there is to do without a terminal.
#[allow(clippy::disallowed_methods, reason = "the one place for questions; it escapes")]
fn answer(question: &str, otherwise: &str) -> Result<Option<String>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "there is nobody to ask, since stdin is no terminal; {otherwise}"
        )));
    }
    let text = format!("{} ", escaped(question));
    let asked = std::io::stderr().write_all(text.as_bytes());
    let mut answer = String::new();
    match asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer)) {
        Ok(0) | Err(_) => Ok(None),
        Ok(_) => Ok(Some(answer.trim().to_owned())),
    }
}

/// Asks whether to go on; anything but a yes is a no. `option`: by which the command line says yes.
///
/// # Errors
/// A usage error when stdin is no terminal.
pub(super) fn yes(question: &str, option: &str) -> Result<bool, Failure> {
    let answer = answer(&format!("{question} [y/N]"), &format!("{option} goes on without asking"))?;
    Ok(answer.is_some_and(|answer| matches!(&*answer.to_lowercase(), "y" | "yes")))
}

/// Prints a line where messages go. There is nobody to tell when that fails.
#[allow(
    clippy::disallowed_methods,
    reason = "what is asked about stands where the question stands; it escapes"
)]
pub(super) fn tell(text: &str) {
    let line = format!("{}\n", escaped(text));
    std::io::stderr().write_all(line.as_bytes()).unwrap_or_default();
}
