//! `unionmount image tree`: the layers of all images, and who shares them.

use std::collections::HashMap;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::output::count;
use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, say, terminal};
use crate::container::Container;
use crate::explain::names;
use crate::explain::shorten::cut;
use crate::image::digest::Digest;
use crate::image::lineage::{Branch, Lineage};
use crate::image::name::ImageName;
use crate::image::store::{Image, Store};
use crate::union::escaped_path::escaped;

/// Show the layers of all images as a tree, and who shares them; the lowest first, with images and containers
///
/// Images that begin with the same layers share a branch. A layer of which `in 3 images` is told is on the disk once, though
/// the branches may show it several times.
#[derive(Debug, clap::Args)]
pub(super) struct ImageTree {
    #[command(flatten)]
    store: StoreArgs,

    /// Print the tree as JSON
    #[arg(long)]
    json: bool,

    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,

    /// Only what this image shares its lowest layer with
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
}

impl ImageTree {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = match &self.image {
            Some(_) => self.store.with_something()?,
            None => match self.store.existing()? {
                Some(store) => store,
                None => {
                    if self.json {
                        Page::of_line(format_args!("[]")).print()?;
                    }
                    return Ok(ExitCode::SUCCESS);
                }
            },
        };
        let catalog = store.catalog()?;
        for (digest, names, error) in &catalog.broken {
            let name = names.first().map_or_else(|| digest.to_string(), ImageName::to_string);
            say(&format!("{name} is left out: {error}"));
        }
        let mut images = catalog.images;
        if let Some(text) = &self.image {
            let root = store.resolve(text)?;
            let lowest = root.diff_ids.first().copied();
            images.retain(|image| match lowest {
                Some(lowest) => image.diff_ids.first() == Some(&lowest),
                None => image.id == root.id,
            });
        }
        print(&store, images, self.json, self.no_trunc)
    }
}

/// Prints the tree of these images.
pub(super) fn print(
    store: &Store,
    mut images: Vec<Image>,
    as_json: bool,
    whole: bool,
) -> Result<ExitCode, Failure> {
    // The same images give the same tree, in whichever order they came.
    images.sort_by(|a, b| (&a.names, a.id).cmp(&(&b.names, b.id)));
    let tree = Lineage::of(store, &images)?;
    let mut containers: HashMap<Digest, Vec<String>> = HashMap::new();
    for container in Container::all(store)? {
        containers.entry(container.record.image).or_default().push(container.shown_name().to_owned());
    }
    let forest = Forest { tree, images, containers, whole };
    match as_json {
        true => {
            let mut page = Page::default();
            page.json(&forest.json()?)?;
            page.print()?;
        }
        false => forest.page(terminal::room()).print()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The tree and what stands in it.
struct Forest {
    tree: Lineage,
    images: Vec<Image>,
    containers: HashMap<Digest, Vec<String>>,
    /// Nothing is cut.
    whole: bool,
}

/// A line of the tree.
struct Row {
    before: String,
    what: What,
}

enum What {
    /// By its place among the branches.
    Layer(usize),
    /// By its place among the images.
    Image(usize),
}

impl Forest {
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        // What is still to be drawn, the next last: before its first line, and before those that follow.
        let mut todo: Vec<(String, String, What)> = Vec::new();
        let roots = self.tree.roots.iter().map(|&root| What::Layer(root));
        todo.extend(
            roots
                .chain(self.tree.empty.iter().map(|&at| What::Image(at)))
                .map(|what| (String::new(), String::new(), what)),
        );
        todo.reverse();
        while let Some((first, rest, what)) = todo.pop() {
            let What::Layer(mut at) = what else {
                rows.push(Row { before: first, what });
                continue;
            };
            rows.push(Row { before: first, what: What::Layer(at) });
            // Layers on which only one stands are listed one below the other: a step to the right is a choice.
            while let Branch { images, above, .. } = &self.tree.branches[at]
                && let (true, [only]) = (images.is_empty(), &above[..])
            {
                at = *only;
                rows.push(Row { before: rest.clone(), what: What::Layer(at) });
            }
            let Branch { images, above, .. } = &self.tree.branches[at];
            let images = images.iter().map(|&image| What::Image(image));
            let next: Vec<What> = images.chain(above.iter().map(|&one| What::Layer(one))).collect();
            let last = next.len().saturating_sub(1);
            for (number, what) in next.into_iter().enumerate().rev() {
                let (sign, line) = if number == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                todo.push((format!("{rest}{sign}"), format!("{rest}{line}"), what));
            }
        }
        rows
    }

    fn page(&self, columns: usize) -> Page {
        let rows = self.rows();
        let short = |digest: &Digest| if self.whole { digest.to_string() } else { digest.short() };
        let layers = rows.iter().filter_map(|row| match row.what {
            What::Layer(at) => Some((row, &self.tree.branches[at])),
            What::Image(_) => None,
        });
        let width =
            layers.clone().map(|(row, layer)| row.before.chars().count() + short(&layer.diff_id).len());
        let width = width.max().unwrap_or(0);
        let wide = layers.map(|(_, layer)| names::bytes(layer.size).len()).max().unwrap_or(0);
        let told = |layer: &Branch| match layer.shared_by {
            1 => String::new(),
            several => format!("in {several} images"),
        };
        let sharing = self.tree.branches.iter().map(|layer| told(layer).len()).max().unwrap_or(0);
        let mut page = Page::default();
        for row in &rows {
            let before = &row.before;
            match row.what {
                What::Layer(at) => {
                    let layer = &self.tree.branches[at];
                    let id = format!("{before}{}", short(&layer.diff_id));
                    let line = format!(
                        "{id:<width$}  {:>wide$}  {:<sharing$}",
                        names::bytes(layer.size),
                        told(layer)
                    );
                    let room = columns.saturating_sub(line.chars().count() + 2);
                    let step = escaped(&layer.step);
                    let step = if self.whole { step } else { cut(&step, room) };
                    page.line(format_args!("{}", format!("{line}  {step}").trim_end()));
                }
                What::Image(at) => {
                    let image = &self.images[at];
                    let mut line = format!("{before}▸ {}", self.called(image));
                    if let Some(containers) = self.containers.get(&image.id) {
                        line += &format!("  ({})", containers.join(", "));
                    }
                    page.line(format_args!("{line}"));
                }
            }
        }
        if !self.images.is_empty() {
            let (all, shared) = self.sum();
            if all.len() + 2 + shared.len() <= columns {
                page.line(format_args!("{all}, {shared}"));
            } else {
                page.line(format_args!("{all},"));
                page.line(format_args!("{shared}"));
            }
        }
        page
    }

    fn called(&self, image: &Image) -> String {
        let names: Vec<String> = image.names.iter().map(ImageName::to_string).collect();
        let id = if self.whole { image.id.to_string() } else { image.id.short() };
        if names.is_empty() { id } else { format!("{}  {id}", names.join(", ")) }
    }

    /// Tells how much it is altogether, and how much of that is shared.
    fn sum(&self) -> (String, String) {
        let Lineage { layers, bytes, shared_bytes, .. } = &self.tree;
        let shared = match shared_bytes {
            0 => "none of it shared".to_owned(),
            bytes => format!("{} of it in layers that several images share", names::bytes(*bytes)),
        };
        let all = format!(
            "{}, {}: {}",
            count(self.images.len() as u64, "image"),
            count(*layers as u64, "layer"),
            names::bytes(*bytes)
        );
        (all, shared)
    }

    /// Returns a list of branches, each with what stands on it.
    fn json(&self) -> Result<Value, Failure> {
        // From the top down, so that what stands on a branch is there when the branch comes.
        let mut made: Vec<Value> = vec![Value::Null; self.tree.branches.len()];
        for at in (0..made.len()).rev() {
            let Branch { diff_id, step, size, shared_by, images, above } = &self.tree.branches[at];
            let above: Vec<Value> = above.iter().map(|&one| made[one].take()).collect();
            made[at] = json!({
                "layer": diff_id, "step": step, "bytes": size, "in_images": shared_by,
                "images": images.iter().map(|&image| self.image_json(image)).collect::<Vec<_>>(),
                "above": above,
            });
        }
        let roots = self.tree.roots.iter().map(|&root| made[root].take()).collect::<Vec<_>>();
        let empty =
            self.tree.empty.iter().map(|&image| json!({ "images": [self.image_json(image)], "above": [] }));
        Ok(Value::Array(roots.into_iter().chain(empty).collect()))
    }

    fn image_json(&self, at: usize) -> Value {
        let image = &self.images[at];
        let containers = self.containers.get(&image.id).cloned().unwrap_or_default();
        json!({ "id": image.id, "names": image.names, "containers": containers })
    }
}
