//! Which error a system call failed with.

/// Asserts that a system call fails with one of the given errors.
#[macro_export]
macro_rules! assert_errno {
    ($result:expr, $($errno:path)|+) => {{
        match $result {
            Ok(_) => panic!("{}: succeeded, expected {}", stringify!($result), stringify!($($errno)|+)),
            Err(error) => {
                let errno = $crate::errno_of(&error);
                assert!(
                    [$($errno),+].contains(&errno),
                    "{}: failed with {errno:?}, expected {}", stringify!($result), stringify!($($errno)|+)
                );
            }
        }
    }};
}

/// An error that carries an errno.
pub trait HasErrno {
    /// The errno, or a panic with the error's text.
    fn errno(&self) -> rustix::io::Errno;
}

impl HasErrno for std::io::Error {
    fn errno(&self) -> rustix::io::Errno {
        rustix::io::Errno::from_io_error(self).unwrap_or_else(|| panic!("no errno in {self}"))
    }
}

impl HasErrno for rustix::io::Errno {
    fn errno(&self) -> rustix::io::Errno {
        *self
    }
}

/// The errno of `error`.
pub fn errno_of(error: &impl HasErrno) -> rustix::io::Errno {
    error.errno()
}
