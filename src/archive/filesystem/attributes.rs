//! The extended attributes of one object, as they are read.

use super::budget::{Budget, Table};
use super::raw::Wrong;
use crate::archive::index::Attrs;

/// The most that Linux allows the names of an object together (XATTR_LIST_MAX), and a value (XATTR_SIZE_MAX).
const MOST: u64 = 64 << 10;
/// As many as Linux lets there be names, each value as large as it may be, would fill the memory.
const MOST_TOGETHER: u64 = 16 * MOST;
/// The longest name that Linux knows (XATTR_NAME_MAX).
const LONGEST_NAME: usize = 255;
/// What a pair of a name and a value takes beside both.
const PAIR: u64 = 2 * size_of::<Vec<u8>>() as u64;

/// Some attributes, and what all that were read take together.
#[derive(Debug)]
pub(in crate::archive) struct Collected<'a> {
    budget: &'a Budget,
    attrs: Attrs,
    names: u64,
    values: u64,
}

impl<'a> Collected<'a> {
    pub(in crate::archive) fn new(budget: &'a Budget) -> Collected<'a> {
        Collected { budget, attrs: Attrs::new(), names: 0, values: 0 }
    }

    /// Adds one. `prefix`: its namespace, with the dot behind it, or all of its name; none where Linux shows nothing of it.
    ///
    /// # Errors
    /// When Linux has no such name, or they are more than Linux or the budget allows.
    pub(in crate::archive) fn add(
        &mut self,
        prefix: Option<&str>,
        suffix: &[u8],
        value: Vec<u8>,
    ) -> Result<(), Wrong> {
        let unknown = || Wrong::damaged("it has names of extended attributes that Linux doesn't know");
        // Of all that is read, whatever becomes of it: reading it takes time.
        self.names += (prefix.map_or(0, str::len) + suffix.len()) as u64 + 1;
        self.values += value.len() as u64;
        if self.names > MOST {
            return Err(unknown());
        }
        if self.values > MOST_TOGETHER {
            return Err(Wrong::damaged("its extended attributes are more than a MiB"));
        }
        self.budget.take(PAIR + (suffix.len() + value.len()) as u64, Table::Attributes)?;
        let Some(prefix) = prefix else { return Ok(()) };
        let name = [prefix.as_bytes(), suffix].concat();
        if prefix.ends_with('.') == suffix.is_empty() || name.len() > LONGEST_NAME || name.contains(&0) {
            return Err(unknown());
        }
        self.attrs.push((name, value));
        Ok(())
    }

    /// Returns them by their names. Of two of one name the first counts, as for the kernel.
    pub(in crate::archive) fn finish(mut self) -> Attrs {
        self.attrs.sort_by(|one, other| one.0.cmp(&other.0));
        self.attrs.dedup_by(|next, one| next.0 == one.0);
        self.attrs
    }
}
