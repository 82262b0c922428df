//! The end of an agent that is gone for good.
//!
//! A machine that was deleted never confirms anything, so its grants would open, or close, for ever. An administrator who knows that the
//! machine is gone has the broker forget its agent. From then on nothing waits for it: a grant that opens there fails, a window that
//! closes there counts as closed, and the agent's certificate admits it no longer.
//!
//! The broker cannot know whether the machine is gone. If it is not, its kernel holds each window until the window's end (I2), so the
//! caller accepts that first, and the answer says until when. The record stays as a tombstone: it keeps the agent out, and the
//! reconciler of every broker sees it. Enrolling the target replaces it.

use jiff::Timestamp;
use postern_core::agent_keys::AgentKeys;
use postern_core::audit::AuditEvent;
use postern_core::plan::Layer;
use postern_core::{GrantId, GrantState, TargetId};
use postern_store::{AgentRecord, Expect, Forgotten, Transaction, Versioned};

use crate::app::{App, Caller, Error};

/// The windows that the machine of a forgotten agent may still hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HeldWindows {
    /// The grants of the windows, each with its end.
    pub grants: Vec<(GrantId, Timestamp)>,
}

impl HeldWindows {
    /// Returns the time from which the machine holds none of them; none if it holds none now.
    pub fn until(&self) -> Option<Timestamp> {
        self.grants.iter().map(|(_, end)| *end).max()
    }
}

/// Forgets the agent of a target, and ends everything that waits for it. Returns the windows that its machine may hold.
///
/// # Errors
/// The target has no agent, its agent is connected, or its machine may hold windows and the caller does not accept that.
pub async fn forget(
    app: &App,
    caller: &Caller,
    target: &TargetId,
    reason: String,
    accepts_held: bool,
) -> Result<HeldWindows, Error> {
    let missing = || Error::NotFound { what: format!("an agent of {target}") };
    let Versioned { record, version } = app.store.agent(target).await?.ok_or_else(missing)?;
    if record.forgotten.is_some() {
        return Err(missing());
    }
    let peers = app.peer_status([target]).await?;
    if app.observer.report(target, Layer::Host, &peers).online {
        let reason =
            format!("the agent of {target} is connected, so it is not gone; ban it if it must not act");
        return Err(Error::Precondition { reason });
    }
    let now = app.clock.now();
    let held = held(app, target, now).await?;
    if let Some(until) = held.until().filter(|_| !accepts_held) {
        let reason = format!(
            "the machine of {target} may hold windows of {} grants until {until:.0} if it still runs; accept that \
             (--accept-held-windows) or wait",
            held.grants.len()
        );
        return Err(Error::Precondition { reason });
    }
    let until = held.until().map(|until| format!("{until:.0}")).unwrap_or_default();
    let event = AuditEvent::done(now, &caller.principal, "agent.forgotten")
        .on_target(target)
        .with("reason", &reason)
        .with("held_grants", held.grants.len())
        .with("held_until", until);
    let agent = AgentRecord {
        keys: Some(AgentKeys::none()),
        cloned: None,
        forgotten: Some(Forgotten { by: caller.principal.clone(), at: now, reason }),
        ..record
    };
    app.store.commit(Transaction::default().put_agent(agent, Expect::Version(version)).audit(event)).await?;
    app.sessions.end(target, "the agent was forgotten");
    app.sessions.set_forgotten(target, Some(now));
    app.clone_attempts.forget(target);
    app.wakeups.wake(target);
    Ok(held)
}

/// Returns the grants with windows that the target's host layer may hold now.
async fn held(app: &App, target: &TargetId, now: Timestamp) -> Result<HeldWindows, Error> {
    let open = app.store.open_grants().await?;
    let grants = open.into_iter().map(|grant| grant.record).filter(|grant| {
        !matches!(grant.state, GrantState::PendingApproval)
            && grant.not_after > now
            && grant.windows.iter().any(|window| window.target == *target && Layer::Host.required_by(window))
    });
    Ok(HeldWindows { grants: grants.map(|grant| (grant.id, grant.not_after)).collect() })
}
