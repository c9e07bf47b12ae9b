//! `unionmount history`: how an image came about.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::Failure;
use super::output::{self, Format};
use super::page::Page;
use super::store::StoreArgs;
use crate::explain::names;

/// Show the steps by which an image was made, the newest first
#[derive(Debug, clap::Args)]
pub(super) struct History {
    #[command(flatten)]
    store: StoreArgs,

    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,

    /// Print layers' diff ids alone; <missing> for a step without a layer
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,

    /// json, table, or a Go template. Fields: ID, CreatedAt, CreatedSince, CreatedBy, Size, Bytes, Comment, Layer
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,

    /// The image, by name or id
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// Longer commands are cut in a table.
const WIDTH: usize = 45;

impl History {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.with_something()?;
        let image = store.resolve(&self.image)?;
        let format = Format::new(self.format.as_deref());
        let cut = !self.no_trunc && matches!(format, Format::Table);
        let rows: Vec<Value> = store
            .history(&image)?
            .into_iter()
            .enumerate()
            .map(|(at, step)| {
                let id = if self.no_trunc { image.id.to_string() } else { image.id.short() };
                json!({
                    // Only the whole has an id; the images of the steps below are not kept anywhere.
                    "ID": if at == 0 { id.as_str() } else { "<missing>" },
                    "CreatedAt": step.created,
                    "CreatedSince": output::age(step.created.as_deref()),
                    "CreatedBy": if cut { shorten(&step.created_by) } else { step.created_by },
                    "Size": names::bytes(step.size),
                    "Bytes": step.size,
                    "Comment": step.comment,
                    "Layer": step.diff_id,
                })
            })
            .collect();
        let page = if self.quiet {
            let mut page = Page::default();
            for row in &rows {
                page.line(format_args!("{}", row["Layer"].as_str().unwrap_or("<missing>")));
            }
            page
        } else {
            let columns = [
                ("IMAGE", "ID"),
                ("CREATED", "CreatedSince"),
                ("CREATED BY", "CreatedBy"),
                ("SIZE", "Size"),
                ("COMMENT", "Comment"),
            ];
            format.render(&columns, &rows)?
        };
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Cuts to one line of at most [`WIDTH`] characters.
fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WIDTH) {
        None => line,
        Some(_) => line.chars().take(WIDTH - 1).chain(['…']).collect(),
    }
}
