//! What `-h` prints: of each verb what is asked for most, on a page of 24 lines. `--help` and the manual have the rest.

use clap::{Arg, Command};

/// Options that few ask for: `-h` leaves them to `--help`, of whichever verb.
const RARE: &[&str] = &[
    "root",
    "lang",
    "tls_verify",
    "authfile",
    "cert_dir",
    "platform",
    "max_size",
    "max_entries",
    "digestfile",
    "runtime",
    "pull",
    "packed",
    "cidfile",
    "labels",
    "env_files",
    "init",
    "mounts",
    "tmpfs",
    "dns",
    "hosts",
    "hostname",
    "cap_add",
    "cap_drop",
    "privileged",
    "seccomp",
    "ulimits",
    "memory",
    "cpus",
    "size",
    "inodes",
    "ci",
    "max_waste",
    "no_pager",
    "depth",
    "unfolded",
];

/// Makes the help of all verbs as short as `-h` is.
pub(super) fn short(program: Command) -> Command {
    program.mut_subcommands(short_verb)
}

fn short_verb(verb: Command) -> Command {
    let example = first_example(&verb);
    let mut verb = verb.mut_args(short_argument);
    // In a list of verbs each has its line.
    if let Some(about) = verb.get_about().map(|about| beginning(&about.to_string()).to_owned()) {
        verb = verb.about(about);
    }
    // What is said after the long help makes clap name that.
    if verb.get_after_long_help().is_none() && verb.get_after_help().is_some() {
        verb = verb.after_long_help("");
    }
    verb = match example {
        Some(example) => verb.after_help(format!("Example:  {example}")),
        None => verb.after_help(None::<&str>),
    };
    verb.mut_subcommands(short_verb)
}

fn short_argument(argument: Arg) -> Arg {
    let is_rare = RARE.contains(&argument.get_id().as_str());
    let text = argument.get_help().map(|help| beginning(&help.to_string()).to_owned());
    let names = argument.get_value_names().and_then(|names| names.first());
    // As wide as texts may stand beside it.
    let shorter = names.and_then(|name| match name.as_str() {
        "true|false" => Some("false"),
        "SOURCE:TARGET[:ro]" => Some("FROM:TO[:ro]"),
        _ => None,
    });
    let takes_values = argument.get_action().takes_values() || argument.get_num_args().is_some();
    let argument = match shorter {
        Some(shorter) => argument.value_name(shorter),
        None => argument,
    };
    let argument = if takes_values { argument.hide_default_value(true).hide_env(true) } else { argument };
    let argument = argument.hide_short_help(is_rare);
    match text {
        Some(text) => argument.help(text),
        None => argument,
    }
}

/// Returns what a text says first, up to what explains it.
fn beginning(text: &str) -> &str {
    let ends = [": ", "; ", ". ", " ["].into_iter().filter_map(|mark| text.find(mark));
    &text[..ends.min().unwrap_or(text.len())]
}

/// Returns the first command of a verb's examples, without what is said of it.
fn first_example(verb: &Command) -> Option<String> {
    let after = verb.get_after_help().or(verb.get_after_long_help())?.to_string();
    let mut lines = after.lines().skip_while(|line| !line.to_lowercase().starts_with("example"));
    lines.next()?;
    let command = lines.map(str::trim_start).find(|line| line.starts_with("unionmount "))?;
    let command = command.split("  #").next().unwrap_or(command).trim_end();
    Some(command.strip_suffix(" \\").unwrap_or(command).to_owned()).filter(|command| !command.is_empty())
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::*;

    fn check(verb: &mut Command, path: &str, over: &mut Vec<String>) {
        let text = verb.render_help().to_string();
        let lines: Vec<&str> = text.trim_end().lines().collect();
        // What is wider, as an example may be, the terminal breaks.
        let rows: usize = lines.iter().map(|line| line.width().div_ceil(80).max(1)).sum();
        if rows > 24 {
            over.push(format!("{path}: {rows} lines\n{text}"));
        }
        let names: Vec<String> = verb.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
        for name in names {
            check(verb.find_subcommand_mut(&name).unwrap(), &format!("{path} {name}"), over);
        }
    }

    #[test]
    fn the_short_help_of_every_verb_is_a_page() {
        let mut program = short(super::super::command().term_width(80));
        program.build();
        let mut over = Vec::new();
        check(&mut program, "unionmount", &mut over);
        assert!(over.is_empty(), "{}", over.join("\n"));
    }

    #[test]
    fn what_is_rare_is_an_option_of_some_verb() {
        fn ids(verb: &Command, all: &mut Vec<String>) {
            all.extend(verb.get_arguments().map(|argument| argument.get_id().to_string()));
            verb.get_subcommands().for_each(|verb| ids(verb, all));
        }
        let mut all = Vec::new();
        ids(&super::super::command(), &mut all);
        let unknown: Vec<_> = RARE.iter().filter(|id| !all.iter().any(|known| known == *id)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
