//! The lessons: `unionmount demo`.
//!
//! In a directory of its own, the learner sees commands run on real mounts, one by one, and after each step what has
//! changed in the layers on disk. Nothing is played: the commands go through a shell, the changes are read off the layers,
//! and a step whose effect is not what its text says ends the lesson with an error.
//!
//! | file | what it knows |
//! |---|---|
//! | [`course`] | what a lesson consists of |
//! | [`basics`] | the lesson on copy-on-write |
//! | [`images`] | the lesson on images and commit |
//! | [`puzzle`] | the lesson in which a fat image is looked into |
//! | [`site`] | the directory with its mounts |
//! | [`learner`] | who takes the lesson: what is typed, which keys are pressed, how fast it goes on by itself |
//! | `changes` | what a step has changed on disk |
//!
//! The words are in [`crate::texts`], under `lesson`.

pub mod basics;
mod changes;
pub mod course;
pub mod images;
pub mod learner;
pub mod puzzle;
pub mod site;

use std::fmt;
use std::io::Write;

use unicode_width::UnicodeWidthStr;

use self::changes::{Change, Layers};
use self::course::{Course, Shown, Step};
use self::learner::{Learner, Says};
use self::site::Site;
use super::paint::Paint;
use crate::texts::Texts;
use crate::texts::wrap::wrap;

/// The lessons, in the order in which they are to be taken.
pub const COURSES: &[&Course] = &[&basics::BASICS, &images::IMAGES, &puzzle::PUZZLE];

/// Why a lesson ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum LessonError {
    /// Nobody reads any more.
    #[error("nobody reads")]
    ReaderGone,
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

    fn written(error: std::io::Error) -> LessonError {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => LessonError::ReaderGone,
            _ => LessonError::io("cannot write to stdout")(error),
        }
    }

    /// Tells whether the learner's own commands may have brought it about.
    fn may_be_of_the_learner(&self) -> bool {
        matches!(self, LessonError::Command { .. } | LessonError::Layers(_) | LessonError::Untrue { .. })
    }
}

/// How a lesson ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps were taken.
    Whole,
    /// The learner had enough.
    Stopped,
    /// The learner pressed `^C`.
    Interrupted,
}

/// Why a step isn't gone on with.
enum Turn {
    /// Another step is wanted.
    To(usize),
    /// None is.
    End(Ended),
    Failed(LessonError),
}

impl From<LessonError> for Turn {
    fn from(error: LessonError) -> Turn {
        Turn::Failed(error)
    }
}

/// What is written before the learner is heard.
enum Prompt {
    /// A command; it is shown although nobody presses Enter.
    Command(String),
    /// What can be pressed.
    Keys(String),
}

/// How large the screen is: columns, and lines where there is somebody before it.
pub type Screen = fn() -> (usize, Option<usize>);

/// Lines of running text aren't longer, however wide the screen is.
const WIDEST: usize = 80;
/// Lines that are kept free: for what is typed, and for the end of a line that was typed before it was asked for, which the
/// terminal shows itself.
const SPARE: usize = 3;

/// A lesson that is being given.
pub struct Lesson<'a> {
    site: &'a Site,
    course: &'static Course,
    texts: &'static Texts,
    paint: Paint,
    screen: Screen,
    out: &'a mut dyn Write,
    learner: &'a mut dyn Learner,
    /// The step that comes, counted from 0.
    at: usize,
    /// Lines that were shown since the learner was last heard.
    lines: usize,
    /// Commands of the learner's own may have changed what the next step stands on.
    own: bool,
}

impl<'a> Lesson<'a> {
    /// Prepares a lesson.
    pub fn new(
        (site, course): (&'a Site, &'static Course),
        texts: &'static Texts,
        (paint, screen): (Paint, Screen),
        (out, learner): (&'a mut dyn Write, &'a mut dyn Learner),
    ) -> Lesson<'a> {
        Lesson { site, course, texts, paint, screen, out, learner, at: 0, lines: 0, own: false }
    }

    /// Returns the step at which it is, counted from 0.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Gives it from a step on, counted from 0.
    ///
    /// # Errors
    /// See [`LessonError`]. The caller cleans the [`Site`].
    pub fn give(&mut self, first: usize) -> Result<Ended, LessonError> {
        self.at = first;
        if let Err(turn) = self.welcome() {
            match turn {
                Turn::End(ended) => return Ok(ended),
                Turn::Failed(error) => return Err(error),
                Turn::To(_) => {}
            }
        }
        self.put_in_place()?;
        while self.at < self.course.steps.len() {
            match self.step() {
                Ok(()) => self.at += 1,
                Err(Turn::To(at)) => {
                    self.at = at;
                    self.put_in_place()?;
                }
                Err(Turn::End(ended)) => return Ok(ended),
                Err(Turn::Failed(error)) if self.own && error.may_be_of_the_learner() => {
                    self.say(&self.texts.fill("lesson.mended", &[("error", &error.to_string())]))?;
                    self.put_in_place()?;
                }
                Err(Turn::Failed(error)) => return Err(error),
            }
        }
        self.say(self.texts.say(&format!("lesson.{}.done", self.course.name)))?;
        Ok(Ended::Whole)
    }

    fn welcome(&mut self) -> Result<(), Turn> {
        let whole = self.at == 0;
        if whole {
            let dir = self.site.dir().display().to_string();
            self.say(&self.texts.fill(&format!("lesson.{}.welcome", self.course.name), &[("dir", &dir)]))?;
        }
        if self.learner.answers() {
            self.say(self.texts.say("lesson.keys"))?;
        }
        if whole { self.stop() } else { Ok(()) }
    }

    /// Makes everything as it is before the step that comes.
    fn put_in_place(&mut self) -> Result<(), LessonError> {
        self.site.prepare(self.course.prepare)?;
        for command in self.course.steps[..self.at].iter().flat_map(|step| step.commands) {
            match command {
                Shown::AsRoot(_) if !is_root() => {}
                // What can't be done on this machine was told when it was tried.
                Shown::AsRoot(command) => drop(self.site.run(&self.site.command(command))),
                Shown::Run(command) => drop(self.site.run(&self.site.command(command))?),
            }
        }
        self.own = false;
        Ok(())
    }

    fn step(&mut self) -> Result<(), Turn> {
        let step = &self.course.steps[self.at];
        let title = format!("{}/{}  {}", self.at + 1, self.course.steps.len(), self.words(step, "title"));
        self.line("")?;
        self.line(&self.paint.bold(format!("── {title} ──")))?;
        self.say(self.words(step, "text"))?;
        self.question(step)?;
        let before = step.upper.map(|upper| Layers::read(self.site, upper)).transpose()?;
        let mut printed = String::new();
        for command in step.commands {
            printed += &self.command(command)?;
        }
        if let Some(missing) = step.says.iter().find(|part| !printed.contains(*part)) {
            let what = format!("{missing:?} isn't printed, but {printed:?}");
            return Err(LessonError::Untrue { step: step.name, what }.into());
        }
        if let (Some(before), Some(upper)) = (before, step.upper) {
            self.changes(step, &before, upper)?;
        }
        let answer = self.words(step, "answer");
        self.fit(wrap(answer, self.columns()).len() + 2)?;
        self.line("")?;
        self.line(&self.paint.cyan(self.texts.say("lesson.answer")))?;
        self.paragraphs(answer)?;
        self.stop()
    }

    fn words(&self, step: &Step, part: &str) -> &'static str {
        self.texts.find(&format!("lesson.{}.{}.{part}", self.course.name, step.name)).unwrap_or_default()
    }

    /// Asks the question of a step, and says something to what is answered.
    fn question(&mut self, step: &Step) -> Result<(), Turn> {
        let key = |part| format!("lesson.{}.{}.{part}", self.course.name, step.name);
        let choices = self.texts.list(&key("choices"));
        self.line("")?;
        self.line(&self.paint.cyan(self.texts.say("lesson.question")))?;
        self.paragraphs(self.words(step, "question"))?;
        for (number, choice) in (1..).zip(&choices) {
            self.paragraphs(&format!("  {number}  {choice}"))?;
        }
        let prompt = match choices.len() {
            0 => self.texts.say("lesson.think").to_owned(),
            count => self.texts.fill("lesson.choose", &[("count", &count.to_string())]),
        };
        self.line("")?;
        let said = self.ask(&Prompt::Keys(prompt), choices.len())?;
        let number = said.as_deref().and_then(|said| said.parse::<usize>().ok());
        let reply = number.and_then(|number| number.checked_sub(1));
        let replies = self.texts.list(&key("replies"));
        if let (Some(number), Some(reply)) = (number, reply.and_then(|at| replies.get(at))) {
            let verdict = match number == step.right {
                true => self.paint.green(self.texts.say("lesson.right")),
                false => self.paint.yellow(self.texts.say("lesson.wrong")),
            };
            self.line(&verdict)?;
            self.paragraphs(reply)?;
            self.line("")?;
        } else if said.is_some() {
            self.paragraphs(self.texts.say("lesson.words"))?;
            self.line("")?;
        }
        Ok(())
    }

    /// Shows a command, waits, and runs it. Returns what it printed.
    fn command(&mut self, command: &Shown) -> Result<String, Turn> {
        let (Shown::Run(text) | Shown::AsRoot(text)) = command;
        let shown = self.site.command(text);
        let root_only = matches!(command, Shown::AsRoot(_));
        if root_only && !is_root() {
            self.fit(1)?;
            self.line(&self.paint.dim(format!("# {shown}")))?;
            return Ok(String::new());
        }
        self.fit(1)?;
        let prompt = Prompt::Command(format!("{} {}", self.paint.green("$"), self.paint.bold(&shown)));
        self.enter(&prompt)?;
        let (output, failed) = match self.site.run(&shown) {
            // Containers and some filesystems refuse it even to root.
            Err(LessonError::Command { output, .. }) if root_only => (output, true),
            ran => (ran?, false),
        };
        for line in output.lines() {
            let line = format!("  {line}");
            self.fit(self.rows(line.trim_end()))?;
            self.line(line.trim_end())?;
        }
        if failed {
            self.paragraphs(self.texts.say("lesson.refused"))?;
        }
        Ok(output)
    }

    /// Tells what has changed in the upper, and that nothing else has; proves that it is what the step says.
    fn changes(&mut self, step: &Step, before: &Layers, upper: &str) -> Result<(), Turn> {
        let after = Layers::read(self.site, upper)?;
        let untrue = |what: String| LessonError::Untrue { step: step.name, what };
        after.prove(before, step.effects).map_err(untrue)?;
        let mut lines = Vec::new();
        for Change { tint, text } in after.told(before, upper, self.texts) {
            for line in wrap(&format!("  {text}"), self.columns()) {
                lines.push(tint(self.paint, &line));
            }
        }
        if lines.is_empty() {
            lines.push(format!("  {}", self.texts.fill("lesson.nothing", &[("path", &format!("{upper}/"))])));
        }
        let same = self.texts.fill("lesson.same", &[("layers", "base/ app/ patch/")]);
        lines.push(self.paint.dim(format!("  {same}")));
        self.fit(lines.len() + 2)?;
        self.line("")?;
        self.line(&self.paint.yellow(self.texts.say("lesson.changed")))?;
        Ok(lines.iter().try_for_each(|line| self.line(line))?)
    }

    /// Waits for Enter, to go on.
    fn stop(&mut self) -> Result<(), Turn> {
        if self.learner.answers() {
            self.line("")?;
        }
        self.enter(&Prompt::Keys(self.texts.say("lesson.enter").to_owned()))
    }

    /// Waits for Enter; whoever says something else is told what can be said.
    fn enter(&mut self, prompt: &Prompt) -> Result<(), Turn> {
        while self.ask(prompt, 0)?.is_some() {
            self.paragraphs(self.texts.say("lesson.keys"))?;
        }
        Ok(())
    }

    /// Waits for the learner, and runs what he wants to run. Returns what he says, if it isn't only Enter.
    fn ask(&mut self, prompt: &Prompt, choices: usize) -> Result<Option<String>, Turn> {
        loop {
            let answers = self.learner.answers();
            let shown = match prompt {
                Prompt::Command(command) if answers => format!("{command} "),
                Prompt::Command(command) => command.clone(),
                Prompt::Keys(keys) if answers => self.paint.dim(format!("[{keys}] ")),
                Prompt::Keys(_) => String::new(),
            };
            write!(self.out, "{shown}").and_then(|()| self.out.flush()).map_err(LessonError::written)?;
            let lines = std::mem::take(&mut self.lines);
            let said =
                self.learner.listen(lines, choices).map_err(LessonError::io("cannot read the answer"))?;
            if !shown.is_empty() {
                self.line("")?;
            }
            match said {
                Says::Go => return Ok(None),
                Says::Words(words) => return Ok(Some(words)),
                Says::Back => return Err(Turn::To(self.at.saturating_sub(1))),
                Says::Quit => return Err(Turn::End(Ended::Stopped)),
                Says::Interrupt => return Err(Turn::End(Ended::Interrupted)),
                Says::Own(command) => {
                    self.own = true;
                    let output = self.site.run_own(&command, self.learner.has_terminal())?;
                    output.lines().try_for_each(|line| self.line(&format!("  {line}")))?;
                }
            }
        }
    }

    /// Waits where so many more lines would move what wasn't read yet off the screen.
    fn fit(&mut self, lines: usize) -> Result<(), Turn> {
        match (self.screen)().1 {
            Some(rows) if self.lines > 0 && self.lines + lines + SPARE > rows => {
                self.enter(&Prompt::Keys(self.texts.say("lesson.more").to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn columns(&self) -> usize {
        (self.screen)().0.min(WIDEST)
    }

    /// How many lines of the screen a line of text takes.
    fn rows(&self, text: &str) -> usize {
        let columns = (self.screen)().0.max(1);
        anstream::adapter::strip_str(text).to_string().width().div_ceil(columns).max(1)
    }

    fn line(&mut self, text: &str) -> Result<(), LessonError> {
        self.lines += self.rows(text);
        writeln!(self.out, "{text}").and_then(|()| self.out.flush()).map_err(LessonError::written)
    }

    fn paragraphs(&mut self, text: &str) -> Result<(), LessonError> {
        wrap(text, self.columns()).iter().try_for_each(|line| self.line(line))
    }

    fn say(&mut self, text: &str) -> Result<(), LessonError> {
        self.line("")?;
        self.paragraphs(text.trim())
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
