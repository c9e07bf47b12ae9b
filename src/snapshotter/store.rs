//! The database: which snapshots there are.
//!
//! ```text
//! snapshots   name → record (JSON)      the name is containerd's: "namespace/number/key"
//! children    name of the parent → names of its children
//! numbers     "next" → the next snapshot's number; "format" → 1
//! ```
//!
//! A snapshot's number names its directory. Numbers are never given twice, so that a directory that is being removed can't
//! be mistaken for a new one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use redb::{
    Database, MultimapTable, MultimapTableDefinition, ReadOnlyTable, ReadableMultimapTable, ReadableTable,
    Table, TableDefinition,
};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
const CHILDREN: MultimapTableDefinition<&str, &str> = MultimapTableDefinition::new("children");
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");

const NEXT: &str = "next";
const FORMAT: &str = "format";
const OUR_FORMAT: u64 = 1;

/// The database is small; redb would take a gigabyte.
const CACHE: usize = 4 << 20;

/// A snapshot's labels.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
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
pub struct Record {
    /// Names its directory.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
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
    database: Database,
}

impl Store {
    /// Opens the database, and makes it if there is none. Only one process can have it open.
    pub fn open(path: &Path) -> Result<Store> {
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create_with_file_format_v3(true)
            .create_file(file.map_err(Error::io(path, "open it"))?)?;
        let store = Store { database };
        store.write(|changes| match changes.number(FORMAT)? {
            Some(OUR_FORMAT) => Ok(()),
            Some(other) => Err(Error::Format(other)),
            None => changes.set_number(FORMAT, OUR_FORMAT),
        })?;
        Ok(store)
    }

    /// Looks at the state of one moment.
    pub fn read<T>(&self, look: impl FnOnce(&Moment) -> Result<T>) -> Result<T> {
        let transaction = self.database.begin_read()?;
        look(&Records(transaction.open_table(SNAPSHOTS)?))
    }

    /// Makes a change: all of it once this has returned well, nothing of it else. Changes go one after the other.
    pub fn write<T>(&self, change: impl FnOnce(&mut Changes<'_>) -> Result<T>) -> Result<T> {
        let transaction = self.database.begin_write()?;
        let done = change(&mut Changes {
            snapshots: Records(transaction.open_table(SNAPSHOTS)?),
            children: transaction.open_multimap_table(CHILDREN)?,
            numbers: transaction.open_table(NUMBERS)?,
        })?;
        transaction.commit()?;
        Ok(done)
    }
}

fn decode(key: &str, record: &[u8]) -> Result<Record> {
    serde_json::from_slice(record).map_err(|source| Error::Record { key: key.to_owned(), source })
}

/// The table of snapshots, to be looked at.
pub struct Records<T>(T);

/// The snapshots at one moment.
pub type Moment = Records<ReadOnlyTable<&'static str, &'static [u8]>>;

impl<T: ReadableTable<&'static str, &'static [u8]>> Records<T> {
    fn find(&self, key: &str) -> Result<Option<Record>> {
        self.0.get(key)?.map(|record| decode(key, record.value())).transpose()
    }

    /// The snapshot of this name.
    pub fn get(&self, key: &str) -> Result<Record> {
        self.find(key)?.ok_or_else(|| Error::NotFound(key.to_owned()))
    }

    /// The numbers of `top` and of all below it, downwards.
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

    /// All snapshots, ordered by name.
    pub fn all(&self) -> Result<Vec<(String, Record)>> {
        let mut found = Vec::new();
        for entry in self.0.iter()? {
            let (key, record) = entry?;
            found.push((key.value().to_owned(), decode(key.value(), record.value())?));
        }
        Ok(found)
    }
}

/// A transaction that changes the snapshots.
pub struct Changes<'t> {
    /// As they are within it.
    pub snapshots: Records<Table<'t, &'static str, &'static [u8]>>,
    children: MultimapTable<'t, &'static str, &'static str>,
    numbers: Table<'t, &'static str, u64>,
}

impl Changes<'_> {
    fn number(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.numbers.get(name)?.map(|number| number.value()))
    }

    fn set_number(&mut self, name: &str, number: u64) -> Result<()> {
        self.numbers.insert(name, number)?;
        Ok(())
    }

    fn put(&mut self, key: &str, record: &Record) -> Result<()> {
        let bytes =
            serde_json::to_vec(record).map_err(|source| Error::Record { key: key.to_owned(), source })?;
        self.snapshots.0.insert(key, bytes.as_slice())?;
        Ok(())
    }

    /// Adds an active snapshot or a view.
    pub fn add(&mut self, key: &str, kind: Kind, parent: Option<&str>, labels: Labels) -> Result<Record> {
        if key.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        if let Some(parent) = parent
            && self.snapshots.get(parent)?.kind != Kind::Committed
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
        let record =
            Record { number, kind, parent, labels, created: now, updated: now, usage: Usage::default() };
        self.put(key, &record)?;
        if let Some(parent) = &record.parent {
            self.children.insert(parent.as_str(), key)?;
        }
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
        let record = Record { kind: Kind::Committed, labels, created: now, updated: now, usage, ..record };
        self.snapshots.0.remove(key)?;
        self.put(name, &record)?;
        if let Some(parent) = &record.parent {
            self.children.remove(parent.as_str(), key)?;
            self.children.insert(parent.as_str(), name)?;
        }
        Ok(())
    }

    /// Forgets a snapshot.
    pub fn remove(&mut self, key: &str) -> Result<Record> {
        let record = self.snapshots.get(key)?;
        if let Some(child) = self.children.get(key)?.next() {
            let child = child?.value().to_owned();
            return Err(Error::Precondition(format!(
                "cannot remove snapshot {key:?}: it is the parent of {child:?}"
            )));
        }
        self.snapshots.0.remove(key)?;
        if let Some(parent) = &record.parent {
            self.children.remove(parent.as_str(), key)?;
        }
        Ok(record)
    }

    /// Changes the labels.
    pub fn relabel(&mut self, key: &str, change: impl FnOnce(&mut Labels)) -> Result<Record> {
        let mut record = self.snapshots.get(key)?;
        change(&mut record.labels);
        record.updated = SystemTime::now();
        self.put(key, &record)?;
        Ok(record)
    }
}

/// Only an active snapshot can be committed.
pub fn must_be_active(key: &str, record: &Record) -> Result<()> {
    match record.kind {
        Kind::Active => Ok(()),
        _ => Err(Error::Precondition(format!("snapshot {key:?} is not active"))),
    }
}
