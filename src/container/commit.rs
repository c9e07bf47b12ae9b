//! Commit: a container's upper becomes one more layer of a new image.
//!
//! The upper is walked, and nothing else; its tar is hashed and stored while it is written. What is frozen below it comes before, each
//! as a layer of its own, and so does the same layer with every image of later states. With the container's mount
//! live, what programs had written before the command began is in the layer: the kernel may hold it in its cache, so it
//! is asked to hand it over first ([`flush`]). A file that is written to meanwhile may be caught in the middle of that.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::error::{ContainerError, Result};
use super::mounting;
use super::record::Container;
use crate::control::mounts::Mount;
use crate::image::change::{self, Change};
use crate::image::compression::Compression;
use crate::image::digest::Digest;
use crate::image::error::StoreError;
use crate::image::layer::place::{join, open_dir};
use crate::image::layer::{Attributes, Ownership, WriteOptions, write_tar};
use crate::image::name::ImageName;
use crate::image::store::{AddedLayer, Blob, Image, Store};
use crate::sys::dir::for_each_entry;
use crate::sys::filesystem;
use crate::sys::namespace;
use crate::sys::object::{At, Kind};
use crate::sys::remove;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below;
use crate::union::frozen::record::FrozenLayer;
use crate::union::frozen::unfit::SnapshotError;

/// What is said about the new image.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// Who made it.
    pub author: Option<String>,
    /// Why.
    pub message: Option<String>,
    /// Changes of its config.
    pub changes: Vec<Change>,
    /// When it was made.
    pub created: jiff::Timestamp,
}

/// Makes an image of a container, of its state at a snapshot if one is named: what was frozen of it are layers as they are, and so is
/// its upper. Returns the image's id.
///
/// # Errors
/// When the container or its image can't be read, or the store can't be written.
pub fn commit(
    store: &Store,
    container: &Container,
    at: Option<&str>,
    about: &About,
    name: Option<ImageName>,
) -> Result<Digest> {
    // Until its end: what is read of a container stays, though that is removed. First, since `prune` removes what is left of one.
    let staging = store.begin()?;
    let _kept = container.keep()?;
    let image = store.resolve(&container.record.image.to_string())?;
    if at.is_none() {
        flush(container)?;
    }
    let states = states(container, at)?;
    let lowers = container.lowers(store)?;
    let mut below = lowers.sources()?;
    let mut top = lowers.top_directory()?;
    let ownership = Ownership::of_this_process();
    let mut layers = base_layers(&image)?;
    let mut steps = Vec::new();
    let last = states.len().saturating_sub(1);
    for (number, state) in states.into_iter().enumerate() {
        let of_layer = |source| ContainerError::Layer { id: container.short_id().to_owned(), source };
        let root =
            root_changed(state.dir.as_fd(), top.as_ref().map(AsFd::as_fd), ownership).map_err(of_layer)?;
        // One in which nothing is would be a layer of nothing; without snapshots it is the one that everybody knows.
        let is_nothing = !root && is_empty(&state)?;
        if !is_nothing || number == last && steps.is_empty() {
            let options = WriteOptions { ownership, lowers: &below, root };
            let mut failed = None;
            let layer = staging.add_layer(|out| {
                write_tar(state.dir.as_fd(), out, &options).map_err(|source| {
                    let text = format!("container {}: {source}", container.short_id());
                    failed = Some(of_layer(source));
                    StoreError::Refused(text)
                })
            });
            layers.push(match (layer, failed) {
                (_, Some(error)) => return Err(error),
                (layer, None) => layer?,
            });
            steps.push(state.frozen);
        }
        below.insert(0, state.path.into());
        top = Some(state.dir);
    }
    let names: Vec<ImageName> = name.into_iter().collect();
    let id = staging.add_image(document(&image, container, about, &steps), &layers, &names)?;
    staging.publish()?;
    Ok(id)
}

/// What becomes a layer of the image.
struct State {
    path: PathBuf,
    dir: File,
    /// What is known of it, if it is frozen.
    frozen: Option<FrozenLayer>,
}

/// Returns what becomes layers, the lowest first: what is frozen below a container's upper, and that itself unless a snapshot is named.
fn states(container: &Container, at: Option<&str>) -> Result<Vec<State>> {
    let path = container.upper();
    let state = |path: PathBuf, frozen| {
        let dir = File::open(&path).map_err(ContainerError::io("open it", &path))?;
        Ok(State { path, dir, frozen })
    };
    let refused = |error: SnapshotError| {
        ContainerError::Refused(format!("container {}: {error}", container.shown_name()))
    };
    let upper = state(path.clone(), None)?;
    let below = match at {
        Some(name) => Some(below::at_snapshot(&path, name).map_err(refused)?),
        // What was opened: where it is frozen meanwhile, it isn't what lies there now.
        None => below::of(upper.dir.as_fd(), &path).map_err(refused)?,
    };
    let (paths, records) = below.map_or_else(Default::default, |below| (below.layers, below.records));
    let frozen = paths.into_iter().zip(records).rev();
    let mut states: Vec<State> = frozen.map(|(path, of)| state(path, Some(of))).collect::<Result<_>>()?;
    if at.is_none() {
        states.push(upper);
    }
    if states.is_empty() {
        // The state before the first snapshot.
        let name = container.shown_name();
        return Err(ContainerError::Refused(format!(
            "container {name} has changed nothing then: that is its image itself"
        )));
    }
    Ok(states)
}

fn is_empty(state: &State) -> Result<bool> {
    let names = remove::names(state.dir.as_fd()).map_err(ContainerError::io("list it", &state.path))?;
    Ok(names.is_empty())
}

/// Tells whether the root of the upper is another than that of the layer below. Without a change, no entry speaks of
/// it, so that an unchanged container gives the empty layer that everybody knows.
fn root_changed(
    upper: BorrowedFd<'_>,
    below: Option<BorrowedFd<'_>>,
    ownership: Ownership,
) -> std::result::Result<bool, crate::image::layer::LayerError> {
    let of = |dir: BorrowedFd<'_>| {
        let at = At::Fd(dir);
        let stat = at.stat().map_err(|errno| crate::image::layer::LayerError::Os {
            entry: Vec::new(),
            what: "stat it",
            errno,
        })?;
        // Times change with every entry; they alone are no change.
        Attributes::read(at, b"", &stat, ownership).map(|a| (a.mode, a.uid, a.gid, a.xattrs))
    };
    match below {
        Some(top) => Ok(of(upper)? != of(top)?),
        None => Ok(true),
    }
}

/// Returns the layers of an image, as the store takes them.
fn base_layers(image: &Image) -> Result<Vec<AddedLayer>> {
    let descriptors = image.manifest.layers();
    if descriptors.len() != image.diff_ids.len() {
        return Err(ContainerError::Refused(format!(
            "image {}: its config disagrees with its layers",
            image.id
        )));
    }
    descriptors
        .iter()
        .zip(&image.diff_ids)
        .map(|(descriptor, diff_id)| {
            let media_type = descriptor.media_type().to_string();
            let compression = if media_type.ends_with("gzip") {
                Compression::Gzip
            } else if media_type.ends_with("zstd") {
                Compression::Zstd
            } else {
                Compression::None
            };
            let digest = Digest::try_from(descriptor.digest()).map_err(StoreError::from)?;
            let blob = Blob { digest, size: descriptor.size() };
            let content = crate::image::describe::content_size(descriptor);
            Ok(AddedLayer { diff_id: *diff_id, blob, compression, content })
        })
        .collect()
}

/// Makes the config of the new image. `steps`: what each of its new layers was, the lowest first.
fn document(image: &Image, container: &Container, about: &About, steps: &[Option<FrozenLayer>]) -> Value {
    let now = about.created.to_string();
    let mut document = image.document.clone();
    if let Some(fields) = document.as_object_mut() {
        // What Docker wrote about the container that made the image below.
        for field in ["container", "container_config", "docker_version", "parent", "id"] {
            fields.remove(field);
        }
    }
    document["created"] = json!(now);
    let settings = &container.record.settings;
    let mut changes = Vec::new();
    let pairs: Vec<(String, String)> = settings
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if !pairs.is_empty() {
        changes.push(Change::Env(pairs));
    }
    changes.extend(settings.entrypoint.clone().map(Change::Entrypoint));
    if !settings.command.is_empty() {
        changes.push(Change::Cmd(settings.command.clone()));
    }
    if !settings.labels.is_empty() {
        changes.push(Change::Label(settings.labels.clone().into_iter().collect()));
    }
    changes.extend(settings.working_dir.clone().map(Change::WorkDir));
    changes.extend(settings.user.clone().map(Change::User));
    changes.extend(about.changes.iter().cloned());
    change::apply(&mut document, &changes);

    let mut entry = json!({ "created": now, "created_by": created_by(container) });
    if let Some(author) = &about.author {
        document["author"] = json!(author);
        entry["author"] = json!(author);
    }
    if let Some(message) = &about.message {
        entry["comment"] = json!(message);
    }
    // The last is the commit itself.
    let before = steps.split_last().map_or(&[][..], |(_, before)| before);
    let entries = before.iter().map(|step| snapshot_entry(step.as_ref(), &now)).chain([entry]);
    match document["history"].as_array_mut() {
        Some(history) => history.extend(entries),
        None => document["history"] = entries.collect(),
    }
    document
}

/// Returns what the history says of a layer that was frozen.
fn snapshot_entry(frozen: Option<&FrozenLayer>, now: &str) -> Value {
    let made = frozen.and_then(|frozen| jiff::Timestamp::from_second(frozen.made).ok());
    let name = frozen.map_or("", |frozen| &frozen.name);
    json!({
        "created": made.map_or_else(|| now.to_owned(), |made| made.to_string()),
        "created_by": format!("unionmount snapshot {name}"),
    })
}

fn created_by(container: &Container) -> String {
    match container.record.settings.command.join(" ") {
        command if command.is_empty() => "unionmount commit".to_owned(),
        command => command,
    }
}

/// Makes the kernel hand over what it holds of the container's live mounts, if there are any.
///
/// # Errors
/// When it can't be written: then the layer would lack it.
pub fn flush(container: &Container) -> Result<()> {
    if let Some(pid) = container.runner()?
        && !rustix::process::geteuid().is_root()
        && namespace::is_elsewhere(pid)
    {
        // An ordinary user's container: its mount is seen in its own namespaces only.
        namespace::join_namespaces_of(pid)
            .map_err(ContainerError::io("enter the namespaces of it", format!("/proc/{pid}")))?;
    }
    let upper = container.upper();
    let mounts = mounting::mounts_of(container.short_id())?;
    for mount in &mounts {
        flush_mount(mount, &upper)?;
    }
    // A daemon that is about to end hands over what it has by itself.
    if mounts.is_empty() && !mounting::wait_for_end(&upper, mounting::PATIENCE)? {
        return Err(ContainerError::Refused(format!(
            "container {} is mounted where this process doesn't see it; unmount it first",
            container.shown_name()
        )));
    }
    Ok(())
}

/// Makes the kernel hand over what it holds of a mount, whose upper is given.
///
/// # Errors
/// When it can't be written, or can't be waited for.
pub fn flush_mount(mount: &Mount, upper: &Path) -> Result<()> {
    match mounting::open_root(mount)? {
        Some(root) => flush_root(&root, &mount.point, &mount.root, upper),
        // It has gone, and its daemon hands over what it has by itself; or something else covers it.
        None if mounting::wait_for_end(upper, mounting::PATIENCE)? => Ok(()),
        None => Err(ContainerError::Refused(format!(
            "{}: what is mounted there can't be reached, so what it holds back can't be had; unmount it first",
            EscapedPath::from(mount.point.as_path())
        ))),
    }
}

/// Does as [`flush_mount`], of a mount whose root is open. `point`: where it is. `below`: the directory of the upper that is seen
/// there.
///
/// # Errors
/// The same.
pub fn flush_root(root: &File, point: &Path, below: &Path, upper: &Path) -> Result<()> {
    filesystem::sync(root).map_err(ContainerError::io("sync it", point))?;
    // Since Linux 6.18 syncfs starts the writing on FUSE, but doesn't wait for its end.
    let upper_dir = File::open(upper).map_err(ContainerError::io("open it", upper))?;
    let below = below.as_os_str().as_bytes();
    let below = below.strip_prefix(b"/").unwrap_or(below).to_vec();
    write_back_tree(upper_dir.as_fd(), root.as_fd(), below).map_err(|(path, errno)| {
        ContainerError::io("write back what was changed in it", point.join(OsStr::from_bytes(&path)))(errno)
    })
}

/// Writes back every file of the merged tree that the upper holds. `from`: the directory of the upper that is the root of
/// what is seen of the tree. Tells the path where it failed, too.
fn write_back_tree(
    upper: BorrowedFd<'_>,
    merged: BorrowedFd<'_>,
    from: Vec<u8>,
) -> std::result::Result<(), (Vec<u8>, Errno)> {
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let at = |errno| (path.clone(), errno);
        let (Some(real), Some(shown)) = (
            unless_gone(open_dir(upper, &join(&from, &path))).map_err(at)?,
            unless_gone(open_dir(merged, &path)).map_err(at)?,
        ) else {
            continue;
        };
        let mut files = Vec::new();
        for_each_entry::<Errno>(real.as_fd(), |entry| {
            match entry.kind {
                Some(Kind::Directory) => todo.push(join(&path, entry.name)),
                // Not every filesystem tells the kind; what is none is found out below.
                Some(Kind::File) | None => files.push(entry.name.to_vec()),
                _ => {}
            }
            Ok(())
        })
        .map_err(at)?;
        for name in files {
            write_back(real.as_fd(), shown.as_fd(), &name).map_err(|errno| (join(&path, &name), errno))?;
        }
    }
    Ok(())
}

fn write_back(real: BorrowedFd<'_>, shown: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |dir: BorrowedFd<'_>| unless_gone(openat(dir, name, flags, Mode::empty()));
    let file = match open(shown) {
        // Whoever may not read the upper's file either finds that out when it is read.
        Err(Errno::ACCESS) if matches!(open(real), Err(Errno::ACCESS)) => return Ok(()),
        opened => opened?,
    };
    let Some(file) = file else { return Ok(()) };
    match namespace::write_back(file.as_fd()) {
        // Not a file any more.
        Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => Ok(()),
        done => done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

/// Returns `None` for what has gone, is a marker, or was replaced by something else meanwhile.
fn unless_gone<T>(opened: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}
