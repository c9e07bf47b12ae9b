//! The words of the command line before they are parsed, and what is said when they can't be: a verb that there isn't, one
//! of another program, an option at another place.

use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::engines;
use super::nearest::nearest;
use super::{Failure, NAME};

/// Puts options that hold for every verb where the verbs take them: `--root DIR load` is `load --root DIR`.
pub(super) fn in_order(program: &Command, args: Vec<OsString>) -> Vec<OsString> {
    let Some(first) = args.get(1) else { return args };
    let options = match first.to_str() {
        Some("--root") => 2,
        Some(text) if text.starts_with("--root=") => 1,
        _ => return args,
    };
    let Some(rest) = args.get(1 + options..) else { return args };
    let verbs = match verbs_of(program, rest)[..] {
        // What is no verb is told as such.
        [] if rest.first().is_some_and(|word| !word.as_encoded_bytes().starts_with(b"-")) => 1,
        [] => return args,
        // They tell of the program alone.
        [verb] if matches!(verb.get_name(), "help" | "version") => return [&args[..1], rest].concat(),
        ref verbs => verbs.len(),
    };
    let parts = [&args[..1], &rest[..verbs], &args[1..=options], &rest[verbs..]];
    parts.concat()
}

/// Returns the verbs with which the words begin: `image ls`.
fn verbs_of<'a>(program: &'a Command, words: &[OsString]) -> Vec<&'a Command> {
    let mut found: Vec<&Command> = Vec::new();
    for word in words {
        let at = found.last().copied().unwrap_or(program);
        match at.find_subcommand(word) {
            Some(verb) => found.push(verb),
            None => break,
        }
    }
    found
}

/// Returns why there is no verb by which the line begins; `None`: there is one, or it is a line that mounts.
pub(super) fn unknown_verb(program: &Command, args: &[OsString]) -> Option<Failure> {
    let words = args.get(1..).unwrap_or_default();
    let verbs = verbs_of(program, words);
    let at = verbs.last().copied().unwrap_or(program);
    let word = words.get(verbs.len())?.to_str()?;
    let is_noun = !verbs.is_empty() && at.has_subcommands() && at.get_positionals().next().is_none();
    if word.starts_with('-') || !(is_noun || verbs.is_empty()) || word.contains(['/', '=', ':']) {
        return None;
    }
    if is_noun {
        let shown = verbs.iter().map(|verb| verb.get_name()).collect::<Vec<_>>().join(" ");
        let none =
            || Failure::usage(format!("there is no verb {word:?} of {shown}; see unionmount {shown} --help"));
        return Some(no_such_verb(at, word).unwrap_or_else(none));
    }
    if names_layers(words) {
        return None;
    }
    let told = no_such_verb(program, word);
    // A mount point without layers is another slip.
    let is_place = || std::fs::symlink_metadata(word).is_ok();
    if told.is_some() && (engines::instead_of(word).is_some() || !is_place()) {
        return told;
    }
    let none = || Failure::usage(format!("there is no verb {word:?}; unionmount help lists them"));
    (!is_place()).then(none)
}

/// Returns whether it is a line whose command's status is this program's.
pub(super) fn runs_a_command(program: &Command, args: &[OsString]) -> bool {
    let verbs = verbs_of(program, args.get(1..).unwrap_or_default());
    verbs.last().is_some_and(|verb| matches!(verb.get_name(), "run" | "exec"))
}

/// Tells whether the words of a mount tell its layers; else it is one that exists.
fn names_layers(words: &[OsString]) -> bool {
    words.iter().filter_map(|word| word.to_str()).any(|word| {
        word.starts_with("-o")
            || ["--lower", "--upper", "--work"].iter().any(|option| word.starts_with(option))
    })
}

/// Returns what to do instead of a verb that other programs have, or which one was meant.
pub(super) fn no_such_verb(at: &Command, word: &str) -> Option<Failure> {
    if let Some(instead) = engines::instead_of(word) {
        return Some(Failure::usage(format!("{word} is no verb here: {instead}")));
    }
    let names = || at.get_subcommands().filter(|verb| !verb.is_hide_set());
    let all: Vec<&str> =
        names().flat_map(|verb| std::iter::once(verb.get_name()).chain(verb.get_all_aliases())).collect();
    let other = engines::OTHER_WORDS.iter().find(|(other, _)| *other == word).map(|(_, meant)| *meant);
    let meant = other.filter(|meant| all.contains(meant)).or_else(|| nearest(word, all.iter().copied()))?;
    Some(Failure::usage(format!("there is no verb {word:?}; did you mean {meant}?")))
}

/// Makes one line of what the parser has to say, with the help that tells more.
pub(super) fn explained(error: &clap::Error, program: &Command, args: &[OsString]) -> Failure {
    let verbs = verbs_of(program, args.get(1..).unwrap_or_default());
    let path: Vec<&str> = std::iter::once(NAME).chain(verbs.iter().map(|verb| verb.get_name())).collect();
    let path = path.join(" ");
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg)
        && let Some(instead) =
            verbs.last().and_then(|verb| engines::instead_of_option(verb.get_name(), given))
    {
        return Failure::usage(format!("{given} is no option here: {instead}"));
    }
    Failure::usage(format!("{}; see {path} --help", one_line(&error.render().to_string())))
}

/// Returns the cause and the tips of clap's error, without usage.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text
        .lines()
        .take_while(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .map(|part| part.trim().trim_start_matches("error: "))
        .filter(|part| !part.is_empty() && !is_wrong_tip(part))
    {
        if !line.is_empty() {
            line.push_str(if part.starts_with("tip:") { "; " } else { " " });
        }
        line.push_str(part);
    }
    line
}

/// Tells whether a tip is wrong: that a word which begins with a hyphen may be a value is of use where there is a file
/// of that name.
fn is_wrong_tip(part: &str) -> bool {
    let value = part.strip_prefix("tip: to pass '").and_then(|rest| rest.split('\'').next());
    value.is_some_and(|value| std::fs::symlink_metadata(OsStr::new(value)).is_err())
}
