//! What a step of an image's history did, as a person tells it: builders wrap commands in what a reader doesn't need.
//!
//! | written by | the command | told |
//! |---|---|---|
//! | Docker's old builder | `/bin/sh -c apt-get update` | `RUN apt-get update` |
//! | the same | `/bin/sh -c #(nop) COPY dir:0f… in /srv ` | `COPY dir:0f… in /srv` |
//! | the same, with arguments of the build | `\|1 V=3 /bin/sh -c make` | `RUN make` |
//! | BuildKit | `RUN /bin/sh -c make # buildkit` | `RUN make` |
//! | `commit -m TEXT`, of engines and here | `sh -c …`, with the text as comment | `TEXT (sh -c …)` |

use super::describe::Step;

const SHELL: &str = "/bin/sh -c ";

impl Step {
    /// Returns what it did, in one line: the command without its wrapping, and what who committed it says of it. Empty when
    /// nobody tells.
    pub fn title(&self) -> String {
        let command = command(&one_line(&self.created_by));
        let comment = one_line(&self.comment);
        match (command.is_empty(), is_said_by_a_person(&comment)) {
            (_, false) => command,
            (true, true) => comment,
            (false, true) => format!("{comment} ({command})"),
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Tells whether a comment says something of this one step: builders write the same into each.
fn is_said_by_a_person(comment: &str) -> bool {
    !(comment.is_empty() || comment.starts_with("buildkit.") || comment.starts_with("FROM "))
}

fn command(line: &str) -> String {
    let line = line.strip_suffix("# buildkit").unwrap_or(line).trim_end();
    let of_shell = |line: &str| line.strip_prefix(SHELL).map(str::to_owned);
    if let Some(rest) = of_shell(line) {
        return match rest.strip_prefix("#(nop)") {
            Some(instruction) => instruction.trim().to_owned(),
            None => format!("RUN {rest}"),
        };
    }
    if line.starts_with('|')
        && let Some((_, rest)) = line.split_once(SHELL)
    {
        return format!("RUN {rest}");
    }
    match line.strip_prefix("RUN ").and_then(|rest| rest.split_once(SHELL)) {
        // Between them stand arguments of the build, each NAME=VALUE behind |N.
        Some((before, rest)) if before.is_empty() || before.starts_with('|') => format!("RUN {rest}"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_without_what_builders_wrap_it_in() {
        for (created_by, comment, told) in [
            ("/bin/sh -c apt-get update", "", "RUN apt-get update"),
            ("/bin/sh -c #(nop) COPY dir:0f in /srv ", "", "COPY dir:0f in /srv"),
            ("|1 V=3 /bin/sh -c make", "", "RUN make"),
            ("RUN /bin/sh -c make   all # buildkit", "buildkit.dockerfile.v0", "RUN make all"),
            ("RUN |1 V=3 /bin/sh -c make # buildkit", "buildkit.dockerfile.v0", "RUN make"),
            ("COPY app /srv # buildkit", "buildkit.dockerfile.v0", "COPY app /srv"),
            ("busybox sh -c 'echo sold'", "port 8080", "port 8080 (busybox sh -c 'echo sold')"),
            ("", "Imported from -", "Imported from -"),
            ("", "", ""),
            ("RUN echo /bin/sh -c x", "", "RUN echo /bin/sh -c x"),
        ] {
            let step = Step {
                created: None,
                created_by: created_by.into(),
                size: 0,
                comment: comment.into(),
                diff_id: None,
            };
            assert_eq!(step.title(), told, "{created_by:?}, {comment:?}");
        }
    }
}
