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

/// Reports whether an agent in a session should renew its certificate now: the intermediate that signed it is revoked, or the root
/// is being replaced and the agent does not trust the next one, or has a certificate from before the next one signed.
/// `roots` are the roots that the agent reported, by the hashes of their public keys.
pub fn is_renewal_wanted(app: &App, caller: &AgentCaller, roots: &[KeyHash]) -> bool {
    let authority = &app.authority;
    if caller.is_signer_revoked(&app.revocations) {
        // While this broker has no other intermediate, a renewal gains nothing.
        return !app.revocations.cover_signers(&[authority.intermediate().key]);
    }
    let lacks_a_root = || authority.root_keys().iter().any(|root| !roots.contains(root));
    match authority.phase() {
        RollPhase::Settled => false,
        RollPhase::Begun => lacks_a_root(),
        RollPhase::Switched => {
            lacks_a_root() || caller.certificate_issued_at < authority.intermediate().made_at()
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
        if record.roots == roots {
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
