//! The roots of an authority: one, or two while it is being replaced ([`super::roll`]).

use std::path::{Path, PathBuf};

use super::certificate::{CaCertificate, is_signed_by};
use super::disk::{Paths, only};
use crate::PkiError;
use crate::credentials::{self, KeyPair};
use crate::files::is_absent;

/// The phase of the replacement of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RollPhase {
    /// No root is being replaced.
    Settled,
    /// The next root is made known; the old root signs.
    Begun,
    /// The next root signs; the old one is still trusted.
    Switched,
}

impl RollPhase {
    /// Returns the word for machines.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Begun => "begun",
            Self::Switched => "switched",
        }
    }
}

/// The roots of an authority.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Roots {
    file: PathBuf,
    pub(super) root: Root,
    pub(super) next: Option<NextRoot>,
}

/// A root.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) der: Vec<u8>,
    pub(super) facts: CaCertificate,
}

/// The root that takes the place of the present one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct NextRoot {
    pub(super) root: Root,
    pub(super) voucher: Vec<u8>,
}

impl Roots {
    /// Reads `root.pem` and `roll.pem`.
    pub(super) fn read(paths: &Paths) -> Result<Self, PkiError> {
        let root = Root::of(&paths.root, only(&paths.root, credentials::load_certificates(&paths.root)?)?)?;
        let mut next = None;
        if !is_absent(&paths.roll) {
            let found = credentials::load_certificates(&paths.roll)?;
            let [new, voucher] = <[Vec<u8>; 2]>::try_from(found).map_err(|_| {
                PkiError::malformed(paths.roll.display().to_string(), "it does not hold two certificates")
            })?;
            let new = Root::of(&paths.roll, new)?;
            // Otherwise the step that removes the file was interrupted.
            if new != root {
                if !is_signed_by(&voucher, &root.der) {
                    let problem = format!(
                        "{} did not sign it; put back the two that belong together",
                        paths.root.display()
                    );
                    return Err(PkiError::malformed(paths.roll.display().to_string(), problem));
                }
                next = Some(NextRoot { root: new, voucher });
            }
        }
        Ok(Self { file: paths.root.clone(), root, next })
    }

    pub(super) fn file(&self) -> std::path::Display<'_> {
        self.file.display()
    }

    /// Returns every root, the old one first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Root> {
        std::iter::once(&self.root).chain(self.next.as_ref().map(|next| &next.root))
    }

    /// Returns the root that signed a certificate.
    pub(super) fn signer_of(&self, certificate: &[u8]) -> Option<&Root> {
        self.all().find(|root| is_signed_by(certificate, &root.der))
    }

    /// Returns the root that signs now, by the intermediate (DER) for agents; without one it is the old root.
    pub(super) fn active(&self, intermediate: Option<&[u8]>) -> &Root {
        intermediate.and_then(|intermediate| self.signer_of(intermediate)).unwrap_or(&self.root)
    }

    /// Returns the phase, by the intermediate (DER) for agents.
    pub(super) fn phase(&self, intermediate: &[u8]) -> RollPhase {
        match &self.next {
            None => RollPhase::Settled,
            Some(next) if is_signed_by(intermediate, &next.root.der) => RollPhase::Switched,
            Some(_) => RollPhase::Begun,
        }
    }
}

/// Reads the root that signs now (DER), and its key from a file.
pub(super) fn read_active_root(paths: &Paths, root_key: &Path) -> Result<(Vec<u8>, KeyPair), PkiError> {
    let roots = Roots::read(paths)?;
    let agents = paths.agents.read().ok();
    let root = roots.active(agents.as_ref().map(|found| found.certificate.as_slice()));
    Ok((root.der.clone(), paths.read_root_key(root_key, &root.der)?))
}

impl Root {
    fn of(file: &Path, der: Vec<u8>) -> Result<Self, PkiError> {
        let facts = CaCertificate::read(&file.display().to_string(), &der)?;
        Ok(Self { der, facts })
    }
}
