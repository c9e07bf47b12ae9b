//! `unionmount inspect`: all that is known of an image or a container.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::output::Go;
use super::store::StoreArgs;
use super::{Failure, print_all};
use crate::container::{Container, State};
use crate::image::describe::{ContainerDirs, graph_driver};
use crate::image::error::StoreError;
use crate::image::store::Store;

/// Show all that is known of images and containers, as JSON in the shape of docker inspect
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    store: StoreArgs,

    /// A Go template such as '{{.GraphDriver.Data.LowerDir}}', or json
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// Images and containers, by name or id; an image first, where both are called so
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

impl Inspect {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        let template = match self.format.as_deref() {
            None | Some("json") => None,
            Some(text) => Some(Go::parse(text)?),
        };
        let mut shown = Vec::new();
        for name in &self.names {
            shown.push(match store.resolve(name) {
                Ok(image) => store.inspect_image(&image)?,
                Err(StoreError::NoImage(_)) => container(&store, name)?,
                Err(other) => return Err(other.into()),
            });
        }
        let text = match template {
            Some(template) => {
                let lines: Result<Vec<String>, Failure> =
                    shown.iter().map(|value| template.apply(value)).collect();
                lines?.into_iter().map(|line| line + "\n").collect()
            }
            None => format!("{:#}\n", Value::Array(shown)),
        };
        print_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A container, as far as Docker's shape of it makes sense here.
fn container(store: &Store, name: &str) -> Result<Value, Failure> {
    let found = Container::find(store, name);
    let container =
        found.map_err(|_| Failure::failed(format!("no image and no container is called {name:?}")))?;
    let layers = container.lowers(store)?.paths;
    let (upper, merged) = (container.upper(), container.merged());
    let work = upper.with_file_name("work");
    let dirs = ContainerDirs { upper: &upper, work: &work, merged: &merged };
    let status = match container.state()? {
        State::Running => "running",
        State::Exited(_) => "exited",
        State::Created => "created",
    };
    Ok(json!({
        "Id": container.record.id,
        "Name": container.shown_name(),
        "Created": container.record.created,
        "Image": container.record.image,
        "Config": { "Image": container.record.image_name, "Settings": container.record.settings },
        "State": { "Status": status, "ExitCode": container.record.exit_code },
        "GraphDriver": graph_driver(&layers, Some(dirs)),
    }))
}
