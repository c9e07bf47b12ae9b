//! The spellings of other unions, put into ours: `/a=RW:/b=RO` of unionfs-fuse and mergerfs, `br=` of aufs, `dirs=` of
//! unionfs.
//!
//! They aren't served as they are: mergerfs spreads what is written over all branches, and none of them copies up in the
//! same way. A person who comes from there gets the line to write instead.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What a branch can be, with the marks that follow a `+` cut off. The first three are writable.
const MODES: [&str; 7] = ["RW", "NC", "RWC", "RO", "RR", "RO+WH", "RR+WH"];
const WRITABLE: [&str; 3] = ["RW", "NC", "RWC"];

/// Returns our options for a list of branches; `None` when the text is no such list.
pub(super) fn spelled(list: &OsStr) -> Option<String> {
    let text = list.to_string_lossy();
    let parts: Vec<(&str, Option<String>)> = text
        .split(':')
        .map(|part| match part.rsplit_once('=') {
            Some((path, mode)) => (path, Some(mode.to_uppercase())),
            None => (part, None),
        })
        .collect();
    let known = |mode: &String| {
        MODES.contains(&&mode[..]) || mode.split(',').next().is_some_and(|m| MODES.contains(&m))
    };
    let is_list = parts.iter().all(|(path, mode)| !path.is_empty() && mode.as_ref().is_none_or(known));
    let says_modes = parts.iter().any(|(_, mode)| mode.is_some());
    let paths = list.as_bytes().starts_with(b"/") || list.as_bytes().starts_with(b".");
    if !is_list || !(says_modes || paths) {
        return None;
    }
    let writable = |mode: &Option<String>| mode.as_ref().is_some_and(|mode| WRITABLE.contains(&&mode[..]));
    let upper = parts.iter().position(|(_, mode)| writable(mode));
    let lowers: Vec<&str> =
        parts.iter().enumerate().filter(|(at, _)| Some(*at) != upper).map(|(_, (path, _))| *path).collect();
    let lowers = if lowers.is_empty() { "DIR" } else { &lowers.join(":") };
    Some(match upper.and_then(|at| parts.get(at)) {
        Some((upper, _)) => {
            format!("lowerdir={lowers},upperdir={upper},workdir={}.work", upper.trim_end_matches('/'))
        }
        None => format!("lowerdir={lowers}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_branches_are_put_into_our_words() {
        for (list, ours) in [
            ("/a=RW:/b=RO", Some("lowerdir=/b,upperdir=/a,workdir=/a.work")),
            ("/b=ro:/a/=rw:/c=ro", Some("lowerdir=/b:/c,upperdir=/a/,workdir=/a.work")),
            ("/a:/b", Some("lowerdir=/a:/b")),
            ("/a=RO+wh", Some("lowerdir=/a")),
            ("/a=NC,1G:/b", Some("lowerdir=/a:/b")),
            ("none", None),
            ("unionmount", None),
            ("a=b", None),
            ("", None),
        ] {
            assert_eq!(spelled(OsStr::new(list)).as_deref(), ours, "{list}");
        }
    }
}
