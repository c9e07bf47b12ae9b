//! Data that the kernel writes by itself, over blocks that are on the disk already, after the journal was written: nothing is
//! left then that a sync of the filesystem would have to write, and the device has them in its cache.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use support::{Mount, Options, Scratch};

use crate::tales::{State, Tale};

const SIZE: usize = 256 << 10;
const FILE: &str = "upper/f";

fn state(at: &Path) -> State {
    let mut bytes = Vec::new();
    let Ok(mut file) = File::open(at.join(FILE)) else { return Ok(String::new()) };
    file.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    match bytes.first() {
        Some(first) if bytes.iter().all(|byte| byte == first) => Ok(format!("{} of {first}", bytes.len())),
        _ => Err(format!("a mixture of {} bytes", bytes.len())),
    }
}

/// Overwrites the file, and brings to the device first what the journal has to say of it, and then the data.
fn overwrite(at: &Path, byte: u8, write: impl FnOnce(&[u8])) {
    write(&[byte; SIZE]);
    fs::write(at.join("other"), [byte]).unwrap();
    File::open(at.join("other")).unwrap().sync_all().unwrap();
    let file = File::open(at.join(FILE)).unwrap();
    unionmount::sys::namespace::write_back(file.as_fd()).unwrap();
}

fn directly(at: &Path, byte: u8) {
    let file = File::options().write(true).open(at.join(FILE)).unwrap();
    overwrite(at, byte, |bytes| file.write_all_at(bytes, 0).unwrap());
}

/// A file that is overwritten, and made durable in each way.
pub fn tale(scratch: &Scratch) -> Tale<'_> {
    let make = |at: &Path| {
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(at.join(dir)).unwrap();
        }
        fs::write(at.join(FILE), [1; SIZE]).unwrap();
        rustix::fs::sync();
    };
    let unmount = |at: &Path| {
        let options = Options {
            lowers: vec![at.join("lower")],
            upper: Some(at.join("upper")),
            work: Some(at.join("work")),
            ..Options::default()
        };
        let mount = Mount::new(&options, &scratch.path().join("merged"));
        let file = File::options().write(true).open(mount.join("f")).unwrap();
        overwrite(at, 2, |bytes| file.write_all_at(bytes, 0).unwrap());
        drop(file);
        mount.unmount();
    };
    let sync = |at: &Path| {
        directly(at, 3);
        unionmount::sys::filesystem::sync(File::open(at.join("upper")).unwrap()).unwrap();
    };
    Tale {
        name: "by itself",
        steps: vec![("make", Box::new(make)), ("unmount", Box::new(unmount)), ("sync", Box::new(sync))],
        state: Box::new(state),
    }
}
