//! The record of a stack's frozen layers, `stack.json`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::unknown;
use crate::union::escaped_path::{EscapedPath, is_tame};

/// The version of its form, where a layer lies in another directory than that of its number.
pub const VERSION: u32 = 2;

/// The version of its form where none does.
const WITHOUT_MOVED: u32 = 1;

/// So many frozen layers may lie below an upper: as many as container engines give.
pub const MOST_LAYERS: usize = 500;

/// No record is larger.
pub const LARGEST: u64 = 64 << 20;

/// Which frozen layers an upper has, and which lies on which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Tells the stack from all others: 32 hexadecimal digits.
    pub id: String,
    /// Where the stack branches off, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// The layers below all of them, the topmost first, as they were told; none: whoever mounts the stack names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lowers: Vec<EscapedPath>,
    /// The number of the next one, or of the next directory.
    pub next: u32,
    /// The frozen layers, in the order in which they were made.
    pub layers: Vec<FrozenLayer>,
    /// The directories of layers that are gone, which may be there still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removing: Vec<u32>,
}

/// What a branch stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// The directory with the other stack's record; relative: to the directory that holds this upper.
    pub directory: EscapedPath,
    /// The other stack's id.
    pub id: String,
    /// Its layer.
    pub layer: u32,
}

/// One frozen layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrozenLayer {
    /// Its number, which is the name of its directory unless `moved_to` says otherwise.
    pub layer: u32,
    /// What people call it.
    pub name: String,
    /// When it was frozen, in seconds since the epoch.
    pub made: i64,
    /// The layer that it lies on; 0: none of this record.
    pub below: u32,
    /// What is in it, if it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// How many names of files of layers below are hidden at its top, by the files' identities, as the hardlink index
    /// keeps it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hidden: BTreeMap<String, u64>,
    /// The number that is the name of its directory, since others were merged into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<u32>,
}

impl FrozenLayer {
    /// Returns the number that is the name of its directory.
    pub fn directory(&self) -> u32 {
        self.moved_to.unwrap_or(self.layer)
    }
}

/// What is in a frozen layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// How many objects that aren't directories, deletions not counted.
    pub files: u64,
    /// How much room they take, in bytes.
    pub bytes: u64,
    /// Whether it has forms that the kernel's overlayfs doesn't read: half-copied files, whiteouts that are named so.
    pub needs_unionmount: bool,
}

impl Record {
    /// Makes one of a stack that has no frozen layers.
    pub fn new(id: String, base: Option<Base>) -> Record {
        let (lowers, layers, removing) = (Vec::new(), Vec::new(), Vec::new());
        Record { version: WITHOUT_MOVED, id, base, lowers, next: 1, layers, removing }
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &[u8]) -> Result<Record, NotRead> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let damaged = |error: serde_json::Error| match unknown(&error) {
            Some(what) => NotRead::Later(what),
            None => NotRead::Damaged(format!("is damaged: {error}")),
        };
        let Versioned { version } = serde_json::from_slice(text).map_err(damaged)?;
        if !(WITHOUT_MOVED..=VERSION).contains(&version) {
            return Err(NotRead::Later(format!("form {version}")));
        }
        let mut record: Record = serde_json::from_slice(text).map_err(damaged)?;
        record.version = record.form();
        record.check().map_err(|why| NotRead::Damaged(format!("is damaged: {why}")))?;
        Ok(record)
    }

    /// Writes it.
    ///
    /// # Errors
    /// None that is known; what JSON can't hold.
    pub fn to_text(&self) -> Result<Vec<u8>, String> {
        let record = Record { version: self.form(), ..self.clone() };
        let mut text = serde_json::to_vec_pretty(&record).map_err(|error| error.to_string())?;
        text.push(b'\n');
        Ok(text)
    }

    /// Returns the version of the form in which it is written: the lowest that can say all of it.
    fn form(&self) -> u32 {
        if self.layers.iter().any(|layer| layer.moved_to.is_some()) { VERSION } else { WITHOUT_MOVED }
    }

    /// Returns a layer.
    pub fn layer(&self, layer: u32) -> Option<&FrozenLayer> {
        self.layers.iter().find(|one| one.layer == layer)
    }

    /// Returns the layer of that name; `0` is what lies below all of them.
    pub fn find(&self, name: &str) -> Option<u32> {
        if name == "0" {
            return Some(0);
        }
        self.layers.iter().find(|one| one.name == name).map(|one| one.layer)
    }

    /// Returns the layers from that one down, as far as they are in this record.
    pub fn chain(&self, from: u32) -> Vec<&FrozenLayer> {
        let mut chain = Vec::new();
        let mut at = from;
        // `below` is always smaller.
        while let Some(layer) = self.layer(at) {
            chain.push(layer);
            at = layer.below;
        }
        chain
    }

    fn check(&self) -> Result<(), String> {
        is_id(&self.id)?;
        if let Some(base) = &self.base {
            is_id(&base.id)?;
            if base.layer == 0 || base.directory.0.is_empty() || base.directory.0.contains(&0) {
                return Err("its base is none".into());
            }
        }
        let (mut numbers, mut names) = (BTreeSet::from([0]), BTreeSet::new());
        for FrozenLayer { layer, name, below, .. } in &self.layers {
            if *layer >= self.next || numbers.last().is_some_and(|last| layer <= last) {
                return Err(format!("the number {layer} is out of order"));
            }
            if !numbers.contains(below) {
                return Err(format!("layer {layer} lies on {below}, which is none"));
            }
            check_name(name).map_err(|why| format!("layer {layer}: its name {why}"))?;
            if is_number(name) && *name != layer.to_string() {
                return Err(format!("layer {layer} is called {name}"));
            }
            if !names.insert(name) {
                return Err(format!("two layers are called {name:?}"));
            }
            numbers.insert(*layer);
        }
        let mut directories = BTreeSet::from([0]);
        for layer in &self.layers {
            let directory = layer.directory();
            if directory < layer.layer || directory >= self.next || !directories.insert(directory) {
                return Err(format!("layer {} lies in {directory}", layer.layer));
            }
        }
        match self.removing.iter().find(|gone| directories.contains(gone) || **gone >= self.next) {
            Some(gone) => Err(format!("layer {gone} is there and gone")),
            None => Ok(()),
        }
    }
}

/// Why a record isn't read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRead {
    /// A later program has written this into it.
    Later(String),
    /// That is wrong with it.
    Damaged(String),
}

fn is_id(text: &str) -> Result<(), String> {
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match text.len() == 32 && text.bytes().all(digits) {
        true => Ok(()),
        false => Err(format!("{text:?} is no id")),
    }
}

/// Tells whether a name is a number, which is only the name of the layer that has it.
pub fn is_number(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Checks the name of a snapshot.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("is empty"),
        _ if name.len() > 128 => Err("is longer than 128 bytes"),
        _ if name.starts_with('-') => Err("begins with -, as an option does"),
        _ if !name.chars().all(is_tame) => Err("has a control character"),
        _ if name.contains(['/', ',', ':']) => Err("has one of / , :"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(layer: u32, below: u32) -> FrozenLayer {
        let (name, hidden) = (layer.to_string(), BTreeMap::from([("aa-5".to_owned(), 2)]));
        FrozenLayer { layer, name, made: 7, below, content: Some(Content::default()), hidden, moved_to: None }
    }

    fn record() -> Record {
        let base = Base { directory: EscapedPath(b".\xff.layers".to_vec()), id: "b".repeat(32), layer: 3 };
        let mut record = Record::new("a".repeat(32), Some(base));
        record.lowers = vec![EscapedPath(b"/base".to_vec())];
        record.layers = vec![layer(1, 0), layer(2, 1), layer(5, 1)];
        (record.next, record.removing) = (9, vec![4]);
        record
    }

    #[test]
    fn what_was_written_is_read() {
        let record = record();
        assert_eq!(Record::parse(&record.to_text().unwrap()), Ok(record.clone()));
        let numbers = |from| record.chain(from).iter().map(|layer| layer.layer).collect::<Vec<_>>();
        assert_eq!((numbers(5), numbers(2), numbers(0)), (vec![5, 1], vec![2, 1], vec![]));
        assert_eq!((record.find("5"), record.find("0"), record.find("6")), (Some(5), Some(0), None));
    }

    #[test]
    fn what_does_not_go_together_is_damaged() {
        let breaks: [fn(&mut Record); 15] = [
            |record| record.id = "A".repeat(32),
            |record| record.base.as_mut().unwrap().layer = 0,
            |record| record.base.as_mut().unwrap().directory.0.push(0),
            |record| record.layers[1].below = 4,
            |record| record.layers[0].below = 5,
            |record| record.layers[1].layer = 1,
            |record| record.layers[1].layer = 0,
            |record| record.next = 5,
            |record| record.layers[0].name = "5".into(),
            |record| record.layers[0].name = "a\u{1b}[2J".into(),
            |record| record.removing = vec![2],
            |record| record.removing = vec![9],
            |record| record.layers[1].moved_to = Some(1),
            |record| record.layers[1].moved_to = Some(9),
            |record| (record.layers[0].moved_to, record.layers[1].moved_to) = (Some(8), Some(8)),
        ];
        for (at, change) in breaks.into_iter().enumerate() {
            let mut record = record();
            change(&mut record);
            let read = Record::parse(&record.to_text().unwrap());
            assert!(matches!(read, Err(NotRead::Damaged(_))), "{at}: {read:?}");
        }
        let later = String::from_utf8(record().to_text().unwrap()).unwrap();
        let unneeded = later.replace("\"version\": 1", "\"version\": 2");
        assert_eq!(
            Record::parse(unneeded.as_bytes()),
            Ok(record()),
            "which form it was in isn't what it says"
        );
        let later = later.replace("\"version\": 1", "\"version\": 3");
        let read = Record::parse(later.as_bytes());
        assert_eq!(read, Err(NotRead::Later("form 3".into())));
        Record::parse(b"{").unwrap_err();
    }

    #[test]
    fn what_a_later_program_has_written_is_no_damage_and_not_passed_over() {
        let text = String::from_utf8(record().to_text().unwrap()).unwrap();
        for known in ["\"next\"", "\"made\"", "\"files\"", "\"directory\""] {
            let later = text.replacen(known, &format!("\"shown_as\": 5, {known}"), 1);
            assert_ne!(later, text, "{known}");
            let read = Record::parse(later.as_bytes());
            assert_eq!(read, Err(NotRead::Later("unknown field `shown_as`".into())), "{known}");
        }
    }
}
