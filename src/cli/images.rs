//! `unionmount images`: what is in the store.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::output::{self, Format};
use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, say};
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

    /// As Docker has it; no image is hidden here
    #[arg(short, long, hide = true)]
    all: bool,

    /// Show the digests of manifests
    #[arg(long)]
    digests: bool,

    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,

    /// json, table, or a Go template such as '{{.Repository}}:{{.Tag}}'. Fields: Repository, Tag, ID, Digest,
    /// CreatedAt, CreatedSince, Size, Bytes, Containers
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,

    /// Only images of this name, with or without a tag
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

impl Images {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        let catalog = store.catalog()?;
        for (digest, names, error) in &catalog.broken {
            let name = names.first().map_or_else(|| digest.to_string(), ImageName::to_string);
            say(&format!("{name} is left out: {error}"));
        }
        let uses = store.container_uses()?;
        let mut rows = Vec::new();
        for image in &catalog.images {
            let containers = uses.images().filter(|used| **used == image.id).count();
            match self.rows(&store, image, containers) {
                Ok(more) => rows.extend(more),
                // Removed since.
                Err(StoreError::NoImage(_)) => {}
                Err(error) => say(&format!("{} is left out: {error}", image.id.short())),
            }
        }
        // The newest first, as everybody does.
        rows.sort_by(|(_, a), (_, b)| b["CreatedAt"].as_str().cmp(&a["CreatedAt"].as_str()));
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

    /// A row for each name of an image, one without a name for an image that has none.
    fn rows(
        &self,
        store: &Store,
        image: &Image,
        containers: usize,
    ) -> Result<Vec<(Option<ImageName>, Value)>, StoreError> {
        let size = store.image_size(image)?;
        let created = image.config.created().as_deref();
        let names: Vec<Option<&ImageName>> = match image.names.is_empty() {
            true => vec![None],
            false => image.names.iter().map(Some).collect(),
        };
        let wanted = |name: &Option<&ImageName>| match (&self.name, name) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(text), Some(name)) => {
                let tagged = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
                text.parse().is_ok_and(|wanted: ImageName| {
                    wanted.repository() == name.repository() && (!tagged || wanted.tag() == name.tag())
                })
            }
        };
        let rows = names.into_iter().filter(wanted).map(|name| {
            let row = json!({
                "Repository": name.map_or_else(|| "<none>".into(), ImageName::repository),
                "Tag": name.map_or("<none>", ImageName::tag),
                "ID": if self.no_trunc { image.id.to_string() } else { image.id.short() },
                "Digest": image.manifest_digest,
                "CreatedAt": created,
                "CreatedSince": output::age(created),
                "Size": output::size(size),
                "Bytes": size,
                "Containers": containers,
            });
            (name.cloned(), row)
        });
        Ok(rows.collect())
    }
}
