//! `unionmount system df`: what the store takes on the disk.

use std::collections::HashSet;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::Failure;
use super::output::Format;
use super::store::StoreArgs;
use crate::container::{Container, ContainerState, mounting};
use crate::explain::names;
use crate::image::digest::Digest;
use crate::image::store::Store;

/// Show how much the store's images and containers take, and how much could go
#[derive(Debug, clap::Args)]
pub(super) struct Df {
    #[command(flatten)]
    store: StoreArgs,

    /// json, table, or a Go template. Fields: Type, TotalCount, Active, Size, Reclaimable
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

impl Df {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let rows = match self.store.existing()? {
            Some(store) => vec![images(&store)?, containers(&store)?],
            None => vec![row("Images", 0, 0, 0, 0), row("Containers", 0, 0, 0, 0)],
        };
        let columns = [
            ("TYPE", "Type"),
            ("TOTAL", "TotalCount"),
            ("ACTIVE", "Active"),
            ("SIZE", "Size"),
            ("RECLAIMABLE", "Reclaimable"),
        ];
        Format::new(self.format.as_deref()).render(&columns, &rows)?.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn row(kind: &str, count: usize, active: usize, bytes: u64, free: u64) -> Value {
    let share = (free * 100).checked_div(bytes).unwrap_or(0);
    json!({
        "Type": kind,
        "TotalCount": count,
        "Active": active,
        "Size": names::bytes(bytes),
        "Reclaimable": format!("{} ({share}%)", names::bytes(free)),
    })
}

/// Counts images. Layers that several have count once; what could go is what images without a container have for
/// themselves.
fn images(store: &Store) -> Result<Value, Failure> {
    let catalog = store.catalog()?;
    let uses = store.container_uses()?;
    let used: HashSet<&Digest> = uses.images().collect();
    let (mut all, mut kept) = (HashSet::new(), HashSet::new());
    let mut active = 0;
    for image in &catalog.images {
        all.extend(image.diff_ids.iter().copied());
        if used.contains(&image.id) {
            active += 1;
            kept.extend(image.diff_ids.iter().copied());
        }
    }
    let bytes = |layers: &HashSet<Digest>| -> Result<u64, Failure> {
        let mut sum = 0;
        for layer in layers {
            sum += store.layer_record(layer)?.map_or(0, |record| record.size);
        }
        Ok(sum)
    };
    let (whole, needed) = (bytes(&all)?, bytes(&kept)?);
    Ok(row("Images", catalog.images.len(), active, whole, whole.saturating_sub(needed)))
}

fn containers(store: &Store) -> Result<Value, Failure> {
    let (mut count, mut active, mut bytes, mut free) = (0, 0, 0, 0);
    for container in Container::all(store)? {
        let own = container.changed_bytes()?;
        count += 1;
        bytes += own;
        let mounted = mounting::is_mounted(&container.merged()).unwrap_or(true);
        if mounted || container.state()? == ContainerState::Running {
            active += 1;
        } else {
            free += own;
        }
    }
    Ok(row("Containers", count, active, bytes, free))
}
