//! `unionmount help`: what there is, in groups, and all about one verb.

use std::process::ExitCode;

use clap::Command;

use super::{Failure, line, terminal};

/// The groups in which help lists the verbs.
pub(super) const GROUPS: [(&str, &[&str]); 5] = [
    ("See", &["demo", "explain", "layers", "status", "trace", "diff", "apply", "discard", "try", "upgrade"]),
    ("Snapshots", &["snapshot", "snapshots", "rollback", "branch", "squash", "seal", "snapshotter"]),
    (
        "Images",
        &[
            "pull", "push", "load", "save", "import", "images", "inspect", "history", "tag", "rmi", "unpack",
            "image",
        ],
    ),
    (
        "Containers",
        &[
            "create",
            "run",
            "exec",
            "ps",
            "cp",
            "commit",
            "export",
            "rename",
            "rm",
            "mount",
            "umount",
            "container",
        ],
    ),
    (
        "Other",
        &["login", "logout", "tags", "prune", "verify", "help", "version", "man", "completions", "system"],
    ),
];

/// Show what there is, or all about a verb: help run, help image ls
#[derive(Debug, clap::Args)]
pub(super) struct Help {
    /// The verb
    #[arg(value_name = "VERB", num_args = 0..=2)]
    verb: Vec<String>,
}

impl Help {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let mut program = super::command();
        program.build();
        let text = of(&mut program, &self.verb)?;
        super::page::print_own(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the help of the verb that the words name; of the program in short.
fn of(at: &mut Command, words: &[String]) -> Result<String, Failure> {
    let Some((word, rest)) = words.split_first() else {
        let is_program = at.get_name() == super::NAME;
        let text = if is_program { at.render_help() } else { at.render_long_help() };
        return Ok(text.to_string());
    };
    let none = line::no_such_verb(at, word);
    match at.find_subcommand_mut(word) {
        Some(verb) => of(verb, rest),
        None => Err(none.unwrap_or_else(|| {
            Failure::usage(format!("there is no verb {word:?}; unionmount help lists them"))
        })),
    }
}

/// Puts the groups of verbs into the program's own help: in -h a line each, in --help a line for each verb.
pub(super) fn with_groups(program: Command) -> Command {
    let (short, long) = (short(&program), long(&program));
    program
        .help_template("{about-section}\nUsage: {usage}\n\n{before-help}Options:\n{options}{after-help}")
        .before_help(short)
        .before_long_help(long)
}

fn shown<'a>(program: &'a Command, verbs: &[&str]) -> Vec<&'a Command> {
    let found = verbs.iter().filter_map(|name| program.find_subcommand(name));
    found.filter(|verb| !verb.is_hide_set()).collect()
}

fn short(program: &Command) -> String {
    let line = |(group, verbs): &(&str, &[&str])| {
        // Docker's nouns are the same once more.
        let is_noun = |verb: &&Command| verb.has_subcommands() && verb.get_positionals().next().is_none();
        let plain = shown(program, verbs).into_iter().filter(|verb| !is_noun(verb));
        let names: Vec<&str> = plain.map(|verb| verb.get_name()).collect();
        format!("  {group:<10}  {}", names.join(" "))
    };
    let lines: Vec<String> = GROUPS.iter().map(line).collect();
    format!("Verbs (unionmount help VERB tells all about one):\n{}", lines.join("\n"))
}

fn long(program: &Command) -> String {
    let group = |(group, verbs): &(&str, &[&str])| {
        let lines = shown(program, verbs).into_iter().map(|verb| {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            let lines = wrapped(&about, terminal::columns().saturating_sub(BESIDE).max(20));
            format!("  {:<12} {}", verb.get_name(), lines.join(&format!("\n{}", " ".repeat(BESIDE))))
        });
        format!("{group}:\n{}", lines.collect::<Vec<_>>().join("\n"))
    };
    GROUPS.iter().map(group).collect::<Vec<_>>().join("\n\n")
}

/// What stands before a verb's description.
const BESIDE: usize = 15;

/// Breaks a text at blanks into lines of at most so many letters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
