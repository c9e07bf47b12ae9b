//! `unionmount ps`: the containers.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::Failure;
use super::output::{Format, age, size};
use super::page::Page;
use super::store::StoreArgs;
use crate::container::{Container, ContainerState, bundle, mounting};
use crate::image::store::Store;

/// List containers: those that run or are mounted, or with -a all
#[derive(Debug, clap::Args)]
pub(super) struct Ps {
    #[command(flatten)]
    store: StoreArgs,

    /// All containers
    #[arg(short, long)]
    all: bool,

    /// The newest container, whatever it does
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,

    /// The newest ones, whatever they do
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,

    /// Show how many bytes each has changed or made
    #[arg(short, long)]
    size: bool,

    /// Print ids alone
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,

    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,

    /// json, table, or a Go template such as '{{.ID}} {{.Status}}'. Fields: ID, Image, ImageID, Command, CreatedAt,
    /// Created, Status, Mount, Names, Labels; with -s Size
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Ps {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        let mut rows = Vec::new();
        let newest = if self.latest { Some(1) } else { self.last };
        for container in Container::all(&store)?.into_iter().take(newest.unwrap_or(usize::MAX)) {
            let state = container.state()?;
            let merged = container.merged();
            let mounted = mounting::is_mounted(&merged).unwrap_or(false);
            if !self.all && newest.is_none() && state != ContainerState::Running && !mounted {
                continue;
            }
            let mut row = self.row(&store, &container, state, mounted);
            if self.size {
                let below = match store.resolve(&container.record.image.to_string()) {
                    Ok(image) => store.image_size(&image)?,
                    Err(_) => 0,
                };
                let own = container.changed_bytes()?;
                row["Size"] = json!(format!("{} (virtual {})", size(own), size(own + below)));
            }
            rows.push(row);
        }
        let page = if self.quiet {
            let mut page = Page::default();
            let ids = rows.iter().filter_map(|row| row["ID"].as_str());
            ids.for_each(|id| page.line(format_args!("{id}")));
            page
        } else {
            let mut columns = vec![
                ("CONTAINER ID", "ID"),
                ("IMAGE", "Image"),
                ("COMMAND", "Command"),
                ("CREATED", "Created"),
                ("STATUS", "Status"),
                ("NAMES", "Names"),
            ];
            if self.size {
                columns.push(("SIZE", "Size"));
            }
            Format::new(self.format.as_deref()).render(&columns, &rows)?
        };
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }

    fn row(&self, store: &Store, container: &Container, state: ContainerState, mounted: bool) -> Value {
        let record = &container.record;
        let command = store
            .resolve(&record.image.to_string())
            .ok()
            .and_then(|image| bundle::command(&image.config, &record.settings).ok())
            .unwrap_or_default()
            .join(" ");
        let command = match command.char_indices().nth(30) {
            Some((end, _)) if !self.no_trunc => format!("{}…", &command[..end]),
            _ => command,
        };
        let status = match state {
            ContainerState::Running => "Up".to_owned(),
            ContainerState::Created if mounted => "Mounted".to_owned(),
            ContainerState::Created => "Created".to_owned(),
            ContainerState::Exited(code) if mounted => format!("Exited ({code}), mounted"),
            ContainerState::Exited(code) => format!("Exited ({code})"),
        };
        json!({
            "ID": if self.no_trunc { &record.id } else { container.short_id() },
            "Image": record.image_name,
            "ImageID": record.image,
            "Command": command,
            "CreatedAt": record.created,
            "Created": age(Some(&record.created)),
            "Status": status,
            "Mount": if mounted { json!(container.merged()) } else { Value::Null },
            "Names": record.name.as_deref().unwrap_or_default(),
            "Labels": record.settings.labels.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(","),
        })
    }
}
