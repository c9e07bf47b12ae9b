//! fusermount3, the setuid program by which ordinary users mount and unmount.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What it is called.
pub const NAME: &str = "fusermount3";
/// What it and its predecessor are called.
const NAMES: [&str; 2] = [NAME, "fusermount"];

/// Returns the command that runs it, with its stderr as a pipe for [`says`].
pub fn command() -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An engine may call us with an empty environment.
    let places =
        std::env::split_paths(&path).chain(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = places.flat_map(|dir| NAMES.map(|name| dir.join(name))).find(|program| program.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| NAME.into()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Reads what it writes to stderr, to the end: on one line and without its own name.
///
/// # Errors
/// Those of reading the pipe.
pub fn says(child: &mut Child) -> io::Result<String> {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.as_mut() {
        stderr.read_to_end(&mut text)?;
    }
    Ok(on_one_line(&String::from_utf8_lossy(&text)))
}

fn on_one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(|line| {
            // It calls itself by the path that we called it by.
            let own_name = line.split_once(": ").filter(|(name, _)| name.contains("fusermount"));
            own_name.map_or(line, |(_, words)| words).trim()
        })
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() { format!("{NAME} failed without a word") } else { lines.join("; ") }
}

/// Unmounts. `lazy` takes it out of the tree at once. Returns why it refused, if it did.
///
/// # Errors
/// When it can't be run.
pub fn unmount(point: &Path, lazy: bool) -> io::Result<Option<String>> {
    let mut child = command().arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(point).spawn()?;
    let said = says(&mut child)?;
    Ok(if child.wait()?.success() { None } else { Some(said) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn its_words_are_put_on_one_line() {
        let said = "/usr/bin/fusermount3: entry for /mnt not found\n\n  fusermount3: failed: busy \nnote: x";
        assert_eq!(super::on_one_line(said), "entry for /mnt not found; failed: busy; note: x");
        assert_eq!(super::on_one_line("\n"), "fusermount3 failed without a word");
    }
}
