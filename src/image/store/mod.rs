//! The store: where images, their unpacked layers and containers live.
//!
//! ```text
//! ROOT/                        /var/lib/unionmount, or ~/.local/share/unionmount of an ordinary user
//! ├── oci-layout               an OCI image layout: skopeo, umoci and podman read and write it
//! ├── index.json                 as it is (oci:ROOT:NAME)
//! ├── blobs/sha256/HEX         manifests, configs and layers as they came, compressed or not
//! ├── layers/HEX/              an unpacked layer, known by its diff id, shared by all images and containers; an
//! │   │                          image's [`attribute_layer`], known by the image's id
//! │   ├── diff/                  its tree, in overlay form: whiteouts are 0:0 devices, opaque directories marked
//! │   └── layer.json             its sizes, how owners are kept; written last
//! ├── containers/ID/           a container: config.json names its image; diff, work, merged
//! ├── tmp/                     what is being made, by processes that share `lock`
//! ├── applies/, tries/         what `apply` and `try` have under way
//! ├── damaged/                 what `verify --repair` has set aside
//! ├── index.copy.json          what index.json is mended from, see [`mend`]
//! └── lock, gate.lock, index.lock   see [`lock`]
//! ```
//!
//! # Diff id or chain id
//!
//! Unpacked layers are known by their **diff id**, the sha256 of the layer's uncompressed tar. What is unpacked is the
//! layer alone, with its whiteouts as marks, and not the layer applied to what lies below it, so the same tar gives the
//! same tree whatever is below (`attribute_layer` tells what becomes of directories that a tar doesn't name). Two images share a layer then even where they have it at different heights, and the layers
//! of one image can be unpacked all at once. Chain ids, which containerd and Docker use, stand for a layer and everything
//! below, which is what snapshots of a filesystem need; nothing here does.
//!
//! A layer that another program or `commit` has put into the store is unpacked when it is first needed: its blob is all of
//! it, and a tree that nobody mounts is not worth the writing and the syncing.
//!
//! # Before or after
//!
//! A process that adds something makes it in a directory of its own below `tmp/` ([`Staging`]). When all is complete, its
//! digests and sizes are checked and all of it is on disk, it moves blobs and layers to their places, one rename
//! each, then publishes the new index.json by another rename. A blob or a layer has its final name only when it is complete,
//! and an image has its name only when everything of it is there. Killed before the last rename, the store holds some
//! blobs that nothing names, and a directory in `tmp/`: `prune` takes them away.

mod aside;
mod attribute_layer;
pub mod checked;
pub(crate) mod containers;
mod gc;
mod images;
mod index;
mod layers;
pub mod lock;
mod mend;
pub(crate) mod owner;
mod publish;
mod readers;
mod staging;
mod verify;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use self::lock::Lock;
use super::digest::Digest;
use super::error::{Result, StoreError};
use super::layer::Ownership;
use crate::sys::flock::Access;

pub use self::containers::{BrokenContainer, ContainerUse, Containers};
pub use self::gc::{PruneOptions, Pruned, Removed};
pub use self::images::{Catalog, Image, SHORTEST_ID};
pub use self::index::Index;
pub(crate) use self::layers::Take;
pub use self::layers::{LayerRecord, UnpackedLayers};
pub(crate) use self::staging::CONTENT_SIZE;
pub use self::staging::{AddedLayer, Blob, BlobWriter, Staging};
pub use self::verify::{Finding, Verified};

/// Where root keeps its store.
const SYSTEM_ROOT: &str = "/var/lib/unionmount";

pub(crate) const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, or at the user's own place; makes it when there is none.
    ///
    /// # Errors
    /// When the directory can't be made, or holds something else than a store.
    pub fn open(root: Option<&Path>) -> Result<Store> {
        let root = Store::place(root)?;
        make_dir(&root)?;
        // Later messages and container records name the place whatever the working directory is then.
        let root = fs::canonicalize(&root).map_err(StoreError::io("resolve it", &root))?;
        owner::check(&root)?;
        let store = Store { root };
        store.prepare()?;
        Ok(store)
    }

    /// Opens the store at `root`, or at the user's own place, if there is one: a question makes none.
    ///
    /// # Errors
    /// As [`Store::open`]'s.
    pub fn existing(root: Option<&Path>) -> Result<Option<Store>> {
        let place = Store::place(root)?;
        let is_empty = match fs::read_dir(&place) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            // What can't be looked at is opened, which says why.
            Err(_) => false,
        };
        if is_empty {
            let place = fs::canonicalize(&place).map_err(StoreError::io("resolve it", &place))?;
            return owner::check(&place).map(|()| None);
        }
        Store::open(root).map(Some)
    }

    /// Returns where the store at `root` or the user's own would be.
    ///
    /// # Errors
    /// When the user has no place for one.
    pub fn place(root: Option<&Path>) -> Result<PathBuf> {
        root.map_or_else(default_root, |root| Ok(root.to_owned()))
    }

    fn prepare(&self) -> Result<()> {
        let marker = self.root.join("oci-layout");
        match read_layout(&marker) {
            // What another program began has no places for what is unpacked and staged.
            Ok(true) => return self.make_places(),
            Ok(false) => {}
            // A constant that is damaged locks nobody out: what else lies here tells that this is a store.
            Err(error) if error.is_damage() && self.root.join("blobs/sha256").is_dir() => {
                log::warn!("{error}; `unionmount verify --repair` mends it");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        // Never turn somebody's full directory into a store. Another process may be doing this at the same time.
        let known = [
            "blobs",
            "layers",
            "containers",
            "tmp",
            "applies",
            "tries",
            "damaged",
            "index.json",
            "index.copy.json",
            "oci-layout",
            "lock",
            "gate.lock",
            "index.lock",
        ];
        for entry in fs::read_dir(&self.root).map_err(StoreError::io("list it", &self.root))? {
            let entry = entry.map_err(StoreError::io("list it", &self.root))?;
            if !known.iter().any(|name| entry.file_name() == *name) {
                return Err(StoreError::Refused(format!(
                    "{}: is neither empty nor a store (it holds {}); give another directory with --root",
                    self.root.display(),
                    entry.file_name().display()
                )));
            }
        }
        let _alone = self.lock_index(Access::Exclusive)?;
        self.make_places()?;
        // Where blobs are, an index is missing, not empty: `verify --repair` makes it anew.
        if !self.index_path().exists() && self.all_blobs()?.is_empty() {
            self.write_index(&Index::empty(), || Ok(()))?;
        }
        // Last: from here on it is a store.
        self.write_file("oci-layout", LAYOUT.as_bytes(), || Ok(()))
    }

    fn make_places(&self) -> Result<()> {
        let places = ["blobs", "blobs/sha256", "layers", "containers", "tmp"];
        places.iter().try_for_each(|dir| make_dir(&self.root.join(dir)))
    }

    /// Returns the store's directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns where containers lie, each in a directory named by its id.
    pub fn containers_dir(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// Returns where a blob lies, once it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Returns the directory of the layer with this diff id; its tree is `diff` in it.
    pub fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// Returns where a part of a blob is kept until the rest comes.
    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.tmp_dir().join(format!("partial-{}", digest.hex()))
    }

    fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// Returns the lock that keeps names as they are: shared, no image is removed while it is held, so a container can
    /// be recorded that uses one. Held for a moment only, and not while anything else of the store is called that
    /// changes names ([`Staging::publish`]).
    ///
    /// # Errors
    /// When the lock file can't be opened.
    pub fn lock_index(&self, access: Access) -> Result<Lock> {
        Lock::wait(&self.root.join("index.lock"), access)
    }

    /// Replaces a small file in the root, at once and durably. What must be durable before it is seen, `first` syncs: it is
    /// called when the new file is on disk already, so that one commit of the filesystem's journal serves both.
    fn write_file(&self, name: &str, content: &[u8], first: impl FnOnce() -> Result<()>) -> Result<()> {
        let path = self.root.join(name);
        let mut file = tempfile::NamedTempFile::new_in(self.tmp_dir())
            .map_err(StoreError::io("create a file in it", self.tmp_dir()))?;
        std::io::Write::write_all(&mut file, content).map_err(StoreError::io("write", &path))?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))
            .map_err(StoreError::io("chmod", &path))?;
        file.as_file().sync_all().map_err(StoreError::io("sync", &path))?;
        first()?;
        file.persist(&path).map_err(|error| StoreError::io("write", &path)(error.error))?;
        sync_dir(&self.root)
    }
}

/// Returns where this user's things are kept: the store, and what `apply` and `try` have under way. /var/lib for root, the XDG
/// data directory for everybody else, root of a user namespace included.
///
/// # Errors
/// When it can't be found out.
pub(crate) fn default_root() -> Result<PathBuf> {
    let namespace = "/proc/self/ns/user";
    if Ownership::ask().map_err(StoreError::io("look at it", namespace))? == Ownership::Real {
        return Ok(SYSTEM_ROOT.into());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/share")))
        .map(|data| data.join("unionmount"))
        .ok_or_else(|| {
            StoreError::Refused("no place for the store: HOME is not set; give one with --root".into())
        })
}

/// Reads oci-layout; false when there is none.
fn read_layout(path: &Path) -> Result<bool> {
    match fs::read(path) {
        Ok(text) => check_layout(path, &text).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("read it", path)(error)),
    }
}

fn check_layout(path: &Path, text: &[u8]) -> Result<()> {
    let layout: oci_spec::image::OciLayout = serde_json::from_slice(text)
        .map_err(|error| StoreError::damaged(path, format!("is no OCI layout: {error}")))?;
    if !layout.image_layout_version().starts_with("1.") {
        let what = format!("version {} of OCI layouts is not known", layout.image_layout_version());
        // One flipped bit makes a later version of the constant; a later version differs in more.
        let flipped: u32 = text.iter().zip(LAYOUT.bytes()).map(|(a, b)| (a ^ b).count_ones()).sum();
        return Err(match text.len() == LAYOUT.len() && flipped == 1 {
            true => StoreError::damaged(path, what),
            false => StoreError::Refused(format!("{}: {what}", path.display())),
        });
    }
    Ok(())
}

/// Makes a directory with its parents, closed to others: layers hold setuid programs of unknown origin.
fn make_dir(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        // Said of one that is there and can't be looked at, too.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            match fs::metadata(path).map_err(StoreError::io("look at it", path))?.is_dir() {
                true => Ok(()),
                false => Err(StoreError::io("create it", path)(error)),
            }
        }
        made => made.map_err(StoreError::io("create it", path)),
    }
}

/// Makes the names in a directory durable.
fn sync_dir(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync it", path))
}
