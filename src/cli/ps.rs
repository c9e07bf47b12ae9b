//! `unionmount ps`: the containers.

use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Failure;
use super::filter::Filter;
use super::output::{Format, age};
use super::page::Page;
use super::store::StoreArgs;
use crate::container::{Container, ContainerState, bundle, mounting};
use crate::explain::names;
use crate::image::digest::Digest;
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

    /// Only those for which this holds; may repeat. name=PART, id=BEGINNING, label=NAME[=VALUE],
    /// status=created|running|exited, exited=CODE, ancestor=IMAGE, since=CONTAINER, before=CONTAINER
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,

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
        let wanted = Wanted::read(&self.filter)?;
        let Some(store) = self.store.existing()? else { return self.print(&[]) };
        let bounds = wanted.bounds(&store)?;
        let mut rows = Vec::new();
        let newest = if self.latest { Some(1) } else { self.last };
        for container in Container::all(&store)? {
            // Of those that are wanted.
            if newest.is_some_and(|newest| rows.len() >= newest) {
                break;
            }
            let state = container.state()?;
            let merged = container.merged();
            let mounted = mounting::is_mounted(&merged).unwrap_or(false);
            if !wanted.takes(&container, state, &bounds) {
                continue;
            }
            // Who asks for those that have ended wants to see them.
            if !self.all
                && !wanted.tells_states()
                && newest.is_none()
                && state != ContainerState::Running
                && !mounted
            {
                continue;
            }
            let mut row = self.row(&store, &container, state, mounted);
            if self.size {
                let below = match store.resolve(&container.record.image.to_string()) {
                    Ok(image) => store.image_size(&image)?,
                    Err(_) => 0,
                };
                let own = container.changed_bytes()?;
                row["Size"] = json!(format!("{} (virtual {})", names::bytes(own), names::bytes(own + below)));
            }
            rows.push(row);
        }
        self.print(&rows)
    }

    fn print(&self, rows: &[Value]) -> Result<ExitCode, Failure> {
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
            Format::new(self.format.as_deref()).render(&columns, rows)?
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

/// Which containers are asked for.
struct Wanted(Filter);

/// What bounds them: images of which they were made, and times.
struct Bounds {
    ancestors: Option<Vec<Digest>>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
}

const KEYS: [&str; 8] = ["name", "id", "label", "status", "exited", "ancestor", "since", "before"];
const STATES: [&str; 3] = ["created", "running", "exited"];

impl Wanted {
    fn read(given: &[String]) -> Result<Wanted, Failure> {
        let filter = Filter::read(given, &KEYS)?;
        if let Some(other) = filter.values("status").find(|state| !STATES.contains(state)) {
            return Err(Failure::usage(format!("--filter status={other}: give {}", STATES.join(", "))));
        }
        Ok(Wanted(filter))
    }

    fn tells_states(&self) -> bool {
        ["status", "exited"].iter().any(|key| self.0.values(key).next().is_some())
    }

    fn bounds(&self, store: &Store) -> Result<Bounds, Failure> {
        let made = |key: &'static str| -> Result<Option<Timestamp>, Failure> {
            let Some(name) = self.0.values(key).last() else { return Ok(None) };
            Ok(Container::find(store, name)?.created())
        };
        let images = self.0.values("ancestor").map(|name| store.resolve(name).map(|image| image.id));
        let images: Vec<Digest> = images.collect::<Result<_, _>>()?;
        let asked = self.0.values("ancestor").next().is_some();
        Ok(Bounds { ancestors: asked.then_some(images), after: made("since")?, before: made("before")? })
    }

    fn takes(&self, container: &Container, state: ContainerState, bounds: &Bounds) -> bool {
        let record = &container.record;
        let word = match state {
            ContainerState::Created => STATES[0],
            ContainerState::Running => STATES[1],
            ContainerState::Exited(_) => STATES[2],
        };
        let code = match state {
            ContainerState::Exited(code) => code.to_string(),
            _ => String::new(),
        };
        self.0.any("name", |part| record.name.as_deref().is_some_and(|name| name.contains(part)))
            && self.0.any("id", |begin| record.id.starts_with(begin))
            && self.0.any("status", |state| state == word)
            && self.0.any("exited", |asked| asked == code)
            && self.0.labels(|name| record.settings.labels.get(name).cloned())
            && bounds.ancestors.as_ref().is_none_or(|images| images.contains(&record.image))
            && bounds.after.is_none_or(|after| container.created() > Some(after))
            && bounds.before.is_none_or(|before| container.created() < Some(before))
    }
}
