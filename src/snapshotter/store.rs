//! The database: which snapshots there are.
//!
//! ```text
//! snapshots   name, parent, record (JSON)   the name is containerd's: "namespace/number/key"
//! numbers     next → the next snapshot's number; format → 1
//! ```
//!
//! A snapshot's number names its directory. Numbers are never given twice, so that a directory that is being removed can't
//! be mistaken for a new one.
//!
//! It is SQLite's, with a write-ahead log that is synced at each commit. What decides is not speed but what happens after a
//! power failure and on a full disk: it opens whatever was torn, a transaction that found no room is as if it had not
//! been, and the next one works. (redb, which was here before, could panic while it opened what a power failure had left,
//! and refused every further call after one failed write.) A damaged file is an error and never a panic.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

use super::error::{Error, FILE, Result};

const NEXT: &str = "next";
const FORMAT: &str = "format";
const OUR_FORMAT: u64 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS snapshots (name TEXT PRIMARY KEY, parent TEXT, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS children ON snapshots (parent);
    CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;";

/// A snapshot's labels.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Can be written, and committed.
    Active,
    /// Can be read only, and not be committed.
    View,
    /// A layer: never changes, and can be a parent.
    Committed,
}

/// What a snapshot takes on the disk, without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// How many inodes.
    pub inodes: u64,
    /// How many bytes, in whole blocks.
    pub bytes: u64,
}

/// What the database knows of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Names its directory.
    pub number: u64,
    /// What it is.
    pub kind: SnapshotKind,
    /// The snapshot below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// What containerd has noted.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made, or committed.
    pub created: SystemTime,
    /// When its labels were changed.
    pub updated: SystemTime,
    /// Measured when it was committed.
    #[serde(default)]
    pub usage: Usage,
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    /// One call at a time: none takes longer than a few syncs.
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the database in `root`. One that is new, or was emptied, is begun only if nobody has snapshots already:
    /// `numbers` are those of the directories that lie there. Only one process can have it open.
    ///
    /// # Errors
    /// When it is damaged, older than the directories, or in use.
    pub fn open(root: &Path, numbers: &[u64]) -> Result<Store> {
        let path = root.join(FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        // SQLite gives its other files the mode of this one.
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().append(true).create(true).mode(0o600).open(&path);
        drop(file.map_err(Error::io(&path, "open it"))?);
        let damaged = |error: rusqlite::Error| Error::of(error, root);
        let connection = Connection::open_with_flags(&path, flags).map_err(damaged)?;
        let store = Store { connection: Mutex::new(connection) };
        store.begin(root, numbers).map_err(|error| match error {
            Error::Database(error) => Error::of(*error, root),
            other => other,
        })?;
        // The file's own name.
        File::open(root).and_then(|dir| dir.sync_all()).map_err(Error::io(root, "sync it"))?;
        Ok(store)
    }

    fn begin(&self, root: &Path, numbers: &[u64]) -> Result<()> {
        {
            let connection = self.connection.lock();
            // No other process: so the log's index need not be shared, and the lock is kept.
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if found != "ok" {
                return Err(Error::Damaged { root: root.to_owned(), what: found });
            }
        }
        self.write(|changes| {
            changes.connection.execute_batch(SCHEMA)?;
            match changes.number(FORMAT)? {
                Some(OUR_FORMAT) => {}
                Some(other) => return Err(Error::Format(other)),
                None if numbers.is_empty() => changes.set_number(FORMAT, OUR_FORMAT)?,
                None => return Err(Error::NoDatabase { root: root.to_owned(), count: numbers.len() }),
            }
            // A call that was killed leaves the next number's directory; a later one the database should know.
            let next = changes.number(NEXT)?.unwrap_or(1);
            match numbers.iter().max() {
                Some(&newest) if newest > next => Err(Error::Older { root: root.to_owned(), newest, next }),
                _ => Ok(()),
            }
        })
    }

    /// Looks at the state of one moment.
    pub fn read<T>(&self, look: impl FnOnce(&Records<'_>) -> Result<T>) -> Result<T> {
        look(&Records(&self.connection.lock()))
    }

    /// Makes a change: all of it once this has returned well, nothing of it else. Changes go one after the other.
    pub fn write<T>(&self, change: impl FnOnce(&mut Changes<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = change(&mut Changes { snapshots: Records(&transaction), connection: &transaction })?;
        transaction.commit()?;
        Ok(done)
    }
}

fn decode(key: &str, record: &str) -> Result<SnapshotRecord> {
    serde_json::from_str(record).map_err(|source| Error::Record { key: key.to_owned(), source })
}

/// The table of snapshots, to be looked at.
pub struct Records<'c>(&'c Connection);

impl Records<'_> {
    fn find(&self, key: &str) -> Result<Option<SnapshotRecord>> {
        let mut query = self.0.prepare_cached("SELECT record FROM snapshots WHERE name = ?1")?;
        let found: Option<String> = query.query_row([key], |row| row.get(0)).optional()?;
        found.map(|record| decode(key, &record)).transpose()
    }

    /// Returns the snapshot of this name.
    pub fn get(&self, key: &str) -> Result<SnapshotRecord> {
        self.find(key)?.ok_or_else(|| Error::NotFound(key.to_owned()))
    }

    /// Returns the numbers of `top` and of all below it, downwards.
    pub fn chain(&self, top: Option<&str>) -> Result<Vec<u64>> {
        let mut numbers = Vec::new();
        let mut next = top.map(str::to_owned);
        while let Some(name) = next {
            let record = self.get(&name)?;
            numbers.push(record.number);
            next = record.parent;
        }
        Ok(numbers)
    }

    /// Returns all snapshots, ordered by name.
    pub fn all(&self) -> Result<Vec<(String, SnapshotRecord)>> {
        let mut query = self.0.prepare_cached("SELECT name, record FROM snapshots ORDER BY name")?;
        let mut rows = query.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let (key, record): (String, String) = (row.get(0)?, row.get(1)?);
            let record = decode(&key, &record)?;
            found.push((key, record));
        }
        Ok(found)
    }
}

/// A transaction that changes the snapshots.
pub struct Changes<'t> {
    /// As they are within it.
    pub snapshots: Records<'t>,
    connection: &'t Connection,
}

impl Changes<'_> {
    fn number(&self, name: &str) -> Result<Option<u64>> {
        let mut query = self.connection.prepare_cached("SELECT value FROM numbers WHERE name = ?1")?;
        let found: Option<i64> = query.query_row([name], |row| row.get(0)).optional()?;
        Ok(found.and_then(|number| u64::try_from(number).ok()))
    }

    fn set_number(&mut self, name: &str, number: u64) -> Result<()> {
        let number = i64::try_from(number).map_err(|_| Error::Invalid("there are no more numbers".into()))?;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO numbers (name, value) VALUES (?1, ?2)")?
            .execute(params![name, number])?;
        Ok(())
    }

    fn put(&mut self, key: &str, record: &SnapshotRecord) -> Result<()> {
        let text =
            serde_json::to_string(record).map_err(|source| Error::Record { key: key.to_owned(), source })?;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO snapshots (name, parent, record) VALUES (?1, ?2, ?3)")?
            .execute(params![key, record.parent, text])?;
        Ok(())
    }

    fn forget(&mut self, key: &str) -> Result<()> {
        self.connection.prepare_cached("DELETE FROM snapshots WHERE name = ?1")?.execute([key])?;
        Ok(())
    }

    /// Adds an active snapshot or a view.
    pub fn add(
        &mut self,
        key: &str,
        kind: SnapshotKind,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<SnapshotRecord> {
        if key.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        if let Some(parent) = parent
            && self.snapshots.get(parent)?.kind != SnapshotKind::Committed
        {
            return Err(Error::Invalid(format!("parent {parent:?} is not a committed snapshot")));
        }
        if self.snapshots.find(key)?.is_some() {
            return Err(Error::Exists(key.to_owned()));
        }
        let number = self.number(NEXT)?.unwrap_or(1);
        self.set_number(NEXT, number + 1)?;
        let now = SystemTime::now();
        let parent = parent.map(str::to_owned);
        let record = SnapshotRecord {
            number,
            kind,
            parent,
            labels,
            created: now,
            updated: now,
            usage: Usage::default(),
        };
        self.put(key, &record)?;
        Ok(record)
    }

    /// Makes the active snapshot `key` the committed one `name`. Labels are not inherited.
    pub fn commit(&mut self, name: &str, key: &str, labels: Labels, usage: Usage) -> Result<()> {
        if name.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        if self.snapshots.find(name)?.is_some() {
            return Err(Error::Exists(name.to_owned()));
        }
        let record = self.snapshots.get(key)?;
        must_be_active(key, &record)?;
        let now = SystemTime::now();
        let record = SnapshotRecord {
            kind: SnapshotKind::Committed,
            labels,
            created: now,
            updated: now,
            usage,
            ..record
        };
        self.forget(key)?;
        self.put(name, &record)
    }

    /// Forgets a snapshot.
    pub fn remove(&mut self, key: &str) -> Result<SnapshotRecord> {
        let record = self.snapshots.get(key)?;
        let mut query =
            self.connection.prepare_cached("SELECT name FROM snapshots WHERE parent = ?1 LIMIT 1")?;
        let child: Option<String> = query.query_row([key], |row| row.get(0)).optional()?;
        if let Some(child) = child {
            return Err(Error::Precondition(format!(
                "cannot remove snapshot {key:?}: it is the parent of {child:?}"
            )));
        }
        drop(query);
        self.forget(key)?;
        Ok(record)
    }

    /// Changes the labels.
    pub fn relabel(&mut self, key: &str, change: impl FnOnce(&mut Labels)) -> Result<SnapshotRecord> {
        let mut record = self.snapshots.get(key)?;
        change(&mut record.labels);
        record.updated = SystemTime::now();
        self.put(key, &record)?;
        Ok(record)
    }
}

/// Fails for all but active snapshots: only they can be committed.
pub fn must_be_active(key: &str, record: &SnapshotRecord) -> Result<()> {
    match record.kind {
        SnapshotKind::Active => Ok(()),
        _ => Err(Error::Precondition(format!("snapshot {key:?} is not active"))),
    }
}
