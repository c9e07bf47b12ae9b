//! Making and finding containers.

#![allow(clippy::disallowed_methods, reason = "the upper is being made, and is nobody else's")]

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::binds;
use super::error::{ContainerError, Result};
use super::lowers::{Lowers, image_blobs, image_layers};
use super::mounting::{self, Rights};
use super::naming;
use super::settings::Settings;
use super::targets::{self, Places};
use crate::image::digest::Digest;
use crate::image::layer::merged::root_attributes;
use crate::image::layer::{Attributes, Ownership};
use crate::image::store::checked::seal;
use crate::image::store::containers::{Containers, IMAGE_LINK, container_record, not_understood};
use crate::image::store::{Image, SHORTEST_ID, Store};
use crate::sys::flock::{Access, lock};
use crate::sys::object::{At, Writable};
use crate::union::stack::layer::LowerSource;

/// What a container is, as it stands in its config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What the user calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The id of the image.
    pub image: Digest,
    /// The image as the user named it.
    pub image_name: String,
    /// When it was made, as RFC 3339 tells times.
    pub created: String,
    /// What is run, and how.
    pub settings: Settings,
    /// Where in the image's tree the mounts go.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    pub places: Places,
    /// When the last run that has ended began, as RFC 3339 tells times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// How the last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

impl ContainerRecord {
    /// Returns what can be told of the container in `dir` without its record: its id and its image, and as much as its
    /// directory.
    pub(super) fn derived(dir: &Path, image: Digest) -> ContainerRecord {
        let made = fs::metadata(dir.join(IMAGE_LINK)).or_else(|_| fs::symlink_metadata(dir.join(IMAGE_LINK)));
        let made = made.and_then(|found| found.modified()).ok();
        let created =
            made.and_then(|time| jiff::Timestamp::try_from(time).ok()).unwrap_or_else(jiff::Timestamp::now);
        ContainerRecord {
            id: dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            name: None,
            image,
            image_name: image.short(),
            created: created.to_string(),
            settings: Settings::default(),
            places: Places::new(),
            started: None,
            finished: None,
            exit_code: None,
        }
    }
}

impl ContainerRecord {
    /// Returns that of a new container of the same image and settings.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(super) fn again(&self, name: &str) -> Result<ContainerRecord> {
        Ok(ContainerRecord {
            id: fresh_id()?,
            name: Some(name.to_owned()),
            created: jiff::Timestamp::now().to_string(),
            places: Places::new(),
            started: None,
            finished: None,
            exit_code: None,
            ..self.clone()
        })
    }
}

/// Where the layer lies on which mounts stand.
const TARGETS: &str = "targets";

/// A container of a store.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its directory.
    pub dir: PathBuf,
    /// What it is.
    pub record: ContainerRecord,
}

/// A container whose record can't be read or believed.
pub(super) struct Unreadable {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// What the user calls it, where that is known all the same.
    name: Option<String>,
    /// Why.
    pub(super) error: ContainerError,
}

impl Unreadable {
    /// Returns its id.
    pub(super) fn id(&self) -> Cow<'_, str> {
        self.dir.file_name().unwrap_or_default().to_string_lossy()
    }
}

impl Container {
    /// Makes a container of an image.
    ///
    /// # Errors
    /// When the name is taken or malformed, the image has gone, or nothing can be written.
    pub fn create(
        store: &Store,
        image: &Image,
        image_name: &str,
        name: Option<String>,
        settings: Settings,
    ) -> Result<Container> {
        let record = ContainerRecord {
            id: fresh_id()?,
            name,
            image: image.id,
            image_name: image_name.to_owned(),
            created: jiff::Timestamp::now().to_string(),
            settings,
            places: Places::new(),
            started: None,
            finished: None,
            exit_code: None,
        };
        Container::make(store, image, record, |container| container.prepare(store, image))
    }

    /// Makes a container of a record. `prepare` makes all that belongs to it.
    pub(super) fn make<E: From<ContainerError>>(
        store: &Store,
        image: &Image,
        record: ContainerRecord,
        prepare: impl FnOnce(&mut Container) -> std::result::Result<(), E>,
    ) -> std::result::Result<Container, E> {
        if let Some(name) = &record.name {
            naming::check_name(name)?;
        }
        // Until there is a record, `prune` would take the directory for a leftover.
        let _kept = store.keep_all().map_err(ContainerError::from)?;
        let mut container = Container { dir: store.containers_dir().join(&record.id), record };
        // Until the record is written, this is the only one who knows of the directory.
        let made = prepare(&mut container).and_then(|()| Ok(container.publish(store, image)?));
        if made.is_err()
            && let Err(left) = container.unmake()
        {
            // The first error is the one to tell; `prune` takes the rest away.
            log::warn!("what was begun of the container is left: {left}");
        }
        made.map(|()| container)
    }

    /// Writes the record of a container that is whole, with which it is there.
    fn publish(&mut self, store: &Store, image: &Image) -> Result<()> {
        let _names = store.lock_index(Access::Exclusive)?;
        // Removed meanwhile?
        store.resolve(&image.id.to_string())?;
        let uses = store.container_uses()?;
        let taken = names(&uses);
        match &self.record.name {
            Some(name) => naming::check_free(&taken, name)?,
            None => self.record.name = Some(naming::by_chance(&taken, &self.record.id)),
        }
        self.save()?;
        // Its name in the store: after a power failure it is there, or not.
        sync_dir(&store.containers_dir())
    }

    /// Gives the container another name.
    ///
    /// # Errors
    /// When the name is taken or malformed, the container has gone, or nothing can be written.
    pub fn rename(&mut self, store: &Store, name: &str) -> Result<()> {
        naming::check_name(name)?;
        let gone = || ContainerError::Unknown(self.shown_name().to_owned());
        // The record before the index, as whoever branches off this one has them; that may take long.
        let _lock = self.lock_record()?.ok_or_else(gone)?;
        let _names = store.lock_index(Access::Exclusive)?;
        naming::check_free(&names(&store.container_uses()?), name)?;
        match self.update_locked(|record| record.name = Some(name.to_owned()))? {
            true => Ok(()),
            false => Err(ContainerError::Unknown(self.shown_name().to_owned())),
        }
    }

    /// Changes the record as it is on the disk by now, at once and durably. False when the container has gone: it doesn't
    /// come back.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut ContainerRecord)) -> Result<bool> {
        let Some(_lock) = self.lock_record()? else { return Ok(false) };
        self.update_locked(change)
    }

    /// Does as [`Container::update`], with its lock.
    fn update_locked(&mut self, change: impl FnOnce(&mut ContainerRecord)) -> Result<bool> {
        let Some(there) = Container::load(&self.dir)? else { return Ok(false) };
        self.record = there.record;
        change(&mut self.record);
        self.save().map(|()| true)
    }

    /// Takes the lock under which the record is changed, or removed: its directory, open. `None` when that has gone.
    pub(super) fn lock_record(&self) -> Result<Option<File>> {
        let dir = match File::open(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            dir => dir.map_err(ContainerError::io("open it", &self.dir))?,
        };
        lock(&dir, Access::Exclusive).map_err(ContainerError::io("lock it", &self.dir))?;
        Ok(Some(dir))
    }

    /// Makes all that is beside the upper, but what is in the layer on which mounts stand.
    pub(super) fn make_places(&self, image: &Image) -> Result<()> {
        let make = |path: PathBuf, mode: u32| {
            fs::DirBuilder::new().mode(mode).create(&path).map_err(ContainerError::io("create it", &path))
        };
        make(self.dir.clone(), 0o700)?;
        for name in ["work", "merged", "bundle", "volumes"] {
            make(self.dir.join(name), 0o700)?;
        }
        let link = self.dir.join(IMAGE_LINK);
        std::os::unix::fs::symlink(image.id.to_string(), &link)
            .map_err(ContainerError::io("create it", &link))?;
        make(self.dir.join(TARGETS), 0o755)
    }

    /// Makes all directories, and the layer on which mounts stand.
    fn prepare(&mut self, store: &Store, image: &Image) -> Result<()> {
        self.make_places(image)?;
        let path = self.upper();
        fs::DirBuilder::new().mode(0o755).create(&path).map_err(ContainerError::io("create it", &path))?;
        // The root looks as it does in the image.
        let layers = self.image_lowers(store, image)?;
        let trees = layers.sources()?;
        let ownership = Ownership::of_this_process();
        let layer = |source| ContainerError::Layer { id: self.short_id().to_owned(), source };
        let upper = File::open(self.upper()).map_err(ContainerError::io("open it", self.upper()))?;
        let attributes = match layers.top_directory()? {
            Some(top) => {
                let at = At::Fd(top.as_fd());
                let stat = at.stat().map_err(ContainerError::io("stat it", &layers.paths[0]))?;
                Attributes::read(at, b"", &stat, ownership).map_err(layer)?
            }
            None if trees.is_empty() => Attributes::of_implied_directory(),
            None => root_attributes(&trees, ownership).map_err(layer)?,
        };
        attributes
            .put_on_root(Writable::held(upper.as_fd()), ownership)
            .map_err(|source| ContainerError::Layer { id: self.short_id().to_owned(), source })?;
        self.make_targets(image, &trees)
    }

    /// Makes in the layer on which mounts stand what they need above the trees of the image.
    pub(super) fn make_targets(&mut self, image: &Image, trees: &[LowerSource]) -> Result<()> {
        let ownership = Ownership::of_this_process();
        let path = self.dir.join(TARGETS);
        let targets = File::open(&path).map_err(ContainerError::io("open it", &path))?;
        let wanted = binds::targets(&image.config, &self.record.settings);
        self.record.places = targets::prepare(targets.as_fd(), trees, &wanted, ownership)
            .map_err(|source| ContainerError::Layer { id: self.short_id().to_owned(), source })?;
        Ok(())
    }

    /// Returns all containers, the newest first; those whose record is damaged are told and left out.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn all(store: &Store) -> Result<Vec<Container>> {
        let (all, broken) = Container::all_and_broken(store)?;
        for Unreadable { error, .. } in broken {
            log::warn!("{error}");
        }
        Ok(all)
    }

    /// Returns all containers, the newest first, and those whose record can't be read or believed.
    ///
    /// # Errors
    /// When they can't be listed.
    pub(super) fn all_and_broken(store: &Store) -> Result<(Vec<Container>, Vec<Unreadable>)> {
        let (mut all, mut broken) = (Vec::new(), Vec::new());
        let uses = store.container_uses()?;
        for usage in uses.known {
            let dir = store.containers_dir().join(&usage.id);
            match Container::load(&dir) {
                Ok(Some(container)) => all.push(container),
                // Removed since.
                Ok(None) => {}
                Err(error) => broken.push(Unreadable { dir, name: usage.name, error }),
            }
        }
        broken.extend(uses.broken.into_iter().map(|one| Unreadable {
            dir: store.containers_dir().join(one.id),
            name: None,
            error: one.error.into(),
        }));
        all.sort_by_key(|one| std::cmp::Reverse(one.created()));
        Ok((all, broken))
    }

    pub(super) fn load(dir: &Path) -> Result<Option<Container>> {
        let Some(value) = container_record(dir)? else { return Ok(None) };
        let record = serde_json::from_value(value).map_err(|error| not_understood(dir, &error))?;
        Ok(Some(Container { dir: dir.to_owned(), record }))
    }

    /// Finds a container by its name, its id or a unique prefix of that, of at least four digits.
    ///
    /// # Errors
    /// When there is none or several.
    pub fn find(store: &Store, text: &str) -> Result<Container> {
        let (mut all, broken) = Container::all_and_broken(store)?;
        if let Some(at) = all.iter().position(|c| c.record.name.as_deref() == Some(text)) {
            return Ok(all.swap_remove(at));
        }
        let prefix = text.to_ascii_lowercase();
        let mut found: Vec<usize> = (0..all.len())
            .filter(|&at| prefix.len() >= SHORTEST_ID && all[at].record.id.starts_with(&prefix))
            .collect();
        match (found.pop(), found.is_empty()) {
            (Some(at), true) => Ok(all.swap_remove(at)),
            (None, _) => {
                // What was asked for may be one of those that can't be read: by its name, where that is known, or its id.
                let is_it = |one: &Unreadable| {
                    let begins = prefix.len() >= SHORTEST_ID && one.id().starts_with(&prefix);
                    begins || one.name.as_deref() == Some(text)
                };
                match broken.into_iter().find(is_it) {
                    Some(one) => Err(one.error),
                    None => Err(ContainerError::Unknown(text.to_owned())),
                }
            }
            (Some(at), false) => {
                found.push(at);
                let found = found.iter().map(|&at| all[at].short_id().to_owned()).collect();
                Err(ContainerError::Ambiguous { text: text.to_owned(), found })
            }
        }
    }

    /// Returns whether that is its name or its whole id.
    pub fn is_called(&self, text: &str) -> bool {
        self.record.name.as_deref() == Some(text) || self.record.id == text
    }

    /// Writes the record, at once and durably. Whoever changes one that others may know holds its lock.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn save(&self) -> Result<()> {
        let path = self.dir.join("config.json");
        let text = seal(&self.record)
            .map_err(|error| ContainerError::Refused(format!("{}: {error}", path.display())))?;
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)
            .map_err(ContainerError::io("create a file in it", &self.dir))?;
        file.write_all(&text).map_err(ContainerError::io("write", &path))?;
        file.as_file().sync_all().map_err(ContainerError::io("sync", &path))?;
        file.persist(&path).map_err(|error| ContainerError::io("write", &path)(error.error))?;
        sync_dir(&self.dir)
    }

    /// Returns when it was made; `None` where its record tells no time. The text of two times doesn't compare as they do.
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.record.created.parse().ok()
    }

    /// Returns the first twelve digits of the id, as tables show it.
    pub fn short_id(&self) -> &str {
        self.record.id.get(..12).unwrap_or(&self.record.id)
    }

    /// Returns what the user calls it, or its short id.
    pub fn shown_name(&self) -> &str {
        self.record.name.as_deref().unwrap_or_else(|| self.short_id())
    }

    /// Returns the layer that receives all changes.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("diff")
    }

    /// Returns where the upper's objects are prepared.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Returns where it is mounted.
    pub fn merged(&self) -> PathBuf {
        self.dir.join("merged")
    }

    /// Returns the layers below the upper.
    ///
    /// # Errors
    /// When the image has gone or is incomplete.
    pub fn lowers(&self, store: &Store) -> Result<Lowers> {
        let image = store.resolve(&self.record.image.to_string())?;
        let mut lowers = self.image_lowers(store, &image)?;
        let (targets, init) = (self.dir.join(TARGETS), self.dir.join("init"));
        let is_there = |dir: &Path| dir.try_exists().map_err(ContainerError::io("look at it", dir));
        if is_there(&targets)? {
            lowers.paths.insert(0, targets);
        } else if is_there(&init)? {
            // Of a container that an older version made.
            lowers.paths.push(init);
        }
        Ok(lowers)
    }

    /// Returns the layers of its image: a lazy container never unpacks one, and takes none that is unpacked meanwhile, so that copies in its
    /// upper remember where they come from.
    pub(super) fn image_lowers(&self, store: &Store, image: &Image) -> Result<Lowers> {
        match self.record.settings.lazy {
            true => image_blobs(store, image),
            false => image_layers(store, image),
        }
    }

    /// Mounts it at `at`, if it isn't mounted there.
    ///
    /// # Errors
    /// The mount's own message.
    pub fn mount(&self, store: &Store, at: &Path, rights: Rights) -> Result<()> {
        if mounting::is_mounted(at)? {
            return Ok(());
        }
        let lowers = self.lowers(store)?;
        let upper = self.upper();
        let options = self.record.settings.mount_options();
        mounting::mount(
            &lowers.paths,
            Some((&upper, &self.work())),
            at,
            self.short_id(),
            &[],
            (rights, &options),
        )
    }
}

/// Returns the names that containers have, those too of which a later program wrote the rest, each with the short id. With the lock of names.
fn names(uses: &Containers) -> Vec<(&str, &str)> {
    let named = uses.known.iter().filter_map(|one| Some((one.name.as_deref()?, &*one.id)));
    named.map(|(name, id)| (name, id.get(..12).unwrap_or(id))).collect()
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|open| open.sync_all()).map_err(ContainerError::io("sync it", dir))
}

fn fresh_id() -> Result<String> {
    let mut bytes = [0u8; 32];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match got {
        Ok(32) => Ok(hex::encode(bytes)),
        _ => Err(ContainerError::Refused("the system has no random numbers".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::image::store::Verified;

    /// Makes a container of nothing but a record.
    fn recorded(store: &Store) -> Container {
        let dir = store.containers_dir().join("0123456789ab");
        fs::create_dir_all(&dir).unwrap();
        let container = Container { record: ContainerRecord::derived(&dir, Digest::of(b"")), dir };
        container.save().unwrap();
        container
    }

    #[test]
    fn a_container_that_has_gone_is_not_brought_back() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(Some(top.path())).unwrap();
        let mut known = recorded(&store);
        let record = known.dir.join("config.json");
        // Removed by another process, which is still at the rest of it.
        assert!(known.clone().delete_record(false).unwrap());
        let error = known.rename(&store, "again").unwrap_err();
        assert!(matches!(error, ContainerError::Unknown(_)), "{error}");
        assert!(!known.update(|record| record.exit_code = Some(1)).unwrap());
        assert!(!record.exists());
        fs::remove_dir_all(&known.dir).unwrap();
        assert!(!known.update(|record| record.exit_code = Some(1)).unwrap());
    }

    /// What an older program doesn't know it neither loses nor takes for damage.
    #[test]
    fn a_record_of_a_later_program_is_refused_and_stays_as_it_is() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(Some(top.path())).unwrap();
        let mut container = recorded(&store);
        container.record.name = Some("web".to_owned());
        std::os::unix::fs::symlink(container.record.image.to_string(), container.dir.join(IMAGE_LINK))
            .unwrap();
        let record = container.dir.join("config.json");
        let mut other = container.clone();
        let later: [fn(&mut serde_json::Value); 5] = [
            |value| value["settings"]["cap_add"] = serde_json::json!(["CAP_CHOWN", "CAP_OF_LATER"]),
            |value| value["restart"] = "always".into(),
            |value| value["settings"]["restart"] = "always".into(),
            |value| value["settings"]["net"] = "bridge".into(),
            |value| {
                value["settings"]["tmpfs"] =
                    serde_json::json!([{ "target": "/t", "options": [], "restart": "always" }]);
            },
        ];
        for (at, change) in later.into_iter().enumerate() {
            let mut value = serde_json::to_value(&container.record).unwrap();
            change(&mut value);
            let text = seal(&value).unwrap();
            fs::write(&record, &text).unwrap();
            let is_told = |error: ContainerError| {
                let said = error.to_string();
                let is_later = said.contains("a later version of unionmount") && said.contains("(unknown ");
                assert!(is_later && !error.is_damage(), "{at}: {said}");
            };
            for text in ["web", "0123", "0123456789ab"] {
                is_told(Container::find(&store, text).unwrap_err());
            }
            is_told(other.update(|record| record.exit_code = Some(1)).unwrap_err());
            let taken = naming::check_free(&names(&store.container_uses().unwrap()), "web");
            assert!(taken.is_err(), "{at}: its name is another's");
            assert!(!Container::remove_broken(&store, "0123", true).unwrap(), "{at}");
            let mut verified = Verified::default();
            crate::container::verify::verify(&store, true, &mut verified).unwrap();
            assert_eq!(fs::read(&record).unwrap(), text, "{at}");
        }
    }

    #[test]
    fn the_newest_comes_first_whatever_its_time_looks_like() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(Some(top.path())).unwrap();
        let times = [
            "2026-01-01T00:00:00.5Z",
            "2026-01-01T00:00:00.12Z",
            "2026-01-01T00:00:00.123Z",
            "2026-01-01T00:00:00Z",
            "2026-01-01T01:30:00+02:00",
        ];
        for (at, time) in times.iter().enumerate() {
            let dir = store.containers_dir().join(format!("{at}123456789ab"));
            fs::create_dir_all(&dir).unwrap();
            let record = ContainerRecord {
                created: (*time).to_owned(),
                ..ContainerRecord::derived(&dir, Digest::of(b""))
            };
            Container { dir, record }.save().unwrap();
        }
        let all = Container::all(&store).unwrap();
        let made: Vec<&str> = all.iter().map(|one| one.record.created.as_str()).collect();
        assert_eq!(made, [times[0], times[2], times[1], times[3], times[4]]);
    }

    #[test]
    fn who_removes_waits_for_who_changes() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(Some(top.path())).unwrap();
        let mut changed = recorded(&store);
        let removed = changed.clone();
        let (tell, told) = mpsc::channel();
        let lock = changed.lock_record().unwrap();
        let remover = std::thread::spawn(move || {
            let done = removed.delete_record(false).unwrap();
            tell.send(()).unwrap();
            done
        });
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        assert!(changed.dir.join("config.json").exists());
        drop(lock);
        assert!(remover.join().unwrap());
        assert!(!changed.update(|_| ()).unwrap());
    }
}
