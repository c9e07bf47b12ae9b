//! What a step has changed in the layers on disk, read off the layers themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::LessonError;
use super::course::Effect;
use super::site::Site;
use crate::explain::names;
use crate::explain::paint::Paint;
use crate::explain::survey::{LayerAction, Survey};
use crate::sys::object::Kind;
use crate::texts::Texts;
use crate::union::stack::layer::{LowerSource, Stack, StackOptions};

/// What the layers hold, as far as changes are to be told: path in the layer → what it is.
type Held = BTreeMap<Vec<u8>, Thing>;

/// What a layer holds at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Thing {
    what: LayerAction,
    kind: Option<Kind>,
    size: u64,
    mode: u32,
    mtime: i64,
    opaque: bool,
    /// A directory that the layers below know by another name.
    redirected: bool,
    /// The lower layer whose entry it replaces or deletes.
    replaces: Option<String>,
}

/// The upper's and the lowers' content.
#[derive(Debug)]
pub(super) struct Layers {
    upper: Held,
    lowers: Vec<Held>,
}

/// The lowers of all stacks of the lessons, the topmost first.
const LOWERS: [&str; 3] = ["patch", "app", "base"];

impl Layers {
    /// Reads the layers of a site.
    pub(super) fn read(site: &Site, upper: &str) -> Result<Layers, LessonError> {
        let upper = site.dir().join(upper);
        // Before a container's first start it has no upper yet.
        let has_upper = upper.exists();
        let lowers = LOWERS.map(|name| site.dir().join(name));
        let layers: Vec<PathBuf> = has_upper.then_some(upper).into_iter().chain(lowers).collect();
        let broken = |error: &dyn fmt::Display| LessonError::Layers(error.to_string());
        let lowers = LowerSource::directories(layers);
        let stack = Stack::open(&StackOptions { lowers, ..StackOptions::default() })
            .map_err(|error| broken(&error))?;
        let survey = Survey::take(stack, has_upper).map_err(|error| broken(&error))?;
        let mut held = vec![Held::new(); LOWERS.len() + 1];
        for place in 1..survey.places.len() {
            let holdings = survey.holdings(place);
            let redirected = holdings.iter().any(|h| h.chain != 0);
            // What a redirect shows here is told where it lies.
            for h in holdings.iter().filter(|h| h.chain == 0) {
                let thing = Thing {
                    what: h.what(),
                    kind: h.kind,
                    size: h.size,
                    mode: h.mode,
                    mtime: h.mtime,
                    opaque: h.opaque,
                    redirected: redirected && h.kind == Some(Kind::Directory),
                    replaces: h.replaces.map(|layer| survey.layers[usize::from(layer) - 1].name.clone()),
                };
                held[usize::from(survey.told(h.layer))].insert(survey.path(place), thing);
            }
        }
        let upper = held.remove(0);
        Ok(Layers { upper, lowers: held })
    }

    /// Proves that the lowers are as they were, and that the upper holds what a step says.
    pub(super) fn prove(&self, before: &Layers, effects: &[Effect]) -> Result<(), String> {
        if before.lowers != self.lowers {
            return Err("a lower layer has changed".to_owned());
        }
        for effect in effects {
            let found = self.upper.get(effect.path().as_bytes());
            if !found.is_some_and(|thing| effect.is(thing)) {
                return Err(format!("no {effect:?}, but {found:?}"));
            }
        }
        Ok(())
    }

    /// Tells what has changed in the upper.
    pub(super) fn told(&self, before: &Layers, upper: &str, texts: &Texts) -> Vec<Change> {
        let mut lines = Vec::new();
        for (path, thing) in &self.upper {
            let old = before.upper.get(path);
            let known_directory = old.is_some() && thing.kind == Some(Kind::Directory) && !thing.opaque;
            if old != Some(thing) && !known_directory {
                lines.push(change(&format!("{upper}/{}", names::readable(path)), thing, old, texts));
            }
        }
        for path in before.upper.keys().filter(|path| !self.upper.contains_key(*path)) {
            let path = format!("{upper}/{}", names::readable(path));
            lines.push(Change::plain(format!("- {}", texts.fill("lesson.gone", &[("path", &path)]))));
        }
        lines
    }
}

/// One thing that has changed, and its colour.
pub(super) struct Change {
    pub tint: fn(Paint, &str) -> String,
    pub text: String,
}

impl Change {
    fn plain(text: String) -> Change {
        Change { tint: |_, text| text.to_owned(), text }
    }
}

fn change(path: &str, thing: &Thing, old: Option<&Thing>, texts: &Texts) -> Change {
    let size = names::bytes(thing.size);
    let below = thing.replaces.clone().unwrap_or_default();
    let fill = |sign: char, key: &str| {
        format!("{sign} {}", texts.fill(key, &[("path", path), ("size", &size), ("below", &below)]))
    };
    let red = |text| Change { tint: |paint, text| paint.red(text), text };
    let yellow = |text| Change { tint: |paint, text| paint.yellow(text), text };
    let green = |text| Change { tint: |paint, text| paint.green(text), text };
    let directory = thing.kind == Some(Kind::Directory);
    match thing.what {
        LayerAction::Deleted => red(fill('✗', "lesson.whiteout")),
        _ if directory && thing.opaque => red(fill('◼', "lesson.opaque")),
        _ if thing.redirected => Change::plain(fill('→', "lesson.redirect")),
        LayerAction::Merged => Change::plain(fill('+', "lesson.copied_dir")),
        _ if old.is_some_and(|old| old.kind == thing.kind) => yellow(fill('~', "lesson.rewritten")),
        LayerAction::Changed => yellow(fill('~', "lesson.copied_up")),
        LayerAction::Added if directory => green(fill('+', "lesson.made_dir")),
        LayerAction::Added => green(fill('+', "lesson.made")),
    }
}

impl Effect {
    fn is(&self, thing: &Thing) -> bool {
        let replaces = |layer: &str| thing.replaces.as_deref() == Some(layer);
        match self {
            Effect::CopyUp(_, layer) => thing.what == LayerAction::Changed && replaces(layer),
            Effect::Whiteout(_, layer) => thing.what == LayerAction::Deleted && replaces(layer),
            Effect::Opaque(_) => thing.kind == Some(Kind::Directory) && thing.opaque,
            Effect::New(_) => thing.what == LayerAction::Added,
            Effect::Redirect(_) => thing.redirected,
        }
    }
}
