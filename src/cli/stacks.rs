//! The layers of what is named on the command line: an image, a container, a mount; and what people call each layer.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::store::StoreArgs;
use super::{Failure, lowers};
use crate::container::bundle::command;
use crate::container::called::{Called, called};
use crate::container::lowers::image_as_it_lies;
use crate::container::settings::Settings;
use crate::container::{Container, ContainerError, mounting};
use crate::control::client::Client;
use crate::control::explanation::LayerReport;
use crate::control::mounts;
use crate::explain::page::Subject;
use crate::image::describe::Step;
use crate::image::store::{Image, Store};
use crate::texts::Texts;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::Below;
use crate::union::lookup::belief::Belief;

/// The layers of a stack, as they are found.
pub(super) struct Found {
    /// From the top down.
    pub paths: Vec<PathBuf>,
    /// Whether the first is the upper.
    pub upper: bool,
    /// What to call them, where their directories' names say nothing.
    pub names: Vec<Option<String>>,
    /// Whose marks the mount believes.
    pub belief: Option<Belief>,
    /// What is known of the whole.
    pub subject: Subject,
    /// Keeps them from being removed.
    _pins: Vec<OwnedFd>,
}

impl Found {
    /// Returns directories or archives, which are called by their names.
    pub(super) fn of_paths(paths: Vec<PathBuf>, upper: bool) -> Found {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let all = paths.iter().map(text).collect::<Vec<_>>().join(", ");
        let what = if paths.iter().any(|path| path.is_file()) { "Archives" } else { "Directories" };
        let subject = Subject { title: String::new(), facts: vec![(what, all)] };
        Found { paths, upper, names: Vec::new(), belief: None, subject, _pins: Vec::new() }
    }

    /// Finds the image or the container of that name. `None`: nothing is called so.
    pub(super) fn named(texts: &Texts, store: &Store, text: &str) -> Result<Option<Found>, Failure> {
        match called(store, text, true) {
            Ok(Called::Container(container)) => Found::of_container(texts, store, &container).map(Some),
            Ok(Called::Image(image)) => Found::of_image(texts, store, &image).map(Some),
            Err(ContainerError::Unknown(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn of_image(texts: &Texts, store: &Store, image: &Image) -> Result<Found, Failure> {
        let lowers = image_as_it_lies(store, image)?;
        let names = step_names(texts, store, image, &lowers.paths)?;
        let subject = Subject { title: title_of(image), facts: facts_of(image, &Settings::default()) };
        Ok(Found { names, paths: lowers.paths, upper: false, belief: None, subject, _pins: lowers.pins })
    }

    fn of_container(texts: &Texts, store: &Store, container: &Container) -> Result<Found, Failure> {
        let kept = container.keep()?;
        let mut lowers = container.all_below(store)?;
        lowers.pins.extend(kept.into_pins());
        let paths: Vec<PathBuf> =
            std::iter::once(container.upper()).chain(lowers.paths.iter().cloned()).collect();
        let names = names_of_container(texts, store, container, &paths)?;
        let record = &container.record;
        let image = store.resolve(&record.image.to_string())?;
        let mut facts = vec![
            ("Container", container.shown_name().to_owned()),
            ("Id", record.id.clone()),
            ("Created", record.created.clone()),
            ("Image", record.image_name.clone()),
        ];
        facts.extend(facts_of(&image, &record.settings).into_iter().filter(|(word, _)| *word == "Command"));
        let subject = Subject { title: container.shown_name().to_owned(), facts };
        Ok(Found { paths, upper: true, names, belief: None, subject, _pins: lowers.pins })
    }

    /// Finds the layers of a mount, which its daemon knows.
    pub(super) fn of_mount(
        texts: &Texts,
        mount: &mounts::Mount,
        store: &StoreArgs,
    ) -> Result<Found, Failure> {
        let status =
            Client::connect(mount).and_then(|mut daemon| daemon.status()).map_err(Failure::failed)?;
        let upper = status.layers.iter().any(|layer| layer.layer == 0);
        let paths: Vec<PathBuf> =
            status.layers.iter().map(|layer| layer.directory.as_path().to_owned()).collect();
        if let Some(covered) =
            paths.iter().find(|path| mounts::device_at(path).is_ok_and(|at| at == mount.device))
        {
            return Err(Failure::failed(format!(
                "{}: this layer is covered by the mount, so it can't be read from here; unmount first",
                EscapedPath::from(covered.as_path())
            )));
        }
        let names = names_of_mount(texts, mount, &status.layers, store);
        let point = EscapedPath::from(mount.point.as_path()).to_string();
        let since = i64::try_from(status.about.since_us).ok();
        let since = since.and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
        let mut facts = vec![("Mount", mount.point.to_string_lossy().into_owned())];
        facts.extend(since.map(|since| ("Since", since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())));
        // As for names: only where the layers are the store's.
        if let Some((_, called)) = in_store(mount, store).filter(|_| names.iter().any(Option::is_some)) {
            match called {
                Called::Container(container) => {
                    facts.push(("Container", container.shown_name().to_owned()));
                    facts.push(("Image", container.record.image_name.clone()));
                }
                Called::Image(image) => facts.extend(facts_of(&image, &Settings::default())),
            }
        }
        let subject = Subject { title: point, facts };
        Ok(Found { paths, upper, names, belief: status.about.belief, subject, _pins: Vec::new() })
    }
}

fn title_of(image: &Image) -> String {
    image.names.first().map_or_else(|| image.id.short(), ToString::to_string)
}

/// Returns what is known of an image, and what it runs, or a container of it.
fn facts_of(image: &Image, settings: &Settings) -> Vec<(&'static str, String)> {
    let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
    let mut facts = vec![("Image", names.join(", ")), ("Id", image.id.to_string())];
    facts.extend(image.config.created().clone().map(|created| ("Created", created)));
    facts.push(("Platform", format!("{}/{}", image.config.os(), image.config.architecture())));
    // One that names none is told without.
    let words = command(&image.config, settings).unwrap_or_default();
    facts.push(("Command", words.join(" ")));
    facts.retain(|(_, fact)| !fact.is_empty());
    facts
}

/// Returns what the layers in these directories are called: by the steps that made them, or what a frame is (see
/// [`crate::image::store`]).
fn step_names(
    texts: &Texts,
    store: &Store,
    image: &Image,
    paths: &[PathBuf],
) -> Result<Vec<Option<String>>, Failure> {
    let steps = store.history(image)?;
    let frame = store.layer_dir(&image.id);
    let name = |path: &PathBuf| {
        if path.starts_with(&frame) {
            return Some(texts.say("called.frame").to_owned());
        }
        // One that isn't unpacked is told with its digest.
        let packed = lowers::promised(path).filter(|(blob, _)| blob.starts_with(store.root()));
        let made = |step: &&Step| {
            step.diff_id.is_some_and(|diff_id| {
                path.starts_with(store.layer_dir(&diff_id))
                    || packed.as_ref().is_some_and(|(_, digest)| *digest == diff_id)
            })
        };
        steps.iter().find(made).map(Step::title).filter(|title| !title.is_empty())
    };
    Ok(paths.iter().map(name).collect())
}

fn names_of_container(
    texts: &Texts,
    store: &Store,
    container: &Container,
    paths: &[PathBuf],
) -> Result<Vec<Option<String>>, Failure> {
    let image = store.resolve(&container.record.image.to_string())?;
    let mut names = step_names(texts, store, &image, paths)?;
    let frozen = container.frozen()?;
    for (path, name) in paths.iter().zip(&mut names) {
        if *path == container.upper() {
            *name = Some(texts.fill("called.container", &[("name", container.shown_name())]));
        } else if let Some(snapshot) = snapshot_in(frozen.as_ref(), path) {
            *name = Some(texts.fill("called.snapshot", &[("name", snapshot)]));
        } else if path.starts_with(&container.dir) {
            *name = Some(texts.say("called.targets").to_owned());
        }
    }
    Ok(names)
}

/// Returns the name of the snapshot that lies in a directory, if it is one of those that a container lies on.
fn snapshot_in<'a>(frozen: Option<&'a Below>, path: &Path) -> Option<&'a str> {
    let below = frozen?;
    let at = below.layers.iter().position(|layer| layer == path)?;
    below.records.get(at).map(|frozen| frozen.name.as_str())
}

/// Returns what the layers of a mount are called, if they are those of an image or a container of the store.
pub(super) fn names_of_mount(
    texts: &Texts,
    mount: &mounts::Mount,
    layers: &[LayerReport],
    store: &StoreArgs,
) -> Vec<Option<String>> {
    let Some((store, called)) = in_store(mount, store) else { return Vec::new() };
    let paths: Vec<PathBuf> = layers.iter().map(|layer| layer.directory.as_path().to_owned()).collect();
    // Whoever mounts chooses what a mount is called: names are given to directories that are those of the store.
    let names = match called {
        Called::Container(container) => names_of_container(texts, &store, &container, &paths),
        Called::Image(image) => step_names(texts, &store, &image, &paths),
    };
    names.unwrap_or_else(|failure| {
        log::info!("{}", failure.message);
        Vec::new()
    })
}

/// Returns the image or the container of the store that a mount says it is of.
fn in_store(mount: &mounts::Mount, store: &StoreArgs) -> Option<(Store, Called)> {
    let id = mount.source.strip_prefix(&mounting::source("")).filter(|_| mount.is_trusted())?;
    let store = match store.existing() {
        Ok(store) => store?,
        Err(error) => {
            log::info!("the layers' names can't be told: {error}");
            return None;
        }
    };
    let called = called(&store, id, true).ok()?;
    Some((store, called))
}

/// Gives the layers that a daemon tells of their names.
pub(super) fn call_layers(layers: &mut [LayerReport], names: &[Option<String>]) {
    for (layer, name) in layers.iter_mut().zip(names) {
        if let Some(name) = name {
            layer.name = EscapedPath::from(name.as_bytes());
        }
    }
}

/// Tells whether that looks like a path, and no name of an image or a container.
pub(super) fn is_path(text: &Path) -> bool {
    text.to_str().is_none_or(|text| text.starts_with(['/', '.']))
}
