//! What the store's own small files are mended from: `oci-layout` is a constant, and index.json has a copy.
//!
//! index.json is written by others too, so it bears no checksum. Whenever this program publishes it, it writes the same
//! text to `index.copy.json`, with a checksum and without a sync: after a power failure it is the same, an older one, or
//! none. A copy that differs in single bits from index.json, as no program changes it, tells of damage.

use std::collections::HashSet;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::checked::{seal, unseal};
use super::index::{Index, read_bounded};
use super::verify::{Finding, Verified};
use super::{LAYOUT, Store};
use crate::image::document::{self, BlobSource, Entry, MAX_DOCUMENT};
use crate::image::error::{Result, StoreError};
use crate::sys::flock::Access;

const COPY: &str = "index.copy.json";

/// The copy, as it stands on disk.
#[derive(Serialize, Deserialize)]
struct Copy {
    index: String,
}

impl Store {
    /// Writes the copy of index.json. Nothing depends on it as long as all is well, so a failure is only told.
    pub(super) fn write_copy(&self, index: &str) {
        let path = self.root().join(COPY);
        let write = || -> io::Result<()> {
            let text = seal(&Copy { index: index.to_owned() })?;
            let file = tempfile::NamedTempFile::new_in(self.tmp_dir())?;
            fs::write(file.path(), text)?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        if let Err(error) = write() {
            log::warn!("{}: cannot write the copy of index.json: {error}", path.display());
        }
    }

    /// Returns the text of the copy, if there is a good one. That it couldn't be read says nothing of it.
    fn copied_text(&self) -> Result<Option<String>> {
        let Some(text) = unless_damaged(read_bounded(&self.root().join(COPY)))? else { return Ok(None) };
        let copy = unseal(&text, true).ok().and_then(|value| serde_json::from_value::<Copy>(value).ok());
        Ok(copy.map(|copy| copy.index))
    }

    /// Returns the index as it was when this program wrote it last, if there is a good copy.
    pub(super) fn copied_index(&self) -> Result<Option<Index>> {
        let document = self.copied_text()?.and_then(|text| document::parse_index(text.as_bytes()).ok());
        Ok(document.map(Index::of))
    }

    /// Returns whether index.json differs from its copy in a few single bits, as damage does and no program.
    fn index_has_flipped_bits(&self) -> Result<bool> {
        let Some(copy) = self.copied_text()? else { return Ok(false) };
        let text = read_bounded(&self.index_path())?;
        let (copy, text) = (copy.as_bytes(), text.as_slice());
        if copy.len() != text.len() {
            return Ok(false);
        }
        let flipped: Vec<u32> = copy.iter().zip(text).map(|(a, b)| (a ^ b).count_ones()).collect();
        let bytes = flipped.iter().filter(|&&bits| bits > 0).count();
        Ok((1..=4).contains(&bytes) && flipped.iter().all(|&bits| bits <= 1))
    }

    /// Checks oci-layout and index.json, and mends them with `repair`. Returns the index, if there is one to go on with.
    pub(super) fn verify_lists(&self, repair: bool, verified: &mut Verified) -> Result<Option<Index>> {
        self.verify_layout(repair, verified)?;
        let read = self.read_index_strictly().and_then(|index| Ok((index, self.index_has_flipped_bits()?)));
        let broken = match read {
            Ok((index, false)) => {
                self.verify_entries(&index, verified);
                return Ok(Some(index));
            }
            Ok(_) => StoreError::damaged(self.index_path(), "differs in single bits from its copy"),
            Err(error) if error.is_damage() => error,
            Err(error) => {
                verified.unchecked(&error);
                return Ok(None);
            }
        };
        if !repair {
            verified.broken(
                broken.to_string(),
                "unionmount verify --repair, which takes its copy and the images that lie in the store"
                    .into(),
            );
            return self.copied_index();
        }
        let (index, nameless) = self.mend_index()?;
        let mend = match nameless {
            0 => "mended from its copy; the old one is set aside".to_owned(),
            count => format!(
                "mended; {count} images lost their names: unionmount images, then unionmount tag ID NAME"
            ),
        };
        verified.mended(broken.to_string(), mend);
        Ok(Some(index))
    }

    /// Makes index.json anew: what the copy has, and the images that lie in the store without being named there, which it
    /// counts.
    fn mend_index(&self) -> Result<(Index, usize)> {
        let _alone = self.lock_index(Access::Exclusive)?;
        let mut index = self.copied_index()?.unwrap_or_else(Index::empty);
        let mut listed: HashSet<_> = index.digests().into_iter().collect();
        for entry in index.entries() {
            // What an index for several platforms lists, it stands for.
            if let Some(text) = unless_damaged(self.fetch(&entry.digest))?
                && let Ok(inner) = document::parse_index(&text)
            {
                listed.extend(document::entries(&inner).iter().map(|entry| entry.digest));
            }
        }
        let mut nameless = 0;
        for (digest, path) in self.all_blobs()? {
            let size = fs::metadata(&path).map_err(StoreError::io("look at it", &path))?.len();
            if listed.contains(&digest) || size > MAX_DOCUMENT {
                continue;
            }
            if let Some(documents) = unless_damaged(self.manifest(&digest, &|_| true))?.flatten() {
                let media_type = documents.manifest.media_type().as_ref();
                let media_type = media_type.map_or(super::staging::MANIFEST, AsRef::as_ref);
                index.set(&digest, size, media_type, None);
                nameless += 1;
            }
        }
        match self.keep_aside(&self.index_path()) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            kept => drop(kept?),
        }
        self.write_index(&index, || Ok(()))?;
        Ok((index, nameless))
    }

    /// Checks what index.json says of each manifest against the manifest.
    fn verify_entries(&self, index: &Index, verified: &mut Verified) {
        let path = self.index_path();
        for Entry { digest, size, media_type, .. } in index.entries() {
            let what = match self.blob_size(&digest) {
                // Told with the image.
                Ok(None) | Err(_) => continue,
                Ok(Some(found)) if found != size => format!("has {found} bytes instead of {size}"),
                Ok(Some(_)) => match self.fetch(&digest).ok().and_then(|text| media_type_of(&text)) {
                    Some(found) if found != media_type => format!("is {found} instead of {media_type}"),
                    _ => continue,
                },
            };
            verified.broken(
                format!("{}: {digest} {what}", path.display()),
                "give it a name again: unionmount rmi its name, then load the image".into(),
            );
        }
    }

    fn verify_layout(&self, repair: bool, verified: &mut Verified) -> Result<()> {
        let path = self.root().join("oci-layout");
        let Err(error) = super::read_layout(&path) else { return Ok(()) };
        if !error.is_damage() {
            verified.unchecked(&error);
            return Ok(());
        }
        if repair {
            self.write_file("oci-layout", LAYOUT.as_bytes(), || Ok(()))?;
            verified.mended(error.to_string(), "mended: it always holds the same".into());
        } else {
            verified.broken(error.to_string(), "unionmount verify --repair, which writes it again".into());
        }
        Ok(())
    }
}

/// Returns what was read, if it is what it should be; what couldn't be looked at stays an error.
fn unless_damaged<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if error.is_damage() => Ok(None),
        read => read.map(Some),
    }
}

/// Returns what a document says it is.
fn media_type_of(text: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(text).ok()?;
    Some(value.get("mediaType")?.as_str()?.to_owned())
}

impl Verified {
    /// Notes what is broken.
    pub fn broken(&mut self, what: String, mend: String) {
        let finding = Finding { what, mend };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Notes what was broken and is well again.
    pub fn mended(&mut self, what: String, mend: String) {
        self.mended.push(Finding { what, mend });
    }

    /// Notes what could not be looked at: it was not touched.
    pub fn unchecked(&mut self, error: &StoreError) {
        let finding = Finding {
            what: format!("could not be checked: {error}"),
            mend: "nothing was touched; end what is in the way (a full disk, too few open files) and verify again"
                .into(),
        };
        if !self.unchecked.contains(&finding) {
            self.unchecked.push(finding);
        }
    }
}
