//! `unionmount layers`: a stack as a tree with the layer of each path, as a picture, as a page, in figures.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;

use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, say};
use crate::control::client::Client;
use crate::control::mounts;
use crate::explain::figures::Figures;
use crate::explain::survey::Survey;
use crate::explain::{json, names, page, svg, text};
use crate::image::describe::Step;
use crate::union::escaped_path::EscapedPath;
use crate::union::lookup::belief::Belief;
use crate::union::stack::layer::{Stack, StackOptions};

/// Show what each layer holds, changes, deletes and wastes
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Layers {
    #[command(flatten)]
    stack: StackArgs,

    /// List where bytes are wasted, the most first: files that a layer holds and a higher one deletes or replaces
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

    /// Write a picture: layers as bands, arrows from files to what they replace
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Write a page to explore in a browser; it is one file and needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Fold nothing and list all
    #[arg(long)]
    all: bool,
}

/// Which stack is meant.
#[derive(Debug, Args)]
pub(super) struct StackArgs {
    /// An image, by name or id; or a mount, by its mount point or a path in it
    #[arg(value_name = "IMAGE|MOUNT", conflicts_with_all = ["lowers", "upper"], required_unless_present = "lowers")]
    target: Option<PathBuf>,

    /// Layers, directories or tars, the first on top; may repeat. A colon within a name is written \:
    #[arg(long = "lower", value_name = "DIR[:DIR…]")]
    lowers: Vec<OsString>,

    /// The writable layer, on top of them
    #[arg(long, value_name = "DIR", requires = "lowers")]
    upper: Option<PathBuf>,

    #[command(flatten)]
    store: StoreArgs,
}

/// The layers of a stack, as they are found.
struct Found {
    /// From the top down.
    paths: Vec<PathBuf>,
    /// Whether the first is the upper.
    upper: bool,
    /// What to call them, where their directories' names say nothing.
    names: Vec<Option<String>>,
    /// Whose marks the mount believes.
    belief: Option<Belief>,
    /// Keeps them from being removed.
    _pins: Vec<OwnedFd>,
}

const EXAMPLES: &str = "\
EXAMPLES:
  The tree, with the layer that each path comes from, of an image, of a mount and of directories:
      unionmount layers debian:12
      unionmount layers merged
      unionmount layers --lower patches:app:base --upper rw

  Where an image got fat, and a check of that for a pipeline:
      unionmount layers --lower app:base --waste
      unionmount layers --lower app:base --ci --max-waste 5%

  A page to click through, and a picture for a talk:
      unionmount layers --lower app:base --html layers.html --svg layers.svg

Layers are numbered as they are given: the first lower is layer 1. Waste is the data of files that a layer holds and that are deleted or replaced \
further up: they travel with the image and nobody sees them.";

/// Finds the layers of a mount, which its daemon knows.
fn of_mount(mount: &mounts::Mount) -> Result<Found, Failure> {
    let status = Client::connect(mount).and_then(|mut daemon| daemon.status()).map_err(Failure::failed)?;
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
    Ok(Found { paths, upper, names: Vec::new(), belief: status.about.belief, _pins: Vec::new() })
}

/// Makes a layer's name, of the command that made it.
fn step_name(created_by: &str) -> Option<String> {
    let command = created_by.trim_start_matches("/bin/sh -c").trim().trim_start_matches("#(nop)");
    let words: Vec<&str> = command.split_whitespace().collect();
    let name: String = names::readable(words.join(" ").as_bytes()).chars().take(NAME).collect();
    (!name.is_empty()).then_some(name)
}

/// Letters of a command that name a layer.
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
    fn survey(&self) -> Result<Survey, Failure> {
        let found = match &self.target {
            Some(target) => self.of_target(target)?,
            None => self.of_arguments()?,
        };
        // Nothing is written, so the upper is one more layer to read, and may be in use by a mount.
        let options =
            StackOptions { lowers: super::lowers::sources(found.paths)?, ..StackOptions::default() };
        let mut stack = Stack::open(&options).map_err(Failure::failed)?;
        if let Some(belief) = found.belief {
            stack = stack.believing(belief);
        }
        let mut survey = Survey::take(stack, found.upper)
            .map_err(|error| Failure::failed(format!("cannot read the layers: {error}")))?;
        for (layer, name) in survey.layers.iter_mut().rev().zip(found.names) {
            layer.name = name.unwrap_or_else(|| std::mem::take(&mut layer.name));
        }
        Ok(survey)
    }

    fn of_arguments(&self) -> Result<Found, Failure> {
        let mut paths: Vec<PathBuf> = self.upper.iter().cloned().collect();
        paths.extend(super::lowers::named(&self.lowers)?);
        Ok(Found { paths, upper: self.upper.is_some(), names: Vec::new(), belief: None, _pins: Vec::new() })
    }

    /// Finds a path in a mount, or else an image.
    fn of_target(&self, target: &Path) -> Result<Found, Failure> {
        let no_mount = match mounts::of(target) {
            Ok((mount, _)) => return of_mount(&mount),
            Err(error) => error,
        };
        if target.is_file() {
            return Ok(Found {
                paths: vec![target.to_owned()],
                upper: false,
                names: Vec::new(),
                belief: None,
                _pins: Vec::new(),
            });
        }
        match target.to_str() {
            Some(text) if !text.starts_with(['/', '.']) => self.of_image(text),
            _ => Err(Failure::failed(no_mount)),
        }
    }

    fn of_image(&self, text: &str) -> Result<Found, Failure> {
        let store = self.store.with_something()?;
        let image = store.resolve(text)?;
        let unpacked = store.layers(&image)?;
        let steps = store.history(&image)?;
        let names = unpacked.paths.iter().map(|path| {
            let made = |step: &&Step| {
                step.diff_id.is_some_and(|diff_id| path.starts_with(store.layer_dir(&diff_id)))
            };
            if path.starts_with(store.layer_dir(&image.id)) {
                return Some("directories that its layers only imply".to_owned());
            }
            steps.iter().find(made).and_then(|step| step_name(&step.created_by))
        });
        Ok(Found {
            names: names.collect(),
            paths: unpacked.paths,
            upper: false,
            belief: None,
            _pins: unpacked.pins,
        })
    }

    /// Returns what the stack is called in a picture.
    fn title(&self, survey: &Survey) -> String {
        let names: Vec<String> = survey.layers.iter().rev().take(4).map(|layer| layer.name.clone()).collect();
        let more = if survey.layers.len() > names.len() { ", …" } else { "" };
        names.join(", ") + more
    }
}

impl Layers {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let survey = self.stack.survey()?;
        let figures = Figures::of(&survey);
        for missing in &survey.unreadable {
            let path = names::readable(&missing.path);
            let layer = survey.title(missing.layer);
            say(&format!("{layer}: {path}/ is left out: {}", missing.error));
        }
        if let Some(file) = &self.svg {
            write_file(file, svg::draw(&survey, &figures, false).as_bytes())?;
        }
        if let Some(file) = &self.html {
            write_file(file, page::draw(&survey, &figures, &self.stack.title(&survey)).as_bytes())?;
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
            print_styled(&text::waste(&survey, &figures, self.all))?;
        } else if self.svg.is_none() && self.html.is_none() {
            let mut out = text::layers(&survey, &figures);
            out.push('\n');
            text::tree(&survey, self.all, &mut out)
                .map_err(|error| Failure::failed(format!("cannot write the tree: {error}")))?;
            print_styled(&out)?;
        }
        Ok(ExitCode::SUCCESS)
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

fn write_file(path: &Path, content: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, content)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

/// Prints text with colours, which are left out where no terminal reads or NO_COLOR is set.
fn print_styled(text: &str) -> Result<(), Failure> {
    let mut page = Page::default();
    page.drawn(text);
    page.print_styled()
}
