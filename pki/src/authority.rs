//! The certificate authority: a root that can be kept offline, and two intermediates (path length 0) that sign.
//!
//! A certificate carries the names that the authority writes, whatever the signing request asks for.
//!
//! One intermediate signs for agents and for the broker itself; a running broker needs its key. The other signs for people, and its
//! key may be offline: [`crate::purpose`] has the reason and the rule. An authority of an earlier version has one intermediate for
//! both, until [`Authority::renew_people`] and [`Authority::renew`] make two.
//!
//! An intermediate lives for a year, and a new one takes its place while the authority signs: by
//! [`Authority::renew_if_due`], or by [`Authority::reload`] where [`Authority::renew`] made it on disk. Every peer trusts the root, and every certificate
//! travels with the intermediate that signed it. So certificates of the old intermediate are good until their own ends,
//! beside those of the new one, and brokers that share a root need not know each other's intermediates.
//!
//! The root is replaced in steps, with an overlap: see [`RollPhase`] and its module.

mod certificate;
mod disk;
mod key_place;
mod renewal;
mod revoked;
mod roll;
mod roots;
mod signer;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use postern_core::KeyHash;
use postern_core::checkpoint::Checkpoint;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

pub use self::certificate::CaCertificate;
pub(crate) use self::certificate::{is_self_issued, is_signed_by};
use self::disk::Paths;
pub use self::disk::PeopleOutcome;
pub use self::key_place::is_same_file;
pub use self::roots::RollPhase;
use self::roots::Roots;
pub use self::signer::Issued;
use self::signer::Signer;
use crate::checkpoint::SignedCheckpoint;
use crate::credentials::{self, KeyPair};
use crate::files::is_absent;
use crate::identity::{SpiffeId, TrustDomain};
use crate::purpose::Purpose;
use crate::{Fingerprint, PkiError, files};

/// The life of an agent's certificate.
pub const AGENT_LIFETIME: Duration = Duration::from_secs(3600);

/// Signs certificates.
pub struct Authority {
    trust_domain: TrustDomain,
    paths: Paths,
    loaded: RwLock<Arc<Loaded>>,
}

/// The roots and the intermediate for agents, as they were read last.
struct Loaded {
    roots: Roots,
    signer: Signer,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Loaded {
    fn read(paths: &Paths) -> Result<Self, PkiError> {
        let roots = Roots::read(paths)?;
        let signer = Signer::on_disk(paths, &roots)?;
        Ok(Self { roots, signer })
    }

    /// Returns the root that signed the intermediate for agents.
    fn active_root(&self) -> &CaCertificate {
        &self.roots.active(Some(&self.signer.certificate)).facts
    }
}

impl Authority {
    /// Makes `root.key`, `root.pem`, and the key and the certificate of each intermediate in the directory. A call that was interrupted
    /// is completed by the next one.
    ///
    /// # Errors
    /// The authority exists already, or a file cannot be read or written.
    pub fn init(dir: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Self, PkiError> {
        Self::init_with(dir, &dir.join("people.key"), trust_domain, now)
    }

    /// Makes the same with the key of the intermediate for people in this file.
    ///
    /// # Errors
    /// As [`Self::init`], and the file is the place of another file of the authority.
    pub fn init_with(
        dir: &Path,
        people_key: &Path,
        trust_domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<Self, PkiError> {
        let paths = Paths::of(dir).with_people_key(people_key);
        files::make_dir(dir)?;
        let lock = paths.lock()?;
        paths.check_init()?;
        if is_absent(&paths.root_key) {
            files::write(&paths.root_key, &KeyPair::generate()?.0.serialize_pem(), 0o600)?;
        }
        if is_absent(&paths.root) {
            let root = certificate::root(&credentials::load_key(&paths.root_key)?, trust_domain, now)?;
            files::write(&paths.root, &credentials::to_pem(std::slice::from_ref(&root)), 0o644)?;
        }
        let roots = Roots::read(&paths)?;
        let root = &roots.root.der;
        let root_key = || paths.read_root_key(&paths.root_key, root);
        paths.check_people_key(&roots)?;
        paths.renew_people(trust_domain, root, root_key()?, now, &|_| false)?;
        // Last: before it there is no authority that signs for anyone.
        paths.replace(&paths.agents, trust_domain, root, root_key()?, now)?;
        drop(lock);
        Ok(Self::load(dir, trust_domain)?.with_people_key(people_key))
    }

    /// Checks that [`Self::init_with`] has a place for each file: none of the authority exists, or an interrupted call has made the first
    /// ones. Nothing is written.
    ///
    /// # Errors
    /// The authority exists already, or the file for the key that signs for people is the place of another file.
    pub fn check_init(dir: &Path, people_key: &Path) -> Result<(), PkiError> {
        Paths::of(dir).with_people_key(people_key).check_init()
    }

    /// Reads what [`Self::init`] made. `root.key` and `people.key` may have been taken offline. An intermediate that has ended is
    /// loaded, too: the authority signs nothing with it, and waits for the next.
    ///
    /// # Errors
    /// A file that is missing or malformed, a key that others can read, or an intermediate that no root signed.
    pub fn load(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, PkiError> {
        let paths = Paths::of(dir);
        if !is_absent(&paths.root_key) {
            credentials::load_key(&paths.root_key)?;
        }
        let loaded = RwLock::new(Arc::new(Loaded::read(&paths)?));
        Ok(Self { trust_domain: trust_domain.clone(), paths, loaded })
    }

    /// Has the key of the intermediate for people in another file than `people.key` beside the root.
    #[must_use]
    pub fn with_people_key(self, key: &Path) -> Self {
        Self { paths: self.paths.with_people_key(key), ..self }
    }

    /// Takes up the roots and the intermediate on disk, if they are others. Returns whether they are.
    ///
    /// # Errors
    /// As [`Self::load`]; the authority keeps what it has.
    pub fn reload(&self) -> Result<bool, PkiError> {
        let (found, now) = (Loaded::read(&self.paths)?, self.loaded());
        let is_another = found.signer.certificate != now.signer.certificate || found.roots != now.roots;
        if is_another {
            *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
        }
        Ok(is_another)
    }

    /// Checks that a file holds the key of the root that signs, and that only its owner can read it.
    ///
    /// # Errors
    /// As [`Self::renew`] says of the key.
    pub fn check_root_key(&self, root_key: &Path) -> Result<(), PkiError> {
        let loaded = self.loaded();
        let root = loaded.roots.active(Some(&loaded.signer.certificate));
        self.paths.read_root_key(root_key, &root.der).map(drop)
    }

    /// Returns the certificate of the root that signs.
    pub fn root(&self) -> CaCertificate {
        self.loaded().active_root().clone()
    }

    /// Returns the phase of the replacement of the root.
    pub fn phase(&self) -> RollPhase {
        let loaded = self.loaded();
        loaded.roots.phase(&loaded.signer.certificate)
    }

    /// Returns the certificate of the intermediate for agents.
    pub fn intermediate(&self) -> CaCertificate {
        self.loaded().signer.facts.clone()
    }

    /// Returns the certificate of the intermediate for people; none if there is none yet.
    ///
    /// # Errors
    /// It cannot be read: that is no sign that there is none.
    pub fn people(&self) -> Result<Option<CaCertificate>, PkiError> {
        let der = self.paths.people_certificate()?;
        der.map(|der| CaCertificate::read("the intermediate for people", &der)).transpose()
    }

    /// Returns the file for the key of the intermediate for people.
    pub fn people_key_file(&self) -> &Path {
        &self.paths.people.key
    }

    /// Returns the intermediates that were replaced, are valid at `now` and lead to a root that is trusted, the newest last:
    /// certificates that they signed are good until their own ends.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn previous(&self, now: Timestamp) -> Result<Vec<CaCertificate>, PkiError> {
        let (what, loaded) = (self.paths.previous.display().to_string(), self.loaded());
        let mut previous = self.paths.read_previous(now)?;
        // The file with the key may be an older one than the file that signed last.
        let (copy, people) = (self.paths.people.read_copy(), self.paths.people_certificate());
        // While the present one cannot be read, the copy may be of that one.
        let is_present =
            |copy: &Vec<u8>| people.as_ref().map_or(true, |people| people.as_ref() == Some(copy));
        let is_listed = |copy: &Vec<u8>| previous.contains(copy) || is_present(copy);
        previous.extend(copy.filter(|copy| !is_listed(copy)));
        let trusted = previous.iter().filter(|der| loaded.roots.signer_of(der).is_some());
        trusted.map(|der| CaCertificate::read(&what, der)).collect()
    }

    /// Signs a certificate for an identity. The one for a principal is signed with the key of the intermediate for people, which is
    /// read from its file each time.
    ///
    /// # Errors
    /// The request is malformed or not signed by its own key, or the intermediate is not valid, or the key for people is not there.
    pub fn issue(
        &self,
        csr: &[u8],
        identity: &SpiffeId,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let loaded = self.loaded();
        let people = match Purpose::of_party(identity) {
            Purpose::Agents => None,
            Purpose::People => self.people_signer(&loaded)?,
        };
        let signer = people.as_ref().unwrap_or(&loaded.signer);
        signer.check_valid(now)?;
        let life = signer.leaf_life(lifetime, now);
        signer.sign(self.leaf_params(identity, &[])?, life, csr)
    }

    /// Reads the intermediate for people with its key; none while one intermediate signs for every party.
    fn people_signer(&self, loaded: &Loaded) -> Result<Option<Signer>, PkiError> {
        let people = &self.paths.people;
        if people.is_at_hand()? {
            return Signer::of(people.read()?, people, &loaded.roots).map(Some);
        }
        if loaded.signer.facts.purpose.is_none() && is_absent(&people.copy) {
            return Ok(None);
        }
        Err(PkiError::NoPeopleKey { path: people.key.clone() })
    }

    /// Signs the certificate with which a broker serves under these DNS names and addresses. Where the intermediate is
    /// not valid at `now`, the certificate is valid exactly when the intermediate is: a client then learns that it has
    /// ended, and not only that the handshake failed.
    ///
    /// # Errors
    /// The request is malformed or not signed by its own key, or a name is neither a DNS name nor an address.
    pub fn issue_server(
        &self,
        csr: &[u8],
        names: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let loaded = self.loaded();
        let own = loaded.signer.facts.life;
        let life = if own.holds(now) { loaded.signer.leaf_life(lifetime, now) } else { own };
        loaded.signer.sign(self.leaf_params(&SpiffeId::Broker, names)?, life, csr)
    }

    /// Signs a checkpoint of the audit log with the intermediate for agents, whose certificate goes with it.
    ///
    /// # Errors
    /// The intermediate is not valid at the checkpoint's time, or a signature cannot be made.
    pub fn sign_checkpoint(&self, checkpoint: Checkpoint) -> Result<SignedCheckpoint, PkiError> {
        self.loaded().signer.sign_checkpoint(checkpoint)
    }

    /// Returns the roots that a peer of this authority's certificates must trust, DER: two while a root is being replaced, the old
    /// one first.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        self.loaded().roots.all().map(|root| root.der.clone()).collect()
    }

    /// Returns the hashes of the public keys of those roots.
    pub fn root_keys(&self) -> Vec<KeyHash> {
        self.loaded().roots.all().map(|root| root.facts.key).collect()
    }

    /// Returns the next root; none while no root is being replaced.
    pub fn next_root(&self) -> Option<CaCertificate> {
        self.loaded().roots.next.as_ref().map(|next| next.root.facts.clone())
    }

    /// Returns the old root, which is the root while none is being replaced.
    pub fn old_root(&self) -> CaCertificate {
        self.loaded().roots.root.facts.clone()
    }

    /// Returns the fingerprint of the root that join tokens pin.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.loaded().roots.root.der)
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn leaf_params(&self, identity: &SpiffeId, names: &[String]) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let uri = identity.to_uri(&self.trust_domain);
        let uri = uri.try_into().map_err(|error: rcgen::Error| PkiError::from(error))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity {
            SpiffeId::Broker => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            SpiffeId::Agent(_) | SpiffeId::Principal { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}
