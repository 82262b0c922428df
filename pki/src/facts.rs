//! The facts of a certificate besides the identity that it names.

use jiff::Timestamp;
use postern_core::CertificateSerial;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::{SpiffeIdError, validity};
use crate::life::BACKDATE;

/// The serial number and the times of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The serial number.
    pub serial: CertificateSerial,
    /// The time at which the authority signed it, in whole seconds. The authority backdates the first moment of validity by
    /// [`BACKDATE`], and this is the time before that.
    pub issued_at: Timestamp,
    /// The end.
    pub not_after: Timestamp,
}

impl CertificateFacts {
    /// Reads a certificate (DER) of the authority.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn read(der: &[u8]) -> Result<Self, SpiffeIdError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| SpiffeIdError::Unreadable)?;
        let serial = CertificateSerial::from_bytes(certificate.raw_serial());
        let (not_before, not_after) = validity(der)?;
        Ok(Self {
            serial: serial.map_err(|_| SpiffeIdError::Unreadable)?,
            issued_at: not_before.checked_add(BACKDATE).unwrap_or(Timestamp::MAX),
            not_after,
        })
    }
}
