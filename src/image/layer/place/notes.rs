//! What of a layer could not be kept: told once it is unpacked, one line each, however many files it concerns.

use std::collections::BTreeMap;

use crate::image::layer::attributes::{LeftOut, Why};

/// More names than this are counted, no more.
const MOST: usize = 16;

/// What is to be told.
#[derive(Debug, Default)]
pub(super) struct Notes {
    attributes: BTreeMap<Vec<u8>, Note>,
    others: u64,
    skipped: Option<Note>,
}

#[derive(Debug)]
struct Note {
    why: Why,
    first: Vec<u8>,
    count: u64,
}

impl Notes {
    /// Notes that an attribute of an object was left out.
    pub(super) fn left_out(&mut self, path: &[u8], LeftOut { name, why }: LeftOut) {
        let full = self.attributes.len() >= MOST;
        match self.attributes.get_mut(&name) {
            Some(note) => note.count += 1,
            None if full => self.others += 1,
            None => {
                self.attributes.insert(name, Note { why, first: path.to_vec(), count: 1 });
            }
        }
    }

    /// Notes that an entry says something of what can't be there.
    pub(super) fn skipped(&mut self, path: &[u8]) {
        let note =
            self.skipped.get_or_insert_with(|| Note { why: Why::Mark, first: path.to_vec(), count: 0 });
        note.count += 1;
    }

    /// Returns the lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, note) in &self.attributes {
            let why = match note.why {
                Why::Mark => "it is a storage driver's own mark".to_owned(),
                Why::Refused(errno) => format!("it cannot be set here ({errno})"),
            };
            lines.push(format!(
                "the attribute {} of {} is left out: {why}",
                name.escape_ascii(),
                note.whose()
            ));
        }
        if self.others > 0 {
            lines.push(format!("{} attributes of other names are left out as well", self.others));
        }
        if let Some(note) = &self.skipped {
            lines.push(format!(
                "{} is skipped: it is a mark of AUFS, or deletes below what this layer has no directory for",
                note.whose()
            ));
        }
        lines
    }

    /// Tells it all.
    pub(super) fn tell(&mut self) {
        for line in std::mem::take(self).lines() {
            log::warn!("{line}");
        }
    }
}

impl Note {
    fn whose(&self) -> String {
        let first = self.first.escape_ascii();
        match self.count {
            1 => first.to_string(),
            count => format!("{first} and {} more", count - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_each_name() {
        let mut notes = Notes::default();
        for at in 0..40 {
            for name in ["com.apple.x".to_owned(), format!("user.{}", at / 2)] {
                let what =
                    LeftOut { name: name.into_bytes(), why: Why::Refused(rustix::io::Errno::OPNOTSUPP) };
                notes.left_out(format!("f{at}").as_bytes(), what);
            }
            notes.skipped(b"lib/.wh.x\x1b");
        }
        let lines = notes.lines();
        assert_eq!(lines.len(), MOST + 2);
        assert!(
            lines[0].starts_with("the attribute com.apple.x of f0 and 39 more is left out"),
            "{}",
            lines[0]
        );
        assert!(lines[MOST].starts_with("10 attributes"), "{}", lines[MOST]);
        assert!(lines[MOST + 1].starts_with("lib/.wh.x\\x1b and 39 more is skipped"), "{}", lines[MOST + 1]);
    }
}
