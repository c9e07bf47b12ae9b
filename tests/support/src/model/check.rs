//! A sequence of operations run in the model and in something else, compared after each step.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::op::{Op, Outcome};
use super::tree::Model;
use crate::{Fields, Snapshot, diff};

/// A difference of outcomes that is allowed: (operation, expected, found).
pub type Tolerance<'a> = &'a dyn Fn(&Op, &Outcome, &Outcome) -> bool;

/// The model and what is compared with it.
pub struct Sequence<'a> {
    /// The model.
    pub model: Model,
    /// What is compared of the trees.
    pub fields: Fields,
    /// Whether inode numbers must be unique and stay what they are. `None`: not compared.
    pub identities: Option<Identities>,
    /// The tree is compared after so many operations.
    pub every: usize,
    /// Differences of outcomes that are allowed.
    pub tolerate: Tolerance<'a>,
    /// Whether operations are bent to what is there ([`Model::steer`]). Not for sequences written by hand.
    pub steered: bool,
    /// The operations as they were performed.
    pub performed: Vec<Op>,
}

/// Which st_ino each of the model's inodes was seen with.
#[derive(Debug, Default, Clone)]
pub struct Identities {
    seen: BTreeMap<u64, u64>,
}

impl<'a> Sequence<'a> {
    /// Everything compared after every operation, nothing tolerated.
    pub fn strict(model: Model) -> Self {
        Sequence {
            model,
            fields: Fields::tree(),
            identities: Some(Identities::default()),
            every: 1,
            tolerate: &|_, _, _| false,
            steered: true,
            performed: Vec::new(),
        }
    }

    /// Runs `operations`: `perform` does each, `observe` takes a snapshot. The error says what differs, after which
    /// operation; [`Sequence::performed`] has the operations as they were performed.
    pub fn run(
        &mut self,
        operations: &[Op],
        mut perform: impl FnMut(&Op) -> Outcome,
        mut observe: impl FnMut() -> Snapshot,
    ) -> Result<(), String> {
        for (index, op) in operations.iter().enumerate() {
            let op = if self.steered { self.model.steer(op) } else { op.clone() };
            let expected = self.model.apply(&op);
            if expected == Outcome::Skipped {
                continue;
            }
            self.performed.push(op.clone());
            let found = perform(&op);
            if found != expected && !(self.tolerate)(&op, &expected, &found) {
                return Err(self.failure(&format!("{found:?}, expected {expected:?}")));
            }
            if (index + 1) % self.every == 0 || index + 1 == operations.len() {
                self.compare(&observe()).map_err(|text| self.failure(&text))?;
            }
        }
        Ok(())
    }

    fn failure(&self, text: &str) -> String {
        let (count, last) = (self.performed.len(), self.performed.last());
        last.map_or_else(
            || text.to_owned(),
            |last| format!("{text}\nafter {count} operations, the last {last:?}"),
        )
    }

    /// Compares a snapshot with the model's state.
    pub fn compare(&mut self, found: &Snapshot) -> Result<(), String> {
        let expected = self.model.snapshot();
        let mut text = diff(&expected, found, &self.fields);
        if let Some(identities) = &mut self.identities
            && text.is_empty()
        {
            text = identities.compare(&expected, found);
        }
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    /// Forgets open files, before a remount.
    pub fn close_all(&mut self) {
        self.model.slots.clear();
    }
}

impl Identities {
    /// Each inode keeps the number it was first seen with, and no two have the same.
    fn compare(&mut self, expected: &Snapshot, found: &Snapshot) -> String {
        let mut text = String::new();
        let mut owners = BTreeMap::new();
        for (path, want) in &expected.entries {
            let ino = found.entries[path].ino;
            let first = *self.seen.entry(want.ino).or_insert(ino);
            if first != ino {
                writeln!(text, "{}: the inode number was {first} and is {ino}", path.display()).unwrap();
            }
            if let Some((other, path_of_other)) = owners.insert(ino, (want.ino, path))
                && other != want.ino
            {
                writeln!(
                    text,
                    "{} and {} have the inode number {ino}",
                    path.display(),
                    path_of_other.display()
                )
                .unwrap();
            }
        }
        text
    }
}
