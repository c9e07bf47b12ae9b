//! What a name or the beginning of an id stands for, where it may be an image's or a container's.

use super::error::{ContainerError, Result};
use super::record::Container;
use crate::image::error::StoreError;
use crate::image::store::{Image, Store};

/// What is called so.
#[derive(Debug)]
pub enum Called {
    /// An image.
    Image(Box<Image>),
    /// A container.
    Container(Box<Container>),
}

/// Returns the image or the container that `text` stands for. A name is one before it is the beginning of an id; where both
/// have the name, `container_first` decides.
///
/// # Errors
/// When there is none, when the text begins ids of both, or when what it stands for can't be read.
pub fn called(store: &Store, text: &str, container_first: bool) -> Result<Called> {
    let image = store.resolve(text).map(Box::new).map_err(ContainerError::from);
    let container = Container::find(store, text).map(Box::new);
    let images_name = image.as_ref().is_ok_and(|image| image.name_meant_by(text).is_some());
    let containers_name = container.as_ref().is_ok_and(|container| container.is_called(text));
    match (image, container) {
        (_, Ok(container)) if containers_name && (container_first || !images_name) => {
            Ok(Called::Container(container))
        }
        (Ok(image), _) if images_name => Ok(Called::Image(image)),
        (Ok(image), Ok(container)) => Err(ContainerError::Ambiguous {
            text: text.to_owned(),
            found: vec![format!("image {}", image.id.short()), container.short_id().to_owned()],
        }),
        (Ok(image), Err(ContainerError::Unknown(_))) => Ok(Called::Image(image)),
        (Err(ContainerError::Store(StoreError::NoImage(_))), Ok(container)) => {
            Ok(Called::Container(container))
        }
        (Err(ContainerError::Store(StoreError::NoImage(_))), Err(error)) => Err(error),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}
