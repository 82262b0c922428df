//! The mark of an enrolment: with it the agent follows the store that an operator has enrolled this host in from the beginning.
//!
//! **The problem.** A host keeps its protection against policies that are not newer than those that it has followed, and keeps the newest
//! checkpoint of an audit log. A host that is enrolled in another store would keep both against the right broker. The running agent may
//! have a session with the old identity while the new one is written, and no state of the old store may count as one of the new.
//!
//! **The rule.** The mark names the key of the new identity, and is written before that identity. It counts only in a session of that key:
//! [`crate::host_reconciler`] releases it once the first state of such a session is in the ledger. A renewal before that session carries the
//! mark over to the next key. A process that writes the mark holds the lock of the identity.
//!
//! **On failure.** A mark whose identity was never written names a key that no session has, and does nothing. The key on disk that a mark
//! names stays in it until another identity is there. A mark that cannot be read counts as absent: the host keeps its protection.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use postern_core::KeyHash;
use postern_runtime::files;

use crate::lock::IdentityLock;

/// The mark beside an identity: a file with the keys of the enrolment, one in a line, the newest last.
#[derive(Debug, Clone)]
pub struct EnrolmentMark {
    identity_dir: PathBuf,
}

impl EnrolmentMark {
    /// Returns the mark beside an identity. Reads nothing yet.
    pub fn beside(identity_dir: &Path) -> Self {
        Self { identity_dir: identity_dir.to_owned() }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> PathBuf {
        self.identity_dir.join("enrolled")
    }

    /// Reports whether the mark names a key.
    ///
    /// # Errors
    /// The file exists and cannot be read.
    pub fn names(&self, key: KeyHash) -> io::Result<bool> {
        Ok(self.keys()?.contains(&key))
    }

    /// Marks the key of an enrolment, durably. If the mark names `on_disk`, the key of the identity that is there still, it goes on naming that key as well.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, key: KeyHash, on_disk: Option<KeyHash>) -> io::Result<()> {
        let kept = on_disk.filter(|on_disk| self.names(*on_disk).unwrap_or_default());
        self.write(&kept.into_iter().chain([key]).collect::<Vec<_>>())
    }

    /// Marks the key that a renewal puts in the place of a marked one, durably; does nothing if the old one is not marked.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn carry_over(&self, from: KeyHash, to: KeyHash) -> io::Result<()> {
        if self.names(from)? { self.set(to, Some(from)) } else { Ok(()) }
    }

    /// Takes a key that was followed, and those before it, out of the mark, under the lock of the identity. Returns false, and changes
    /// nothing, while another process holds that: it may be writing a newer mark.
    ///
    /// # Errors
    /// The lock cannot be taken, or the file cannot be read, written or removed.
    pub fn release(&self, key: KeyHash) -> io::Result<bool> {
        let Some(_lock) = IdentityLock::try_take(&self.identity_dir)? else { return Ok(false) };
        let keys = self.keys()?;
        let followed = keys.iter().position(|marked| *marked == key).map_or(0, |last| last + 1);
        match keys.get(followed..).filter(|newer| !newer.is_empty()) {
            Some(newer) => self.write(newer)?,
            None => files::remove(&self.path())?,
        }
        Ok(true)
    }

    fn keys(&self) -> io::Result<Vec<KeyHash>> {
        match fs::read_to_string(self.path()) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn write(&self, keys: &[KeyHash]) -> io::Result<()> {
        let lines: String = keys.iter().map(|key| format!("{key}\n")).collect();
        files::replace_durably(&self.path(), lines.as_bytes(), files::PRIVATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_the_new_key_and_the_marked_one_that_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mark = EnrolmentMark::beside(dir.path());
        let [old, first, second, renewed] = [b"o", b"1", b"2", b"r"].map(|key| KeyHash::of(key));
        let named = || [old, first, second, renewed].map(|key| mark.names(key).unwrap());
        assert_eq!(named(), [false; 4]);
        mark.set(first, Some(old)).unwrap();
        assert_eq!(named(), [false, true, false, false], "the identity before was not marked");
        // A second enrolment is cut off before its identity is on disk.
        mark.set(second, Some(first)).unwrap();
        assert_eq!(named(), [false, true, true, false]);
        mark.carry_over(first, renewed).unwrap();
        assert_eq!(named(), [false, true, false, true]);
        mark.carry_over(old, second).unwrap();
        assert_eq!(named(), [false, true, false, true], "a renewal of another identity");
        // An operator enrols the host again while the agent follows the first enrolment.
        mark.set(second, Some(renewed)).unwrap();
        {
            let _writing = IdentityLock::try_take(dir.path()).unwrap();
            assert!(!mark.release(renewed).unwrap());
        }
        assert_eq!(named(), [false, false, true, true]);
        assert!(mark.release(renewed).unwrap());
        assert_eq!(named(), [false, false, true, false], "the newer enrolment is still marked");
        for _ in 0..2 {
            assert!(mark.release(second).unwrap());
            assert!(!mark.path().exists());
        }
        fs::create_dir(mark.path()).unwrap();
        mark.names(first).unwrap_err();
    }
}
