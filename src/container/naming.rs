//! What containers are called: names that are given, changed, or chosen by chance.

use super::error::{ContainerError, Result};
use super::record::Container;
use crate::image::store::Store;
use crate::sys::flock::Access;

const FIRST: [&str; 32] = [
    "amber", "brave", "brisk", "calm", "clear", "cosy", "crisp", "eager", "early", "fair", "gentle", "glad",
    "green", "honest", "jolly", "keen", "kind", "light", "lucky", "merry", "mild", "neat", "noble", "proud",
    "quick", "quiet", "royal", "sharp", "silver", "sunny", "warm", "wise",
];
const SECOND: [&str; 32] = [
    "badger", "beech", "birch", "bison", "cedar", "crane", "dingo", "eagle", "falcon", "finch", "gecko",
    "hazel", "heron", "ibis", "jackal", "koala", "larch", "lemur", "lynx", "maple", "marten", "mole", "newt",
    "otter", "owl", "plover", "raven", "robin", "spruce", "stork", "tapir", "wren",
];

impl Container {
    /// Gives the container another name.
    ///
    /// # Errors
    /// When the name is taken or malformed, or nothing can be written.
    pub fn rename(&mut self, store: &Store, name: &str) -> Result<()> {
        check_name(name)?;
        let _names = store.lock_index(Access::Exclusive)?;
        check_free(store, name)?;
        self.take_name_on_disk()?;
        self.record.name = Some(name.to_owned());
        self.save()
    }

    /// Takes over what another process has called it meanwhile. With the lock of names.
    pub(super) fn take_name_on_disk(&mut self) -> Result<()> {
        if let Some(there) = Container::load(&self.dir)? {
            self.record = there.record;
        }
        Ok(())
    }
}

/// Fails when a container has the name. With the lock of names.
pub(super) fn check_free(store: &Store, name: &str) -> Result<()> {
    let all = Container::all(store)?;
    match all.iter().find(|other| other.record.name.as_deref() == Some(name)) {
        None => Ok(()),
        Some(other) => Err(ContainerError::Refused(format!(
            "the name {name:?} is taken by container {}; remove it with `unionmount rm {name}` or choose another",
            other.short_id()
        ))),
    }
}

/// A name that no container has, of two words. With the lock of names. `id`: the container's, which decides.
pub(super) fn by_chance(store: &Store, id: &str) -> Result<String> {
    let all = Container::all(store)?;
    let taken = |name: &str| all.iter().any(|other| other.record.name.as_deref() == Some(name));
    let seed = usize::from_str_radix(id.get(..8).unwrap_or_default(), 16).unwrap_or_default();
    let name = format!("{}_{}", FIRST[seed % FIRST.len()], SECOND[seed / FIRST.len() % SECOND.len()]);
    let numbered = (2..).map(|number: u64| format!("{name}{number}"));
    let free = std::iter::once(name.clone()).chain(numbered).find(|name| !taken(name));
    Ok(free.unwrap_or(name))
}

/// Docker's rule for names.
pub(super) fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        return Ok(());
    }
    Err(ContainerError::Refused(format!(
        "{name:?} can't be a container's name: letters, digits and _.- after a letter or digit"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for good in ["a", "web-1", "A.b_c"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "a/b", "ä", "a b"] {
            check_name(bad).unwrap_err();
        }
        for words in [FIRST, SECOND] {
            words.iter().for_each(|word| check_name(word).unwrap());
        }
    }
}
