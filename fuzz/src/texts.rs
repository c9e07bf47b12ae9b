//! Texts of others: documents of images, options, names, templates, owners kept in attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use unionmount::cli::options::Options;
use unionmount::cli::template::Template;
use unionmount::image::digest::Digest;
use unionmount::image::document::{Config, check_layer_type, entries, parse_index, parse_manifest};
use unionmount::image::name::ImageName;
use unionmount::image::platform::Platform;
use unionmount::union::escaped_path::EscapedPath;
use unionmount::union::frozen::record::Record;
use unionmount::union::view::override_stat::{Override, link_owner};

/// An index, a manifest, a config. What was read, written and read again is the same.
pub fn documents(data: &[u8]) {
    if let Ok(index) = parse_index(data) {
        for entry in entries(&index) {
            entry.kind();
            entry.platform.as_ref().and_then(Platform::rank);
        }
        let again = serde_json::to_vec(&index).unwrap();
        assert_eq!(parse_index(&again).as_ref(), Ok(&index), "an index that was written again");
    }
    if let Ok(manifest) = parse_manifest(data) {
        for layer in manifest.layers() {
            check_layer_type(layer.media_type().as_ref()).ok();
            Digest::try_from(layer.digest()).ok();
        }
        let again = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(parse_manifest(&again).as_ref(), Ok(&manifest), "a manifest that was written again");
    }
    if let Ok(config) = Config::parse(data) {
        let again = Config::parse(&serde_json::to_vec(&config.written).unwrap()).unwrap();
        assert_eq!(again.written, config.written, "a config that was written again");
        assert_eq!(again.diff_ids, config.diff_ids);
    }
}

/// The record of frozen layers.
pub fn stack_records(data: &[u8]) {
    let Ok(record) = Record::parse(data) else { return };
    let again = Record::parse(&record.to_text().unwrap());
    assert_eq!(again.as_ref(), Ok(&record), "a record that was written again");
    for layer in &record.layers {
        // It comes to an end, at what lies on nothing.
        let chain = record.chain(layer.layer);
        assert!(chain.len() <= record.layers.len() && chain.last().is_some_and(|last| last.below == 0));
        assert_eq!(record.find(&layer.name), Some(layer.layer));
    }
}

/// What follows `-o`.
pub fn options(data: &[u8]) {
    let mut options = Options::default();
    if options.read(OsStr::from_bytes(data)).is_err() {
        return;
    }
    // Said twice, an option says the same, but for those that are added up.
    let mut again = Options::default();
    again.read(OsStr::from_bytes(data)).unwrap();
    assert_eq!(options, again);
}

/// Names of images, digests, and paths as they are told.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        let escaped = serde_json::to_string(&EscapedPath::from(data)).unwrap();
        let back: EscapedPath = serde_json::from_str(&escaped).unwrap();
        assert_eq!(back.0, data);
        return;
    };
    if let Ok(name) = text.parse::<ImageName>() {
        for shown in [name.to_string(), name.full()] {
            assert_eq!(shown.parse().as_ref(), Ok(&name), "{text:?} shown as {shown:?}");
        }
    }
    ImageName::meant_by(text);
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
    let back: EscapedPath =
        serde_json::from_str(&serde_json::to_string(&EscapedPath::from(data)).unwrap()).unwrap();
    assert_eq!(back.0, data);
    if let Ok(path) = serde_json::from_str::<EscapedPath>(text) {
        let again = serde_json::to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<EscapedPath>(&again).unwrap(), path);
    }
}

/// A template, and after a zero byte the JSON that it is applied to.
pub fn templates(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let Ok(text) = std::str::from_utf8(parts.next().unwrap_or_default()) else { return };
    let Ok(template) = Template::parse(text) else { return };
    let default = serde_json::json!({"ID": "sha256:00", "RepoTags": ["a:1", "b:2"], "Size": 1234567, "Labels": {"k": "v"}, "Names": null});
    let value = parts.next().and_then(|json| serde_json::from_slice(json).ok()).unwrap_or(default);
    template.apply(&value).ok();
}

/// An owner, mode and type that an attribute keeps. What is shown is read again as the same.
pub fn override_stat(data: &[u8]) {
    if let Some(read) = Override::parse(data) {
        let shown = read.to_string();
        assert_eq!(Override::parse(shown.as_bytes()), Some(read), "shown as {shown:?}");
    }
    let name = data.split(|byte| *byte == 0).next().unwrap_or_default();
    link_owner(data, name);
    link_owner(data, b"name");
}
