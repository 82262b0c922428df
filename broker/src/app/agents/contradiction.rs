//! Reports of agents on checkpoints of the audit log that contradict each other (I9).
//!
//! An agent keeps the newest checkpoint that a broker sent it, and reports one that came later and contradicts it. Both are
//! signed, so the report proves itself: the broker audits it only if the two do contradict each other, and an agent cannot make
//! that up. An agent also shows the kept checkpoint at the beginning of each session. In both cases the broker compares
//! its log with the checkpoint that the agent has kept, which its own data directory may not have.
//!
//! An agent may send the same proof in session after session. Its reports take from the same records as its refusals
//! ([`crate::app::denials`]), and their log lines from those that an agent may cause (I10).

use postern_core::TargetId;
use postern_core::audit::AuditEvent;
use postern_core::checkpoint::{Checkpoint, Relation};
use postern_pki::{CheckpointError, SignedCheckpoint};

use crate::app::{App, Error};
use crate::limits::line_due;

/// Has the log compared with the checkpoint that an agent shows at the beginning of its session, as its line of JSON. One that no
/// root vouches for proves nothing, and neither does one of another log, or the broker's own.
pub fn take_kept_checkpoint(app: &App, line: &str) {
    if let Ok(kept) = verified(app, line)
        && app.checkpoints.newest().as_deref() != Some(&kept)
        && is_of_this_log(app, &kept)
    {
        app.checkpoints.offer(kept);
    }
}

/// Takes a report, with both checkpoints as their lines of JSON. A report that proves nothing is logged. An agent can repeat its report
/// in session after session: it takes the same tokens as its refusals ([`crate::app::denials`]).
///
/// # Errors
/// The store failed.
pub async fn record_contradiction(
    app: &App,
    target: &TargetId,
    kept: &str,
    received: &str,
) -> Result<(), Error> {
    let (kept, received) = match (verified(app, kept), verified(app, received)) {
        (Ok(kept), Ok(received)) => (kept, received),
        (Err(error), _) | (_, Err(error)) => {
            if line_due(target) {
                tracing::warn!(%target, %error, "an agent reports a checkpoint of the audit log that proves nothing");
            }
            return Ok(());
        }
    };
    if !is_of_this_log(app, &kept) {
        if line_due(target) {
            tracing::warn!(%target, log = kept.checkpoint.log, "an agent reports checkpoints of another audit log");
        }
        return Ok(());
    }
    match kept.checkpoint.relation_of(&received.checkpoint) {
        Relation::WentBack | Relation::Rewritten => {}
        Relation::Newer | Relation::NoNewer => {
            if line_due(target) {
                tracing::warn!(%target, "an agent reports two checkpoints of the audit log that do not contradict each other");
            }
            return Ok(());
        }
    }
    let Checkpoint { seq, hash, at, .. } = &kept.checkpoint;
    if line_due(target) {
        tracing::error!(
            event = "agent.audit_contradicted",
            %target,
            kept_seq = seq,
            kept_hash = %hash,
            "an agent has kept a checkpoint that a later one contradicts: the audit log went back, or was rewritten"
        );
    }
    let event = AuditEvent::done(app.clock.now(), format!("agent/{target}"), "agent.audit_contradicted")
        .on_target(target)
        .with("kept_seq", seq)
        .with("kept_hash", hash)
        .with("kept_at", at)
        .with("received_seq", received.checkpoint.seq)
        .with("received_hash", received.checkpoint.hash)
        .with("received_at", received.checkpoint.at);
    app.checkpoints.offer(kept);
    app.record_report(target, event).await?;
    Ok(())
}

/// Reports whether a checkpoint is of this broker's log. Before its first checkpoint the broker takes every one; the keeper compares
/// none of another log.
fn is_of_this_log(app: &App, kept: &SignedCheckpoint) -> bool {
    app.checkpoints.newest().is_none_or(|newest| newest.checkpoint.log == kept.checkpoint.log)
}

fn verified(app: &App, line: &str) -> Result<SignedCheckpoint, CheckpointError> {
    let checkpoint = SignedCheckpoint::parse(line)?;
    let trust = app.revocations.checkpoint_trust(app.authority.roots());
    trust.verify(&checkpoint, Some(&app.trust_domain.to_string()))?;
    Ok(checkpoint)
}
