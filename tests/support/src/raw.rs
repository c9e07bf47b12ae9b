//! The few system calls that tests need and no safe wrapper offers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A file mapped shared into memory.
pub struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes of `file`; `writable` maps for writing too.
    pub fn shared(file: &File, length: usize, writable: bool) -> io::Result<Self> {
        Self::new(file, length, writable, libc::MAP_SHARED)
    }

    /// Maps the first `length` bytes of `file` privately, readable and writable.
    pub fn private(file: &File, length: usize) -> io::Result<Self> {
        Self::new(file, length, true, libc::MAP_PRIVATE)
    }

    fn new(file: &File, length: usize, writable: bool, flags: i32) -> io::Result<Self> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a fresh mapping at an address that the kernel chooses; it aliases no Rust object.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Mapping { start, length })
        }
    }

    /// How long it is.
    pub fn length(&self) -> usize {
        self.length
    }

    /// A copy of the bytes at `offset`.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length);
        let mut bytes = vec![0; length];
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: within the mapping, by the assertion; volatile, as other mappings change the memory.
            *byte = unsafe { std::ptr::read_volatile(self.start.cast::<u8>().add(offset + index)) };
        }
        bytes
    }

    /// Stores `bytes` at `offset`. The mapping must be writable.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping, by the assertion.
            unsafe { std::ptr::write_volatile(self.start.cast::<u8>().add(offset + index), *byte) };
        }
    }

    /// msync(MS_SYNC) of the whole mapping.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping's own.
        match unsafe { libc::msync(self.start, self.length, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; nothing borrows from it.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// Which kind of record lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// F_SETLK: belongs to the process.
    Process,
    /// F_OFD_SETLK: belongs to the open file.
    OpenFile,
}

/// Sets (`F_RDLCK`, `F_WRLCK`) or takes away (`F_UNLCK`) a record lock on a range, without waiting.
pub fn lock(file: &File, kind: LockKind, lock_type: i32, start: i64, length: i64) -> io::Result<()> {
    // SAFETY: flock is plain data, for which zeroes are a valid value.
    let mut flock: libc::flock = unsafe { std::mem::zeroed() };
    flock.l_type = lock_type as i16;
    flock.l_whence = libc::SEEK_SET as i16;
    flock.l_start = start;
    flock.l_len = length;
    let command = match kind {
        LockKind::Process => libc::F_SETLK,
        LockKind::OpenFile => libc::F_OFD_SETLK,
    };
    // SAFETY: the pointer is to a live flock, as the command wants.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const flock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Gives the calling thread its own umask and working directory.
pub fn unshare_fs() {
    // SAFETY: CLONE_FS unshares no file descriptors and no memory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.unwrap();
}

/// ioctl(FS_IOC_SETFLAGS).
pub fn set_inode_flags(file: &File, flags: libc::c_long) -> io::Result<()> {
    // SAFETY: the ioctl reads one long through the pointer.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// lseek(2), with an offset that may be negative.
pub fn seek(file: &File, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: takes no pointers.
    match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
        -1 => Err(io::Error::last_os_error()),
        at => Ok(at),
    }
}

/// truncate(2), which changes a file by its path.
pub fn truncate(path: &std::path::Path, length: i64) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the pointer is to a string that ends in a NUL and outlives the call.
    match unsafe { libc::truncate(path.as_ptr(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bind-mounts `source` on `target` such that the id `on_disk` is shown as `shown`, and so on for 65536 ids, as container
/// engines mount layers for a container with a user namespace. Needs root.
pub fn idmapped_mount(
    source: &std::path::Path,
    target: &std::path::Path,
    on_disk: u32,
    shown: u32,
) -> io::Result<()> {
    use rustix::fs::CWD;
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let mut sleeper = std::process::Command::new("unshare")
        .args(["--user", "sh", "-c", "echo; exec sleep 60"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    // It has its namespace once it speaks.
    let mut byte = [0];
    io::Read::read_exact(sleeper.stdout.as_mut().expect("piped"), &mut byte)?;
    let map = |name: &str| {
        std::fs::write(format!("/proc/{}/{name}", sleeper.id()), format!("{on_disk} {shown} 65536"))
    };
    let mapped = map("uid_map").and_then(|()| map("gid_map")).and_then(|()| {
        let namespace = File::open(format!("/proc/{}/ns/user", sleeper.id()))?;
        let tree = open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        // struct mount_attr of mount_setattr(2): what to set, to clear, propagation, user namespace.
        const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
        let attributes = [MOUNT_ATTR_IDMAP, 0, 0, namespace.as_raw_fd() as u64];
        // SAFETY: the path is an empty string, the attributes are four live 64-bit words, as the call wants.
        let set = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&tree, "", CWD, target, flags)?)
    });
    sleeper.kill()?;
    sleeper.wait()?;
    mapped
}

/// Whether name_to_handle_at(2) gives a handle for `path`.
pub fn has_handle(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // struct file_handle: how many bytes there is room for, a type, the bytes.
    let (mut handle, mut mount) = ([0u32; 2 + 128 / 4], 0i32);
    handle[0] = 128;
    // SAFETY: the pointers are to a string that ends in a NUL, a handle with the room that it tells, and a number.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            handle.as_mut_ptr(),
            &raw mut mount,
            0,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A block that O_DIRECT takes.
#[repr(align(4096))]
pub struct Block(pub [u8; 4096]);

/// Writes that are begun and waited for apart (io_submit(2)).
pub struct Asynchronous(libc::c_ulong);

impl Asynchronous {
    pub fn new() -> io::Result<Asynchronous> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the pointer is to a number that is zero, as the call wants.
        match unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) } {
            0 => Ok(Asynchronous(context)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes a block at `offset` and returns when it is done.
    pub fn write(&self, file: &File, block: &Block, offset: i64) -> io::Result<i64> {
        const IOCB_CMD_PWRITE: u64 = 1;
        // struct iocb: data, key and flags, opcode and descriptor, buffer, size, offset, reserved, flags.
        let opcode = IOCB_CMD_PWRITE | (file.as_raw_fd() as u64) << 32;
        let control = [0, 0, opcode, (&raw const block.0) as u64, 4096, offset as u64, 0, 0];
        let list = [control.as_ptr()];
        let mut event = [0i64; 4];
        // SAFETY: one iocb, as the layout above; its block is borrowed until the event is there.
        unsafe {
            if libc::syscall(libc::SYS_io_submit, self.0, 1, list.as_ptr()) != 1 {
                return Err(io::Error::last_os_error());
            }
            let none = std::ptr::null::<libc::timespec>();
            while libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, event.as_mut_ptr(), none) != 1 {
                // What interrupts the wait is nothing that this thread asked for.
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(event[2])
    }
}

impl Drop for Asynchronous {
    fn drop(&mut self) {
        // SAFETY: it is a context of io_setup, and nothing is under way.
        let _ended = unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// ioctl(FIFREEZE) and ioctl(FITHAW): lets a filesystem write everything to where it belongs, its journal too, and go on.
pub fn freeze_and_thaw(directory: &File) -> io::Result<()> {
    const FREEZE: libc::c_ulong = 0xC004_5877;
    const THAW: libc::c_ulong = 0xC004_5878;
    for request in [FREEZE, THAW] {
        // SAFETY: the kernel reads nothing through the argument of these requests, which is 0.
        if unsafe { libc::ioctl(directory.as_raw_fd(), request, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// What the loop driver is asked for (`linux/loop.h`), and any block device (`linux/fs.h`).
pub mod loops {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    const CONFIGURE: libc::c_ulong = 0x4C0A;
    const CLEAR: libc::c_ulong = 0x4C01;
    const GET_FREE: libc::c_ulong = 0x4C82;
    const FLUSH_BUFFERS: libc::c_ulong = 0x1261;
    /// `struct loop_config`: the file's descriptor, the size of blocks (0: the driver's choice), 232 bytes of
    /// `struct loop_info64`, whose zeroes are a device over the whole file, and 64 reserved ones.
    const CONFIGURATION: usize = 4 + 4 + 232 + 64;

    /// Returns the number of a device that is over no file.
    pub fn free(control: &File) -> io::Result<u32> {
        // SAFETY: takes no pointers.
        match unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) } {
            -1 => Err(io::Error::last_os_error()),
            number => Ok(number as u32),
        }
    }

    /// Attaches `device` to `file`.
    pub fn attach(device: &File, file: &File) -> io::Result<()> {
        let mut configuration = [0_u64; CONFIGURATION / 8];
        // The descriptor is the first 4 bytes, in the machine's order.
        let mut first = [0; 8];
        first[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        configuration[0] = u64::from_ne_bytes(first);
        // SAFETY: the driver reads a `struct loop_config` of that size, aligned to 8 bytes as it is.
        match unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, configuration.as_ptr()) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Writes what the kernel has of `device` in memory, and forgets it.
    pub fn forget(device: &File) -> io::Result<()> {
        plain(device, FLUSH_BUFFERS)
    }

    /// Detaches `device` from its file, when nobody has it open any more.
    pub fn detach(device: &File) -> io::Result<()> {
        plain(device, CLEAR)
    }

    fn plain(device: &File, request: libc::c_ulong) -> io::Result<()> {
        // SAFETY: these requests take no pointers.
        match unsafe { libc::ioctl(device.as_raw_fd(), request) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
