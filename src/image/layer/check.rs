//! What an entry of a tar may be, whoever reads it: a layer that is unpacked, or an archive that is a layer as it is.

use super::LayerError;
use super::place::{PLINKS, split};
use super::reader::{Entry, EntryKind};
use crate::sys::object::Kind;
use crate::union::lookup::marker::{self, AufsName};

/// The longest name that Linux knows (NAME_MAX).
const LONGEST_NAME: usize = 255;

/// Checks what an entry describes; `path` is its clean path.
///
/// # Errors
/// When there can be no such thing, or it would mean something else in a layer.
pub(crate) fn object(entry: &Entry, path: &[u8]) -> Result<(), LayerError> {
    let wrong = |what: &str| Err(LayerError::entry(&entry.path, what.to_owned()));
    if let Some(part) = path.split(|&byte| byte == b'/').find(|part| part.len() > LONGEST_NAME) {
        // The name itself would fill the screen.
        let what = format!("a name that is too long: {} bytes, and Linux knows {LONGEST_NAME}", part.len());
        return Err(LayerError::entry(&entry.path[..entry.path.len().min(60)], what));
    }
    match &entry.what {
        EntryKind::Directory => Ok(()),
        _ if path.is_empty() => wrong("would replace the root by something else"),
        EntryKind::Symlink(target) if target.is_empty() || target.contains(&0) => {
            wrong("is a symbolic link to nothing")
        }
        EntryKind::Special
            if entry.attributes.kind == Kind::CharDevice && entry.attributes.device == (0, 0) =>
        {
            wrong("is a character device 0:0, which a layer would read as a deletion")
        }
        _ => Ok(()),
    }
}

/// Says what the name of an entry means in a layer of an image. What AUFS keeps for itself is [`AufsName::Meta`], wherever in
/// a path it stands.
///
/// # Errors
/// When it is a mark of nothing that can exist, or lies in one.
pub(crate) fn mark<'p>(entry: &Entry, path: &'p [u8]) -> Result<AufsName<'p>, LayerError> {
    let (parent, name) = split(path);
    if let Some(part) = parent.split(|&byte| byte == b'/').find(|part| part.starts_with(marker::WH_PREFIX)) {
        return match marker::aufs_name(part) {
            AufsName::Meta => Ok(AufsName::Meta),
            _ => {
                let part = part.escape_ascii();
                Err(LayerError::entry(&entry.path, format!("lies in {part}, which is a whiteout's name")))
            }
        };
    }
    match marker::aufs_name(name) {
        AufsName::Malformed => {
            Err(LayerError::entry(&entry.path, "is a whiteout of nothing that can exist".to_owned()))
        }
        meaning => Ok(meaning),
    }
}

/// Tells whether a directory is a mark, or lies in one.
pub(super) fn is_in_mark(dir: &[u8]) -> bool {
    dir.split(|&byte| byte == b'/').any(|part| part.starts_with(marker::WH_PREFIX))
}

/// Tells whether a path of AUFS's own is a file that it keeps for several names.
pub(super) fn is_kept_for_names(entry: &Entry, path: &[u8]) -> bool {
    split(path).0 == PLINKS && entry.what == EntryKind::File
}
