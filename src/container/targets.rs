//! The layer on which a container's mounts stand.
//!
//! What a runtime mounts needs a directory or a file to be mounted on, and an image may have none there, or a symbolic link
//! that leads anywhere. So every target is resolved beforehand, in the image alone: a link is followed within it, as
//! chroot(2) would, and what is missing is made in a layer on top of the image, with the attributes of the directories that
//! lead there. What the runtime is told then is a path whose every step is a directory, so that nothing of the host can
//! be hit by it. Where the kernel's own filesystems are mounted, a link is not followed but hidden by a directory.
//!
//! The layer lies below the container's upper: what is in it is no change of the container.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image::layer::merged::{of_union, open_union};
use crate::image::layer::place::UnpackTarget;
use crate::image::layer::{Attributes, LayerError, Ownership};
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::nodes::node::Node;
use crate::union::stack::access::LayerAt;
use crate::union::stack::layer::LowerSource;

/// Where the kernel's own filesystems go, and what is below belongs to the runtime.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// As many links as the kernel follows on one path (path_resolution(7)).
const LINKS: usize = 40;

/// What is going to be mounted somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where, as it was given: absolute.
    pub path: PathBuf,
    /// A file is mounted, no directory.
    pub file: bool,
    /// Without it, the container does as well: where the image leaves no place for it, it isn't mounted.
    pub optional: bool,
}

/// Where each target is, by how it was given. An optional one for which there is no place is missing.
pub type Places = BTreeMap<PathBuf, PathBuf>;

/// Resolves the targets in the image, of which `layers` are the trees, topmost first, and makes in `layer`, an empty
/// directory, what they need. The kernel's own directories are among them without being named.
///
/// # Errors
/// When the image has something else than a directory on the way to a target; those of reading and writing layers.
pub fn prepare(
    layer: BorrowedFd<'_>,
    layers: &[LowerSource],
    targets: &[Target],
    ownership: Ownership,
) -> Result<Places, LayerError> {
    let union = match layers.is_empty() {
        true => None,
        false => Some(open_union(layers.iter().cloned())?),
    };
    let mut image = Image { union, hidden: BTreeSet::new() };
    let mut wanted = Vec::new();
    for path in KERNEL {
        wanted.push((image.kernel_directory(path.as_bytes())?, false));
    }
    let mut places = Places::new();
    for target in targets {
        if KERNEL.iter().any(|top| target.path.starts_with(top)) {
            // The runtime makes it in what is mounted there.
            places.insert(target.path.clone(), target.path.clone());
            continue;
        }
        match image.resolve(target) {
            Ok(steps) => {
                places.insert(target.path.clone(), path_of(&steps));
                wanted.push((steps, target.file));
            }
            Err(error) if target.optional => log::info!("{} is not mounted: {error}", target.path.display()),
            Err(error) => return Err(error),
        }
    }
    make(layer, &image, &wanted, ownership)?;
    Ok(places)
}

/// A name on the way, and what the image has there, if it has a directory (or at the end a file).
type Step = (Vec<u8>, Option<Arc<Node>>);

struct Image {
    /// `None`: without layers.
    union: Option<Union>,
    /// Names of the image that the layer hides, without a leading slash.
    hidden: BTreeSet<Vec<u8>>,
}

fn join(steps: &[Step]) -> Vec<u8> {
    steps.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>().join(&b'/')
}

fn path_of(steps: &[Step]) -> PathBuf {
    Path::new("/").join(OsString::from_vec(join(steps)))
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}

impl Image {
    /// Returns what the image has under a name of where `steps` lead.
    fn lookup(&self, steps: &[Step], name: &[u8]) -> Result<Option<Arc<Node>>, LayerError> {
        let Some(union) = &self.union else { return Ok(None) };
        let dir = match steps.last() {
            None => union.root(),
            Some((_, Some(node))) => node,
            Some((_, None)) => return Ok(None),
        };
        let mut path = join(steps);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if self.hidden.contains(&path) {
            return Ok(None);
        }
        Ok(union.lookup(dir, name).map_err(of_union(&path))?.map(|(node, _)| node))
    }

    /// Finds a directory of the root on which the kernel's filesystem is mounted.
    fn kernel_directory(&mut self, path: &[u8]) -> Result<Vec<Step>, LayerError> {
        let name = path.strip_prefix(b"/").unwrap_or(path).to_vec();
        let found = self.lookup(&[], &name)?;
        let directory = found.filter(|node| node.kind == Kind::Directory);
        if directory.is_none() {
            self.hidden.insert(name.clone());
        }
        Ok(vec![(name, directory)])
    }

    /// Follows the way to a target.
    fn resolve(&self, target: &Target) -> Result<Vec<Step>, LayerError> {
        let given = target.path.as_os_str().as_bytes();
        let refuse = |steps: &[Step], name: &[u8], what: &str| {
            let at = [&join(steps)[..], name].join(&b'/');
            let target = target.path.display();
            Err(LayerError::entry(
                &at,
                format!("{what} in the image, so that nothing can be mounted on {target}"),
            ))
        };
        let mut todo: VecDeque<Vec<u8>> = names(given).collect();
        let mut steps: Vec<Step> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                steps.pop();
                continue;
            }
            let found = self.lookup(&steps, &name)?;
            match (found, &self.union) {
                (Some(node), Some(union)) if node.kind == Kind::Symlink => {
                    links += 1;
                    if links > LINKS {
                        return refuse(&steps, &name, "is a link among too many");
                    }
                    let to = union.readlink(&node).map_err(of_union(&name))?;
                    if to.starts_with(b"/") {
                        steps.clear();
                    }
                    names(&to).rev().for_each(|name| todo.push_front(name));
                }
                (Some(node), _) if node.kind != Kind::Directory && !(todo.is_empty() && target.file) => {
                    return refuse(&steps, &name, "is no directory");
                }
                (Some(node), _) if node.kind == Kind::Directory && todo.is_empty() && target.file => {
                    return refuse(&steps, &name, "is a directory");
                }
                (found, _) => steps.push((name, found)),
            }
        }
        match steps.is_empty() {
            true => refuse(&steps, b"", "is the root directory"),
            false => Ok(steps),
        }
    }

    /// Returns what is shown of a directory of the image.
    fn attributes(&self, node: &Node, path: &[u8], ownership: Ownership) -> Result<Attributes, LayerError> {
        let mut shown = None;
        if let Some(union) = &self.union {
            union
                .each_part(node, |at| {
                    if shown.is_none() {
                        shown = Some(read(at, path, ownership));
                    }
                    Ok(())
                })
                .map_err(of_union(path))?;
        }
        shown.unwrap_or_else(|| Ok(Attributes::of_implied_directory()))
    }
}

fn read(at: LayerAt<'_>, path: &[u8], ownership: Ownership) -> Result<Attributes, LayerError> {
    let stat = at.stat().map_err(LayerError::os(path, "stat it"))?;
    Attributes::read(at, path, &stat, ownership)
}

/// Makes what is missing, and the directories that lead to it.
fn make(
    layer: BorrowedFd<'_>,
    image: &Image,
    wanted: &[(Vec<Step>, bool)],
    ownership: Ownership,
) -> Result<(), LayerError> {
    let mut place = UnpackTarget::new(layer, ownership)?;
    let root = match &image.union {
        Some(union) => image.attributes(union.root(), b"", ownership)?,
        None => Attributes::of_implied_directory(),
    };
    place.root(&root)?;
    let mut made = BTreeSet::new();
    for (steps, file) in wanted {
        if steps.iter().all(|(_, node)| node.is_some()) {
            continue;
        }
        for end in 1..=steps.len() {
            let path = join(&steps[..end]);
            if !made.insert(path.clone()) {
                continue;
            }
            match &steps[end - 1].1 {
                Some(node) => place.directory(&path, &image.attributes(node, &path, ownership)?)?,
                None if *file && end == steps.len() => {
                    let attributes =
                        Attributes { kind: Kind::File, mode: 0o644, ..Attributes::of_implied_directory() };
                    let made = place.file(&path)?;
                    place.finish_file(made.as_fd(), &path, &attributes)?;
                }
                None => place.directory(&path, &Attributes::of_implied_directory())?,
            }
        }
    }
    place.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn target(path: &str, file: bool) -> Target {
        Target { path: path.into(), file, optional: false }
    }

    #[test]
    fn links_stay_in_the_image_and_what_is_missing_is_made_above_it() {
        let top = tempfile::tempdir().unwrap();
        let (image, layer) = (top.path().join("image"), top.path().join("layer"));
        fs::create_dir_all(image.join("etc")).unwrap();
        fs::create_dir_all(image.join("var")).unwrap();
        fs::create_dir(&layer).unwrap();
        fs::set_permissions(image.join("etc"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(image.join("file"), "").unwrap();
        for (to, at) in
            [("/host", "dev"), ("../../run", "var/run"), ("/out/of", "etc/resolv.conf"), ("loop", "loop")]
        {
            symlink(to, image.join(at)).unwrap();
        }
        let wanted = [
            target("/var/run/x", true),
            target("/etc/resolv.conf", true),
            target("/dev/fuse", true),
            target("/m/n", false),
        ];
        let layers = [LowerSource::Directory(image.clone())];
        let root = File::open(&layer).unwrap();
        // As whoever runs the tests.
        let places = prepare(root.as_fd(), &layers, &wanted, Ownership::OverrideStat).unwrap();
        let at = |given: &str| places[Path::new(given)].to_str().unwrap().to_owned();
        assert_eq!(at("/var/run/x"), "/run/x");
        assert_eq!(at("/etc/resolv.conf"), "/out/of");
        assert_eq!(at("/dev/fuse"), "/dev/fuse");
        assert_eq!(at("/m/n"), "/m/n");
        for (path, directory) in
            [("dev", true), ("proc", true), ("sys", true), ("run/x", false), ("out/of", false), ("m/n", true)]
        {
            let stat = fs::symlink_metadata(layer.join(path)).unwrap();
            assert_eq!((stat.is_dir(), stat.is_file()), (directory, !directory), "{path}");
        }
        assert!(!layer.join("etc").exists() && !layer.join("var").exists());
        for (path, what) in
            [("/file/x", "no directory"), ("/loop", "too many"), ("/..", "root"), ("/file", "no directory")]
        {
            let error = prepare(root.as_fd(), &layers, &[target(path, false)], Ownership::OverrideStat);
            assert!(error.unwrap_err().to_string().contains(what), "{path}");
            let optional = Target { optional: true, ..target(path, false) };
            let places = prepare(root.as_fd(), &layers, &[optional], Ownership::OverrideStat).unwrap();
            assert!(places.is_empty());
        }
    }
}
