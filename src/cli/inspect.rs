//! `unionmount inspect`: all that is known of an image or a container.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::Failure;
use super::output::Go;
use super::page::Page;
use super::registry::{AccessArgs, parse_platform};
use super::store::{StoreArgs, nothing_is_called};
use crate::container::called::{Called, called};
use crate::container::lowers::image_as_it_lies;
use crate::container::{Container, ContainerError, describe};
use crate::image::platform::Platform;

/// Show all that is known of images and containers, as JSON; the shape is that of docker inspect
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    store: StoreArgs,

    /// A Go template such as '{{.GraphDriver.Data.LowerDir}}', or json
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// Ask the registries instead of the store, and fetch no layers
    #[arg(long)]
    remote: bool,

    /// Of several images at a registry, show the one for this platform
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform, requires = "remote")]
    platform: Option<Platform>,

    #[command(flatten)]
    access: AccessArgs,

    /// Look for images only, or for containers only
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,

    /// Images and containers, by name or id; an image first, where both are called so
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// An image.
    Image,
    /// A container.
    Container,
}

impl Inspect {
    /// Looks for one kind of things.
    pub(super) fn only(self, kind: Kind) -> Inspect {
        Inspect { kind: Some(kind), ..self }
    }

    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let template = match self.format.as_deref() {
            None | Some("json") => None,
            Some(text) => Some(Go::parse(text)?),
        };
        let shown = if self.remote { self.at_registries()? } else { self.in_store()? };
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

    fn in_store(&self) -> Result<Vec<Value>, Failure> {
        let store = self.store.with_something()?;
        let mut shown = Vec::new();
        for name in &self.names {
            let found = match self.kind {
                None => called(&store, name, false),
                Some(Kind::Image) => {
                    store.resolve(name).map(Box::new).map(Called::Image).map_err(ContainerError::from)
                }
                Some(Kind::Container) => Container::find(&store, name).map(Box::new).map(Called::Container),
            };
            shown.push(match found {
                Ok(Called::Image(image)) => {
                    store.inspect_image(&image, &image_as_it_lies(&store, &image)?.paths)?
                }
                Ok(Called::Container(container)) => describe::inspect(&store, &container)?,
                Err(ContainerError::Unknown(_)) if self.kind.is_none() => {
                    return Err(nothing_is_called(name));
                }
                Err(error) => return Err(error.into()),
            });
        }
        Ok(shown)
    }

    /// Returns what registries say, as far as it is the same in words of docker inspect.
    fn at_registries(&self) -> Result<Vec<Value>, Failure> {
        super::logging::start_for_verb();
        let mut shown = Vec::new();
        for name in &self.names {
            let found = crate::registry::describe(name, self.platform.as_ref(), &self.access.access())?;
            shown.push(json!({
                "Id": found.manifest["config"]["digest"],
                "RepoTags": Vec::from_iter(found.reference.given_name()),
                "Digest": found.digest,
                "ManifestDigest": found.manifest_digest,
                "Platforms": found.platforms,
                "Os": found.config["os"],
                "Architecture": found.config["architecture"],
                "Created": found.config["created"],
                "Config": found.config["config"],
                "RootFS": { "Type": "layers", "Layers": found.config["rootfs"]["diff_ids"] },
                "Layers": found.manifest["layers"],
            }));
        }
        Ok(shown)
    }
}
