//! Records with a checksum: small JSON objects in which a flipped bit is seen.
//!
//! The checksum is one more field, the digest of the object without it as serde_json writes it. Whoever reads the record for
//! its content need not know of it.

use serde::Serialize;
use serde_json::{Value, json};

use crate::image::digest::Digest;

const FIELD: &str = "checksum";

/// Writes a record with its checksum.
///
/// # Errors
/// When it can't be told in JSON.
pub fn seal(record: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut value = serde_json::to_value(record)?;
    let digest = Digest::of(value.to_string().as_bytes());
    if let Some(fields) = value.as_object_mut() {
        fields.insert(FIELD.to_owned(), json!(digest));
    }
    serde_json::to_vec_pretty(&value)
}

/// Reads a record. One that was written before there were checksums has none, unless it is `required`.
///
/// # Errors
/// In words, when it is no JSON object or its checksum is that of another.
pub fn unseal(text: &[u8], required: bool) -> Result<Value, String> {
    let mut value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let Some(fields) = value.as_object_mut() else { return Err("is no object".to_owned()) };
    match fields.remove(FIELD) {
        Some(noted) if noted == json!(Digest::of(value.to_string().as_bytes())) => Ok(value),
        Some(_) => Err("its checksum is that of another content".to_owned()),
        None if required => Err("its checksum is missing".to_owned()),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen() {
        let record = json!({ "id": "ab12", "name": "web", "settings": { "env": ["A=1"] }, "exit_code": 3 });
        let sealed = seal(&record).unwrap();
        assert_eq!(unseal(&sealed, true).unwrap(), record);
        for at in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(unseal(&flipped, true).is_err(), "bit {at}: {}", String::from_utf8_lossy(&flipped));
        }
        assert!(unseal(b"", false).is_err());
        assert_eq!(unseal(record.to_string().as_bytes(), false).unwrap(), record);
        assert!(unseal(record.to_string().as_bytes(), true).is_err());
    }
}
