//! The files that may take a new private key.
//!
//! **The problem.** An operator names the file for a new key, and a wrong name must not cost another key: that of a root cannot be
//! made again.
//!
//! **The rule.** Each command checks every place before it writes anything. A file that exists is replaced only where it holds an
//! intermediate for people of this authority and nothing else. The place of another file of the authority takes no key, also while
//! that file is offline.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::certificate::{CaCertificate, is_of_key};
use super::disk::Paths;
use super::roots::Roots;
use crate::credentials::{self, KeyPair};
use crate::files::is_absent;
use crate::purpose::Purpose;
use crate::{PkiError, files};

/// The two files with the records key, which the broker keeps beside the authority's own.
const RECORDS: [&str; 2] = ["records.key", "records.key.unsettled"];

/// Reports whether two paths name one file: one that exists under both, or one that either would make.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    if let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) {
        return (one.dev(), one.ino()) == (other.dev(), other.ino());
    }
    resolved(one) == resolved(other)
}

/// Returns a path with the links in its existing directories followed.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent().and_then(|parent| parent.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        (None | Some(_), None | Some(_)) => path,
    }
}

impl Paths {
    /// Checks that the file for the key of the intermediate for people is the place of no other file of the authority.
    pub(super) fn check_place_for_people(&self) -> Result<(), PkiError> {
        let place = &self.people.key;
        let reserved = self.reserved().chain([self.next_root_key.clone(), self.people.copy.clone()]);
        match reserved.into_iter().find(|other| is_same_file(place, other)) {
            Some(other) => Err(self.not_for_people(format!("it is the place of {}", other.display()))),
            None => Ok(()),
        }
    }

    /// Checks that a new intermediate for people may be written: its file is absent, or holds an intermediate for people of this
    /// authority.
    pub(super) fn check_people_key(&self, roots: &Roots) -> Result<(), PkiError> {
        let place = &self.people.key;
        self.check_place_for_people()?;
        if is_absent(place) {
            return Ok(());
        }
        let text = files::read_private(place)?;
        let blocks = pem::parse_many(&text).unwrap_or_default();
        let tags: Vec<&str> = blocks.iter().map(pem::Pem::tag).collect();
        if !matches!(
            tags[..],
            ["PRIVATE KEY"] | ["PRIVATE KEY", "CERTIFICATE"] | ["CERTIFICATE", "PRIVATE KEY"]
        ) {
            return Err(self.not_for_people("it exists and holds something else".to_owned()));
        }
        // Without a certificate in the file that is the one of the copy.
        let another = || self.not_for_people("it exists and holds another private key".to_owned());
        let found = self.people.read().map_err(|_| another())?;
        let facts = CaCertificate::read(&place.display().to_string(), &found.certificate)?;
        let is_own = || {
            let remembered = credentials::load_certificates(&self.previous).unwrap_or_default();
            let copy = credentials::load_certificates(&self.people.copy).unwrap_or_default();
            remembered.contains(&found.certificate) || copy.contains(&found.certificate)
        };
        let is_for_people =
            facts.purpose == Some(Purpose::People) && is_of_key(&found.certificate, &found.key);
        if !is_for_people {
            return Err(another());
        }
        if roots.signer_of(&found.certificate).is_none() && !is_own() {
            return Err(self.not_for_people("it holds the intermediate of another authority".to_owned()));
        }
        Ok(())
    }

    /// Checks as [`Self::check_people_key`] does, unless the intermediate for people stays because its key is elsewhere.
    pub(super) fn check_people_key_if_written(&self, roots: &Roots) -> Result<(), PkiError> {
        if !self.people.is_at_hand()? && !is_absent(&self.people.copy) {
            return Ok(());
        }
        self.check_people_key(roots)
    }

    /// Checks that a file may take the key of the next root: no other file of the authority has its place there.
    pub(super) fn check_next_root_place(&self, place: &Path) -> Result<(), PkiError> {
        let reserved = self.reserved().chain([self.people.key.clone(), self.people.copy.clone()]);
        match reserved.into_iter().find(|other| is_absent(place) && is_same_file(place, other)) {
            Some(other) => Err(not_for_next_root(place, format!("it is the place of {}", other.display()))),
            None => Ok(()),
        }
    }

    /// Checks that a file holds the key of the next root (DER), which was made before.
    pub(super) fn check_next_root_key(&self, place: &Path, next: &[u8]) -> Result<(), PkiError> {
        if !is_absent(place) && is_of_key(next, &credentials::load_key(place)?) {
            return Ok(());
        }
        Err(PkiError::OtherNextRootKey { path: place.to_owned(), roll: self.roll.clone() })
    }

    /// Reads the key of the next root from a file that exists. The key must be of no certificate, of this authority or beside it.
    pub(super) fn read_new_root_key(&self, place: &Path, roots: &Roots) -> Result<KeyPair, PkiError> {
        let text = files::read_private(place)?;
        let key = credentials::parse_key(place, &text)?;
        if roots.all().any(|root| is_of_key(&root.der, &key)) {
            return Err(PkiError::SameRootKey { path: place.to_owned() });
        }
        if pem::parse_many(&text).unwrap_or_default().len() != 1 {
            let problem = "it holds more than a private key, so that the key is in use already".to_owned();
            return Err(not_for_next_root(place, problem));
        }
        let of_file = |file: &PathBuf| credentials::load_certificates(file).unwrap_or_default();
        let known = [&self.agents.copy, &self.people.copy, &self.previous].into_iter().flat_map(of_file);
        let in_use = [self.agents.read().ok(), self.people.read().ok()].into_iter().flatten();
        if known.chain(in_use.map(|found| found.certificate)).any(|der| is_of_key(&der, &key)) {
            return Err(not_for_next_root(place, "it holds the key of an intermediate".to_owned()));
        }
        let retired = credentials::load_key(&self.retired_root_key).ok();
        if retired.is_some_and(|retired| retired.0.public_key_raw() == key.0.public_key_raw()) {
            return Err(not_for_next_root(place, "it holds the key of a root that was replaced".to_owned()));
        }
        Ok(key)
    }

    /// Returns the places in which no command writes a key that an operator names.
    fn reserved(&self) -> impl Iterator<Item = PathBuf> {
        let dir = self.root.parent().unwrap_or(Path::new(".")).to_owned();
        [
            &self.root_key,
            &self.root,
            &self.agents.key,
            &self.agents.copy,
            &self.previous,
            &self.roll,
            &self.retired_root_key,
            &self.revoked,
        ]
        .map(Clone::clone)
        .into_iter()
        .chain(RECORDS.map(|name| dir.join(name)))
    }

    fn not_for_people(&self, problem: String) -> PkiError {
        PkiError::NoPlaceForPeopleKey { path: self.people.key.clone(), problem }
    }
}

fn not_for_next_root(place: &Path, problem: String) -> PkiError {
    PkiError::NoPlaceForRootKey { path: place.to_owned(), problem }
}
