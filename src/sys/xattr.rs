//! Extended attributes of an object that is named by directory and name.
//!
//! Linux 6.13 has getxattrat(2); before it only paths and open files do, so the way leads over
//! `/proc/self/fd/DIR/NAME`, which opens nothing and works for symbolic links and O_PATH descriptors too.

use rustix::fs;
use rustix::io::{Errno, Result};

use super::object::At;

/// The value of the attribute `name`, or `None` where the object has none of that name or the filesystem knows no
/// attributes.
pub fn get(at: At<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let path = at.proc_path();
    let mut buffer = [0u8; 256];
    let call = |buffer: &mut [u8]| match at {
        At::Name(..) => fs::lgetxattr(&path[..], name, buffer),
        At::Fd(_) => fs::getxattr(&path[..], name, buffer),
    };
    match call(&mut buffer) {
        Ok(n) => return Ok(Some(buffer[..n].to_vec())),
        Err(Errno::RANGE) => {}
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(e) => return Err(e),
    }
    loop {
        let size = match call(&mut []) {
            Ok(size) => size,
            Err(Errno::NODATA) => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut value = vec![0u8; size + 64];
        match call(&mut value) {
            Ok(n) => {
                value.truncate(n);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) => continue, // it grew between the two calls
            Err(Errno::NODATA) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// The names of all attributes that this process may see; empty where the filesystem knows none.
pub fn list(at: At<'_>) -> Result<Vec<Vec<u8>>> {
    let path = at.proc_path();
    let call = |buffer: &mut [u8]| match at {
        At::Name(..) => fs::llistxattr(&path[..], buffer),
        At::Fd(_) => fs::listxattr(&path[..], buffer),
    };
    let split =
        |raw: &[u8]| raw.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut buffer = [0u8; 512];
    match call(&mut buffer) {
        Ok(n) => return Ok(split(&buffer[..n])),
        Err(Errno::RANGE) => {}
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    loop {
        let size = call(&mut [])?;
        let mut names = vec![0u8; size + 256];
        match call(&mut names) {
            Ok(n) => return Ok(split(&names[..n])),
            Err(Errno::RANGE) => continue,
            Err(e) => return Err(e),
        }
    }
}
