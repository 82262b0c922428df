//! The renewal of the intermediates, on disk and while the authority signs.

use std::path::Path;

use jiff::Timestamp;

use super::disk::{Paths, PeopleOutcome};
use super::roots::{Roots, read_active_root};
use super::{Authority, CaCertificate};
use crate::credentials::KeyPair;
use crate::life::is_renewal_due;
use crate::{PkiError, TrustDomain};

impl Authority {
    /// Makes a new intermediate for agents with the root's key, and writes it durably. It needs `root.pem` and the key alone: the
    /// old intermediate may be missing or damaged. A crash at any moment leaves the old one or the new one, each whole. An
    /// authority that is loaded takes the new one up with [`Self::reload`].
    ///
    /// # Errors
    /// The key cannot be read, can be read by other users, or is not that of the root that signs; the root is not valid at `now`;
    /// another program is changing the authority; a file cannot be written. Nothing changes then, unless the file is
    /// `intermediate.pem`, the copy for people.
    pub fn renew(
        dir: &Path,
        trust_domain: &TrustDomain,
        root_key: &Path,
        now: Timestamp,
    ) -> Result<CaCertificate, PkiError> {
        let paths = Paths::of(dir);
        let _lock = paths.lock()?;
        let (root, root_key) = read_active_root(&paths, root_key)?;
        let made = paths.replace(&paths.agents, trust_domain, &root, root_key, now)?;
        CaCertificate::read("the new intermediate", &made)
    }

    /// Makes a new intermediate for people, with its key in `people_key`, as [`Self::renew`] does for agents. If there is one whose
    /// key is not in that file, it stays.
    ///
    /// # Errors
    /// As [`Self::renew`]; the file exists and holds anything but an intermediate for people of this authority.
    pub fn renew_people(
        dir: &Path,
        trust_domain: &TrustDomain,
        people_key: &Path,
        root_key: &Path,
        now: Timestamp,
    ) -> Result<PeopleOutcome, PkiError> {
        let paths = Paths::of(dir).with_people_key(people_key);
        let _lock = paths.lock()?;
        let (root, root_key) = read_active_root(&paths, root_key)?;
        paths.check_people_key_if_written(&Roots::read(&paths)?)?;
        paths.renew_people(trust_domain, &root, root_key, now, &|_| true)
    }

    /// Makes a new intermediate for people, whether or not the key of the old one is there.
    ///
    /// # Errors
    /// As [`Self::renew_people`].
    pub fn replace_people(
        dir: &Path,
        trust_domain: &TrustDomain,
        people_key: &Path,
        root_key: &Path,
        now: Timestamp,
    ) -> Result<CaCertificate, PkiError> {
        let paths = Paths::of(dir).with_people_key(people_key);
        let _lock = paths.lock()?;
        let (root, root_key) = read_active_root(&paths, root_key)?;
        paths.check_people_key(&Roots::read(&paths)?)?;
        let made = paths.replace(&paths.people, trust_domain, &root, root_key, now)?;
        CaCertificate::read("the new intermediate", &made)
    }

    /// Renews the intermediate for agents as [`Self::renew`] does, if the one on disk is due at `now`: another program may have
    /// renewed it just before. Returns whether this call renewed it. An intermediate that signs for every party makes way for two.
    ///
    /// # Errors
    /// As [`Self::renew`], and as [`Self::reload`].
    pub fn renew_if_due(&self, root_key: &Path, now: Timestamp) -> Result<bool, PkiError> {
        let _lock = self.paths.lock()?;
        let (root, key) = read_active_root(&self.paths, root_key)?;
        self.reload()?;
        let due = self.is_renewal_due(now);
        if due {
            let made = self.renew_locked(&root, key, root_key, now);
            self.reload()?;
            made?;
        }
        Ok(due)
    }

    fn renew_locked(
        &self,
        root: &[u8],
        key: KeyPair,
        root_key: &Path,
        now: Timestamp,
    ) -> Result<(), PkiError> {
        let Self { paths, trust_domain, .. } = self;
        let is_for_all = self.loaded().signer.facts.purpose.is_none();
        if is_for_all && paths.people_certificate()?.is_none() {
            let (root, key) = read_active_root(paths, root_key)?;
            paths.check_people_key_if_written(&Roots::read(paths)?)?;
            paths.renew_people(trust_domain, &root, key, now, &|_| false)?;
        }
        paths.replace(&paths.agents, trust_domain, root, key, now).map(drop)
    }

    /// Renews the intermediate for people, if it is due at `now` and its key is at hand. Returns the new one.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn renew_people_if_due(
        &self,
        root_key: &Path,
        now: Timestamp,
    ) -> Result<Option<CaCertificate>, PkiError> {
        if !self.is_people_renewal_due(now) {
            return Ok(None);
        }
        let _lock = self.paths.lock()?;
        self.renew_people_locked(root_key, now)
    }

    /// Renews the intermediate for people, if the one on disk is due by now: another program may have renewed it just before. The caller
    /// holds the lock.
    fn renew_people_locked(
        &self,
        root_key: &Path,
        now: Timestamp,
    ) -> Result<Option<CaCertificate>, PkiError> {
        let Self { paths, trust_domain, .. } = self;
        let (root, key) = read_active_root(paths, root_key)?;
        let life_of_root = CaCertificate::read("the root", &root)?.life;
        let is_due = |people: &[u8]| {
            let found = CaCertificate::read("the intermediate for people", people);
            found.is_ok_and(|found| is_renewal_due(&found.life, &life_of_root, now))
        };
        paths.check_people_key_if_written(&Roots::read(paths)?)?;
        match paths.renew_people(trust_domain, &root, key, now, &is_due)? {
            PeopleOutcome::Renewed(made) => Ok(Some(*made)),
            PeopleOutcome::Kept | PeopleOutcome::Offline(_) => Ok(None),
        }
    }

    /// Reports whether the intermediate for people should be renewed at `now`, and its key is at hand. One that cannot be read is not
    /// renewed: [`Self::people`] says why.
    pub fn is_people_renewal_due(&self, now: Timestamp) -> bool {
        let is_due =
            |people: CaCertificate| is_renewal_due(&people.life, &self.loaded().active_root().life, now);
        self.people().ok().flatten().is_some_and(is_due) && self.paths.people.is_at_hand().unwrap_or(false)
    }

    /// Returns `intermediate.pem` if it is not a copy of the intermediate on disk: a renewal was killed between the two
    /// files, or the copy was removed or edited.
    pub fn stale_copy(&self) -> Option<&Path> {
        let agents = &self.paths.agents;
        let found = agents.read().ok()?;
        (!agents.is_copied(&found)).then_some(agents.copy.as_path())
    }

    /// Writes `intermediate.pem` again if it is not a copy of the intermediate on disk. Returns whether it wrote.
    ///
    /// # Errors
    /// The intermediate cannot be read, the copy cannot be written, or another program is changing the authority.
    pub fn mend_copy(&self) -> Result<bool, PkiError> {
        if self.stale_copy().is_none() {
            return Ok(false);
        }
        let _lock = self.paths.lock()?;
        self.paths.agents.mend_copy()
    }

    /// Reports whether the intermediate for agents should be renewed at `now`: see [`is_renewal_due`].
    pub fn is_renewal_due(&self, now: Timestamp) -> bool {
        let loaded = self.loaded();
        is_renewal_due(&loaded.signer.facts.life, &loaded.active_root().life, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn the_intermediate_for_people_is_judged_again_under_the_lock() {
        let (dir, domain) = (tempfile::tempdir().unwrap(), TrustDomain::default());
        let now = postern_runtime::clock::wall();
        let authority = Authority::init(dir.path(), &domain, now - DAY * 200).unwrap();
        let root_key = dir.path().join("root.key");
        assert!(authority.is_people_renewal_due(now));
        // Another program was faster.
        let made = authority.renew_people_if_due(&root_key, now).unwrap().unwrap();
        assert_eq!(authority.renew_people_locked(&root_key, now).unwrap(), None);
        assert_eq!(authority.people().unwrap(), Some(made));
    }

    #[test]
    fn the_root_that_signs_is_read_under_the_lock() {
        let (dir, domain) = (tempfile::tempdir().unwrap(), TrustDomain::default());
        let now = postern_runtime::clock::wall();
        let authority = Authority::init(dir.path(), &domain, now - DAY * 200).unwrap();
        // A switch of the root that is under way may move the key: it is not looked for before.
        let (root_key, people_key) = (dir.path().join("moved.key"), dir.path().join("people.key"));
        type Renew<'a> = &'a dyn Fn() -> Result<(), PkiError>;
        let renew: [(&str, Renew<'_>); 5] = [
            ("renew", &|| Authority::renew(dir.path(), &domain, &root_key, now).map(drop)),
            ("renew_people", &|| {
                Authority::renew_people(dir.path(), &domain, &people_key, &root_key, now).map(drop)
            }),
            ("replace_people", &|| {
                Authority::replace_people(dir.path(), &domain, &people_key, &root_key, now).map(drop)
            }),
            ("renew_if_due", &|| authority.renew_if_due(&root_key, now).map(drop)),
            ("renew_people_if_due", &|| authority.renew_people_if_due(&root_key, now).map(drop)),
        ];
        let lock = authority.paths.lock().unwrap();
        for (name, renew) in renew {
            assert!(matches!(renew(), Err(PkiError::RenewalUnderWay { .. })), "{name}");
        }
        drop(lock);
        for (name, renew) in renew {
            assert!(matches!(renew(), Err(PkiError::File { .. })), "{name}");
        }
    }
}
