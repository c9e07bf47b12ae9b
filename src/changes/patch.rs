//! Two versions of a file as a unified diff, in the form that git, patch(1) and diffstat(1) read.
//!
//! What is text and what isn't is told as git tells it: a file with a zero byte in its first 8,000 is binary. Symbolic
//! links are shown as files that hold their target, mode 120000. Directories and special files have no lines.

use std::io::{self, Write};
use std::time::Duration;

use similar::udiff::UnifiedHunkHeader;
use similar::{ChangeTag, DiffTag, TextDiff};

use super::stacked::{Compared, Version};
use crate::sys::object::Kind;

/// Lines of context around a change.
const CONTEXT: usize = 3;
/// How much of a file is looked at to tell text from other data.
const HEAD: usize = 8000;
/// After so long a smaller difference isn't looked for any more.
const PATIENCE: Duration = Duration::from_secs(2);

/// With more lines than that, on both sides together, no smallest difference is looked for: what is before and after all
/// changes is left out, and the rest is replaced as a whole. A list of lines takes many times the memory of short lines.
const MANY: usize = 1 << 17;

/// How many lines a change adds and removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Lines that are new.
    pub added: usize,
    /// Lines that are gone.
    pub removed: usize,
}

/// What a change is, in figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Of text.
    Lines(Figures),
    /// Of other data: bytes before and after.
    Bytes(u64, u64),
    /// Nothing in it changed, or it has no content.
    Nothing,
}

/// The content of one side as a diff sees it.
enum Side<'a> {
    None,
    Text(&'a [u8]),
    Data(u64),
}

impl Side<'_> {
    fn of(version: Option<&Version>) -> Side<'_> {
        let Some(version) = version else { return Side::None };
        if !matches!(version.stat.kind(), Kind::File | Kind::Symlink) {
            return Side::None;
        }
        match &version.content {
            Some(content) if !content[..content.len().min(HEAD)].contains(&0) => Side::Text(content),
            _ => Side::Data(version.stat.size),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Side::None => 0,
            Side::Text(text) => text.len() as u64,
            Side::Data(size) => *size,
        }
    }
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').collect()
}

fn text_diff<'a>(old: &[&'a [u8]], new: &[&'a [u8]]) -> TextDiff<'a, 'a, [u8]> {
    TextDiff::configure().timeout(PATIENCE).diff_slices(old, new)
}

/// Two texts of many lines, without what they begin and end with alike.
struct Replaced<'a> {
    /// Lines before that.
    before: usize,
    /// The last of these.
    above: Vec<&'a [u8]>,
    old: &'a [u8],
    new: &'a [u8],
    /// The first lines after that.
    below: Vec<&'a [u8]>,
}

fn count(text: &[u8]) -> usize {
    text.split_inclusive(|&byte| byte == b'\n').count()
}

/// Tells where two texts of too many lines differ; `None`: they haven't that many.
fn replaced<'a>(old: &'a [u8], new: &'a [u8]) -> Option<Replaced<'a>> {
    if count(old) + count(new) <= MANY {
        return None;
    }
    let lines = |text: &'a [u8]| text.split_inclusive(|&byte| byte == b'\n');
    let same = |(one, other): &(&[u8], &[u8])| one == other;
    let (mut start, mut before, mut above) = (0, 0, Vec::new());
    for (line, _) in lines(old).zip(lines(new)).take_while(same) {
        if above.len() == CONTEXT {
            above.remove(0);
        }
        above.push(line);
        (start, before) = (start + line.len(), before + 1);
    }
    let (old, new) = (&old[start..], &new[start..]);
    let (mut end, mut below) = (0, Vec::new());
    for (line, _) in lines(old).rev().zip(lines(new).rev()).take_while(same) {
        if below.len() == CONTEXT {
            below.remove(0);
        }
        below.push(line);
        end += line.len();
    }
    below.reverse();
    Some(Replaced { before, above, old: &old[..old.len() - end], new: &new[..new.len() - end], below })
}

impl Replaced<'_> {
    /// Writes it as one hunk.
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let around = self.above.len() + self.below.len();
        let (old, new) = (count(self.old) + around, count(self.new) + around);
        // The number of the first line; of none, that of the line before.
        let first = |lines: usize| self.before - self.above.len() + usize::from(lines > 0);
        writeln!(out, "@@ -{},{old} +{},{new} @@", first(old), first(new))?;
        for line in &self.above {
            write_line(out, b" ", line)?;
        }
        for (sign, text) in [(b"-", self.old), (b"+", self.new)] {
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                write_line(out, sign, line)?;
            }
        }
        self.below.iter().try_for_each(|line| write_line(out, b" ", line))
    }
}

fn write_line(out: &mut impl Write, sign: &[u8], line: &[u8]) -> io::Result<()> {
    out.write_all(&[sign, line].concat())?;
    if line.ends_with(b"\n") { Ok(()) } else { out.write_all(b"\n\\ No newline at end of file\n") }
}

/// Measures a change.
pub fn measure(compared: &Compared) -> Measure {
    if same_content(compared) {
        return Measure::Nothing;
    }
    match (Side::of(compared.before.as_ref()), Side::of(compared.after.as_ref())) {
        (Side::None, Side::None) => Measure::Nothing,
        (old @ Side::Data(_), new) | (old, new @ Side::Data(_)) => Measure::Bytes(old.bytes(), new.bytes()),
        (old, new) => {
            if let Some(replaced) = replaced(text_of(&old), text_of(&new)) {
                return Measure::Lines(Figures { added: count(replaced.new), removed: count(replaced.old) });
            }
            let (old, new) = (lines(text_of(&old)), lines(text_of(&new)));
            let mut figures = Figures::default();
            for op in text_diff(&old, &new).ops() {
                if op.tag() != DiffTag::Equal {
                    figures.removed += op.old_range().len();
                    figures.added += op.new_range().len();
                }
            }
            Measure::Lines(figures)
        }
    }
}

fn text_of<'a>(side: &Side<'a>) -> &'a [u8] {
    if let Side::Text(text) = side { text } else { b"" }
}

/// Returns whether both sides exist, with the same type and content. What is too large to be read is compared by its size and time.
fn same_content(compared: &Compared) -> bool {
    let (Some(before), Some(after)) = (&compared.before, &compared.after) else { return false };
    let alike = before.stat.kind() == after.stat.kind() && before.content == after.content;
    let known = before.content.is_some() || before.stat.kind() != Kind::File;
    alike && (known || (before.stat.size, before.stat.mtime) == (after.stat.size, after.stat.mtime))
}

/// Writes a name as git does in a diff: quoted, in the way of C, where it isn't plain.
fn quoted(prefix: &str, path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let plain = path.iter().all(|&byte| byte >= b' ' && byte != b'"' && byte != b'\\' && byte != 0x7f)
        && std::str::from_utf8(path).is_ok_and(|text| text.chars().all(crate::union::escaped_path::is_tame));
    if plain {
        return [prefix.as_bytes(), path].concat();
    }
    let mut text = format!("\"{prefix}").into_bytes();
    for &byte in path {
        match byte {
            b'"' | b'\\' => text.extend([b'\\', byte]),
            b'\n' => text.extend(b"\\n"),
            b'\t' => text.extend(b"\\t"),
            b' '..=b'~' => text.push(byte),
            _ => text.extend(format!("\\{byte:03o}").bytes()),
        }
    }
    text.push(b'"');
    text
}

/// Returns the mode as git knows modes.
fn git_mode(version: &Version) -> u32 {
    match version.stat.kind() {
        Kind::Symlink => 0o120_000,
        _ if version.stat.mode & 0o111 != 0 => 0o100_755,
        _ => 0o100_644,
    }
}

/// Writes a change as a unified diff; nothing where it has no lines and is no binary file.
///
/// # Errors
/// Those of writing.
pub fn write(out: &mut impl Write, compared: &Compared) -> io::Result<()> {
    let is_file = |version: &&Version| matches!(version.stat.kind(), Kind::File | Kind::Symlink);
    let before = compared.before.as_ref().filter(is_file);
    let after = compared.after.as_ref().filter(is_file);
    match (before, after) {
        (None, None) => Ok(()),
        // git knows no way from a file to a link but a deletion and an addition.
        (Some(old), Some(new)) if old.stat.kind() != new.stat.kind() => {
            write_one(out, &compared.path, Some(old), None)?;
            write_one(out, &compared.path, None, Some(new))
        }
        _ if same_content(compared) && before.map(git_mode) == after.map(git_mode) => Ok(()),
        _ => write_one(out, &compared.path, before, after),
    }
}

fn write_one(
    out: &mut impl Write,
    path: &[u8],
    before: Option<&Version>,
    after: Option<&Version>,
) -> io::Result<()> {
    let (a, b) = (quoted("a/", path), quoted("b/", path));
    out.write_all(&[b"diff --git ", &a[..], b" ", &b[..], b"\n"].concat())?;
    match (before, after) {
        (None, Some(new)) => writeln!(out, "new file mode {:06o}", git_mode(new))?,
        (Some(old), None) => writeln!(out, "deleted file mode {:06o}", git_mode(old))?,
        (Some(old), Some(new)) if git_mode(old) != git_mode(new) => {
            writeln!(out, "old mode {:06o}\nnew mode {:06o}", git_mode(old), git_mode(new))?;
        }
        _ => {}
    }
    let (old, new) = (Side::of(before), Side::of(after));
    let nothing: &[u8] = b"/dev/null";
    let old_name = if before.is_some() { &a[..] } else { nothing };
    let new_name = if after.is_some() { &b[..] } else { nothing };
    if matches!(old, Side::Data(_)) || matches!(new, Side::Data(_)) {
        return out.write_all(&[b"Binary files ", old_name, b" and ", new_name, b" differ\n"].concat());
    }
    let (old, new) = (text_of(&old), text_of(&new));
    if old == new {
        return Ok(());
    }
    // patch(1) takes what follows a tab for no part of the name, which may have blanks.
    let end = |name: &[u8]| if name.contains(&b' ') { &b"\t\n"[..] } else { b"\n" };
    out.write_all(&[b"--- ", old_name, end(old_name), b"+++ ", new_name, end(new_name)].concat())?;
    match replaced(old, new) {
        Some(replaced) => replaced.write(out),
        None => write_hunks(out, &lines(old), &lines(new)),
    }
}

fn write_hunks(out: &mut impl Write, old: &[&[u8]], new: &[&[u8]]) -> io::Result<()> {
    let diff = text_diff(old, new);
    let groups = diff.grouped_ops(CONTEXT);
    for ops in groups {
        writeln!(out, "{}", UnifiedHunkHeader::new(&ops))?;
        for change in ops.iter().flat_map(|op| diff.iter_changes(op)) {
            let sign: &[u8] = match change.tag() {
                ChangeTag::Equal => b" ",
                ChangeTag::Delete => b"-",
                ChangeTag::Insert => b"+",
            };
            write_line(out, sign, change.value())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::object::{At, Stat};
    use std::os::fd::AsFd;

    fn version(content: &[u8]) -> Version {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), content).unwrap();
        let file = std::fs::File::open(dir.path().join("f")).unwrap();
        let stat: Stat = At::Fd(file.as_fd()).stat().unwrap();
        Version { stat, content: Some(content.to_vec()) }
    }

    fn patch(path: &str, before: Option<&[u8]>, after: Option<&[u8]>) -> String {
        let compared = Compared { path: path.into(), before: before.map(version), after: after.map(version) };
        let mut out = Vec::new();
        write(&mut out, &compared).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_end_where_they_end_and_nowhere_else() {
        let text = patch("/f", Some(b"a\rb\nc"), Some(b"a\rb\nd\r"));
        assert_eq!(
            text,
            "diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\rb\n-c\n\\ No newline at end of file\n+d\r\n\\ No newline at end of file\n"
        );
        let compared = Compared {
            path: b"/f".to_vec(),
            before: Some(version(b"a\nb\n")),
            after: Some(version(b"a\nc\nd\n")),
        };
        assert_eq!(measure(&compared), Measure::Lines(Figures { added: 2, removed: 1 }));
    }

    #[test]
    fn many_lines_are_replaced_as_a_whole_and_patch_takes_it() {
        let many = |line: &str| line.repeat(MANY).into_bytes();
        let of = |parts: &[&[u8]]| parts.concat();
        let body = many("\n");
        for (old, new) in [
            (of(&[b"a\nb\n", &body, b"c\nd"]), of(&[b"a\nx\n", &body, b"c\ne"])),
            (of(&[&body, b"c\n"]), of(&[&body, b"y\nc\n"])),
            (of(&[b"q\n", &body]), body.clone()),
            (Vec::new(), body.clone()),
            (body.clone(), Vec::new()),
            (of(&[&body, b"last"]), of(&[&body, b"last\n"])),
        ] {
            let text = patch("/f", Some(&old), Some(&new));
            assert_eq!(text.matches("@@ -").count(), 1);
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("f");
            std::fs::write(&file, &old).unwrap();
            std::fs::write(dir.path().join("patch"), text).unwrap();
            let mut patch = std::process::Command::new("git");
            patch.args(["apply", "patch"]).current_dir(dir.path()).env("GIT_CEILING_DIRECTORIES", "/");
            match patch.output() {
                Ok(output) => assert!(output.status.success(), "{output:?}"),
                Err(_) => return eprintln!("SKIP: no git"),
            }
            assert!(std::fs::read(&file).unwrap() == new, "{} and {} bytes", old.len(), new.len());
        }
        let (old, new) = (of(&[b"a\n", &body]), of(&[b"b\nc\n", &body]));
        let compared =
            Compared { path: b"/f".to_vec(), before: Some(version(&old)), after: Some(version(&new)) };
        assert_eq!(measure(&compared), Measure::Lines(Figures { added: 2, removed: 1 }));
    }

    #[test]
    fn what_is_no_text_has_no_lines_and_odd_names_are_quoted() {
        let text = patch("/a\n\"b", None, Some(b"\0"));
        assert_eq!(
            text,
            "diff --git \"a/a\\n\\\"b\" \"b/a\\n\\\"b\"\nnew file mode 100644\nBinary files /dev/null and \"b/a\\n\\\"b\" differ\n"
        );
        assert_eq!(patch("/f", Some(b"x"), Some(b"x")), "");
    }
}
