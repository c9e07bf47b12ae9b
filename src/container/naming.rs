//! What containers are called: which names can be given, and which are chosen by chance.

use super::error::{ContainerError, Result};

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

/// The names that are taken, each with the short id of its container. With the lock of names.
pub(super) type Taken<'c> = [(&'c str, &'c str)];

/// Fails when a container has the name.
pub(super) fn check_free(taken: &Taken<'_>, name: &str) -> Result<()> {
    match taken.iter().find(|(other, _)| *other == name) {
        None => Ok(()),
        Some((_, id)) => Err(ContainerError::Refused(format!(
            "the name {name:?} is taken by container {id}; remove it with `unionmount rm {name}` or choose another"
        ))),
    }
}

/// Returns a name that no container has, of two words. `id`: the container's, which decides.
pub(super) fn by_chance(taken: &Taken<'_>, id: &str) -> String {
    let seed = usize::from_str_radix(id.get(..8).unwrap_or_default(), 16).unwrap_or_default();
    let name = format!("{}_{}", FIRST[seed % FIRST.len()], SECOND[seed / FIRST.len() % SECOND.len()]);
    let numbered = (2..).map(|number: u64| format!("{name}{number}"));
    let is_free = |name: &String| check_free(taken, name).is_ok();
    std::iter::once(name.clone()).chain(numbered).find(is_free).unwrap_or(name)
}

/// Checks a name by Docker's rule for names.
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
    fn a_name_by_chance_is_free() {
        let id = "00000000";
        let first = by_chance(&[], id);
        let second = by_chance(&[(&first, "1")], id);
        assert_eq!(second, format!("{first}2"));
        assert_eq!(by_chance(&[(&second, "2"), (&first, "1")], id), format!("{first}3"));
        check_free(&[(&second, "2")], &first).unwrap();
        let refused = check_free(&[(&first, "1")], &first).unwrap_err().to_string();
        assert!(refused.contains("taken by container 1;"), "{refused}");
    }

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
