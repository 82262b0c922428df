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
        let (root, root_key) = read_active_root(&paths, root_key)?;
        let _lock = paths.lock()?;
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
        let (root, root_key) = read_active_root(&paths, root_key)?;
        let _lock = paths.lock()?;
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
        let (root, root_key) = read_active_root(&paths, root_key)?;
        let _lock = paths.lock()?;
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
        let (root, key) = read_active_root(&self.paths, root_key)?;
        let _lock = self.paths.lock()?;
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
        let (root, key) = read_active_root(&self.paths, root_key)?;
        let _lock = self.paths.lock()?;
        self.paths.check_people_key_if_written(&Roots::read(&self.paths)?)?;
        match self.paths.renew_people(&self.trust_domain, &root, key, now, &|_| true)? {
            PeopleOutcome::Renewed(made) => Ok(Some(*made)),
            PeopleOutcome::Kept | PeopleOutcome::Offline(_) => Ok(None),
        }
    }

    /// Reports whether the intermediate for people should be renewed at `now`, and its key is at hand.
    pub fn is_people_renewal_due(&self, now: Timestamp) -> bool {
        let is_due =
            |people: CaCertificate| is_renewal_due(&people.life, &self.loaded().active_root().life, now);
        self.people().is_some_and(is_due) && self.paths.people.is_at_hand().unwrap_or(false)
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
