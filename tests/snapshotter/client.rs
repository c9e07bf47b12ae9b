//! A client of the snapshotter that is not containerd: the gRPC calls, one after the other.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};

use containerd_snapshots::api::snapshots::v1::snapshots_client::SnapshotsClient;
use containerd_snapshots::api::snapshots::v1::*;
use containerd_snapshots::api::types::Mount;
use containerd_snapshots::tonic::codegen::Service;
use containerd_snapshots::tonic::transport::{Channel, Endpoint, Uri};
use containerd_snapshots::tonic::{Code, Status};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

pub struct Client {
    runtime: Runtime,
    calls: SnapshotsClient<Channel>,
}

struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = UnixStream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<UnixStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(UnixStream::connect(self.0.clone()))
    }
}

pub type Labels<'a> = &'a [(&'a str, &'a str)];

fn map(labels: Labels<'_>) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// The kinds on the wire.
pub const VIEW: i32 = 1;
pub const ACTIVE: i32 = 2;
pub const COMMITTED: i32 = 3;

type Answer<T> = Result<T, Box<Status>>;

impl Client {
    pub fn connect(socket: &Path) -> Client {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_static("http://snapshotter.invalid");
        let channel =
            runtime.block_on(endpoint.connect_with_connector(Connector(socket.to_owned()))).unwrap();
        Client { runtime, calls: SnapshotsClient::new(channel) }
    }

    fn run<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut SnapshotsClient<Channel>) -> Result<T, Status>,
    ) -> Answer<T> {
        self.runtime.block_on(call(&mut self.calls)).map_err(Box::new)
    }

    pub fn prepare_with(&mut self, key: &str, parent: &str, labels: Labels<'_>) -> Answer<Mount> {
        let request = PrepareSnapshotRequest {
            key: key.into(),
            parent: parent.into(),
            labels: map(labels),
            ..Default::default()
        };
        self.run(async |calls| Ok(one(calls.prepare(request).await?.into_inner().mounts)))
    }

    pub fn prepare(&mut self, key: &str, parent: &str) -> Answer<Mount> {
        self.prepare_with(key, parent, &[])
    }

    pub fn view(&mut self, key: &str, parent: &str) -> Answer<Mount> {
        let request = ViewSnapshotRequest { key: key.into(), parent: parent.into(), ..Default::default() };
        self.run(async |calls| Ok(one(calls.view(request).await?.into_inner().mounts)))
    }

    pub fn mounts(&mut self, key: &str) -> Answer<Mount> {
        let request = MountsRequest { key: key.into(), ..Default::default() };
        self.run(async |calls| Ok(one(calls.mounts(request).await?.into_inner().mounts)))
    }

    pub fn commit(&mut self, name: &str, key: &str) -> Answer<()> {
        let request = CommitSnapshotRequest { name: name.into(), key: key.into(), ..Default::default() };
        self.run(async |calls| calls.commit(request).await.map(|_| ()))
    }

    pub fn remove(&mut self, key: &str) -> Answer<()> {
        let request = RemoveSnapshotRequest { key: key.into(), ..Default::default() };
        self.run(async |calls| calls.remove(request).await.map(|_| ()))
    }

    pub fn cleanup(&mut self) -> Answer<()> {
        self.run(async |calls| calls.cleanup(CleanupRequest::default()).await.map(|_| ()))
    }

    pub fn stat(&mut self, key: &str) -> Answer<Info> {
        let request = StatSnapshotRequest { key: key.into(), ..Default::default() };
        self.run(async |calls| Ok(calls.stat(request).await?.into_inner().info.unwrap()))
    }

    pub fn update(&mut self, info: Info) -> Answer<Info> {
        let request = UpdateSnapshotRequest { info: Some(info), ..Default::default() };
        self.run(async |calls| Ok(calls.update(request).await?.into_inner().info.unwrap()))
    }

    pub fn usage(&mut self, key: &str) -> Answer<(i64, i64)> {
        let request = UsageRequest { key: key.into(), ..Default::default() };
        self.run(async |calls| {
            let usage = calls.usage(request).await?.into_inner();
            Ok((usage.inodes, usage.size))
        })
    }

    pub fn list(&mut self, filters: &[&str]) -> Answer<Vec<Info>> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let request = ListSnapshotsRequest { filters, ..Default::default() };
        self.run(async |calls| {
            let mut stream = calls.list(request).await?.into_inner();
            let mut found = Vec::new();
            while let Some(page) = stream.message().await? {
                found.extend(page.info);
            }
            Ok(found)
        })
    }
}

fn one(mounts: Vec<Mount>) -> Mount {
    let [mount] = <[Mount; 1]>::try_from(mounts).unwrap();
    mount
}

/// Asserts that a call is refused with this code.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Answer<T>, code: Code) {
    assert_eq!(answer.unwrap_err().code(), code);
}

/// A mount as containerd makes it, unmounted when it is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(kind: &str, source: &str, options: &[String], target: &Path) -> Mounted {
        std::fs::create_dir_all(target).unwrap();
        let mut command = match kind.strip_prefix("fuse3.") {
            Some(program) => {
                let mut command = Command::new("mount.fuse3");
                command.arg(source).arg(target);
                for option in options {
                    command.arg("-o").arg(option);
                }
                command.arg("-t").arg(program);
                command
            }
            None => {
                let mut command = Command::new("mount");
                if kind != "bind" {
                    command.arg("-t").arg(kind);
                }
                command.arg(source).arg(target).arg("-o").arg(options.join(","));
                command
            }
        };
        // containerd reads the helper's output to its end, so a daemon that kept it open would hang this.
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Mounted(target.to_owned())
    }

    pub fn of(mount: &Mount, target: &Path) -> Mounted {
        Mounted::new(&mount.r#type, &mount.source, &mount.options, target)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        support::run("umount", &[&self.0]);
    }
}
