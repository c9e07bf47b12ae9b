//! An image in an OCI archive, made here: layers with deletions, an opaque directory, links, owners, capabilities.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub const NAME: &str = "docker.io/library/layers:1";

/// A layer's tar in the making.
pub struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Layer {
        Layer(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, path: &str, mode: u32, uid: u64, data: &[u8], link: &str) -> Layer {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(uid);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        if kind == EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        self.0.append_data(&mut header, path, data).unwrap();
        self
    }

    pub fn dir(self, path: &str, mode: u32, uid: u64) -> Layer {
        self.entry(EntryType::Directory, path, mode, uid, b"", "")
    }

    pub fn file(self, path: &str, mode: u32, uid: u64, data: impl AsRef<[u8]>) -> Layer {
        self.entry(EntryType::Regular, path, mode, uid, data.as_ref(), "")
    }

    pub fn link(self, path: &str, target: &str) -> Layer {
        self.entry(EntryType::Link, path, 0o644, 0, b"", target)
    }

    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.entry(EntryType::Symlink, path, 0o777, 0, b"", target)
    }

    pub fn special(self, kind: EntryType, path: &str) -> Layer {
        self.entry(kind, path, 0o640, 3, b"", "")
    }

    pub fn whiteout(self, path: &str) -> Layer {
        self.file(path, 0o644, 0, "")
    }

    /// An attribute of the next entry.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Layer {
        let name = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(name.as_str(), value)]).unwrap();
        self
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// What the tests import: a busybox and a bit of everything.
pub fn layers() -> Vec<Layer> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed by scripts/install-deps");
    let mut base = Layer::new()
        .dir("bin", 0o755, 0)
        .file("bin/busybox", 0o755, 0, busybox)
        .dir("etc", 0o755, 0)
        .file("etc/release", 0o644, 0, "one\n")
        .file("etc/gone", 0o644, 0, "gone")
        .file("etc/passwd", 0o644, 0, "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        .file("etc/shadow", 0o600, 42, "secret")
        .dir("tmp", 0o1777, 0)
        .dir("home", 0o755, 0)
        .dir("home/user", 0o700, 1000)
        .file("home/user/mine", 0o600, 1000, "mine")
        .dir("cache", 0o755, 0)
        .dir("cache/deep", 0o755, 0)
        .file("cache/deep/old", 0o644, 0, "old")
        .file("cache/old", 0o644, 0, "old")
        .file("first", 0o644, 0, "linked")
        .link("second", "first")
        .link("third", "first")
        .special(EntryType::Fifo, "fifo")
        .special(EntryType::Char, "null")
        .file("setuid", 0o4755, 0, "setuid")
        // cap_net_raw+ep
        .xattr("security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .file("capable", 0o755, 0, "capable")
        .xattr("user.note", b"kept")
        .file("noted", 0o644, 0, "noted");
    for applet in ["sh", "cat", "ls", "rm", "sleep", "mkdir", "ln", "id", "su", "true", "mv", "test"] {
        base = base.symlink(&format!("bin/{applet}"), "busybox");
    }
    let changes = Layer::new()
        .dir("etc", 0o755, 0)
        .file("etc/release", 0o600, 5, "two\n")
        .whiteout("etc/.wh.gone")
        .dir("cache", 0o750, 7)
        .whiteout("cache/.wh..wh..opq")
        .file("cache/new", 0o644, 7, "new")
        .whiteout(".wh.fifo")
        .file("first", 0o644, 0, "linked again")
        .link("fourth", "first");
    let top = Layer::new()
        .whiteout(".wh.second")
        .dir("home", 0o755, 0)
        .dir("home/user", 0o711, 1000)
        .dir("cache", 0o755, 0)
        .dir("cache/deep", 0o755, 0)
        .file("cache/deep/newer", 0o644, 0, "newer")
        .dir("long", 0o755, 0)
        .file(&format!("long/{}", "name".repeat(40)), 0o644, 0, "long");
    vec![base, changes, top]
}

/// An image as containerd knows it.
pub struct Image {
    /// The chain ids of its layers: names of their snapshots.
    pub chain: Vec<String>,
}

impl Image {
    pub fn top(&self) -> &str {
        self.chain.last().unwrap()
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Writes the archive.
pub fn write(path: &Path, name: &str, layers: Vec<Layer>) -> Image {
    let mut archive = Builder::new(File::create(path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    let mut blob = |kind: &str, bytes: &[u8]| {
        let digest = digest(bytes);
        add(&format!("blobs/{}", digest.replace(':', "/")), bytes);
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    };
    let mut chain: Vec<String> = Vec::new();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        let tar = layer.finish();
        let diff_id = digest(&tar);
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => digest(format!("{below} {diff_id}").as_bytes()),
        });
        diff_ids.push(diff_id);
        descriptors.push(blob("layer.v1.tar", &tar));
    }
    let platform = json!({ "architecture": architecture(), "os": "linux" });
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Cmd": ["/bin/true"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "io.containerd.image.name": name });
    manifest["platform"] = platform;
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    add("index.json", index.to_string().as_bytes());
    archive.into_inner().unwrap().flush().unwrap();
    Image { chain }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
