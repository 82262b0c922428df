//! The authority's files.
//!
//! There are two intermediates, each in a [`Slot`]. `intermediate.key` holds the private key of the one for agents **and** its
//! certificate, so that one rename replaces both: after a crash at any step key and certificate belong together.
//! `intermediate.pem` is a copy of that certificate for people and tools, written afterwards; the authority reads it only where
//! `intermediate.key` has no certificate, as `init` once made it. `people.key` and `people.pem` are the same for people, and
//! `people.key` may be in another place. `previous.pem` lists the intermediates that were replaced and have not ended.
//!
//! Where `intermediate.key` is lost, `root.pem` and the root's key make another: a renewal reads the old intermediate only to
//! list it. Where the copy for people is stale, it is written again from `intermediate.key`.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::certificate::{self, CaCertificate, is_of_key};
use crate::credentials::{self, KeyPair};
use crate::files::is_absent;
use crate::purpose::Purpose;
use crate::{PkiError, TrustDomain, files, identity};

/// The most replaced intermediates that are remembered; the oldest are forgotten first.
const MAX_PREVIOUS: usize = 16;

/// The outcome of a step for the intermediate that signs for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeopleOutcome {
    /// There is a new one.
    Renewed(Box<CaCertificate>),
    /// The one that is there stays.
    Kept,
    /// Its key is not in this file, so that it stays as it is.
    Offline(PathBuf),
}

/// The paths of the files.
pub(super) struct Paths {
    dir: PathBuf,
    pub(super) root_key: PathBuf,
    pub(super) root: PathBuf,
    pub(super) agents: Slot,
    pub(super) people: Slot,
    pub(super) previous: PathBuf,
    /// The next root and its voucher.
    pub(super) roll: PathBuf,
    pub(super) next_root_key: PathBuf,
    pub(super) retired_root_key: PathBuf,
    /// The intermediates that are revoked.
    pub(super) revoked: PathBuf,
}

/// The place of an intermediate.
pub(super) struct Slot {
    pub(super) purpose: Purpose,
    /// The file with its key and its certificate.
    pub(super) key: PathBuf,
    /// The copy of its certificate for people and tools.
    pub(super) copy: PathBuf,
}

/// An intermediate with its key, as read from disk.
pub(super) struct Intermediate {
    pub(super) key: KeyPair,
    pub(super) certificate: Vec<u8>,
    /// The file that the certificate came from.
    pub(super) from: PathBuf,
}

impl Slot {
    /// Reads the intermediate and its key.
    pub(super) fn read(&self) -> Result<Intermediate, PkiError> {
        let text = files::read_private(&self.key)?;
        let key = credentials::parse_key(&self.key, &text)?;
        let beside_the_key = credentials::parse_certificates(&self.key, &text)?;
        let (from, certificates) = if beside_the_key.is_empty() {
            (&self.copy, credentials::load_certificates(&self.copy)?)
        } else {
            (&self.key, beside_the_key)
        };
        Ok(Intermediate { key, certificate: only(from, certificates)?, from: from.clone() })
    }

    /// Reports whether its key is in its file. A file that this process may not read counts as absent.
    pub(super) fn is_at_hand(&self) -> Result<bool, PkiError> {
        match files::read_private(&self.key) {
            Ok(_) => Ok(true),
            Err(PkiError::File { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the intermediate and its key; the rename of the file with the key is what counts.
    fn write(&self, key: &KeyPair, certificate: &[u8]) -> Result<(), PkiError> {
        let pem = credentials::to_pem(&[certificate.to_vec()]);
        files::write_beside(&self.key, &format!("{}{pem}", key.0.serialize_pem()), 0o600)?;
        files::write_beside(&self.copy, &pem, 0o644)
    }

    /// Reads the certificates of the intermediate that is about to be replaced: two if its file and the copy hold different ones, as after
    /// a renewal with another file for the key. The one beside the key is the last.
    fn read_replaced(&self) -> Vec<Vec<u8>> {
        let beside_the_key = self.read().ok().map(|found| found.certificate);
        let mut replaced: Vec<Vec<u8>> = self.read_copy().into_iter().collect();
        replaced.retain(|copy| Some(copy) != beside_the_key.as_ref());
        replaced.extend(beside_the_key);
        replaced
    }

    /// Reads the certificate of the copy; none if it holds no single one.
    pub(super) fn read_copy(&self) -> Option<Vec<u8>> {
        let copy = only(&self.copy, credentials::load_certificates(&self.copy).ok()?).ok()?;
        CaCertificate::read("the copy", &copy).is_ok().then_some(copy)
    }

    /// Reports whether the copy holds this intermediate's certificate and nothing else.
    pub(super) fn is_copied(&self, intermediate: &Intermediate) -> bool {
        credentials::load_certificates(&self.copy)
            .is_ok_and(|copy| copy == std::slice::from_ref(&intermediate.certificate))
    }

    /// Writes the copy again if it is none. Returns whether it wrote. The caller holds the lock.
    pub(super) fn mend_copy(&self) -> Result<bool, PkiError> {
        let found = self.read()?;
        let stale = !self.is_copied(&found);
        if stale {
            files::write_beside(&self.copy, &credentials::to_pem(&[found.certificate]), 0o644)?;
        }
        Ok(stale)
    }
}

impl Paths {
    pub(super) fn of(dir: &Path) -> Self {
        let slot = |purpose, name: &str| Slot {
            purpose,
            key: dir.join(format!("{name}.key")),
            copy: dir.join(format!("{name}.pem")),
        };
        Self {
            dir: dir.to_owned(),
            root_key: dir.join("root.key"),
            root: dir.join("root.pem"),
            agents: slot(Purpose::Agents, "intermediate"),
            people: slot(Purpose::People, "people"),
            previous: dir.join("previous.pem"),
            roll: dir.join("roll.pem"),
            next_root_key: dir.join("next-root.key"),
            retired_root_key: dir.join("retired-root.key"),
            revoked: dir.join("revoked.txt"),
        }
    }

    /// Has the key of the intermediate for people in another file.
    pub(super) fn with_people_key(self, key: &Path) -> Self {
        Self { people: Slot { key: key.to_owned(), ..self.people }, ..self }
    }

    /// Checks that an authority may be made here, or an interrupted `init` completed: that one left the root's key, which it writes
    /// first, and no intermediate for agents, which it writes last.
    pub(super) fn check_init(&self) -> Result<(), PkiError> {
        self.check_place_for_people()?;
        let (agents, people) = (&self.agents, &self.people);
        let is_interrupted = !is_absent(&self.root_key)
            && [&self.previous, &self.roll, &self.revoked].into_iter().all(|path| is_absent(path));
        let made_first: &[&PathBuf] =
            if is_interrupted { &[] } else { &[&self.root_key, &self.root, &people.key, &people.copy] };
        let made_last = [&agents.key, &agents.copy];
        match made_first.iter().chain(&made_last).find(|path| !is_absent(path)) {
            Some(path) => Err(PkiError::Exists { path: (*path).clone() }),
            None => Ok(()),
        }
    }

    /// Reads the root's key from a file.
    pub(super) fn read_root_key(&self, path: &Path, root: &[u8]) -> Result<KeyPair, PkiError> {
        let key = credentials::load_key(path)?;
        if is_of_key(root, &key) {
            return Ok(key);
        }
        Err(PkiError::WrongRootKey { path: path.to_owned(), root: self.root.clone() })
    }

    /// Makes an intermediate in a slot, and returns its certificate. The caller holds the lock.
    pub(super) fn replace(
        &self,
        slot: &Slot,
        trust_domain: &TrustDomain,
        root: &[u8],
        root_key: KeyPair,
        now: Timestamp,
    ) -> Result<Vec<u8>, PkiError> {
        let key = KeyPair::generate()?;
        let made = certificate::intermediate(&key, slot.purpose, trust_domain, root, root_key, now)?;
        for replaced in slot.read_replaced() {
            self.remember(&replaced, now)?;
        }
        slot.write(&key, &made)?;
        Ok(made)
    }

    /// Makes the intermediate for people if there is none, and replaces one that is `due` and whose key is at hand. The caller
    /// holds the lock.
    pub(super) fn renew_people(
        &self,
        trust_domain: &TrustDomain,
        root: &[u8],
        root_key: KeyPair,
        now: Timestamp,
        due: &dyn Fn(&[u8]) -> bool,
    ) -> Result<PeopleOutcome, PkiError> {
        let is_at_hand = self.people.is_at_hand()?;
        if !is_at_hand && !is_absent(&self.people.copy) {
            return Ok(PeopleOutcome::Offline(self.people.key.clone()));
        }
        if is_at_hand && self.people.read().is_ok_and(|found| !due(&found.certificate)) {
            self.remember_copy_of_people(now)?;
            self.people.mend_copy()?;
            return Ok(PeopleOutcome::Kept);
        }
        let made = self.replace(&self.people, trust_domain, root, root_key, now)?;
        Ok(PeopleOutcome::Renewed(Box::new(CaCertificate::read("the new intermediate", &made)?)))
    }

    /// Remembers the intermediate of the copy for people, if the file with the key holds another one. The caller holds the lock.
    fn remember_copy_of_people(&self, now: Timestamp) -> Result<(), PkiError> {
        match self.people.read_copy() {
            Some(copy) if self.people.read()?.certificate != copy => self.remember(&copy, now),
            Some(_) | None => Ok(()),
        }
    }

    /// Reads the certificate of the intermediate for people; none if there is no such intermediate yet.
    pub(super) fn people_certificate(&self) -> Result<Option<Vec<u8>>, PkiError> {
        if self.people.is_at_hand()? {
            return self.people.read().map(|found| Some(found.certificate));
        }
        if is_absent(&self.people.copy) {
            return Ok(None);
        }
        only(&self.people.copy, credentials::load_certificates(&self.people.copy)?).map(Some)
    }

    /// Moves the key of the next root, and that of the old one, if they are beside the root. The caller holds the lock.
    pub(super) fn move_root_keys(&self, next: &[u8]) -> Result<(), PkiError> {
        // A begin that was interrupted may have left a key that is none of the next root's.
        let is_next = |key: KeyPair| is_of_key(next, &key);
        if is_absent(&self.next_root_key) || !credentials::load_key(&self.next_root_key).is_ok_and(is_next) {
            return Ok(());
        }
        if !is_absent(&self.root_key) {
            files::rename(&self.root_key, &self.retired_root_key)?;
        }
        files::rename(&self.next_root_key, &self.root_key)
    }

    /// Reads the replaced intermediates that are valid at `now`, the newest last.
    pub(super) fn read_previous(&self, now: Timestamp) -> Result<Vec<Vec<u8>>, PkiError> {
        if is_absent(&self.previous) {
            return Ok(Vec::new());
        }
        let mut certificates = credentials::load_certificates(&self.previous)?;
        certificates.retain(|der| identity::not_after(der).is_ok_and(|end| end > now));
        Ok(certificates)
    }

    /// Remembers an intermediate that is about to be replaced.
    pub(super) fn remember(&self, certificate: &[u8], now: Timestamp) -> Result<(), PkiError> {
        // The list is for people alone: an unreadable one must not keep the authority from its renewal.
        let mut certificates = self.read_previous(now).unwrap_or_default();
        certificates.retain(|known| known != certificate);
        certificates.push(certificate.to_vec());
        let newest = certificates.split_off(certificates.len().saturating_sub(MAX_PREVIOUS));
        files::write_beside(&self.previous, &credentials::to_pem(&newest), 0o644)
    }

    /// Keeps other programs from changing the authority until the returned file is dropped.
    pub(super) fn lock(&self) -> Result<File, PkiError> {
        let failed = |source| PkiError::File { path: self.dir.clone(), source };
        let dir = File::open(&self.dir).map_err(failed)?;
        match dir.try_lock() {
            Ok(()) => Ok(dir),
            Err(TryLockError::WouldBlock) => Err(PkiError::RenewalUnderWay { path: self.dir.clone() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

pub(super) fn only(path: &Path, certificates: Vec<Vec<u8>>) -> Result<Vec<u8>, PkiError> {
    match <[Vec<u8>; 1]>::try_from(certificates) {
        Ok([one]) => Ok(one),
        Err(_) => Err(PkiError::malformed(path.display().to_string(), "it holds more than one certificate")),
    }
}
