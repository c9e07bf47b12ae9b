//! `unionmount inspect`: all that is known of an image.

use std::process::ExitCode;

use serde_json::Value;

use super::output::Go;
use super::store::StoreArgs;
use super::{Failure, print_all};

/// Show all that is known of images, as JSON in the shape of docker inspect
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    store: StoreArgs,

    /// A Go template such as '{{.GraphDriver.Data.LowerDir}}', or json
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// The images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
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
            let image = store.resolve(name)?;
            shown.push(store.inspect_image(&image)?);
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
