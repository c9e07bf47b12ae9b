//! A scratch directory with a store, and images out of nothing.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use support::Scratch;
use support::cli::{Ended, run};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The program; `UNIONMOUNT_TEST_PROGRAM` is another one.
pub fn program() -> OsString {
    std::env::var_os("UNIONMOUNT_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_unionmount").into())
}

/// A scratch directory in which `store` is the store.
pub struct Lab {
    scratch: Scratch,
}

impl Lab {
    pub fn new() -> Lab {
        Lab { scratch: Scratch::new() }
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.at("store")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(self.path())
            .env("UNIONMOUNT_ROOT", self.store())
            .env_remove("RUST_LOG");
        command
    }

    #[track_caller]
    pub fn um(&self, args: &[&str]) -> Ended {
        run(&mut self.command(args))
    }

    /// A shell script in the scratch directory; `$UM` is the program.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Ended {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(self.path());
        run(command.env("UM", program()).env("UNIONMOUNT_ROOT", self.store()).env_remove("RUST_LOG"))
    }

    /// What a script prints; it must succeed.
    #[track_caller]
    pub fn out(&self, script: &str) -> String {
        let ended = self.sh(script);
        assert_eq!(ended.code, Some(0), "{script}: {ended:?}");
        ended.out.trim().to_owned()
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// `images`, as `NAME:TAG ID`, sorted.
    #[track_caller]
    pub fn images(&self) -> Vec<String> {
        let ended = self.um(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]).ok();
        let mut lines: Vec<String> = ended.out.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// `inspect`.
    #[track_caller]
    pub fn inspect(&self, image: &str) -> Value {
        let ended = self.um(&["inspect", image]).ok();
        serde_json::from_str::<Value>(&ended.out).unwrap()[0].take()
    }

    /// The trees of an image's layers, topmost first, as `inspect` tells where they are.
    #[track_caller]
    pub fn layers(&self, image: &str) -> Vec<PathBuf> {
        self.um(&["unpack", image]).ok();
        let data = self.inspect(image)["GraphDriver"]["Data"].take();
        let lower = data["LowerDir"].as_str().unwrap_or_default().split(':').filter(|part| !part.is_empty());
        data["UpperDir"].as_str().into_iter().chain(lower).map(PathBuf::from).collect()
    }

    /// All files of the store with their contents' digests, locks aside: what must be the same after a failure.
    pub fn state(&self) -> Vec<String> {
        let script = "cd store && find . -mindepth 1 ! -name '*lock' -printf '%P %y %m %l\\n' | LC_ALL=C sort; \
                      find . -type f ! -name '*lock' -print0 | LC_ALL=C sort -z | xargs -0r sha256sum";
        self.out(script).lines().map(str::to_owned).collect()
    }

    #[track_caller]
    pub fn verify(&self) {
        let ended = self.um(&["verify"]).ok();
        assert!(ended.out.ends_with("all is well\n"), "{ended:?}");
        assert!(!ended.out.contains("unionmount prune"), "{ended:?}");
    }
}

/// A tar, entry by entry.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    fn entry(self, kind: tar::EntryType, name: &str, mode: u32, content: &[u8]) -> Tar {
        self.entry_of(kind, name, (mode, 0), content)
    }

    fn entry_of(
        mut self,
        kind: tar::EntryType,
        name: &str,
        (mode, owner): (u32, u64),
        content: &[u8],
    ) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_mtime(1_600_000_000);
        header.set_uid(owner);
        header.set_gid(owner);
        // Names as they are, `..` too.
        let bytes = name.as_bytes();
        assert!(bytes.len() < 100);
        header.as_gnu_mut().unwrap().name[..bytes.len()].copy_from_slice(bytes);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn dir(self, name: &str) -> Tar {
        self.entry(tar::EntryType::Directory, name, 0o755, b"")
    }

    pub fn dir_of(self, name: &str, mode: u32, owner: u64) -> Tar {
        self.entry_of(tar::EntryType::Directory, name, (mode, owner), b"")
    }

    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Tar {
        self.entry(tar::EntryType::Regular, name, 0o644, content.as_ref())
    }

    /// Puts PAX records before the next entry.
    pub fn records(mut self, records: &[(&str, &str)]) -> Tar {
        self.0.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
        self
    }

    pub fn program(self, name: &str, content: &[u8]) -> Tar {
        self.entry(tar::EntryType::Regular, name, 0o755, content)
    }

    pub fn link(mut self, kind: tar::EntryType, name: &str, target: &str) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_size(0);
        header.set_mtime(1_600_000_000);
        header.set_uid(0);
        header.set_gid(0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// An image out of tars, bottom first. What the tests twist are its documents.
#[derive(Clone)]
pub struct Image {
    /// The layers' tars.
    pub tars: Vec<Vec<u8>>,
    /// The layers' blobs, and the endings of their media types.
    pub blobs: Vec<(Vec<u8>, String)>,
    pub config: Value,
    pub names: Vec<String>,
}

impl Image {
    pub fn new(name: &str, tars: Vec<Vec<u8>>) -> Image {
        let ids: Vec<String> = tars.iter().map(|tar| format!("sha256:{}", sha256(tar))).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "author": "somebody",
            "config": { "Cmd": ["/bin/sh"], "Env": ["A=1"], "Healthcheck": { "Test": ["NONE"] } },
            "rootfs": { "type": "layers", "diff_ids": ids },
            "history": ids.iter().enumerate().map(|(at, _)| json!({
                "created": "2024-01-02T03:04:05Z", "created_by": format!("step {at}"),
            })).collect::<Vec<_>>(),
        });
        let blobs = tars.iter().map(|tar| (tar.clone(), String::new())).collect();
        Image { tars, blobs, config, names: vec![name.to_owned()] }
    }

    pub fn compressed(mut self, with: fn(&[u8]) -> Vec<u8>, ending: &str) -> Image {
        self.blobs = self.tars.iter().map(|tar| (with(tar), ending.to_owned())).collect();
        self
    }

    pub fn id(&self) -> String {
        sha256(self.config.to_string().as_bytes())
    }

    fn manifest(&self) -> Value {
        let config = self.config.to_string();
        let layers: Vec<Value> =
            self.blobs.iter().map(|(blob, ending)| descriptor(&format!("{LAYER}{ending}"), blob)).collect();
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config.as_bytes()), "layers": layers })
    }

    /// The files of an OCI layout with this image.
    pub fn oci(&self) -> Files {
        oci(std::slice::from_ref(self))
    }

    /// The files that `docker save` wrote before version 25: a directory a layer.
    pub fn docker(&self) -> Files {
        docker(std::slice::from_ref(self))
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() })
}

/// Files with names, in an order.
#[derive(Clone, Default)]
pub struct Files(pub Vec<(String, Vec<u8>)>);

pub fn oci(images: &[Image]) -> Files {
    let mut files = Files::default();
    let mut manifests = Vec::new();
    for image in images {
        let manifest = image.manifest().to_string().into_bytes();
        for name in &image.names {
            let mut entry = descriptor(MANIFEST, &manifest);
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
            manifests.push(entry);
        }
        if image.names.is_empty() {
            manifests.push(descriptor(MANIFEST, &manifest));
        }
        files.blob(&manifest);
        files.blob(image.config.to_string().as_bytes());
        for (blob, _) in &image.blobs {
            files.blob(blob);
        }
    }
    files.put("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    files.put("index.json", json!({ "schemaVersion": 2, "manifests": manifests }).to_string());
    files
}

pub fn docker(images: &[Image]) -> Files {
    let mut files = Files::default();
    let mut manifest = Vec::new();
    for image in images {
        let mut layers = Vec::new();
        for (blob, _) in &image.blobs {
            let name = format!("{}/layer.tar", sha256(blob));
            files.put(&format!("{}/VERSION", sha256(blob)), "1.0");
            files.put(&name, blob);
            layers.push(name);
        }
        let config = format!("{}.json", image.id());
        files.put(&config, image.config.to_string());
        manifest.push(json!({ "Config": config, "RepoTags": image.names, "Layers": layers }));
    }
    // Last, as docker writes it.
    files.put("manifest.json", Value::Array(manifest).to_string());
    files
}

impl Files {
    pub fn put(&mut self, name: &str, content: impl AsRef<[u8]>) {
        self.0.retain(|(old, _)| old != name);
        self.0.push((name.to_owned(), content.as_ref().to_vec()));
    }

    fn blob(&mut self, bytes: &[u8]) {
        self.put(&format!("blobs/sha256/{}", sha256(bytes)), bytes);
    }

    pub fn get(&self, name: &str) -> &[u8] {
        &self.0.iter().find(|(known, _)| known == name).unwrap().1
    }

    pub fn archive(&self) -> Vec<u8> {
        self.0.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content)).bytes()
    }

    pub fn write(&self, dir: &Path) {
        for (name, content) in &self.0 {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
}

/// Three layers and six files, the top layer with a newer version of one of them.
pub fn three_layers() -> Image {
    let base = Tar::new()
        .dir("etc/")
        .file("etc/os", "debian")
        .file("etc/motd", "welcome")
        .dir("bin/")
        .file("bin/sh", "#!");
    let app = Tar::new().dir("etc/").file("etc/app.conf", "port = 80").dir("srv/").file("srv/app", "v1");
    let patch = Tar::new().dir("srv/").file("srv/app", "v2").dir("etc/").file("etc/.wh.motd", "");
    Image::new("app:1", vec![base.bytes(), app.bytes(), patch.bytes()])
}
