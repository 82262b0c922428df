//! The replacement of the root, with an overlap in which both roots are trusted.
//!
//! **The problem.** Every agent and every person trusts the root alone, and a root ends, or its key is lost or stolen. If the next
//! root signed before its peers knew it, each of them would have to be enrolled again.
//!
//! **The words.**
//!
//! - The *next root* is the certificate that takes the root's place. Its key is in a file of its own.
//! - The *voucher* is a certificate of the next root's key that the old root signed. A peer that knows the old root alone verifies a
//!   chain under the next one by it, and learns the next root from it ([`crate::succession`]). It has the name of its signer, so that
//!   no path length counts it: a root of an earlier version (path length 1) vouches like a new one.
//! - `roll.pem` holds the next root and the voucher. It exists while a root is being replaced.
//!
//! **The course.** Each step is one rename, and each can be repeated until the replacement has ended: after a crash the state before or after it is on disk.
//!
//! | step | changes | from then on |
//! | --- | --- | --- |
//! | begin | writes the next root's key, then `roll.pem` | both roots are sent and trusted, and the voucher comes with every certificate |
//! | switch | replaces the intermediates by ones under the next root; moves `next-root.key` to `root.key` | the next root signs |
//! | finish | writes the next root into `root.pem`, and removes `roll.pem` | the old root is neither sent nor trusted |
//!
//! A join token pins the old root until the end: the voucher leads to it from the next one.
//!
//! **On failure.** A step that cannot be made changes nothing, or leaves a part that its repetition completes.

use std::path::Path;

use jiff::Timestamp;

use super::Authority;
use super::certificate::{self, CaCertificate, is_signed_by};
use super::disk::{Paths, PeopleOutcome};
use super::roots::{RollPhase, Roots};
use crate::credentials::{self, KeyPair};
use crate::files::is_absent;
use crate::{PkiError, TrustDomain, files};

impl Authority {
    /// Begins to replace the root: makes the next root, and lets the old one vouch for it. Returns the next root; a repeated call
    /// finds the one that is there. `new_root_key` is the file for the next root's key, `next-root.key` beside the root if not set;
    /// a key that is there already is used if it is of no certificate.
    ///
    /// # Errors
    /// The root's key cannot be used, the root is not valid at `now`, the file for the next root's key is the place of another file or
    /// holds the key of a certificate, the next root is there and its key is not in that file, another program changes the authority, or a file cannot be written.
    pub fn begin_roll(
        dir: &Path,
        trust_domain: &TrustDomain,
        root_key: &Path,
        new_root_key: Option<&Path>,
        now: Timestamp,
    ) -> Result<CaCertificate, PkiError> {
        let paths = Paths::of(dir);
        let place = new_root_key.unwrap_or(&paths.next_root_key);
        let _lock = paths.lock()?;
        let roots = Roots::read(&paths)?;
        if let Some(next) = roots.next {
            // The file of a call that made no key would be missed at the switch.
            if new_root_key.is_some() {
                paths.check_next_root_key(place, &next.root.der)?;
            }
            return Ok(next.root.facts);
        }
        let old_key = paths.read_root_key(root_key, &roots.root.der)?;
        paths.check_next_root_place(place)?;
        let key = if !is_absent(place) {
            paths.read_new_root_key(place, &roots)?
        } else {
            let key = KeyPair::generate()?;
            files::write_beside(place, &key.0.serialize_pem(), 0o600)?;
            key
        };
        let next = certificate::next_root(&key, trust_domain, &roots.root.facts, now)?;
        let voucher = certificate::voucher(&key, trust_domain, &roots.root.der, old_key, now)?;
        let facts = CaCertificate::read("the next root", &next)?;
        files::write_beside(&paths.roll, &credentials::to_pem(&[next, voucher]), 0o644)?;
        Ok(facts)
    }

    /// Lets the next root sign: replaces the intermediates by ones under it, as far as the key of the one for people is in
    /// `people_key`. A repeated call completes an interrupted one. The next root's key moves from `next-root.key` to `root.key`,
    /// and the old one to `retired-root.key`, if they are beside the root.
    ///
    /// # Errors
    /// No root is being replaced, the next root's key cannot be used, the file for people is refused as by [`Self::renew_people`], another program changes the authority, or a file cannot be
    /// written.
    pub fn switch_root(
        dir: &Path,
        trust_domain: &TrustDomain,
        new_root_key: Option<&Path>,
        people_key: &Path,
        now: Timestamp,
    ) -> Result<PeopleOutcome, PkiError> {
        let paths = Paths::of(dir).with_people_key(people_key);
        let _lock = paths.lock()?;
        let roots = Roots::read(&paths)?;
        let next = roots.next.as_ref().ok_or(PkiError::NoRoll)?.root.der.clone();
        // An interrupted switch may have moved the key already.
        let waiting = !is_absent(&paths.next_root_key);
        let place = new_root_key.unwrap_or(if waiting { &paths.next_root_key } else { &paths.root_key });
        let key = || paths.read_root_key(place, &next);
        paths.check_people_key_if_written(&roots)?;
        let is_under_next = |der: &[u8]| is_signed_by(der, &next);
        // The one for people first: as soon as the one for agents is marked, only that one signs for people.
        let people = paths.renew_people(trust_domain, &next, key()?, now, &|old| !is_under_next(old))?;
        if !paths.agents.read().is_ok_and(|found| is_under_next(&found.certificate)) {
            paths.replace(&paths.agents, trust_domain, &next, key()?, now)?;
        }
        paths.move_root_keys(&next)?;
        Ok(people)
    }

    /// Ends the replacement: the next root becomes the root, and the old one is no longer trusted. Returns the root. With `force`, certificates of people under the old root do not hinder it.
    ///
    /// # Errors
    /// No root is being replaced, also once the replacement has ended; the next root does not sign yet; the intermediate for people is still under the old root, another program changes the
    /// authority, or a file cannot be written.
    pub fn finish_roll(dir: &Path, now: Timestamp, force: bool) -> Result<CaCertificate, PkiError> {
        let paths = Paths::of(dir);
        let _lock = paths.lock()?;
        let roots = Roots::read(&paths)?;
        let Some(next) = roots.next.clone() else {
            let root = roots.root.facts;
            if is_absent(&paths.roll) {
                return Err(PkiError::NothingToFinish { serial: root.serial, end: root.life.not_after });
            }
            files::remove(&paths.roll)?;
            return Ok(root);
        };
        let agents = paths.agents.read()?;
        if roots.phase(&agents.certificate) != RollPhase::Switched {
            return Err(PkiError::NotSwitched);
        }
        if let Some(people) = paths.people_certificate()? {
            let ended = CaCertificate::read("people.pem", &people)?.life.not_after <= now;
            if !ended && !force && !is_signed_by(&people, &next.root.der) {
                return Err(PkiError::PeopleUnderOldRoot { path: paths.people.copy.clone() });
            }
        }
        files::write_beside(&paths.root, &credentials::to_pem(std::slice::from_ref(&next.root.der)), 0o644)?;
        files::remove(&paths.roll)?;
        Ok(next.root.facts)
    }
}
