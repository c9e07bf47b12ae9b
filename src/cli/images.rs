//! `unionmount images`: what is in the store.

use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::filter::{Filter, matches};
use super::output::{self, Format};
use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, image_tree, say};
use crate::explain::names;
use crate::image::error::StoreError;
use crate::image::name::ImageName;
use crate::image::store::{Image, Store};

/// List images
#[derive(Debug, clap::Args)]
pub(super) struct Images {
    #[command(flatten)]
    store: StoreArgs,

    /// Print ids alone
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,

    /// Only those for which this holds; may repeat. dangling=true|false, label=NAME[=VALUE], reference=PATTERN,
    /// since=IMAGE, before=IMAGE
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,

    /// As Docker has it; no image is hidden here
    #[arg(short, long, hide = true)]
    all: bool,

    /// Show the digests of manifests
    #[arg(long)]
    digests: bool,

    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,

    /// Show their layers as a tree, and who shares them; as image tree does
    #[arg(long, conflicts_with_all = ["quiet", "format", "digests"])]
    tree: bool,

    /// json, table, or a Go template such as '{{.Repository}}:{{.Tag}}'. Fields: Repository, Tag, ID, Digest,
    /// CreatedAt, CreatedSince, Size, Bytes, Containers, Unpacked (yes, no, or how many layers)
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,

    /// Only images of this name, with or without a tag
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

impl Images {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let wanted = Wanted::read(&self.filter)?;
        let Some(store) = self.store.existing()? else {
            return if self.tree { Ok(ExitCode::SUCCESS) } else { self.print(Vec::new()) };
        };
        let catalog = store.catalog()?;
        let times = wanted.times(&store)?;
        for (digest, names, error) in &catalog.broken {
            let name = names.first().map_or_else(|| digest.to_string(), ImageName::to_string);
            say(&format!("{name} is left out: {error}"));
        }
        if self.tree {
            return self.print_tree(&store, catalog.images, &wanted, &times);
        }
        let uses = store.container_uses()?;
        let mut rows = Vec::new();
        for image in &catalog.images {
            if !wanted.takes(image, &times)? {
                continue;
            }
            let containers = uses.images().filter(|used| **used == image.id).count();
            match self.rows(&store, image, containers, &wanted) {
                Ok(more) => rows.extend(more),
                // Removed since.
                Err(StoreError::NoImage(_)) => {}
                Err(error) => say(&format!("{} is left out: {error}", image.id.short())),
            }
        }
        // The newest first, as everybody does.
        rows.sort_by(|(_, a), (_, b)| b["CreatedAt"].as_str().cmp(&a["CreatedAt"].as_str()));
        self.print(rows)
    }

    fn print_tree(
        &self,
        store: &Store,
        images: Vec<Image>,
        wanted: &Wanted,
        times: &Times,
    ) -> Result<ExitCode, Failure> {
        let mut listed = Vec::new();
        for image in images {
            let takes_name = match image.names.is_empty() {
                true => self.calls(None, wanted),
                false => image.names.iter().any(|name| self.calls(Some(name), wanted)),
            };
            if wanted.takes(&image, times)? && takes_name {
                listed.push(image);
            }
        }
        image_tree::print(store, listed, false, self.no_trunc)
    }

    /// Tells whether a name of an image, or that it has none, is asked for.
    fn calls(&self, name: Option<&ImageName>, wanted: &Wanted) -> bool {
        match (&self.name, name) {
            (None, name) => wanted.calls(name),
            (Some(_), None) => false,
            (Some(text), Some(name)) => wanted.calls(Some(name)) && is_called(name, text),
        }
    }

    fn print(&self, rows: Vec<(Option<ImageName>, Value)>) -> Result<ExitCode, Failure> {
        let page = if self.quiet {
            let mut page = Page::default();
            let mut ids: Vec<&str> = rows.iter().filter_map(|(_, row)| row["ID"].as_str()).collect();
            ids.dedup();
            ids.iter().for_each(|id| page.line(format_args!("{id}")));
            page
        } else {
            let mut columns = vec![("REPOSITORY", "Repository"), ("TAG", "Tag")];
            if self.digests {
                columns.push(("DIGEST", "Digest"));
            }
            columns.extend([("IMAGE ID", "ID"), ("CREATED", "CreatedSince"), ("SIZE", "Size")]);
            let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
            Format::new(self.format.as_deref()).render(&columns, &rows)?
        };
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }

    /// Makes a row for each name of an image, one without a name for an image that has none.
    fn rows(
        &self,
        store: &Store,
        image: &Image,
        containers: usize,
        wanted: &Wanted,
    ) -> Result<Vec<(Option<ImageName>, Value)>, StoreError> {
        let size = store.image_size(image)?;
        let unpacked = store.told_as_unpacked(image);
        let created = image.config.created().as_deref();
        let names: Vec<Option<&ImageName>> = match image.names.is_empty() {
            true => vec![None],
            false => image.names.iter().map(Some).collect(),
        };
        let called = |name: &Option<&ImageName>| self.calls(*name, wanted);
        let rows = names.into_iter().filter(called).map(|name| {
            let row = json!({
                "Repository": name.map_or_else(|| "<none>".into(), ImageName::repository),
                "Tag": name.map_or("<none>", ImageName::tag),
                "ID": if self.no_trunc { image.id.to_string() } else { image.id.short() },
                "Digest": image.manifest_digest,
                "CreatedAt": created,
                "CreatedSince": output::age(created),
                "Size": names::bytes(size),
                "Bytes": size,
                "Containers": containers,
                "Unpacked": unpacked,
            });
            (name.cloned(), row)
        });
        Ok(rows.collect())
    }
}

/// Tells whether that is the image's name, with or without a tag, or a pattern of it.
fn is_called(name: &ImageName, text: &str) -> bool {
    let tagged = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let meant = ImageName::meant_by(text);
    let same =
        |meant: &ImageName| meant.repository() == name.repository() && (!tagged || meant.tag() == name.tag());
    meant.iter().any(same) || fits(text, name)
}

/// Tells whether a pattern fits by Docker's rule for references: a pattern is of the name, with or without the tag, or
/// of its last part.
fn fits(pattern: &str, name: &ImageName) -> bool {
    let repository = name.repository();
    let last = repository.rsplit('/').next().unwrap_or(&repository);
    [repository.as_str(), last]
        .iter()
        .any(|one| matches(pattern, one) || matches(pattern, &format!("{one}:{}", name.tag())))
}

/// Returns when an image was made, as far as it tells. Texts of times, in other time zones or of other precision, don't
/// compare as these do.
fn created(image: &Image) -> Option<Timestamp> {
    image.config.created().as_deref()?.parse().ok()
}

/// Which images are asked for.
struct Wanted(Filter);

/// Between which two times they were made, as far as that is asked for.
struct Times {
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

const KEYS: [&str; 6] = ["dangling", "label", "reference", "since", "after", "before"];

impl Wanted {
    fn read(given: &[String]) -> Result<Wanted, Failure> {
        let filter = Filter::read(given, &KEYS)?;
        filter.flag("dangling")?;
        Ok(Wanted(filter))
    }

    fn times(&self, store: &Store) -> Result<Times, Failure> {
        let of = |key: &'static str| -> Result<Option<Timestamp>, Failure> {
            let Some(name) = self.0.values(key).last() else { return Ok(None) };
            Ok(created(&store.resolve(name)?))
        };
        Ok(Times { after: of("since")?.or(of("after")?), before: of("before")? })
    }

    fn takes(&self, image: &Image, times: &Times) -> Result<bool, Failure> {
        let labels = image.config.config().as_ref().and_then(|config| config.labels().clone());
        let label = |name: &str| labels.as_ref()?.get(name).cloned();
        let created = created(image);
        let dangling = self.0.flag("dangling")?;
        Ok(dangling.is_none_or(|dangling| dangling == image.names.is_empty())
            && self.0.labels(label)
            && times.after.is_none_or(|after| created > Some(after))
            && times.before.is_none_or(|before| created < Some(before)))
    }

    fn calls(&self, name: Option<&ImageName>) -> bool {
        self.0.any("reference", |pattern| name.is_some_and(|name| is_called(name, pattern)))
    }
}
