//! Serial numbers of certificates.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::Invalid;
use crate::text::text_traits;

/// The serial number of a certificate: 1 to 20 bytes, not zero (RFC 5280, 4.1.2.2). Its text has lower-case hexadecimal digits, two
/// for each byte, and no leading zero bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CertificateSerial(String);

impl CertificateSerial {
    /// The longest serial number, in bytes.
    pub const MAX_BYTES: usize = 20;

    /// Parses hexadecimal digits of either case, as Postern and openssl write them: colons may stand between them.
    ///
    /// # Errors
    /// Another character, zero, or more than [`Self::MAX_BYTES`] bytes.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let wrong = |problem: &str| {
            Invalid::new("serial", problem, "use the hexadecimal digits of a serial number, at most 40")
        };
        let digits = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase());
        let digits: String = digits.skip_while(|c| *c == '0').take(2 * Self::MAX_BYTES + 1).collect();
        if !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(wrong("has a character that is no hexadecimal digit"));
        }
        match digits.len() {
            0 => Err(wrong("is empty or zero")),
            length if length > 2 * Self::MAX_BYTES => Err(wrong("is too long")),
            length if length % 2 == 1 => Ok(Self(format!("0{digits}"))),
            _ => Ok(Self(digits)),
        }
    }

    /// Reads the bytes of a certificate's serial number, the most significant first.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        Self::new(&HEXLOWER.encode(bytes))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_traits!(CertificateSerial);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_serial_number_is_one_text() {
        let expected = CertificateSerial::from_bytes(&[0x00, 0x0a, 0xbc]).unwrap();
        assert_eq!(expected.as_str(), "0abc");
        for text in ["0abc", "0ABC", "ABC", "00:0a:bc", "0000abc"] {
            assert_eq!(CertificateSerial::new(text).unwrap(), expected, "{text}");
        }
        assert_eq!(CertificateSerial::new(&"f".repeat(40)).unwrap().as_str(), "f".repeat(40));
    }

    #[test]
    fn i7_what_is_no_serial_number_is_refused_with_the_field() {
        for bad in ["", "0", "00:00", "xyz", "0x12", "12 34", "ä", &"f".repeat(41), &"f".repeat(100_000)] {
            let invalid = CertificateSerial::new(bad).unwrap_err();
            assert_eq!(invalid.field, "serial", "{bad:.50}");
        }
    }
}
