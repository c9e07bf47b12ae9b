//! The adaptor to containerd's gRPC: translate, call [`Snapshots`], answer.

// The errors are tonic's.
#![allow(clippy::result_large_err)]

use std::collections::HashMap;
use std::sync::Arc;

use containerd_snapshots::api::types;
use containerd_snapshots::tonic::{self, Code, Status};
use containerd_snapshots::{Info, Snapshotter};
use tokio::sync::RwLock;

use super::error::{Error, Result};
use super::snapshots::{Mount, SnapshotKind, SnapshotRecord, Snapshots, Usage};

/// What answers containerd.
pub(super) struct Service {
    snapshots: Arc<Snapshots>,
    under_way: Arc<RwLock<()>>,
}

impl Service {
    /// Makes the service; `under_way` is held for reading by each call, so that who gets it for writing knows that none
    /// is.
    pub(super) fn new(snapshots: Arc<Snapshots>, under_way: Arc<RwLock<()>>) -> Service {
        Service { snapshots, under_way }
    }

    /// Runs a call where it may wait for the disk.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        key: String,
        call: impl FnOnce(&Snapshots, &str) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        let snapshots = self.snapshots.clone();
        let under_way = self.under_way.clone().read_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _under_way = under_way;
            let done = call(&snapshots, &key);
            match &done {
                Ok(_) => log::info!("{what} {key:?}"),
                Err(error @ (Error::Io { .. } | Error::Database(_) | Error::Record { .. })) => {
                    log::error!("{what} {key:?}: {error}");
                }
                // containerd asks whether snapshots exist by looking at them.
                Err(error) => log::info!("{what} {key:?}: {error}"),
            }
            done
        });
        match done.await {
            Ok(done) => done.map_err(Status::from),
            Err(error) => Err(Status::internal(format!("{what}: {error}"))),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let code = match &error {
            Error::NotFound(_) => Code::NotFound,
            Error::Exists(_) => Code::AlreadyExists,
            Error::Precondition(_) => Code::FailedPrecondition,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Io { .. }
            | Error::Database(_)
            | Error::Record { .. }
            | Error::Format(_)
            | Error::Damaged { .. }
            | Error::NoDatabase { .. }
            | Error::Older { .. } => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

impl From<SnapshotKind> for containerd_snapshots::Kind {
    fn from(kind: SnapshotKind) -> Self {
        match kind {
            SnapshotKind::Active => Self::Active,
            SnapshotKind::View => Self::View,
            SnapshotKind::Committed => Self::Committed,
        }
    }
}

impl From<Mount> for types::Mount {
    fn from(mount: Mount) -> Self {
        // `target`, for mounts within the snapshot, came with a later API than this crate's.
        #[allow(clippy::needless_update)]
        types::Mount {
            r#type: mount.kind,
            source: mount.source,
            options: mount.options,
            ..Default::default()
        }
    }
}

fn info(name: String, record: SnapshotRecord) -> Info {
    Info {
        kind: record.kind.into(),
        name,
        parent: record.parent.unwrap_or_default(),
        labels: record.labels.into_iter().collect(),
        created_at: record.created,
        updated_at: record.updated,
    }
}

#[tonic::async_trait]
impl Snapshotter for Service {
    type Error = Status;

    async fn stat(&self, key: String) -> std::result::Result<Info, Status> {
        self.run("stat", key, |snapshots, key| Ok(info(key.to_owned(), snapshots.stat(key)?))).await
    }

    async fn update(&self, new: Info, fields: Option<Vec<String>>) -> std::result::Result<Info, Status> {
        let labels = new.labels.into_iter().collect();
        self.run("update", new.name, move |snapshots, key| {
            Ok(info(key.to_owned(), snapshots.update(key, labels, &fields.unwrap_or_default())?))
        })
        .await
    }

    async fn usage(&self, key: String) -> std::result::Result<containerd_snapshots::Usage, Status> {
        let Usage { inodes, bytes } = self.run("usage", key, Snapshots::usage).await?;
        Ok(containerd_snapshots::Usage {
            inodes: i64::try_from(inodes).unwrap_or(i64::MAX),
            size: i64::try_from(bytes).unwrap_or(i64::MAX),
        })
    }

    async fn mounts(&self, key: String) -> std::result::Result<Vec<types::Mount>, Status> {
        Ok(vec![self.run("mounts", key, Snapshots::mounts).await?.into()])
    }

    async fn prepare(
        &self,
        key: String,
        parent: String,
        labels: HashMap<String, String>,
    ) -> std::result::Result<Vec<types::Mount>, Status> {
        let labels = labels.into_iter().collect();
        let mount = self.run("prepare", key, move |snapshots, key| snapshots.prepare(key, &parent, labels));
        Ok(vec![mount.await?.into()])
    }

    async fn view(
        &self,
        key: String,
        parent: String,
        labels: HashMap<String, String>,
    ) -> std::result::Result<Vec<types::Mount>, Status> {
        let labels = labels.into_iter().collect();
        let mount = self.run("view", key, move |snapshots, key| snapshots.view(key, &parent, labels));
        Ok(vec![mount.await?.into()])
    }

    async fn commit(
        &self,
        name: String,
        key: String,
        labels: HashMap<String, String>,
    ) -> std::result::Result<(), Status> {
        let labels = labels.into_iter().collect();
        self.run("commit", key, move |snapshots, key| snapshots.commit(&name, key, labels)).await
    }

    async fn remove(&self, key: String) -> std::result::Result<(), Status> {
        self.run("remove", key, Snapshots::remove).await
    }

    async fn clear(&self) -> std::result::Result<(), Status> {
        self.run("cleanup", String::new(), |snapshots, _| snapshots.cleanup()).await
    }

    type InfoStream = tokio_stream::Iter<std::vec::IntoIter<std::result::Result<Info, Status>>>;

    async fn list(
        &self,
        _snapshotter: String,
        filters: Vec<String>,
    ) -> std::result::Result<Self::InfoStream, Status> {
        let found = self.run("list", String::new(), move |snapshots, _| snapshots.list(&filters)).await?;
        let infos: Vec<_> = found.into_iter().map(|(name, record)| Ok(info(name, record))).collect();
        Ok(tokio_stream::iter(infos))
    }
}
