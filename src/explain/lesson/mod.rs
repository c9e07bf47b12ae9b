//! The lesson: `unionmount demo`.
//!
//! In a directory of its own, the learner sees the commands of a container's life run on real mounts, and after each
//! step what has changed in the layers on disk. Nothing is played: the commands go through a shell, the changes are
//! read off the layers by a [`Survey`], and a step whose effect is not what its text says ends the lesson with an error.
//!
//! The steps are in `steps`, the words in [`texts`], the directory with its mounts in [`site`].

pub mod site;
mod steps;
pub mod texts;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Write};

use self::site::Site;
use self::steps::{Effect, STEPS, Step};
use self::texts::{Texts, fill};
use super::names;
use super::paint::Paint;
use super::survey::{LayerAction, Survey};
use crate::sys::object::Kind;
use crate::union::stack::layer::{LowerSource, Stack, StackOptions};

/// Why a lesson ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum LessonError {
    /// A file or a terminal.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        error: std::io::Error,
    },
    /// A command that was shown has failed.
    #[error("this command has failed: {command}: {output}")]
    Command {
        /// The command.
        command: String,
        /// What it said.
        output: String,
    },
    /// The layers can't be read.
    #[error("cannot read the layers: {0}")]
    Layers(String),
    /// The layers are not as the lesson says they are.
    #[error("step {step}: {what}; please report it")]
    Untrue {
        /// The step.
        step: &'static str,
        /// What is otherwise.
        what: String,
    },
}

impl LessonError {
    fn io(what: impl fmt::Display) -> impl FnOnce(std::io::Error) -> LessonError {
        let what = what.to_string();
        move |error| LessonError::Io { what, error }
    }
}

/// How a lesson ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps were taken.
    Whole,
    /// The learner had enough.
    Stopped,
}

/// A lesson that is being given.
pub struct Lesson<'a> {
    /// Where.
    pub site: &'a Site,
    /// In which words.
    pub texts: &'a Texts,
    /// Colours.
    pub paint: Paint,
    /// Where it is written.
    pub out: &'a mut dyn Write,
    /// What the learner types; `None`: nobody is there, so nobody is waited for.
    pub input: Option<&'a mut dyn BufRead>,
}

/// What the layers hold, as far as changes are to be told: path in the layer → what it is.
type Held = BTreeMap<Vec<u8>, Thing>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Thing {
    what: LayerAction,
    kind: Option<Kind>,
    size: u64,
    mode: u32,
    mtime: i64,
    opaque: bool,
    /// The lower layer whose entry it replaces or deletes.
    replaces: Option<String>,
}

impl Lesson<'_> {
    /// Gives it.
    ///
    /// # Errors
    /// See [`LessonError`]. The caller cleans the [`Site`].
    pub fn give(&mut self) -> Result<Ended, LessonError> {
        let dir = self.site.dir().display().to_string();
        self.say(&fill(&self.texts.welcome, &[("dir", &dir)]))?;
        if self.stops()? {
            return Ok(Ended::Stopped);
        }
        self.site.prepare()?;
        for (index, step) in STEPS.iter().enumerate() {
            if self.step(index, step)? == Ended::Stopped {
                return Ok(Ended::Stopped);
            }
        }
        self.say(&self.texts.done)?;
        Ok(Ended::Whole)
    }

    fn step(&mut self, index: usize, step: &Step) -> Result<Ended, LessonError> {
        let words = (step.texts)(&self.texts.steps);
        let title = format!("{}/{}  {}", index + 1, STEPS.len(), words.title);
        self.line(&format!("\n{}", self.paint.bold(format!("── {title} ──"))))?;
        self.say(&words.text)?;
        self.say(&format!("{}\n{}", self.paint.cyan(&self.texts.question), words.question))?;
        if self.stops()? {
            return Ok(Ended::Stopped);
        }
        let before = self.layers(step)?;
        for command in step.commands {
            let shown = self.site.command(command);
            self.line(&format!("{} {}", self.paint.green("$"), self.paint.bold(&shown)))?;
            for line in self.site.run(&shown)?.lines() {
                self.line(&format!("  {line}"))?;
            }
        }
        if let Some(before) = before {
            let after = self.layers(step)?.unwrap_or_default();
            self.changes(step, &before, &after)?;
        }
        self.say(&format!("{}\n{}", self.paint.cyan(&self.texts.answer), words.answer.trim_start()))?;
        Ok(if self.stops()? { Ended::Stopped } else { Ended::Whole })
    }

    /// Returns what is in the layers that a step is about: first the upper's, then the lowers'.
    fn layers(&self, step: &Step) -> Result<Option<Vec<Held>>, LessonError> {
        let Some(upper) = step.upper else { return Ok(None) };
        let mut lowers = [upper, "patch", "app", "base"].map(|name| self.site.dir().join(name)).to_vec();
        // Before a container's first start it has no upper yet.
        let has_upper = lowers[0].exists();
        if !has_upper {
            lowers.remove(0);
        }
        let broken = |error: &dyn fmt::Display| LessonError::Layers(error.to_string());
        let lowers = LowerSource::directories(lowers);
        let stack = Stack::open(&StackOptions { lowers, ..StackOptions::default() })
            .map_err(|error| broken(&error))?;
        let survey = Survey::take(stack, has_upper).map_err(|error| broken(&error))?;
        let mut held = vec![Held::new(); 4];
        for place in 1..survey.places.len() {
            for h in survey.holdings(place) {
                let thing = Thing {
                    what: h.what(),
                    kind: h.kind,
                    size: h.size,
                    mode: h.mode,
                    mtime: h.mtime,
                    opaque: h.opaque,
                    replaces: h.replaces.map(|layer| survey.layers[usize::from(layer) - 1].name.clone()),
                };
                held[usize::from(survey.told(h.layer))].insert(survey.path(place), thing);
            }
        }
        Ok(Some(held))
    }

    /// Tells what has changed in the upper, and that nothing else has; proves that it is what the step says.
    fn changes(&mut self, step: &Step, before: &[Held], after: &[Held]) -> Result<(), LessonError> {
        let untrue = |what: String| LessonError::Untrue { step: step.name, what };
        if before[1..] != after[1..] {
            return Err(untrue("a lower layer has changed".to_owned()));
        }
        for effect in step.effects {
            let found = after[0].get(effect.path().as_bytes());
            if !found.is_some_and(|thing| effect.is(thing)) {
                return Err(untrue(format!("no {effect:?}, but {found:?}")));
            }
        }
        let upper = step.upper.unwrap_or_default();
        let mut lines = Vec::new();
        for (path, thing) in &after[0] {
            let old = before[0].get(path);
            if old != Some(thing) && !(old.is_some() && thing.kind == Some(Kind::Directory) && !thing.opaque)
            {
                lines.push(self.change(upper, path, thing, old));
            }
        }
        for path in before[0].keys().filter(|path| !after[0].contains_key(*path)) {
            let path = format!("{upper}/{}", names::readable(path));
            lines.push(format!("- {}", fill(&self.texts.gone, &[("path", &path)])));
        }
        self.line(&format!("\n{}", self.paint.yellow(&self.texts.changed)))?;
        if lines.is_empty() {
            let path = format!("{upper}/");
            self.line(&format!("  {}", fill(&self.texts.nothing, &[("path", &path)])))?;
        }
        for line in lines {
            self.line(&format!("  {line}"))?;
        }
        let same = fill(&self.texts.same, &[("layers", "base/ app/ patch/")]);
        self.line(&format!("  {}", self.paint.dim(same)))
    }

    fn change(&self, upper: &str, path: &[u8], thing: &Thing, old: Option<&Thing>) -> String {
        let path = format!("{upper}/{}", names::readable(path));
        let size = names::bytes(thing.size);
        let below = thing.replaces.clone().unwrap_or_default();
        let texts = self.texts;
        let fill = |text: &str| fill(text, &[("path", &path), ("size", &size), ("below", &below)]);
        let directory = thing.kind == Some(Kind::Directory);
        match thing.what {
            LayerAction::Deleted => self.paint.red(format!("✗ {}", fill(&texts.whiteout))),
            _ if directory && thing.opaque => self.paint.red(format!("◼ {}", fill(&texts.opaque))),
            LayerAction::Merged => fill(&format!("+ {}", texts.copied_dir)),
            _ if old.is_some_and(|old| old.kind == thing.kind) => {
                self.paint.yellow(format!("~ {}", fill(&texts.rewritten)))
            }
            LayerAction::Changed => self.paint.yellow(format!("~ {}", fill(&texts.copied_up))),
            LayerAction::Added if directory => self.paint.green(format!("+ {}", fill(&texts.made_dir))),
            LayerAction::Added => self.paint.green(format!("+ {}", fill(&texts.made))),
        }
    }

    fn line(&mut self, text: &str) -> Result<(), LessonError> {
        let written = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
        written.map_err(LessonError::io("cannot write to stdout"))
    }

    fn say(&mut self, text: &str) -> Result<(), LessonError> {
        self.line(&format!("\n{}", text.trim()))
    }

    /// Waits for Enter; true if the learner wants to stop. The end of the input is as good.
    fn stops(&mut self) -> Result<bool, LessonError> {
        let prompt = self.paint.dim(format!("[{}] ", self.texts.enter));
        let Some(input) = &mut self.input else { return Ok(false) };
        let shown = write!(self.out, "\n{prompt}").and_then(|()| self.out.flush());
        shown.map_err(LessonError::io("cannot write to stdout"))?;
        let mut line = String::new();
        let read = input.read_line(&mut line).map_err(LessonError::io("cannot read from stdin"))?;
        Ok(read == 0 || line.trim().eq_ignore_ascii_case("q"))
    }
}

impl Effect {
    fn path(&self) -> &'static str {
        match self {
            Effect::CopyUp(path, _)
            | Effect::Whiteout(path, _)
            | Effect::Opaque(path)
            | Effect::New(path) => path,
        }
    }

    fn is(&self, thing: &Thing) -> bool {
        let replaces = |layer: &str| thing.replaces.as_deref() == Some(layer);
        match self {
            Effect::CopyUp(_, layer) => thing.what == LayerAction::Changed && replaces(layer),
            Effect::Whiteout(_, layer) => thing.what == LayerAction::Deleted && replaces(layer),
            Effect::Opaque(_) => thing.kind == Some(Kind::Directory) && thing.opaque,
            Effect::New(_) => thing.what == LayerAction::Added,
        }
    }
}
