//! The renewals that the broker asks for: a new root, or a revoked intermediate, must reach every agent within minutes.

use postern_core::KeyHash;
use postern_core::audit::AuditEvent;
use postern_pki::authority::RollPhase;
use postern_store::{Expect, StoreError, Transaction, Versioned};

use super::AgentCaller;
use crate::app::{App, Error};

/// The most roots that an agent's record keeps.
const MAX_ROOTS: usize = 8;
/// The attempts at a record that another change overtakes each time.
const MAX_ATTEMPTS: usize = 5;

/// The roots of an agent in a session, by the hashes of their public keys.
#[derive(Debug, Clone, Default)]
pub struct AgentRoots {
    /// The roots that the agent reported that it trusts.
    pub trusted: Vec<KeyHash>,
    /// The root under which its certificate was signed, if the record knows it.
    pub of_certificate: Option<KeyHash>,
}

/// Reports whether an agent in a session should renew its certificate now: the intermediate that signed it is revoked, or the root
/// is being replaced and the agent does not trust the next one, or has a certificate that is not under the next one although that one signs.
///
/// Where the record does not know the root of the certificate, the time of the certificate counts. Brokers do not switch at one moment,
/// so that a certificate from before this broker's switch may be under the next root, and one from after it under the old one.
pub fn is_renewal_wanted(app: &App, caller: &AgentCaller, roots: &AgentRoots) -> bool {
    let authority = &app.authority;
    if caller.is_signer_revoked(&app.revocations) {
        // While this broker has no other intermediate, a renewal gains nothing.
        return !app.revocations.cover_signers(&[authority.intermediate().key]);
    }
    // An agent may lack the old root: a broker that has ended the replacement before this one no longer sends it.
    let Some(next) = authority.next_root().map(|next| next.key) else { return false };
    let lacks_next_root = !roots.trusted.contains(&next);
    match authority.phase() {
        RollPhase::Settled => false,
        RollPhase::Begun => lacks_next_root,
        RollPhase::Switched => {
            let is_old = match roots.of_certificate {
                Some(root) => root != next,
                None => caller.certificate_issued_at < authority.intermediate().made_at(),
            };
            lacks_next_root || is_old
        }
    }
}

/// Records the roots that an agent trusts, while a root is being replaced.
///
/// # Errors
/// The store failed.
pub async fn record_roots(app: &App, caller: &AgentCaller, roots: &[KeyHash]) -> Result<(), Error> {
    if app.authority.phase() == RollPhase::Settled || roots.is_empty() {
        return Ok(());
    }
    let (target, roots) = (&caller.target, roots.iter().copied().take(MAX_ROOTS).collect::<Vec<_>>());
    for _ in 0..MAX_ATTEMPTS {
        let Some(Versioned { mut record, version }) = app.store.agent(target).await? else { return Ok(()) };
        // Past the bound the next session reports them again.
        if record.roots == roots || !app.may_record(target) {
            return Ok(());
        }
        record.roots.clone_from(&roots);
        let names: Vec<String> = roots.iter().map(KeyHash::to_string).collect();
        let event = AuditEvent::done(app.clock.now(), format!("agent/{target}"), "agent.roots_reported")
            .on_target(target)
            .with("roots", names.join(" "));
        let change = Transaction::default().put_agent(record, Expect::Version(version)).audit(event);
        match app.store.commit(change).await {
            Err(StoreError::Conflict { .. }) => {}
            other => return Ok(other.map(drop)?),
        }
    }
    // The agent's next session reports them again.
    Ok(())
}
