//! The keeper: renews the intermediate and the serving certificate, and warns of their ends. It looks often and decides by
//! the clock each time, so that it notices within seconds that the machine slept or that a file appeared.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_core::audit::AuditEvent;
use postern_pki::authority::{CaCertificate, RollPhase};
use postern_pki::life::{Life, Nearness};
use postern_pki::purpose::Purpose;
use postern_pki::tls::ServerIdentity;
use postern_pki::{Authority, Credentials, KeyPair, PkiError};
use postern_runtime::error_chain::error_chain;
use postern_store::{Store, Transaction};

use super::Standing;
use super::roll_report::RollReport;
use super::root_key::{RootKey, in_a_line};
use crate::clock::{Clock, boottime, wall};
use crate::principals::Revocations;
use crate::readiness::Readiness;
use crate::signals::parts::AUTHORITY;
use crate::signals::rounds::RoundReporter;
use crate::telemetry;

/// The life of the serving certificate; it is renewed at half of it.
const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The interval at which the keeper looks at the clock and at the disk.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The wait after a failed renewal.
const RETRY_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// The author of a renewal that this broker found on disk.
const ANOTHER_PROGRAM: &str = "another program";

/// Keeps the authority and the serving certificate valid.
pub struct Keeper {
    /// The authority.
    pub authority: Arc<Authority>,
    /// The state that other parts of the broker see.
    pub standing: Arc<Standing>,
    /// The store, for the audit records.
    pub store: Store,
    /// The reasons for which this broker is not ready.
    pub readiness: Readiness,
    /// The broker's clock, for the audit records. The keeper lives by the wall clock, as certificates do.
    pub clock: Clock,
    /// The certificate that the broker serves with.
    pub identity: ServerIdentity,
    /// The life of that certificate.
    pub serving: Life,
    /// The DNS names and addresses of that certificate.
    pub names: Vec<String>,
    /// The report on the replacement of the root.
    pub roll_report: RollReport,
    /// The revocations that this broker knows.
    pub revocations: Arc<Revocations>,
}

/// The state of the keeper between two looks.
struct KeeperState {
    /// The intermediate under which the broker serves.
    signer: String,
    /// The roots that the broker shows and trusts.
    roots: Vec<Vec<u8>>,
    /// The phase of the replacement of the root.
    phase: RollPhase,
    /// The wall clock at the last renewal that failed.
    failed_at: Option<Timestamp>,
    failure: Option<String>,
    /// The subject of the newest warnings in the log.
    said: Option<Said>,
    /// Records that the store has not taken yet.
    unrecorded: Vec<AuditEvent>,
}

/// The subject of warnings: the ends, the failure, the root's key, and the number of warnings.
type Said = (Nearness, Nearness, Option<String>, RootKey, usize);

impl KeeperState {
    /// Reports whether the wait after a failed renewal is not over. A wall clock that went back ends the wait.
    fn waits(&self, now: Timestamp) -> bool {
        self.failed_at.is_some_and(|at| (SignedDuration::ZERO..RETRY_AFTER).contains(&now.duration_since(at)))
    }
}

/// Makes credentials for the broker's own port.
///
/// # Errors
/// A key or a certificate cannot be made.
pub(crate) fn serving(
    authority: &Authority,
    names: &[String],
    now: Timestamp,
) -> Result<Credentials, PkiError> {
    let key = KeyPair::generate()?;
    let issued = authority.issue_server(&key.csr()?, names, SERVING_LIFETIME, now)?;
    Credentials::new(key, issued.chain, authority.roots())
}

/// Reports whether the broker should take a fresh serving certificate: half of the life has passed, or the life has not begun
/// because the clock was ahead; and a fresh one would be valid. Otherwise the ended one stays, which shows clients the reason.
fn is_serving_due(serving: &Life, intermediate: &Life, now: Timestamp) -> bool {
    let is_old = now >= serving.half() && serving.not_after < intermediate.not_after;
    intermediate.holds(now) && (is_old || serving.is_early(now))
}

/// Sets the readiness by whether peers can trust this broker.
pub(crate) fn show_readiness(
    authority: &Authority,
    readiness: &Readiness,
    warnings: &[String],
    now: Timestamp,
) {
    if authority.root().life.holds(now) && authority.intermediate().life.holds(now) {
        readiness.clear(AUTHORITY);
    } else {
        readiness.set(AUTHORITY, warnings.join("; "));
    }
}

impl Keeper {
    /// Keeps until the process ends.
    ///
    /// # Errors
    /// Never: what fails is logged, shown, and tried again.
    pub async fn keep(mut self, reporter: RoundReporter) -> anyhow::Result<()> {
        let mut state = KeeperState {
            signer: self.authority.intermediate().serial,
            roots: self.authority.roots(),
            phase: self.authority.phase(),
            failed_at: None,
            failure: None,
            said: None,
            unrecorded: Vec::new(),
        };
        loop {
            let recorded = self.look(&mut state).await;
            reporter.report(boottime(), state.failure.clone().map_or(recorded, Err));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks once. Fails with the reason why a renewal is not in the audit log yet.
    async fn look(&mut self, state: &mut KeeperState) -> Result<(), String> {
        let now = wall();
        self.take_up(state, now);
        self.renew(state, now);
        self.mend_copy();
        self.serve(state, now);
        self.say(state, now);
        let reported = self.roll_report.write(&self.authority, &self.store, &self.revocations, now).await;
        self.record(state).await.and(reported.map_err(|error| format!("{error:#}")))
    }

    /// Takes up an intermediate that another program has put on disk.
    fn take_up(&self, state: &mut KeeperState, now: Timestamp) {
        let before = self.authority.intermediate();
        match self.authority.reload() {
            Ok(true) => {
                self.rolled(state);
                let after = self.authority.intermediate();
                if after != before {
                    self.renewed(state, ANOTHER_PROGRAM, &after);
                }
            }
            Ok(false) if state.waits(now) => {}
            Ok(false) => state.failure = None,
            Err(error) => state.failure = Some(in_a_line(error)),
        }
    }

    /// Notes a step of the replacement of the root.
    fn rolled(&self, state: &mut KeeperState) {
        let phase = self.authority.phase();
        if phase == std::mem::replace(&mut state.phase, phase) {
            return;
        }
        let root = self.authority.next_root().unwrap_or_else(|| self.authority.root());
        let action = match phase {
            RollPhase::Begun => "authority.roll_begun",
            RollPhase::Switched => "authority.roll_switched",
            RollPhase::Settled => "authority.roll_finished",
        };
        tracing::info!(
            event = action,
            serial = root.serial,
            not_after = %root.life.not_after,
            "took up a step of the replacement of the authority's root"
        );
        state.unrecorded.push(
            AuditEvent::done(self.clock.now(), "broker", action)
                .with("by", ANOTHER_PROGRAM)
                .with("serial", root.serial)
                .with("key", root.key)
                .with("not_after", root.life.not_after),
        );
    }

    /// Renews the intermediates that are due, if the root key is at hand.
    fn renew(&self, state: &mut KeeperState, now: Timestamp) {
        let Self { authority, standing, .. } = self;
        let (agents, people) = (authority.is_renewal_due(now), authority.is_people_renewal_due(now));
        if !(agents || people) || state.waits(now) {
            return;
        }
        match standing.root_key(authority) {
            RootKey::Offline => return,
            RootKey::AtHand | RootKey::Unusable { .. } => {}
        }
        let before = authority.intermediate();
        let outcome = authority.renew_if_due(standing.root_key_file(), now);
        if authority.intermediate() != before {
            let by = if matches!(outcome, Ok(false)) { ANOTHER_PROGRAM } else { "the broker" };
            self.renewed(state, by, &authority.intermediate());
        }
        let outcome = outcome.and_then(|_| authority.renew_people_if_due(standing.root_key_file(), now));
        if let Ok(Some(renewed)) = &outcome {
            self.renewed(state, "the broker", renewed);
        }
        match outcome {
            // The next look finds the intermediate of that program.
            Ok(_) | Err(PkiError::RenewalUnderWay { .. }) => {}
            Err(error) => {
                telemetry::authority_renewal_failed();
                state.failure = Some(in_a_line(error));
                state.failed_at = Some(now);
            }
        }
    }

    /// Writes `intermediate.pem` again after a renewal that was killed between the two files.
    fn mend_copy(&self) {
        // A copy that stays stale is a warning, and the next look tries again.
        if let Ok(true) = self.authority.mend_copy() {
            tracing::info!(
                event = "authority.copy_mended",
                "intermediate.pem was no copy of the authority's intermediate, and was written again"
            );
        }
    }

    fn renewed(&self, state: &mut KeeperState, by: &str, new: &CaCertificate) {
        let parties = new.purpose.map_or("every party", Purpose::parties);
        (state.failure, state.failed_at) = (None, None);
        tracing::info!(
            event = "authority.renewed",
            by,
            parties,
            serial = new.serial,
            not_after = %new.life.not_after,
            "the authority signs with a new intermediate"
        );
        state.unrecorded.push(
            AuditEvent::done(self.clock.now(), "broker", "authority.renewed")
                .with("by", by)
                .with("parties", parties)
                .with("serial", &new.serial)
                .with("not_after", new.life.not_after),
        );
    }

    /// Serves with a fresh certificate long before the old one ends, and at once under a new intermediate.
    fn serve(&mut self, state: &mut KeeperState, now: Timestamp) {
        let intermediate = self.authority.intermediate();
        let roots = self.authority.roots();
        let is_same = intermediate.serial == state.signer && roots == state.roots;
        if is_same && !is_serving_due(&self.serving, &intermediate.life, now) {
            return;
        }
        let fresh = serving(&self.authority, &self.names, now)
            .and_then(|fresh| self.identity.set(&fresh).map(|()| fresh));
        match fresh {
            Ok(fresh) => {
                self.serving = Life { not_before: fresh.not_before(), not_after: fresh.not_after() };
                (state.signer, state.roots) = (intermediate.serial, roots);
                tracing::info!(not_after = %self.serving.not_after, "the serving certificate was renewed");
            }
            Err(error) => state.failure = Some(in_a_line(error)),
        }
    }

    /// Shows the ends in the metrics, the readiness and the standing, and logs the warnings if they have changed.
    fn say(&self, state: &mut KeeperState, now: Timestamp) {
        let Self { authority, standing, readiness, .. } = self;
        standing.failed(state.failure.clone());
        standing.revoked(self.revocations.cover_signers(&[authority.intermediate().key]));
        let warnings = standing.look(authority, now);
        let (root, intermediate) = (authority.root().life, authority.intermediate().life);
        telemetry::certificate_ends("root", root.not_after);
        telemetry::certificate_ends("intermediate", intermediate.not_after);
        if let Ok(Some(people)) = authority.people() {
            telemetry::certificate_ends("people", people.life.not_after);
        }
        telemetry::certificate_ends("serving", self.serving.not_after);
        if let Some((_, store)) = standing.store_certificate() {
            telemetry::certificate_ends("store", store.not_after);
        }
        show_readiness(authority, readiness, &warnings, now);
        let signs = (
            root.nearness(now),
            intermediate.nearness(now),
            state.failure.clone(),
            standing.root_key(authority),
            warnings.len(),
        );
        if state.said.as_ref() == Some(&signs) {
            return;
        }
        for warning in &warnings {
            tracing::warn!(event = "authority.warning", "{warning}");
        }
        state.said = Some(signs);
    }

    /// Writes the renewals into the audit log (I9). If the store does not answer, the next look tries again.
    async fn record(&self, state: &mut KeeperState) -> Result<(), String> {
        while let Some(event) = state.unrecorded.first().cloned() {
            match self.store.commit(Transaction::default().audit(event)).await {
                Ok(_) => drop(state.unrecorded.remove(0)),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot write the renewal of the authority into the audit log yet"
                    );
                    return Err(error_chain(&error));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
