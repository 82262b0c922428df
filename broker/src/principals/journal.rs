//! The journal: the files by which `postern-broker issue` and the broker tell each other of certificates of principals.
//!
//! - `issued-<serial>.json` is a certificate that was issued and that no broker has recorded yet. `issue` writes it durably before
//!   it writes the certificate itself, and the broker removes it once the store has the record. So no certificate goes
//!   unrecorded, and one may be recorded twice.
//! - `principals.json` is what the store knows of issued principals, as the broker last wrote it. `issue` reads the roles of a name in
//!   it, and in the files that wait.
//!
//! Both are private, and belong to the owner of the data directory, as the command may run as root. At most [`MAX_PENDING`] files
//! wait: then `issue` refuses to go on until a broker has run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use postern_core::{Principal, PrincipalKey, Role};
use postern_runtime::files;
use postern_store::{IssuedCertificate, IssuedPrincipal};
use serde::{Deserialize, Serialize};

/// The most certificates that wait for a broker to record them.
const MAX_PENDING: usize = 1000;
/// The file with what the store knows.
const KNOWN: &str = "principals.json";
/// The beginning and the end of the name of a file that waits.
const PENDING: (&str, &str) = ("issued-", ".json");

/// The journal in a broker's data directory.
#[derive(Debug, Clone)]
pub struct Journal {
    dir: PathBuf,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedEntry {
    /// The principal, in the role that the certificate carries.
    pub principal: Principal,
    /// The certificate.
    pub certificate: IssuedCertificate,
}

/// An entry that no broker has recorded yet.
#[derive(Debug)]
pub struct PendingEntry {
    /// The file.
    pub file: PathBuf,
    /// The entry.
    ///
    /// # Errors
    /// The file cannot be read.
    pub entry: anyhow::Result<IssuedEntry>,
}

impl Journal {
    /// Returns the journal in a data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self { dir: data_dir.to_owned() }
    }

    /// Waits until no other command issues a certificate, and keeps others out until the returned file is dropped.
    ///
    /// # Errors
    /// The data directory cannot be opened.
    pub fn lock(&self) -> anyhow::Result<File> {
        let failed = || format!("cannot lock {}", self.dir.display());
        let dir = File::open(&self.dir).with_context(failed)?;
        dir.lock().with_context(failed)?;
        Ok(dir)
    }

    /// Returns the other roles in which a principal has a certificate, as far as the journal knows.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn other_roles(&self, principal: &PrincipalKey, role: Role) -> anyhow::Result<BTreeSet<Role>> {
        let mut roles = BTreeSet::new();
        for known in self.known()?.into_iter().filter(|known| known.principal == *principal) {
            roles.extend(known.certificates.into_keys());
        }
        for pending in self.pending(usize::MAX)? {
            let principal_in_role = pending.entry?.principal;
            if principal_in_role.key() == principal {
                roles.insert(principal_in_role.role());
            }
        }
        roles.remove(&role);
        Ok(roles)
    }

    /// Leaves a certificate for the broker to record, durably.
    ///
    /// # Errors
    /// Too many wait already, or the file cannot be written.
    pub fn leave(&self, entry: &IssuedEntry) -> anyhow::Result<()> {
        let waiting = self.files()?.len();
        anyhow::ensure!(
            waiting < MAX_PENDING,
            "{waiting} certificates wait in {} for a broker to record them; start the broker, and issue again",
            self.dir.display()
        );
        let path = self.dir.join(format!("{}{}{}", PENDING.0, entry.certificate.serial, PENDING.1));
        let text = serde_json::to_vec(entry)?;
        files::replace_durably_for_owner_of_dir(&path, &text, files::PRIVATE)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns the certificates that wait, at most so many, in the order in which they were issued, and after them the files that
    /// cannot be read.
    ///
    /// # Errors
    /// The data directory cannot be read.
    pub fn pending(&self, limit: usize) -> anyhow::Result<Vec<PendingEntry>> {
        let all = self.files()?.into_iter().map(PendingEntry::read);
        let (mut pending, unreadable): (Vec<PendingEntry>, Vec<PendingEntry>) =
            all.partition(|pending| pending.entry.is_ok());
        pending.sort_by_key(|pending| pending.entry.as_ref().ok().map(|entry| entry.certificate.issued_at));
        pending.truncate(limit);
        pending.extend(unreadable);
        Ok(pending)
    }

    /// Removes a certificate that the store has recorded.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, recorded: &PendingEntry) -> io::Result<()> {
        files::remove(&recorded.file)
    }

    /// Writes what the store knows, if it is news.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_known(&self, known: &[IssuedPrincipal]) -> anyhow::Result<()> {
        let (path, text) = (self.dir.join(KNOWN), serde_json::to_vec(known)?);
        if fs::read(&path).is_ok_and(|written| written == text) {
            return Ok(());
        }
        files::replace_durably_for_owner_of_dir(&path, &text, files::PRIVATE)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn known(&self) -> anyhow::Result<Vec<IssuedPrincipal>> {
        let path = self.dir.join(KNOWN);
        let unreadable =
            || format!("cannot read {}; remove it, and a running broker writes it again", path.display());
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(unreadable),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(unreadable),
        }
    }

    fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let failed = || format!("cannot read {}", self.dir.display());
        let mut found = Vec::new();
        for file in fs::read_dir(&self.dir).with_context(failed)? {
            let file = file.with_context(failed)?;
            let name = file.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(PENDING.0) && name.ends_with(PENDING.1)) {
                found.push(file.path());
            }
        }
        Ok(found)
    }
}

impl PendingEntry {
    fn read(file: PathBuf) -> Self {
        let unreadable =
            || format!("cannot read the issued certificate in {}; remove the file", file.display());
        let text = fs::read(&file).with_context(unreadable);
        let entry = text.and_then(|text| serde_json::from_slice(&text).with_context(unreadable));
        Self { entry, file }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use postern_core::CertificateSerial;

    use super::*;
    use crate::testing::builders::{at, key, name};

    fn entry(role: Role, who: &str, number: i64) -> IssuedEntry {
        let serial = CertificateSerial::new(&format!("{number:x}")).unwrap();
        let certificate = IssuedCertificate { serial, issued_at: at(number), not_after: at(number + 60) };
        IssuedEntry { principal: Principal::local(role, name(who)), certificate }
    }

    #[test]
    fn i9_a_certificate_waits_in_a_private_file_until_it_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::of(dir.path());
        let (second, first) = (entry(Role::Requester, "alice", 20), entry(Role::Reader, "rita", 10));
        for entry in [&second, &first, &second] {
            journal.leave(entry).unwrap();
        }
        let pending = journal.pending(10).unwrap();
        let read: Vec<&IssuedEntry> = pending.iter().map(|pending| pending.entry.as_ref().unwrap()).collect();
        assert_eq!(read, [&first, &second], "the oldest first, each once");
        for PendingEntry { file, .. } in &pending {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        journal.remove(&pending[0]).unwrap();
        journal.remove(&pending[0]).unwrap();
        assert_eq!(journal.pending(10).unwrap().len(), 1);
    }

    #[test]
    fn i7_the_roles_of_a_name_are_known_before_and_after_they_are_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::of(dir.path());
        let others =
            |who: &str, role| journal.other_roles(&key(who), role).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(others("alice", Role::Requester), []);
        journal.leave(&entry(Role::Requester, "alice", 1)).unwrap();
        assert_eq!(others("alice", Role::Administrator), [Role::Requester]);
        assert_eq!(others("alice", Role::Requester), [], "her own role again");
        assert_eq!(others("bob", Role::Administrator), []);

        let mut rita = IssuedPrincipal::new(key("rita"));
        rita.add(Role::Reader, entry(Role::Reader, "rita", 2).certificate);
        journal.write_known(&[rita]).unwrap();
        assert_eq!(others("rita", Role::Requester), [Role::Reader]);
        fs::write(dir.path().join(KNOWN), "not JSON").unwrap();
        let error = journal.other_roles(&key("rita"), Role::Reader).unwrap_err();
        assert!(error.to_string().contains("remove it"), "{error:#}");
    }

    #[test]
    fn i10_no_more_certificates_wait_than_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::of(dir.path());
        for number in 0..MAX_PENDING {
            fs::write(dir.path().join(format!("issued-{number}.json")), "{}").unwrap();
        }
        assert_eq!(journal.pending(7).unwrap().len(), MAX_PENDING, "each is named");
        let error = journal.leave(&entry(Role::Reader, "rita", 1)).unwrap_err();
        assert!(error.to_string().contains("start the broker"), "{error:#}");
        for number in 0..MAX_PENDING {
            fs::remove_file(dir.path().join(format!("issued-{number}.json"))).unwrap();
        }
        (1..10).rev().for_each(|number| journal.leave(&entry(Role::Reader, "rita", number)).unwrap());
        fs::write(dir.path().join("issued-00.json"), "{}").unwrap();
        let pending = journal.pending(7).unwrap();
        let times: Vec<_> =
            pending.iter().map(|it| it.entry.as_ref().ok().map(|it| it.certificate.issued_at)).collect();
        let expected: Vec<_> = (1..=7).map(|number| Some(at(number))).chain([None]).collect();
        assert_eq!(times, expected, "the oldest that can be read, whatever else lies there");
    }
}
