//! `unionmount demo`: the lessons.

use std::io::{IsTerminal, stdin};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::terminal::{disable_raw_mode, size};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::language::Language;
use super::page::{Page, is_terminal, own_stdout, print_own, write_file};
use super::{Failure, say, terminal};
use crate::explain::lesson::course::Course;
use crate::explain::lesson::learner::{AtTerminal, Learner, Typed, Watching};
use crate::explain::lesson::site::Site;
use crate::explain::lesson::{COURSES, Ended, Lesson, LessonError};
use crate::explain::paint::Paint;
use crate::explain::simulator;
use crate::fuse::mount::can_mount;
use crate::texts::Texts;

/// Learn how containers store files, on real mounts in a temporary directory
#[derive(Debug, Args)]
#[command(after_long_help = MORE)]
pub(super) struct Demo {
    /// Which lesson, by its name or number [default: the first]
    #[arg(value_name = "LESSON")]
    lesson: Option<String>,

    /// Begin with this step; what comes before it is done unseen
    #[arg(long, value_name = "NUMBER", default_value_t = 1, hide_default_value = true)]
    step: usize,

    /// Go on by itself, without waiting for Enter
    #[arg(long)]
    auto: bool,

    /// How long a few lines are shown with --auto, as in 3s [default: 3s on a terminal, else 0s]
    #[arg(long, value_name = "TIME", requires = "auto", value_parser = pace)]
    pace: Option<Duration>,

    /// Write a page on which a union is tried in a browser, without a mount, for who has no Linux; - is stdout
    #[arg(long, value_name = "FILE", conflicts_with_all = ["lesson", "auto", "step", "keep"])]
    html: Option<PathBuf>,

    /// Leave the directory behind, to play with
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    language: Language,
}

const MORE: &str = "\
KEYS:
  Enter goes on, and runs the command that is shown; 1, 2 or 3 answers a question
  b, back, ←           a step back
  q, quit, exit, Esc   the end; nothing stays mounted
  !COMMAND             a command of your own, in the lesson's directory; ! alone is a shell

EXAMPLES:
  unionmount demo
  unionmount demo --step 4
  unionmount demo --auto --pace 5s --lang zh
  unionmount demo --html union.html";

impl Demo {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let texts = self.language.texts()?;
        if let Some(file) = &self.html {
            write_file(file, simulator::draw().as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        let course = course(self.lesson.as_deref())?;
        let first = self.step.checked_sub(1).filter(|first| *first < course.len()).ok_or_else(|| {
            Failure::usage(texts.fill("lesson.no_step", &[("count", &course.len().to_string())]))
        })?;
        can_mount().map_err(|error| {
            Failure::failed(format!("the lesson mounts, and nothing can be mounted here: {error}"))
        })?;
        let site = Arc::new(Site::new(columns_of_output, texts.code()).map_err(Failure::failed)?);
        clean_on_signals(&site, self.keep)?;
        let mut learner = self.learner();
        let mut out = own_stdout();
        let mut lesson = Lesson::new(
            (&site, course),
            texts,
            (Paint::of_stdout(), if self.auto { without_rows } else { screen }),
            (&mut out, &mut *learner),
        );
        let ended = lesson.give(first);
        let at = lesson.at();
        // Whatever happened, nothing stays mounted.
        let cleaned = site.clean(self.keep);
        let ended = match ended {
            Err(LessonError::ReaderGone) => {
                return cleaned.map(|()| ExitCode::SUCCESS).map_err(Failure::failed);
            }
            ended => ended.map_err(Failure::failed)?,
        };
        cleaned.map_err(Failure::failed)?;
        let mut page = Page::default();
        if ended != Ended::Whole || self.keep {
            let dir = site.dir().display().to_string();
            let kept = if self.keep { texts.fill("lesson.kept", &[("dir", &dir)]) } else { String::new() };
            page.drawn(&format!("\n{}\n", texts.fill("lesson.stopped", &[("kept", &kept)])));
        }
        if ended != Ended::Whole && at > 0 {
            let command = format!("unionmount demo {} --step {}", course.name, at + 1);
            page.drawn(&format!("{}\n", texts.fill("lesson.go_on", &[("command", &command)])));
        }
        page.print()?;
        Ok(if ended == Ended::Interrupted { ExitCode::from(128 + SIGINT as u8) } else { ExitCode::SUCCESS })
    }

    fn learner(&self) -> Box<dyn Learner> {
        if self.auto {
            let pace = self.pace.unwrap_or(if is_terminal() { PACE } else { Duration::ZERO });
            Box::new(Watching { pace })
        } else if is_terminal() && stdin().is_terminal() {
            Box::new(AtTerminal(own_stdout()))
        } else {
            Box::new(Typed(stdin().lock()))
        }
    }
}

/// How long a few lines are shown to who watches.
const PACE: Duration = Duration::from_secs(3);

fn pace(text: &str) -> Result<Duration, String> {
    let said = text.parse::<jiff::SignedDuration>().map_err(|error| error.to_string())?;
    Duration::try_from(said).map_err(|_| "it is negative".to_owned())
}

fn course(wanted: Option<&str>) -> Result<&'static Course, Failure> {
    let Some(wanted) = wanted else { return Ok(COURSES[0]) };
    let number = wanted.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let found = match number {
        Some(at) => COURSES.get(at),
        None => COURSES.iter().find(|course| course.name == wanted),
    };
    found.copied().ok_or_else(|| {
        let each = (1..).zip(COURSES).map(|(number, course)| {
            let about = Texts::english().say(&format!("lesson.{}.about", course.name)).to_owned();
            format!("{number} {} ({about})", course.name)
        });
        Failure::usage(format!(
            "there is no lesson {wanted:?}; there are {}",
            each.collect::<Vec<_>>().join(", ")
        ))
    })
}

/// Returns how many columns what a command prints has, beside the lesson's own margin.
fn columns_of_output() -> usize {
    terminal::columns().saturating_sub(2)
}

fn screen() -> (usize, Option<usize>) {
    let rows = is_terminal().then(size).and_then(Result::ok).map(|(_, rows)| usize::from(rows));
    (terminal::columns(), rows.filter(|rows| *rows > 0))
}

fn without_rows() -> (usize, Option<usize>) {
    (terminal::columns(), None)
}

/// Ends the program in order when it is interrupted.
fn clean_on_signals(site: &Arc<Site>, keep: bool) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))?;
    let site = Arc::clone(site);
    let waiting = std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            if is_terminal() {
                disable_raw_mode().unwrap_or_default();
                // The line of `^C` ends.
                print_own(b"\n").unwrap_or_default();
            }
            if let Err(error) = site.clean(keep) {
                say(&error.to_string());
            }
            std::process::exit(128 + signal);
        }
    });
    waiting.map(drop).map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))
}
