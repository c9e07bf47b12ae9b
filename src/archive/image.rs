//! An image in an archive: what `docker save`, `podman save` and `unionmount save` write, and archives of OCI layouts. Its documents and
//! its layers are files of the archive, and layers are read where they lie in it.

use std::io::Read;
use std::sync::Arc;

use super::Archive;
use super::index::Content;
use super::part::Part;
use crate::image::error::{Result, StoreError};
use crate::image::packed::{self, ImageFiles, PackedLayer, Wanted};

const ROOT: u64 = 1;

/// More links on one way are a circle.
const MOST_LINKS: usize = 8;

impl Archive {
    /// Tells whether it holds an image, by the files in it. An image of a filesystem is a layer itself, whatever lies in it.
    pub fn holds_image(&self) -> bool {
        !self.is_layer && !self.is_filesystem && packed::holds_image(self)
    }

    /// Returns the layers of the image that it holds, **topmost first**, and where each lies.
    ///
    /// # Errors
    /// When the image isn't there or is damaged, or there are several.
    pub fn image_layers(self: Arc<Archive>, wanted: &Wanted) -> Result<Vec<(PackedLayer, Part)>> {
        let layers = packed::layers_in(self.clone(), wanted)?;
        let found = layers.into_iter().map(|layer| match self.file(&layer.file) {
            Some(part) => Ok((layer, part)),
            None => Err(StoreError::BadImage {
                source_name: self.name(),
                what: format!("layer {}: {} is missing", layer.number, layer.file),
            }),
        });
        found.collect()
    }

    /// Finds a file, through links within the archive: Docker wrote a layer that it had written already as a link to the first.
    fn file(&self, name: &str) -> Option<Part> {
        let mut path = name.to_owned();
        for _ in 0..MOST_LINKS {
            match self.object(&path)? {
                Content::Target(target) => {
                    let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                    path = format!("{above}/{}", std::str::from_utf8(target).ok()?);
                }
                content => return self.data(&path, content),
            }
        }
        None
    }

    fn number(&self, path: &str) -> Option<u64> {
        let index = &self.index;
        let mut way = vec![ROOT];
        for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
            if name == ".." {
                way.pop();
                continue;
            }
            let Content::Entries(entries) = &index.object(*way.last()?)?.content else { return None };
            way.push(index.find(entries, name.as_bytes())?);
        }
        way.last().copied()
    }

    fn object(&self, path: &str) -> Option<&Content> {
        Some(&self.index.object(self.number(path)?)?.content)
    }

    fn data(&self, path: &str, content: &Content) -> Option<Part> {
        let size = self.index.object(self.number(path)?)?.size;
        match content {
            Content::Whole { at } => self.data.within(*at, size),
            _ => None,
        }
    }
}

impl ImageFiles for Archive {
    fn name(&self) -> String {
        self.data.path.display().to_string()
    }

    fn open(&self, name: &str) -> Option<(Box<dyn Read + Send>, u64)> {
        let part = self.file(name)?;
        let size = part.size;
        Some((Box::new(part.reader()), size))
    }
}
