//! `unionmount demo`: the lesson.

use std::io::stdin;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::page::{is_terminal, own_stdout, print_own};
use super::{Failure, say};
use crate::explain::lesson::site::Site;
use crate::explain::lesson::texts::{LANGUAGES, Texts, fill};
use crate::explain::lesson::{Ended, Lesson};
use crate::explain::paint::Paint;

/// Learn in ten minutes how containers store files, on real mounts in a temporary directory
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Go on by itself, without waiting for Enter
    #[arg(long)]
    auto: bool,

    /// Leave the directory behind, to play with
    #[arg(long)]
    keep: bool,

    /// The language, en or zh [default: that of the locale]
    #[arg(long, value_name = "LANGUAGE")]
    lang: Option<String>,
}

impl Demo {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let code = self.lang.clone().unwrap_or_else(|| Texts::language_of(&locale()).to_owned());
        if !LANGUAGES.iter().any(|(known, _)| *known == code) {
            return Err(Failure::usage(Texts::of(&code).err().unwrap_or_default()));
        }
        let texts = Texts::of(&code).map_err(Failure::failed)?;
        let site = Arc::new(Site::new().map_err(Failure::failed)?);
        clean_on_signals(&site, self.keep)?;
        let mut input = stdin().lock();
        let mut out = own_stdout();
        let mut lesson = Lesson {
            site: &site,
            texts: &texts,
            paint: Paint::of_stdout(),
            out: &mut out,
            input: if self.auto { None } else { Some(&mut input) },
        };
        let ended = lesson.give();
        // Whatever happened, nothing stays mounted.
        let cleaned = site.clean(self.keep);
        let ended = ended.map_err(Failure::failed)?;
        cleaned.map_err(Failure::failed)?;
        let dir = site.dir().display().to_string();
        let kept = if self.keep { fill(&texts.kept, &[("dir", &dir)]) } else { String::new() };
        if ended == Ended::Stopped || self.keep {
            let text = fill(&texts.stopped, &[("kept", &kept)]);
            let mut page = super::page::Page::default();
            page.drawn(&format!("\n{text}\n"));
            page.print()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Ends the program in order when it is interrupted.
fn clean_on_signals(site: &Arc<Site>, keep: bool) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))?;
    let site = Arc::clone(site);
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            if is_terminal() {
                // The line of `^C` ends.
                print_own(b"\n").unwrap_or_default();
            }
            if let Err(error) = site.clean(keep) {
                say(&error.to_string());
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Returns what the environment says of the language of messages.
fn locale() -> String {
    let set = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().filter_map(|name| std::env::var(name).ok());
    set.into_iter().find(|value| !value.is_empty()).unwrap_or_default()
}
