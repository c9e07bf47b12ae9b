//! Taking what a request brings, never past its end.

use zerocopy::FromBytes;

/// What follows a request's header: one piece, or two where a ring has its first structure apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Args<'a> {
    now: &'a [u8],
    then: &'a [u8],
}

impl<'a> Args<'a> {
    /// Joins two pieces that follow each other.
    pub fn new(first: &'a [u8], second: &'a [u8]) -> Args<'a> {
        if first.is_empty() { Args { now: second, then: &[] } } else { Args { now: first, then: second } }
    }

    /// Returns all that is left, in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        [self.now, self.then].concat()
    }

    /// Takes a structure.
    pub fn take<T: FromBytes>(&mut self) -> Option<T> {
        let (taken, rest) = T::read_from_prefix(self.now).ok()?;
        *self = Args::new(rest, self.then);
        Some(taken)
    }

    /// Takes a name, which ends with a NUL byte.
    pub fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.now.iter().position(|byte| *byte == 0)?;
        let (name, rest) = self.now.split_at(end);
        *self = Args::new(&rest[1..], self.then);
        Some(name)
    }

    /// Takes so many bytes.
    pub fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        let (taken, rest) = self.now.split_at_checked(len as usize)?;
        *self = Args::new(rest, self.then);
        Some(taken)
    }

    /// Takes as much of a structure as there is; the rest of it is zero. Those of old kernels are shorter.
    pub fn take_some<T: FromBytes + zerocopy::IntoBytes>(&mut self) -> T {
        let mut taken = T::new_zeroed();
        let into = taken.as_mut_bytes();
        let len = into.len().min(self.now.len());
        into[..len].copy_from_slice(&self.now[..len]);
        *self = Args::new(&self.now[len..], self.then);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other() {
        for (first, second) in [
            (&b"\x01\0\0\0name\0xy"[..], &b""[..]),
            (b"\x01\0\0\0", b"name\0xy"),
            (b"", b"\x01\0\0\0name\0xy"),
        ] {
            let mut args = Args::new(first, second);
            assert_eq!(args.take::<[u8; 4]>(), Some([1, 0, 0, 0]));
            assert_eq!(args.name(), Some(&b"name"[..]));
            assert_eq!(args.name(), None, "it has no end");
            assert_eq!((args.bytes(3), args.bytes(2)), (None, Some(&b"xy"[..])));
            assert_eq!(args.take::<[u8; 1]>(), None);
            assert_eq!(args.take_some::<[u8; 2]>(), [0, 0]);
        }
    }
}
