//! What may stand at a place of the command line: names of the store, mounts, mount options, words of filters. Which it is
//! tells the name of the value, as help shows it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{Arg, Command};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};

use super::options::KNOWN;
use crate::container::{Container, mounting};
use crate::control::mounts;
use crate::image::store::Store;
use crate::union::events::EventKind;

/// The store that the line names.
static ROOT: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Finds out which store the words are about.
pub(super) fn look_in(words: &[OsString]) {
    let mut named = None;
    for (at, word) in words.iter().enumerate() {
        match word.to_str() {
            Some("--root") => named = words.get(at + 1).map(PathBuf::from),
            Some(text) => named = text.strip_prefix("--root=").map(PathBuf::from).or(named),
            None => {}
        }
    }
    let named = named.or_else(|| std::env::var_os("UNIONMOUNT_ROOT").map(PathBuf::from));
    // A process answers once.
    ROOT.set(named).unwrap_or_default();
}

/// Tells for all arguments what may stand there.
pub(super) fn with_candidates(program: Command) -> Command {
    let program = program.mut_args(with_completer);
    let names: Vec<String> = program.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let verbs: Vec<(String, String)> = program
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .map(|verb| {
            (verb.get_name().to_owned(), verb.get_about().map(ToString::to_string).unwrap_or_default())
        })
        .collect();
    names.iter().fold(program, |program, name| {
        let takes_verbs = matches!(&name[..], "help" | "man");
        let verbs = verbs.clone();
        program.mut_subcommand(name, move |verb| match takes_verbs {
            true => verb.mut_arg("verb", |arg| {
                arg.add(ArgValueCompleter::new(move |current: &OsStr| {
                    offer(current, verbs.iter().map(|(name, about)| (name.clone(), about.clone())))
                }))
            }),
            false => with_candidates(verb),
        })
    })
}

fn with_completer(arg: Arg) -> Arg {
    let Some(value) = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string) else {
        // As the derive macro names it.
        let name = arg.get_id().as_str().to_uppercase();
        return if arg.is_positional() { of_value(arg, &name) } else { arg };
    };
    of_value(arg, &value)
}

fn of_value(arg: Arg, value: &str) -> Arg {
    let dirs = || PathCompleter::dir();
    let completer = match value {
        "IMAGE" | "NAME[:TAG]" => ArgValueCompleter::new(images),
        "CONTAINER" => ArgValueCompleter::new(containers),
        "NAME" if arg.is_positional() => {
            ArgValueCompleter::new(|current: &OsStr| both(images, containers, current))
        }
        "MOUNT|CONTAINER|UPPER" => ArgValueCompleter::new(move |current: &OsStr| {
            let containers = containers(current).into_iter();
            containers.chain(either(mount_points, &dirs(), current)).collect()
        }),
        "CONTAINER|UPPER" => ArgValueCompleter::new(move |current: &OsStr| {
            containers(current).into_iter().chain(dirs().complete(current)).collect()
        }),
        "MOUNT" => ArgValueCompleter::new(move |current: &OsStr| either(mount_points, &dirs(), current)),
        "IMAGE|CONTAINER|MOUNT" => ArgValueCompleter::new(move |current: &OsStr| {
            let trees = both(images, containers, current).into_iter();
            trees.chain(either(mount_points, &dirs(), current)).collect()
        }),
        "PATH|NAME PATH" => ArgValueCompleter::new(|current: &OsStr| {
            let trees = both(images, containers, current).into_iter();
            trees.chain(PathCompleter::any().complete(current)).collect()
        }),
        "MOUNTPOINT|NAME" => {
            ArgValueCompleter::new(|current: &OsStr| both(mount_points, mounted_containers, current))
        }
        "NAME:PATH|PATH|-" => ArgValueCompleter::new(|current: &OsStr| {
            let trees = both(containers, images, current).into_iter().map(|one| {
                let name = one.get_value().to_string_lossy().into_owned();
                CompletionCandidate::new(format!("{name}:/")).help(one.get_help().cloned())
            });
            trees.chain(PathCompleter::any().complete(current)).collect()
        }),
        "MOUNTPOINT" | "DIR" => ArgValueCompleter::new(dirs()),
        "PATH" => ArgValueCompleter::new(PathCompleter::any()),
        "DIR[:DIR…]" => ArgValueCompleter::new(|current: &OsStr| {
            // An archive is a file.
            after(current, ':', &|part| PathCompleter::any().complete(part))
        }),
        "OPTION[,…]" => ArgValueCompleter::new(|current: &OsStr| after(current, ',', &option)),
        "KIND|/PATH[,…]" => ArgValueCompleter::new(|current: &OsStr| {
            offer(current, EventKind::NAMES.iter().map(|name| ((*name).to_owned(), String::new())))
        }),
        "KEY=VALUE" => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            ArgValueCompleter::new(move |current: &OsStr| conditions(&help, current))
        }
        "FORMAT" => ArgValueCompleter::new(|current: &OsStr| words(current, &["json", "table"])),
        "LANGUAGE" => ArgValueCompleter::new(|current: &OsStr| words(current, &["en", "zh"])),
        _ => return arg,
    };
    arg.add(completer)
}

type Offer = Vec<CompletionCandidate>;

/// Returns those that begin as what was typed.
fn offer(current: &OsStr, all: impl Iterator<Item = (String, String)>) -> Offer {
    let Some(begun) = current.to_str() else { return Vec::new() };
    all.filter(|(word, _)| word.starts_with(begun))
        .map(|(word, help)| CompletionCandidate::new(word).help((!help.is_empty()).then(|| help.into())))
        .collect()
}

fn words(current: &OsStr, all: &[&str]) -> Offer {
    offer(current, all.iter().map(|word| ((*word).to_owned(), String::new())))
}

fn both(one: impl Fn(&OsStr) -> Offer, other: impl Fn(&OsStr) -> Offer, current: &OsStr) -> Offer {
    one(current).into_iter().chain(other(current)).collect()
}

/// Returns directories where nothing better fits.
fn either(first: impl Fn(&OsStr) -> Offer, otherwise: &PathCompleter, current: &OsStr) -> Offer {
    let found = first(current);
    if found.is_empty() { otherwise.complete(current) } else { found }
}

/// Completes the last part of a list.
fn after(current: &OsStr, separator: char, of: &dyn Fn(&OsStr) -> Offer) -> Offer {
    let Some(text) = current.to_str() else { return Vec::new() };
    let (before, last) = match text.rsplit_once(separator) {
        Some((before, last)) => (format!("{before}{separator}"), last),
        None => (String::new(), text),
    };
    of(OsStr::new(last)).into_iter().map(|one| one.add_prefix(before.clone())).collect()
}

/// Completes a mount option, or the directory that it names.
fn option(current: &OsStr) -> Offer {
    let text = current.to_str().unwrap_or_default();
    if let Some((name @ ("upperdir" | "workdir" | "lowerdir" | "lowerdir+"), value)) = text.split_once('=') {
        let dirs = |part: &OsStr| PathCompleter::dir().complete(part);
        let found = after(OsStr::new(value), ':', &dirs);
        return found.into_iter().map(|one| one.add_prefix(format!("{name}="))).collect();
    }
    offer(current, KNOWN.iter().map(|(name, what)| ((*name).to_owned(), (*what).to_owned())))
}

/// Completes the conditions that a filter's help tells: `dangling=true|false, label=NAME[=VALUE]`.
fn conditions(help: &str, current: &OsStr) -> Offer {
    let told = help.split([' ', ',', '\n']).filter_map(|word| word.split_once('='));
    let told: Vec<(&str, &str)> =
        told.filter(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase())).collect();
    let text = current.to_str().unwrap_or_default();
    let Some((key, value)) = text.split_once('=') else {
        return offer(current, told.iter().map(|(key, value)| (format!("{key}="), (*value).to_owned())));
    };
    let prefixed = |found: Offer| found.into_iter().map(|one| one.add_prefix(format!("{key}="))).collect();
    match told.iter().find(|(known, _)| *known == key) {
        Some((_, "IMAGE" | "PATTERN")) => prefixed(images(OsStr::new(value))),
        Some((_, "CONTAINER")) => prefixed(containers(OsStr::new(value))),
        Some((_, choices)) if choices.contains('|') => {
            prefixed(words(OsStr::new(value), &choices.split('|').collect::<Vec<_>>()))
        }
        _ => Vec::new(),
    }
}

fn store() -> Option<Store> {
    Store::existing(ROOT.get()?.as_deref()).ok()?
}

/// Names of images, and where digits were typed, ids.
fn images(current: &OsStr) -> Offer {
    let Some(catalog) = store().and_then(|store| store.catalog().ok()) else { return Vec::new() };
    let names = catalog.images.iter().flat_map(|image| {
        let names = image.names.iter().map(move |name| (name.to_string(), image.id.short()));
        let id = std::iter::once((image.id.short(), String::new()));
        names.chain(id.filter(|_| !current.is_empty() || image.names.is_empty()))
    });
    let mut found = offer(current, names);
    found.sort();
    found
}

fn container_names(all: Vec<Container>, current: &OsStr) -> Offer {
    let names = all.iter().flat_map(|container| {
        let name = container.record.name.clone().map(|name| (name, container.record.image_name.clone()));
        let id = (container.short_id().to_owned(), container.record.image_name.clone());
        let shows_id = name.is_none() || !current.is_empty();
        name.into_iter().chain(shows_id.then_some(id))
    });
    offer(current, names)
}

fn containers(current: &OsStr) -> Offer {
    let all = store().and_then(|store| Container::all(&store).ok());
    container_names(all.unwrap_or_default(), current)
}

fn mounted_containers(current: &OsStr) -> Offer {
    let all = store().and_then(|store| Container::all(&store).ok()).unwrap_or_default();
    let mounted = mounts::all().unwrap_or_default();
    let is_mounted = |container: &Container| {
        let source = mounting::source(container.short_id());
        mounted.iter().any(|mount| mount.source == source)
    };
    container_names(all.into_iter().filter(is_mounted).collect(), current)
}

/// Returns where something is mounted: in full, or from here on, as it was begun.
fn mount_points(current: &OsStr) -> Offer {
    let here = std::env::current_dir().unwrap_or_default();
    let absolute = Path::new(current).is_absolute();
    let points = mounts::all().unwrap_or_default().into_iter().filter_map(|mount| {
        let below = mount.point.strip_prefix(&here).ok().filter(|_| !absolute).map(Path::to_owned);
        let shown = below.unwrap_or(mount.point);
        Some((shown.to_str()?.to_owned(), "mounted".to_owned()))
    });
    offer(current, points)
}
