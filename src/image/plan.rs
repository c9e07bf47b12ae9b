//! What an archive or a layout says it holds: OCI layouts, and both forms of `docker save`.
//!
//! Docker's archives since version 25 are OCI layouts too, with digests for everything; those are believed first. In older
//! ones `manifest.json` names a config and layers by files, and digests are those that the config lists.

mod choose;
mod docker;
mod form;
mod found;
mod oci;

use std::collections::BTreeMap;

use self::form::{Form, form, read};
use self::found::Found;
use super::digest::Digest;
use super::error::Result;
use super::name::ImageName;
use super::source::ImageSource;

pub use self::choose::Wanted;
pub(super) use self::choose::choose;
pub(super) use self::docker::is_image;
pub(super) use self::found::{PlannedImage, PlannedLayer};

/// Finds the images of a source.
pub(super) fn plan(source: &ImageSource) -> Result<Vec<PlannedImage>> {
    let form = form(source, |_| true)?;
    let found = match &form {
        Form::Oci(listed) => oci::find(source, oci::best(listed.clone()), &mut Err)?,
        Form::Docker => docker::find(source, docker::listed(source)?, &mut Err)?,
    };
    if found.is_empty() {
        let what = match form {
            Form::Oci(_) => "is an OCI layout that holds no image",
            Form::Docker => "is an archive of docker save that holds no image",
        };
        return Err(source.wrong(what));
    }
    no_collisions(source, &found)?;
    found.into_iter().map(|image| read(source, image)).collect()
}

/// Refuses one name for two images, which would depend on their order.
fn no_collisions(source: &ImageSource, images: &[Found]) -> Result<()> {
    let mut owners: BTreeMap<&ImageName, Digest> = BTreeMap::new();
    for image in images {
        for name in &image.names {
            match owners.insert(name, image.id) {
                Some(other) if other != image.id => {
                    let ids = format!("{} and {}", other.short(), image.id.short());
                    return Err(source.wrong(format!("gives the name {name} to two images, {ids}")));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Read;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use proptest::prelude::*;
    use serde_json::json;

    use super::docker::parse_docker;
    use super::*;
    use crate::image::document::{Config, MAX_DOCUMENT, entries, parse_index, parse_manifest};
    use crate::image::source::{ImageFiles, blob_name};

    /// Files in memory, which count how often each is read.
    #[derive(Default)]
    struct Counted {
        files: HashMap<String, Vec<u8>>,
        opened: Mutex<HashMap<String, usize>>,
    }

    impl ImageFiles for Counted {
        fn name(&self) -> String {
            "a".into()
        }

        fn open(&self, name: &str) -> Option<(Box<dyn Read + Send>, u64)> {
            let text = self.files.get(name)?.clone();
            *self.opened.lock().entry(name.into()).or_default() += 1;
            let size = text.len() as u64;
            Some((Box::new(std::io::Cursor::new(text)), size))
        }
    }

    impl Counted {
        /// Adds a blob and describes it.
        fn blob(&mut self, kind: &str, text: &serde_json::Value) -> serde_json::Value {
            let text = text.to_string().into_bytes();
            let digest = Digest::of(&text);
            let size = text.len();
            self.files.insert(blob_name(&digest), text);
            json!({ "mediaType": format!("application/vnd.oci.image.{kind}.v1+json"), "digest": digest, "size": size })
        }

        /// Adds an image without layers.
        fn image(&mut self, architecture: &str) -> (serde_json::Value, Digest) {
            let config = json!({ "os": "linux", "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": [] } });
            let config = self.blob("config", &config);
            let id = config["digest"].as_str().unwrap().parse().unwrap();
            (self.blob("manifest", &json!({ "schemaVersion": 2, "config": config, "layers": [] })), id)
        }

        fn index(&mut self, entries: &[serde_json::Value]) {
            let index = json!({ "schemaVersion": 2, "manifests": entries }).to_string();
            self.files.insert("index.json".into(), index.into_bytes());
        }

        fn choose(self: &Arc<Counted>, wanted: &Wanted) -> std::result::Result<Digest, String> {
            let source = ImageSource::given(self.clone());
            choose(&source, wanted).map(|image| image.id).map_err(|error| error.to_string())
        }

        fn most_opened(&self) -> usize {
            self.opened.lock().values().copied().max().unwrap_or(0)
        }
    }

    fn named(mut entry: serde_json::Value, name: &str) -> serde_json::Value {
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        entry
    }

    fn digest_of(entry: &serde_json::Value) -> Digest {
        entry["digest"].as_str().unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_listed_again_and_again_is_read_once() {
        let mut files = Counted::default();
        let (entry, id) = files.image("amd64");
        let entries: Vec<_> = (0..3000).map(|at| named(entry.clone(), &format!("a:{}", at % 7))).collect();
        files.index(&entries);
        let files = Arc::new(files);
        assert_eq!(files.choose(&Wanted::Only), Ok(id));
        let images = plan(&ImageSource::given(files.clone())).unwrap();
        assert_eq!((images.len(), images[0].names.len()), (1, 7));
        assert!(files.most_opened() < 20, "{:?}", files.opened);
        // In the form of docker save, too, however the file's name is spelled.
        let mut files = Counted::default();
        let config =
            json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [] } });
        files.files.insert("c.json".into(), config.to_string().into_bytes());
        let list: Vec<_> = (0..3000).map(|_| json!({ "Config": "c.json", "RepoTags": ["a:1"] })).collect();
        files.files.insert("manifest.json".into(), json!(list).to_string().into_bytes());
        let files = Arc::new(files);
        assert!(files.choose(&Wanted::Only).is_ok());
        assert_eq!(plan(&ImageSource::given(files.clone())).unwrap()[0].names.len(), 1);
        assert!(files.most_opened() < 20, "{:?}", files.opened);
    }

    #[test]
    fn documents_without_end_are_not_read() {
        let mut files = Counted::default();
        let entries: Vec<_> = (0..80)
            .map(|at| {
                let manifest = json!({ "schemaVersion": 2, "config": { "mediaType": "x", "digest": Digest::of(b""), "size": 1 }, "layers": [] });
                let filled = format!("{}{}", " ".repeat((MAX_DOCUMENT - 4096) as usize + at), manifest);
                let digest = Digest::of(filled.as_bytes());
                let size = filled.len();
                files.files.insert(blob_name(&digest), filled.into_bytes());
                json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size })
            })
            .collect();
        files.index(&entries);
        let refused = Arc::new(files).choose(&Wanted::Only).unwrap_err();
        assert!(refused.contains("documents take more than"), "{refused}");
    }

    #[test]
    fn a_digest_means_its_image_whatever_else_is_there() {
        let mut files = Counted::default();
        let (own, own_id) = files.image("amd64");
        let (other, other_id) = files.image("s390x");
        let (third, third_id) = files.image("riscv64");
        let nested = files.blob("index", &json!({ "schemaVersion": 2, "manifests": [third, own.clone()] }));
        let damaged = named(files.blob("manifest", &json!({ "schemaVersion": 2, "config": 3 })), "a:1");
        let missing =
            named(json!({ "mediaType": own["mediaType"], "digest": Digest::of(b"none"), "size": 4 }), "a:2");
        let mut other_named = named(other.clone(), "b:1");
        other_named["platform"] = json!({ "os": "linux", "architecture": "s390x" });
        let mut own_named = named(own.clone(), "b:1");
        own_named["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        files.index(&[damaged.clone(), missing, other_named, own_named, nested.clone()]);
        let files = Arc::new(files);
        for (digest, id) in [
            (digest_of(&own), own_id),
            (own_id, own_id),
            // Of another platform, though an image for this one has its name.
            (digest_of(&other), other_id),
            (other_id, other_id),
            (digest_of(&third), third_id),
            (third_id, third_id),
            (digest_of(&nested), own_id),
        ] {
            assert_eq!(files.choose(&Wanted::Digest(digest)), Ok(id), "{digest}");
        }
        assert_eq!(files.choose(&Wanted::Name("b:1".into())), Ok(own_id));
        // One that isn't found may be the damaged one.
        for digest in [digest_of(&damaged), Digest::of(b"another")] {
            let refused = files.choose(&Wanted::Digest(digest)).unwrap_err();
            assert!(refused.contains("is no manifest of an image"), "{refused}");
        }
        let refused = files.choose(&Wanted::Name("c".into())).unwrap_err();
        assert!(refused.contains("holds no image \"c\"; it has a:1, a:2, b:1"), "{refused}");
    }

    #[test]
    fn a_damaged_index_is_told_though_another_document_is_there() {
        for index in ["{", "damaged", "missing", "empty"] {
            let mut files = Counted::default();
            let (entry, id) = files.image("amd64");
            let config = files.files[&blob_name(&id)].clone();
            files.files.insert("c.json".into(), config);
            files
                .files
                .insert("manifest.json".into(), json!([{ "Config": "c.json" }]).to_string().into_bytes());
            match index {
                "empty" => files.index(&[]),
                _ => files.index(std::slice::from_ref(&entry)),
            }
            match index {
                "{" => drop(files.files.insert("index.json".into(), b"{".to_vec())),
                "damaged" => drop(files.files.insert(blob_name(&digest_of(&entry)), b"{}".to_vec())),
                "missing" => drop(files.files.remove(&blob_name(&digest_of(&entry)))),
                _ => {}
            }
            let is_told = matches!(index, "{" | "damaged");
            assert_eq!(Arc::new(files).choose(&Wanted::Only).is_err(), is_told, "{index}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_document_or_refused(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_docker(&text);
            let _ = parse_index(&text).map(|index| entries(&index));
            let _ = Config::parse(&text);
            let _ = parse_manifest(&text);
        }

        /// Takes bytes that are nearly right, which get further.
        #[test]
        fn any_change_of_a_document_is_a_document_or_refused(
            at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(), which in 0..4usize,
        ) {
            let digest = Digest::of(b"x");
            let texts = [
                format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":3,"annotations":{{"org.opencontainers.image.ref.name":"a:1"}},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#),
                format!(r#"[{{"Config":"x.json","RepoTags":["a:1"],"Layers":["{digest}/layer.tar"]}}]"#),
                format!(r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["a"],"Volumes":{{"/v":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created":"2020-01-01T00:00:00Z","empty_layer":true}}]}}"#),
                format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{digest}","size":1}},"layers":[{{"mediaType":"x","digest":"{digest}","size":1}}]}}"#),
            ];
            let mut text = texts[which].clone().into_bytes();
            let length = text.len();
            text[at.index(length)] = byte;
            for text in [&text[..], &text[..cut.index(length)]] {
                let _ = parse_docker(text);
                let _ = parse_index(text).map(|index| entries(&index));
                let _ = Config::parse(text);
                let _ = parse_manifest(text);
            }
        }
    }
}
