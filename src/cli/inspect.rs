//! `unionmount inspect`: all that is known of an image or a container.

use std::process::ExitCode;

use serde_json::Value;

use super::Failure;
use super::output::Go;
use super::page::Page;
use super::store::StoreArgs;
use crate::container::{Container, ContainerError, describe};
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
                // A name is one before it is the beginning of an id.
                Ok(image) if !image.is_called(name) && is_containers_name(&store, name) => {
                    container(&store, name)?
                }
                Ok(image) => store.inspect_image(&image)?,
                Err(StoreError::NoImage(_)) => container(&store, name)?,
                Err(other) => return Err(other.into()),
            });
        }
        let mut page = Page::default();
        match template {
            Some(template) => {
                for value in &shown {
                    template.apply_to(&mut page, value)?;
                }
            }
            None => page.json_text(&format!("{:#}\n", Value::Array(shown))),
        }
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn is_containers_name(store: &Store, name: &str) -> bool {
    Container::find(store, name).is_ok_and(|found| found.is_called(name))
}

/// A container, in Docker's shape.
fn container(store: &Store, name: &str) -> Result<Value, Failure> {
    let found = match Container::find(store, name) {
        Ok(found) => found,
        Err(ContainerError::Unknown(_)) => {
            return Err(Failure::failed(format!("no image and no container is called {name:?}")));
        }
        Err(error) => return Err(error.into()),
    };
    Ok(describe::inspect(store, &found)?)
}
