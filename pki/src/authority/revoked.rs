//! `revoked.txt`: the intermediates whose keys were stolen, by the hashes of their public keys, one a line.
//!
//! The hash of the key names an intermediate, and not that of its certificate: a thief can change the signature on a certificate so
//! that it stays valid and its hash is another one.

use std::path::Path;

use postern_core::KeyHash;

use super::{Authority, CaCertificate};
use crate::authority::disk::Paths;
use crate::files::is_absent;
use crate::{PkiError, files};

/// The most intermediates that can be revoked.
const MAX_REVOKED: usize = 64;

impl Authority {
    /// Adds an intermediate to the list of the revoked ones, durably. Reports whether it is news.
    ///
    /// # Errors
    /// The list is full, malformed or cannot be written, or another program is changing the authority.
    pub fn revoke_intermediate(dir: &Path, key: KeyHash) -> Result<bool, PkiError> {
        let paths = Paths::of(dir);
        let _lock = paths.lock()?;
        let mut revoked = read(&paths.revoked)?;
        if revoked.contains(&key) {
            return Ok(false);
        }
        if revoked.len() >= MAX_REVOKED {
            let problem = format!("it names {MAX_REVOKED} intermediates already; replace the root instead");
            return Err(PkiError::malformed(paths.revoked.display().to_string(), problem));
        }
        revoked.push(key);
        let text: String = revoked.iter().map(|key| format!("{key}\n")).collect();
        files::write_beside(&paths.revoked, &text, 0o644)?;
        Ok(true)
    }

    /// Returns the intermediates in this authority's list of revoked ones.
    ///
    /// # Errors
    /// The list is malformed, or cannot be read.
    pub fn revoked(&self) -> Result<Vec<KeyHash>, PkiError> {
        read(&self.paths.revoked)
    }

    /// Returns the intermediate of this authority with this public key: one that signs, or one that was replaced.
    ///
    /// # Errors
    /// The intermediate for people, or the list of those that were replaced, cannot be read, and none that can be read has the key.
    pub fn known_intermediate(
        &self,
        key: KeyHash,
        now: jiff::Timestamp,
    ) -> Result<Option<CaCertificate>, PkiError> {
        let is_named = |known: &CaCertificate| known.key == key;
        let agents = Some(self.intermediate()).filter(is_named);
        if agents.is_some() {
            return Ok(agents);
        }
        let people = self.people()?.filter(is_named);
        if people.is_some() {
            return Ok(people);
        }
        Ok(self.previous(now)?.into_iter().find(is_named))
    }
}

fn read(file: &Path) -> Result<Vec<KeyHash>, PkiError> {
    if is_absent(file) {
        return Ok(Vec::new());
    }
    let text = files::read(file)?;
    let malformed = |problem| PkiError::malformed(file.display().to_string(), problem);
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| line.parse().map_err(malformed))
        .collect()
}
