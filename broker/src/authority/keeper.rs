//! The keeper: renews the intermediate and the serving certificate, and says how near their ends are. It looks often and
//! decides by the clock each time, so a machine that slept, or a file that appeared, is noticed within seconds.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_core::audit::AuditEvent;
use postern_pki::life::{Life, Nearness};
use postern_pki::tls::ServerIdentity;
use postern_pki::{Authority, Credentials, KeyPair, PkiError};

use super::{RootKey, in_a_line};
use crate::app::App;
use crate::measure;
use crate::readiness::{AUTHORITY, Readiness};
use crate::store::Transaction;

/// The life of the serving certificate; it is renewed at half of it.
const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often the keeper looks at the clock and at the disk.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long the keeper waits after a renewal that failed.
const RETRY_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// The author of a renewal that this broker found on disk.
const ANOTHER: &str = "another program";

/// Keeps the authority and the serving certificate valid.
pub struct Keeper {
    /// The authority, and where its records go.
    pub app: Arc<App>,
    /// The certificate that the broker serves with.
    pub identity: ServerIdentity,
    /// The life of that certificate.
    pub serving: Life,
    /// The DNS names and addresses of that certificate.
    pub names: Vec<String>,
}

/// The course of things so far.
struct Course {
    /// The intermediate under which the broker serves.
    signer: String,
    next_try: Timestamp,
    failure: Option<String>,
    /// What the newest warnings in the log were about.
    said: Option<(Nearness, Nearness, Option<String>, usize)>,
    /// Records that the store has not taken yet.
    unrecorded: Vec<AuditEvent>,
}

/// Makes credentials to serve with.
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

/// Reports whether the broker should serve with a fresh certificate: half of its life has passed, and a fresh one would be
/// valid. Without that the ended one stays, which tells clients the reason.
fn is_serving_due(serving: &Life, intermediate: &Life, now: Timestamp) -> bool {
    now >= serving.half() && intermediate.holds(now) && serving.not_after < intermediate.not_after
}

/// Says whether peers can trust this broker.
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
    pub async fn keep(mut self) -> anyhow::Result<()> {
        let mut course = Course {
            signer: self.app.authority.intermediate().serial,
            next_try: Timestamp::MIN,
            failure: None,
            said: None,
            unrecorded: Vec::new(),
        };
        loop {
            self.look(&mut course).await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&mut self, course: &mut Course) {
        let now = self.app.clock.now();
        self.take_up(course, now);
        self.renew(course, now);
        self.serve(course, now);
        self.say(course, now);
        self.record(course).await;
    }

    /// Takes up an intermediate that another program has put on disk.
    fn take_up(&self, course: &mut Course, now: Timestamp) {
        match self.app.authority.reload() {
            Ok(true) => self.renewed(course, ANOTHER, now),
            Ok(false) if now >= course.next_try => course.failure = None,
            Ok(false) => {}
            Err(error) => course.failure = Some(in_a_line(error)),
        }
    }

    /// Renews the intermediate, where it is time and the root key is at hand.
    fn renew(&self, course: &mut Course, now: Timestamp) {
        let App { authority, standing, .. } = self.app.as_ref();
        if !authority.is_renewal_due(now) || now < course.next_try {
            return;
        }
        match standing.root_key(authority) {
            RootKey::Offline => return,
            RootKey::AtHand | RootKey::Unusable { .. } => {}
        }
        let before = authority.intermediate();
        let outcome = authority.renew_if_due(standing.root_key_file(), now);
        if authority.intermediate() != before {
            let by = if matches!(outcome, Ok(false)) { ANOTHER } else { "the broker" };
            self.renewed(course, by, now);
        }
        match outcome {
            // The next look finds what that program has made.
            Ok(_) | Err(PkiError::RenewalUnderWay { .. }) => {}
            Err(error) => {
                measure::authority_renewal_failed();
                course.failure = Some(in_a_line(error));
                course.next_try = now.checked_add(RETRY_AFTER).unwrap_or(Timestamp::MAX);
            }
        }
    }

    fn renewed(&self, course: &mut Course, by: &str, now: Timestamp) {
        let new = self.app.authority.intermediate();
        (course.failure, course.next_try) = (None, Timestamp::MIN);
        tracing::info!(
            event = "authority.renewed",
            by,
            serial = new.serial,
            not_after = %new.life.not_after,
            "the authority signs with a new intermediate"
        );
        course.unrecorded.push(
            AuditEvent::done(now, "broker", "authority.renewed")
                .with("by", by)
                .with("serial", new.serial)
                .with("not_after", new.life.not_after),
        );
    }

    /// Serves with a fresh certificate long before the old one ends, and at once under a new intermediate.
    fn serve(&mut self, course: &mut Course, now: Timestamp) {
        let intermediate = self.app.authority.intermediate();
        if intermediate.serial == course.signer && !is_serving_due(&self.serving, &intermediate.life, now) {
            return;
        }
        let fresh = serving(&self.app.authority, &self.names, now)
            .and_then(|fresh| self.identity.set(&fresh).map(|()| fresh));
        match fresh {
            Ok(fresh) => {
                self.serving = Life { not_before: fresh.not_before(), not_after: fresh.not_after() };
                course.signer = intermediate.serial;
                tracing::info!(not_after = %self.serving.not_after, "the serving certificate was renewed");
            }
            Err(error) => course.failure = Some(in_a_line(error)),
        }
    }

    /// Shows the ends in the metrics, in the readiness, to other parts, and where something has changed in the log.
    fn say(&self, course: &mut Course, now: Timestamp) {
        let App { authority, standing, readiness, .. } = self.app.as_ref();
        standing.failed(course.failure.clone());
        let warnings = standing.look(authority, now);
        let (root, intermediate) = (authority.root().life, authority.intermediate().life);
        measure::certificate_ends("root", root.not_after);
        measure::certificate_ends("intermediate", intermediate.not_after);
        measure::certificate_ends("serving", self.serving.not_after);
        if let Some((_, store)) = standing.store_certificate() {
            measure::certificate_ends("store", store.not_after);
        }
        show_readiness(authority, readiness, &warnings, now);
        let state = (root.nearness(now), intermediate.nearness(now), course.failure.clone(), warnings.len());
        if course.said.as_ref() == Some(&state) {
            return;
        }
        for warning in &warnings {
            tracing::warn!(event = "authority.warning", "{warning}");
        }
        course.said = Some(state);
    }

    /// Writes what has happened into the audit log (I9). A store that is away gets it later.
    async fn record(&self, course: &mut Course) {
        while let Some(event) = course.unrecorded.first().cloned() {
            match self.app.store.commit(Transaction::default().audit(event)).await {
                Ok(_) => drop(course.unrecorded.remove(0)),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the renewal of the authority is not in the audit log yet"
                    );
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
