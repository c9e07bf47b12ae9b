//! What the headers of a tar say: the blocks of 512 bytes, and the PAX records that go before them.
//!
//! Where implementations differ, Go's `archive/tar` is followed, which is what other container engines read by; what it
//! refuses and GNU tar, bsdtar and Python's `tarfile` all take is taken as they do.

use std::collections::BTreeMap;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, percent_encode};

use crate::sys::object::Time;

/// The unit in which a tar is written.
pub(super) const BLOCK: usize = 512;
/// The longest name of an extended attribute, the largest value, and the longest list of names that Linux knows
/// (XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LONGEST_ATTRIBUTE: usize = 255;
const LARGEST_ATTRIBUTE: usize = 64 << 10;
const MOST_ATTRIBUTES: usize = 64 << 10;
/// An attribute by its plain name and its plain value.
pub(super) const SCHILY: &[u8] = b"SCHILY.xattr.";
/// An attribute by its name in the encoding of URLs, and its value in base 64: what libarchive writes, beside the other.
pub(super) const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";

/// A header block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'a>(pub &'a [u8; BLOCK]);

/// By whose rules a header is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Before POSIX: no prefix.
    V7,
    /// POSIX.
    Ustar,
    /// Schily's star: a shorter prefix.
    Star,
    /// GNU: other fields where the prefix would be.
    Gnu,
}

impl<'a> Header<'a> {
    fn field(self, from: usize, length: usize) -> &'a [u8] {
        &self.0[from..from + length]
    }

    /// Returns whether it is nothing but zeros: the end of an archive, or a half of it.
    pub(super) fn is_zero(self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }

    /// Checks the sum. Some writers have summed up signed bytes.
    pub(super) fn checksum_is_right(self) -> bool {
        let Some(expected) = number(self.field(148, 8)) else { return false };
        let blank = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
        let bytes = || self.0.iter().enumerate().map(|(at, &byte)| blank(at, byte));
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        expected == unsigned || expected == signed
    }

    /// Returns the type of the entry.
    pub(super) fn kind(self) -> u8 {
        self.0[156]
    }

    fn dialect(self) -> Dialect {
        match (self.field(257, 6), self.field(263, 2), self.field(508, 4)) {
            (b"ustar\0", _, b"tar\0") => Dialect::Star,
            (b"ustar\0", ..) => Dialect::Ustar,
            (b"ustar ", b" \0", _) => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    pub(super) fn is_gnu(self) -> bool {
        self.dialect() == Dialect::Gnu
    }

    pub(super) fn name(self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = match self.dialect() {
            Dialect::Ustar => text(self.field(345, 155)),
            Dialect::Star => text(self.field(345, 131)),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(self) -> &'a [u8] {
        text(self.field(157, 100))
    }

    pub(super) fn mode(self) -> Option<i64> {
        number(self.field(100, 8))
    }

    pub(super) fn uid(self) -> Option<i64> {
        number(self.field(108, 8))
    }

    pub(super) fn gid(self) -> Option<i64> {
        number(self.field(116, 8))
    }

    pub(super) fn size(self) -> Option<u64> {
        number(self.field(124, 12)).and_then(|size| u64::try_from(size).ok())
    }

    pub(super) fn mtime(self) -> Option<i64> {
        number(self.field(136, 12))
    }

    pub(super) fn device(self) -> Option<(u32, u32)> {
        let part = |from| number(self.field(from, 8)).and_then(|part| u32::try_from(part).ok());
        Some((part(329)?, part(337)?))
    }

    /// Returns the first runs of an old sparse file of GNU, whether there are more blocks of them, and its size.
    pub(super) fn old_sparse(self) -> (&'a [u8], bool, Option<u64>) {
        let size = number(self.field(483, 12)).and_then(|size| u64::try_from(size).ok());
        (self.field(386, 96), self.0[482] != 0, size)
    }
}

/// Cuts a field at the first zero byte.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Returns a number in octal digits, with blanks and zero bytes around them, or in the base of 256 of GNU, which has a
/// sign. Nothing at all is 0. `None` for what is no number, or beyond 64 bits.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if let Some((&first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // Seven bits of the first byte count, of which the highest is the sign.
        let first = i128::from(first & 0x7f) - if first & 0x40 != 0 { 0x80 } else { 0 };
        let value = rest.iter().try_fold(first, |sum, &byte| sum.checked_mul(256)?.checked_add(byte.into()));
        return i64::try_from(value?).ok();
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let from = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let to = field.iter().rposition(|byte| !is_blank(byte)).map_or(from, |at| at + 1);
    text(&field[from..to]).iter().try_fold(0i64, |sum, &byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// Returns an owner as a system call takes it. Who writes −1, in 32 bits or more, means nobody in particular: everybody
/// else hands it to `lchown`, which leaves the file to root. `None` for what is no id.
pub(super) fn owner(id: i64) -> Option<u32> {
    match id {
        -1 | 0xffff_ffff => Some(0),
        // Of 32 bits with a sign, as NFS's nobody.
        -0x8000_0000..0 => Some(id as i32 as u32),
        id => u32::try_from(id).ok(),
    }
}

/// What the PAX records before an entry say of it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<Time>,
    pub sparse: SparsePax,
    /// By name, as programs see it.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The bytes of all names.
    names: usize,
}

/// What they say of a sparse file, in whichever of GNU's three forms.
#[derive(Debug, Default)]
pub(super) struct SparsePax {
    /// There is such a record.
    pub any: bool,
    pub version: (u64, u64),
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    /// Offsets and lengths, one after the other.
    pub map: Vec<u64>,
}

impl Pax {
    /// Adds the records of one more header; of two records with one key, the last counts.
    pub(super) fn add(&mut self, mut records: &[u8]) -> Result<(), String> {
        let malformed = || "a malformed PAX header".to_owned();
        // Some writers pad with zeros.
        while records.iter().any(|&byte| byte != 0) {
            let space = records.iter().take(20).position(|&byte| byte == b' ').ok_or_else(malformed)?;
            let length: usize = decimal(&records[..space]).ok_or_else(malformed)?;
            let record = records.get(..length).ok_or_else(malformed)?;
            let (key, value) = record
                .get(space + 1..)
                .and_then(|rest| rest.strip_suffix(b"\n"))
                .and_then(|rest| Some(rest.split_at(rest.iter().position(|&byte| byte == b'=')?)))
                .ok_or_else(malformed)?;
            self.record(key, &value[1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    /// Takes a record. An empty value takes back what was said before: the header counts.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let some = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = some(),
            b"linkpath" => self.link = some(),
            b"size" => self.size = optional(key, value)?,
            b"uid" => self.uid = optional(key, value)?,
            b"gid" => self.gid = optional(key, value)?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => {
                let time = std::str::from_utf8(value).ok().and_then(parse_time);
                self.mtime = Some(time.ok_or("the PAX value of mtime is no time")?);
            }
            _ => {
                if let Some(name) = key.strip_prefix(SCHILY) {
                    return self.attribute(name.to_vec(), value.to_vec());
                }
                if let Some(name) = key.strip_prefix(LIBARCHIVE) {
                    // Beside the plain one it says nothing new; what isn't encoded as it should is nobody's.
                    let name: Vec<u8> = percent_decode(name).collect();
                    let Ok(value) = BASE64.decode(value) else { return Ok(()) };
                    return match self.xattrs.contains_key(&name) {
                        true => Ok(()),
                        false => self.attribute(name, value),
                    };
                }
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.record(key, value);
                }
            }
        }
        Ok(())
    }

    fn attribute(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), String> {
        if name.is_empty() || name.contains(&0) || name.len() > LONGEST_ATTRIBUTE {
            return Err(format!("an extended attribute with a name of {} bytes", name.len()));
        }
        if value.len() > LARGEST_ATTRIBUTE {
            let name = name.escape_ascii();
            return Err(format!(
                "the extended attribute {name} has {} bytes, and Linux knows 64 KiB",
                value.len()
            ));
        }
        let length = name.len() + 1;
        if self.xattrs.insert(name, value).is_none() {
            self.names += length;
        }
        match self.names > MOST_ATTRIBUTES {
            true => {
                Err("the names of the extended attributes take more than the 64 KiB that Linux can list"
                    .into())
            }
            false => Ok(()),
        }
    }
}

impl SparsePax {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number = |value| decimal(value).ok_or("the PAX value of GNU.sparse is no number");
        self.any = true;
        match key {
            b"major" => self.version.0 = number(value)?,
            b"minor" => self.version.1 = number(value)?,
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"offset" | b"numbytes" => self.map.push(number(value)?),
            b"map" => {
                let numbers = value.split(|&byte| byte == b',').map(number);
                self.map = if value.is_empty() { Vec::new() } else { numbers.collect::<Result<_, _>>()? };
            }
            _ => {}
        }
        Ok(())
    }
}

/// Returns a number in decimal digits.
pub(super) fn decimal<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    let plain = !digits.is_empty() && !digits.starts_with(b"+");
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

fn optional<N: std::str::FromStr>(key: &[u8], value: &[u8]) -> Result<Option<N>, String> {
    match value {
        b"" => Ok(None),
        _ => match decimal(value) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("the PAX value of {} is no number", key.escape_ascii())),
        },
    }
}

/// Reads `[-]SECONDS[.FRACTION]`. What no clock shows is the last or the first time that there is.
fn parse_time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (negative, whole) = match whole.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, whole),
    };
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nsec: u32 = digits.parse().ok()?;
    let whole: i128 = whole.get(..whole.len().min(30)).and_then(|digits| digits.parse().ok())?;
    let (sec, nsec) = match (negative, nsec) {
        (false, nsec) => (whole, nsec),
        (true, 0) => (-whole, 0),
        (true, nsec) => (-whole - 1, 1_000_000_000 - nsec),
    };
    Some(match i64::try_from(sec) {
        Ok(sec) => Time { sec, nsec },
        Err(_) if negative => Time { sec: i64::MIN, nsec: 0 },
        Err(_) => Time { sec: i64::MAX, nsec: 0 },
    })
}

/// Returns the reverse of reading: `SECONDS[.FRACTION]`, as short as it is exact.
pub(super) fn time_text(time: Time) -> String {
    let (sign, sec, nsec) = match time {
        Time { sec, nsec } if sec >= 0 => ("", sec.unsigned_abs(), nsec),
        Time { sec, nsec: 0 } => ("-", sec.unsigned_abs(), 0),
        Time { sec, nsec } => ("-", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
    };
    if nsec == 0 {
        format!("{sign}{sec}")
    } else {
        format!("{sign}{sec}.{nsec:09}").trim_end_matches('0').to_owned()
    }
}

/// Returns the key and the value of the PAX record for an attribute. A key can't hold `=`, and is text: with another
/// name, the attribute stands in libarchive's form, which no name breaks.
pub(super) fn attribute_record(name: &[u8], value: &[u8]) -> (String, Vec<u8>) {
    match std::str::from_utf8(name) {
        Ok(plain) if !plain.contains('=') => (format!("SCHILY.xattr.{plain}"), value.to_vec()),
        _ => {
            let name = percent_encode(name, NON_ALPHANUMERIC);
            (format!("LIBARCHIVE.xattr.{name}"), BASE64.encode(value).into_bytes())
        }
    }
}

/// What libarchive writes has no padding, what others write for it may have.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_form() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\x00144\0", Some(0o144)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"12\0junk!", Some(0o12)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\x01\0\0", Some(65536)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\0", Some(-512)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn owners_as_everybody_else_takes_them() {
        let all = [-1, 0xffff_ffff, -2, 0, 0xffff_fffe, 0x1_0000_0000, -0x8000_0001, i64::MIN];
        let expected = [Some(0), Some(0), Some(0xffff_fffe), Some(0), Some(0xffff_fffe), None, None, None];
        assert_eq!(all.map(owner), expected);
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for (sec, nsec) in [
            (0, 0),
            (1, 500_000_000),
            (-1, 500_000_000),
            (-2, 0),
            (-1, 999_999_999),
            (1_700_000_000, 1),
            (-5, 1),
            (i64::MIN, 0),
            (i64::MAX, 999_999_999),
        ] {
            let time = Time { sec, nsec };
            assert_eq!(parse_time(&time_text(time)), Some(time), "{}", time_text(time));
        }
        assert_eq!(parse_time("12.3456789019"), Some(Time { sec: 12, nsec: 345_678_901 }));
        assert_eq!(parse_time("99999999999999999999"), Some(Time { sec: i64::MAX, nsec: 0 }));
        assert_eq!(parse_time(&format!("-{}.5", "9".repeat(400))), Some(Time { sec: i64::MIN, nsec: 0 }));
        for bad in ["", "-", "1e5", "+1", "1.-5", "1.5.5"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn pax_records_that_are_cut_off_are_told() {
        for bad in [&b"12 mtime=1\n\n"[..], b"11 mtime=1\nxx size=7\n", b"9 size=-\n", b"7 uid=1", b"5 a\n"] {
            Pax::default().add(bad).unwrap_err();
        }
        let mut pax = Pax::default();
        pax.add(b"11 mtime=1\n\0\0").unwrap();
        pax.add(b"9 uid=-2\n12 path=a=b\n9 mtime=\n8 path=\n").unwrap();
        assert_eq!((pax.uid, pax.mtime, pax.path), (Some(-2), None, None));
    }

    #[test]
    fn attributes_of_any_name_go_there_and_back() {
        for name in [&b"user.plain"[..], b"user.a=b", b"user.\xff%3D", b"user.new\nline", "user.ä".as_bytes()]
        {
            for value in [&b""[..], b"v", b"=\n\0\xff"] {
                let (key, written) = attribute_record(name, value);
                let mut pax = Pax::default();
                pax.record(key.as_bytes(), &written).unwrap();
                assert_eq!(pax.xattrs.into_iter().collect::<Vec<_>>(), [(name.to_vec(), value.to_vec())]);
            }
        }
        // Both forms of one attribute, as bsdtar writes them, are one.
        let mut pax = Pax::default();
        pax.record(b"SCHILY.xattr.user.a", b"raw").unwrap();
        pax.record(b"LIBARCHIVE.xattr.user.a", b"cmF3").unwrap();
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"raw");
    }

    #[test]
    fn attributes_are_bounded_as_the_kernel_bounds_them() {
        let mut pax = Pax::default();
        let many = (0..70_000).find_map(|at| pax.attribute(format!("user.{at}").into_bytes(), vec![]).err());
        assert!(many.unwrap().contains("64 KiB"));
        assert!(pax.xattrs.len() < 10_000);
        Pax::default().attribute(b"user.a".to_vec(), vec![0; 65537]).unwrap_err();
        Pax::default().attribute(vec![b'a'; 256], vec![]).unwrap_err();
        // The same again and again is one.
        let mut pax = Pax::default();
        (0..70_000).for_each(|_| pax.attribute(b"user.a".to_vec(), vec![]).unwrap());
    }
}
