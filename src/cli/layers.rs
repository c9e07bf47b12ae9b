//! `unionmount layers`: a stack as a tree with the layer of each path, as a picture, as a page, in figures.

pub(super) mod change;
mod interactive;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;

use super::language::Language;
use super::page::{Page, write_file};
use super::stacks::{self, Found};
use super::store::{StoreArgs, no_mount_has, nothing_is_called};
use super::{Failure, lowers, say, terminal};
use crate::control::mounts;
use crate::explain::causes::waste_groups;
use crate::explain::figures::Figures;
use crate::explain::page::Subject;
use crate::explain::shorten::cut;
use crate::explain::survey::Survey;
use crate::explain::text::Room;
use crate::explain::{json, names, page, svg, text};
use crate::texts::Texts;
use crate::union::stack::layer::{Stack, StackOptions};

/// Show what each layer holds, changes, deletes and wastes; add layers to a mount, or remove some
#[derive(Debug, Args)]
#[command(
    after_long_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_value_name = "VERB",
    disable_help_subcommand = true
)]
pub(super) struct Layers {
    #[command(subcommand)]
    verb: Option<change::Verb>,

    #[command(flatten)]
    stack: StackArgs,

    #[command(flatten)]
    language: Language,

    /// Walk through layers and tree by keys: one layer or all up to it, sorted, searched, with the history of each file
    #[arg(short, long, conflicts_with_all = ["waste", "ci", "json", "svg", "html", "tree", "depth"])]
    interactive: bool,

    /// List where and why bytes are wasted, the most first: files that a layer holds and a higher one deletes or replaces
    #[arg(long)]
    waste: bool,

    /// Exit with 1 if more is wasted than --max-waste allows; print one line
    #[arg(long, conflicts_with_all = ["waste", "json"])]
    ci: bool,

    /// The share of all layers' bytes that may be wasted
    #[arg(long, value_name = "PERCENT", default_value = "5%", requires = "ci")]
    max_waste: Percent,

    /// Print everything as JSON
    #[arg(long, conflicts_with = "waste")]
    json: bool,

    /// Write a picture: layers as bands, arrows from files to what they replace; - is stdout
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Write a page to explore in a browser; it is one file and needs no network; - is stdout
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Show the tree, with the layer of each path
    #[arg(long, conflicts_with_all = ["waste", "ci", "json"])]
    tree: bool,

    /// Show the tree so many directories deep
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["waste", "ci", "json"])]
    depth: Option<u16>,

    /// Fold nothing, cut nothing and list all
    #[arg(id = "unfolded", long = "all")]
    all: bool,

    /// Print what is longer than the screen at once, and not by $PAGER
    #[arg(long)]
    no_pager: bool,
}

/// Which stack is meant.
#[derive(Debug, Args)]
pub(super) struct StackArgs {
    /// An image or a container, by name or id; a mount, by its mount point or a path in it; an archive; oci:DIR[:NAME]
    #[arg(value_name = "IMAGE|CONTAINER|MOUNT", conflicts_with_all = ["lowers", "upper"], required_unless_present = "lowers")]
    target: Option<PathBuf>,

    /// Layers, directories or tars, the first on top; may repeat, and tars may hold images. A colon within a name is written \:
    #[arg(long = "lower", value_name = "DIR[:DIR…]")]
    lowers: Vec<OsString>,

    /// The writable layer, on top of them
    #[arg(long, value_name = "DIR", requires = "lowers")]
    upper: Option<PathBuf>,

    #[command(flatten)]
    store: StoreArgs,
}

const EXAMPLES: &str = "\
EXAMPLES:
  The layers, what is largest in each, and why bytes are wasted, of an image, a container, a mount and of directories:
      unionmount layers debian:12
      unionmount layers build
      unionmount layers merged
      unionmount layers --lower patches:app:base --upper rw

  The same to walk through, by keys:
      unionmount layers -i debian:12

  The tree, with the layer that each path comes from:
      unionmount layers --tree merged
      unionmount layers --depth 2 debian:12

  Where an image got fat, and a check of that for a pipeline:
      unionmount layers --lower app:base --waste
      unionmount layers --lower app:base --ci --max-waste 5%

  A page to click through, and a picture for a talk:
      unionmount layers --lower app:base --html layers.html --svg layers.svg

Layers are numbered as they are given: the first lower is layer 1. Waste is the data of files that a layer holds and that are deleted or replaced \
further up: they travel with the image and nobody sees them.";

/// Letters of a command that stand for a layer in a title.
const NAME: usize = 40;

/// `5%`, `5`, `0.5%`.
#[derive(Debug, Clone, Copy)]
struct Percent(f64);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Percent, String> {
        let number = text.strip_suffix('%').unwrap_or(text).trim();
        let value: f64 = number.parse().map_err(|_| "not a number of percent, as in 5%".to_owned())?;
        if (0.0..=100.0).contains(&value) {
            Ok(Percent(value))
        } else {
            Err("not between 0% and 100%".to_owned())
        }
    }
}

impl StackArgs {
    /// Reads all the layers.
    fn survey(&self, texts: &Texts) -> Result<(Survey, Subject), Failure> {
        let found = match &self.target {
            Some(target) => self.of_target(texts, target)?,
            None => self.of_arguments()?,
        };
        // Nothing is written, so the upper is one more layer to read, and may be in use by a mount.
        let (lowers, of_images) = lowers::sources_and_names(found.paths)?;
        let names = if found.names.is_empty() { of_images } else { found.names };
        let options = StackOptions { lowers, ..StackOptions::default() };
        let mut stack = Stack::open(&options).map_err(Failure::failed)?;
        if let Some(belief) = found.belief {
            stack = stack.believing(belief);
        }
        let mut survey = Survey::take(stack, found.upper)
            .map_err(|error| Failure::failed(format!("cannot read the layers: {error}")))?;
        for (layer, name) in survey.layers.iter_mut().rev().zip(names) {
            if let Some(name) = name {
                layer.name = names::readable(name.as_bytes());
            }
        }
        let mut subject = found.subject;
        if subject.title.is_empty() {
            subject.title = title(&survey);
        }
        for (_, fact) in &mut subject.facts {
            *fact = names::readable(fact.as_bytes());
        }
        Ok((survey, subject))
    }

    fn of_arguments(&self) -> Result<Found, Failure> {
        let mut paths: Vec<PathBuf> = self.upper.iter().cloned().collect();
        paths.extend(lowers::named(&self.lowers)?);
        Ok(Found::of_paths(paths, self.upper.is_some()))
    }

    /// Finds a path in a mount, or else an image or a container.
    fn of_target(&self, texts: &Texts, target: &Path) -> Result<Found, Failure> {
        if lowers::names_image(target) {
            return Ok(Found::of_paths(vec![target.to_owned()], false));
        }
        let no_mount = match mounts::of(target) {
            Ok((mount, _)) => return Found::of_mount(texts, &mount, &self.store),
            Err(error) => error,
        };
        if lowers::is_archive(target) {
            return Ok(Found::of_paths(vec![target.to_owned()], false));
        }
        let Some(text) = target.to_str().filter(|_| !stacks::is_path(target)) else {
            return Err(no_mount_has(no_mount));
        };
        let store = self.store.with_something()?;
        let found = Found::named(texts, &store, text)?;
        found.ok_or_else(|| nothing_is_called(text))
    }
}

/// Returns what directories are called in a title.
fn title(survey: &Survey) -> String {
    let name = |name: &str| cut(name, NAME);
    let names: Vec<String> = survey.layers.iter().rev().take(4).map(|layer| name(&layer.name)).collect();
    let more = if survey.layers.len() > names.len() { ", …" } else { "" };
    names.join(", ") + more
}

impl Layers {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        if let Some(verb) = self.verb {
            return verb.run();
        }
        let texts = self.language.texts()?;
        // A large image takes seconds, in which the screen of the walk is not there yet.
        let waiting = self.interactive.then(|| super::spinner(texts.say("walk.reading")));
        // Programs read the same sentences wherever they are.
        let names = if self.json { Texts::english() } else { texts };
        let surveyed = self.stack.survey(names);
        if let Some(waiting) = waiting {
            waiting.finish_and_clear();
        }
        let (survey, subject) = surveyed?;
        let figures = Figures::of(&survey);
        for missing in &survey.unreadable {
            let path = names::readable(&missing.path);
            let layer = survey.title(missing.layer);
            say(&format!("{layer}: {path}/ is left out: {}", missing.error));
        }
        if self.interactive {
            return interactive::run(texts, &survey, &figures, &subject);
        }
        if let Some(file) = &self.svg {
            write_file(file, svg::draw(texts, &survey, &figures, false).as_bytes())?;
        }
        if let Some(file) = &self.html {
            let subject = with_size_and_command(texts, subject, &figures);
            write_file(file, page::draw(texts, &survey, &figures, &subject).as_bytes())?;
        }
        if self.ci {
            return self.check(&survey, &figures);
        }
        if self.json {
            let mut out = Vec::new();
            json::write(&survey, &figures, &mut out)
                .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
            let mut page = Page::default();
            page.json_text(&String::from_utf8_lossy(&out));
            page.print()?;
        } else if self.waste {
            self.print(&self.wasted(texts, &survey, &figures))?;
        } else if self.tree || self.depth.is_some() {
            let mut out = String::new();
            text::tree(&survey, self.room(texts), self.depth, &mut out)
                .map_err(|error| Failure::failed(format!("cannot write the tree: {error}")))?;
            self.print(
                &(out + &texts.fill("layers.end", &[("sentence", &figures.sentence_in(texts))]) + "\n"),
            )?;
        } else if self.svg.is_none() && self.html.is_none() {
            self.print(&self.overview(texts, &survey, &figures))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn room(&self, texts: &'static Texts) -> Room {
        Room { columns: terminal::room(), all: self.all, texts }
    }

    /// Returns the layers, the largest files of each, and why bytes are wasted.
    fn overview(&self, texts: &'static Texts, survey: &Survey, figures: &Figures) -> String {
        let room = self.room(texts);
        let mut out = text::layers(survey, figures, room);
        for (heading, part) in [
            ("layers.largest", text::largest(survey, room)),
            ("layers.waste", text::causes(survey, &waste_groups(survey), room)),
        ] {
            if !part.is_empty() {
                out += &format!("\n{}\n{part}", text::strong(texts.say(heading)));
            }
        }
        out + "\n" + &texts.fill("layers.end", &[("sentence", &figures.sentence_in(texts))]) + "\n"
    }

    /// Returns why bytes are wasted, and where.
    fn wasted(&self, texts: &'static Texts, survey: &Survey, figures: &Figures) -> String {
        let sentence = figures.sentence_in(texts);
        if figures.wasted_bytes == 0 {
            return texts.fill("layers.nothing", &[("sentence", &sentence)]) + "\n";
        }
        let room = self.room(texts);
        let causes = text::causes(survey, &waste_groups(survey), room);
        let end = texts.fill("layers.end", &[("sentence", &sentence)]);
        format!("{}\n{causes}\n{end}\n", text::waste(survey, room))
    }

    /// Prints text with colours, a screen at a time where it is longer than one.
    fn print(&self, text: &str) -> Result<(), Failure> {
        let mut page = Page::default();
        page.drawn(text);
        if self.no_pager { page.print_styled() } else { page.print_by_screens() }
    }

    /// Prints one line, and tells whether the waste is within the bound.
    fn check(&self, survey: &Survey, figures: &Figures) -> Result<ExitCode, Failure> {
        if let Some(missing) = survey.unreadable.first() {
            return Err(Failure::failed(format!(
                "waste can't be told: {}: {}/: {}",
                survey.title(missing.layer),
                names::readable(&missing.path),
                missing.error
            )));
        }
        let Percent(most) = self.max_waste;
        // Not the rounded figure that is shown.
        let share = figures.wasted_bytes as f64 * 100.0 / figures.bytes.max(1) as f64;
        let verdict = format!(
            "waste {share:.2} %, {most} % allowed: {} of {} are deleted or replaced further up",
            names::bytes(figures.wasted_bytes),
            names::bytes(figures.bytes)
        );
        if share > most {
            return Err(Failure::failed(format!(
                "too much {verdict}; --waste instead of --ci lists the files"
            )));
        }
        Page::of_line(format_args!("{verdict}")).print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Says how much it is, by what the page was made, and when: it outlives both.
fn with_size_and_command(texts: &Texts, mut subject: Subject, figures: &Figures) -> Subject {
    let (all, seen) = (figures.bytes, figures.bytes - figures.wasted_bytes);
    let layers = texts.counted("layer", figures.layers.len() as u64);
    let sizes = [("all", names::bytes(all)), ("layers", layers), ("seen", names::bytes(seen))];
    let size = texts.fill("page.fact.size", &sizes.each_ref().map(|(name, size)| (*name, size.as_str())));
    subject.facts.push(("Size", size));
    let words = std::env::args_os().skip(1).map(|word| names::readable(word.as_encoded_bytes()));
    let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let command = words.collect::<Vec<_>>().join(" ");
    subject.facts.push(("Made", texts.fill("page.fact.made", &[("time", &time), ("command", &command)])));
    subject
}
