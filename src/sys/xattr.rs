//! Extended attributes of an object that is named by directory and name.
//!
//! Linux 6.13 has getxattrat(2); before it only paths and open files do, so the way leads over
//! `/proc/self/fd/DIR/NAME`, which opens nothing and works for symbolic links and O_PATH descriptors too.

use rustix::fs;
use rustix::io::{Errno, Result};

use super::object::At;

/// The largest value, and the longest list of names, that Linux knows (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LARGEST: usize = 65536;

/// Calls with a small buffer, and again with one that is large enough for all.
fn with_buffer(mut call: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0u8; 512];
    match call(&mut small) {
        Ok(n) => return Ok(small[..n].to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    let mut large = vec![0u8; LARGEST];
    let n = call(&mut large)?;
    large.truncate(n);
    Ok(large)
}

/// The value of the attribute `name`, or `None` where the object has none of that name or the filesystem knows no
/// attributes.
pub fn get(at: At<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let path = at.proc_path();
    let value = with_buffer(|buffer| match at {
        At::Name(..) => fs::lgetxattr(&path[..], name, buffer),
        At::Fd(_) => fs::getxattr(&path[..], name, buffer),
    });
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The names of all attributes that this process may see; empty where the filesystem knows none.
pub fn list(at: At<'_>) -> Result<Vec<Vec<u8>>> {
    let path = at.proc_path();
    let names = with_buffer(|buffer| match at {
        At::Name(..) => fs::llistxattr(&path[..], buffer),
        At::Fd(_) => fs::listxattr(&path[..], buffer),
    });
    match names {
        Ok(names) => Ok(names.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()),
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::object::Writable;
    use rustix::fs::XattrFlags;
    use std::os::fd::AsFd;

    #[test]
    fn values_and_lists_of_every_size_come_whole() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        let at = At::Fd(file.as_fd());
        let object = Writable::of_upper(at);
        for size in [0usize, 1, 511, 512, 513, 3000] {
            let value = vec![b'v'; size];
            match object.set_xattr(b"user.v", &value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP) => return println!("SKIP: no extended attributes here"),
                other => other.unwrap(),
            }
            assert_eq!(get(at, b"user.v").unwrap().unwrap(), value);
        }
        object.remove_xattr(b"user.v").unwrap();
        let names: Vec<Vec<u8>> =
            (0..40).map(|i| format!("user.a-rather-long-name-{i:03}").into_bytes()).collect();
        for name in &names {
            object.set_xattr(name, b"", XattrFlags::empty()).unwrap();
        }
        let mut listed = list(at).unwrap();
        listed.sort();
        assert_eq!(listed, names);
    }
}
