//! Clones: agents whose identity two machines hold.
//!
//! **The problem.** A copy of an agent's state (a stolen disk, a restored backup, a VM that was cloned with its agent) holds a valid
//! key. The copy would renew beside the machine, and the two would take each other's sessions.
//!
//! **The rule.** [`postern_core::agent_keys`] decides which keys the record of an agent admits. Every other key is a clone's, except
//! that for a minute after an enrolment a key that the record does not know is taken for the former identity of the same agent: it is
//! refused without an alarm. Two machines with one key are found by their sessions
//! ([`crate::layers::host::session_state::SessionOrigin`]): the broker counts sessions that another machine displaces while they are
//! alive, and after three in a minute the session that is there stays for as long as it is alive.
//!
//! A refused clone waits for its answer, longer each time ([`crate::app::CloneAttempts`]). The audit log has one record for each
//! target and minute (`agent.cloned`), with the number of attempts since the record before; the agent's own record keeps the alarm
//! until an administrator bans the agent or its target enrols again.
//!
//! **On failure.** The refusal stands, whether or not the store takes the record of it.

use std::time::Duration;

use jiff::Timestamp;
use postern_core::agent_keys::Cloned;
use postern_core::audit::AuditEvent;
use postern_runtime::error_chain::error_chain;
use postern_store::{AgentRecord, CloneAlarm, Expect, StoreError, Transaction, Versioned};

use super::agent_caller::AgentCaller;
use crate::app::{App, Error};
use crate::clock::boottime;
use crate::telemetry;

/// The least time between two audit records on the clones of one target.
const RECORD_INTERVAL: Duration = Duration::from_secs(60);
/// The time after an enrolment in which an unknown key is no clone's: the agent of the target goes on with its former identity for
/// some seconds.
const ENROLMENT_GRACE: Duration = Duration::from_secs(60);

/// Refuses a clone: counts the attempt, raises the alarm, and returns the answer after a while.
pub(super) async fn refuse(
    app: &App,
    caller: &AgentCaller,
    agent: Versioned<AgentRecord>,
    sign: Cloned,
) -> Error {
    let target = &caller.target;
    if sign == Cloned::Unknown && is_recent(agent.record.enrolled_at, ENROLMENT_GRACE, app.clock.now()) {
        return Error::Forbidden {
            reason: format!("{target} has just enrolled again; this is its former identity"),
        };
    }
    telemetry::agent_cloned(sign);
    let pause = app.clone_attempts.count(target, boottime());
    if let Err(error) = raise_alarm(app, caller, agent, sign).await {
        tracing::error!(%target, error = error_chain(&error), "cannot record the clone of an agent in the audit log");
    }
    tokio::time::sleep(pause).await;
    Error::Forbidden {
        reason: format!("{target} has a clone: {sign}; ban the agent or enrol it again with a join token"),
    }
}

/// Records the clone of an agent, unless it was recorded a moment ago.
async fn raise_alarm(
    app: &App,
    caller: &AgentCaller,
    Versioned { record, version }: Versioned<AgentRecord>,
    sign: Cloned,
) -> Result<(), StoreError> {
    let (target, now) = (&caller.target, app.clock.now());
    if record.cloned.as_ref().is_some_and(|alarm| is_recent(alarm.last_at, RECORD_INTERVAL, now)) {
        return Ok(());
    }
    let count = app.clone_attempts.take(target);
    let address = caller.address.map(|address| address.to_string()).unwrap_or_default();
    let event = AuditEvent::denied(now, format!("agent/{target}"), "agent.cloned")
        .on_target(target)
        .with("reason", sign)
        .with("count", count)
        .with("address", &address)
        .with("key", caller.key);
    let before = record.cloned.clone();
    let alarm = CloneAlarm {
        first_at: before.as_ref().map_or(now, |alarm| alarm.first_at),
        last_at: now,
        attempts: before.map_or(0, |alarm| alarm.attempts).saturating_add(count),
        reason: sign.to_string(),
    };
    let agent = AgentRecord { cloned: Some(alarm), ..record };
    let committed = app
        .store
        .commit(Transaction::default().put_agent(agent, Expect::Version(version)).audit(event))
        .await;
    match committed {
        Ok(_) => {
            tracing::warn!(event = "agent.cloned", %target, address, count, reason = %sign, "refused the clone of an agent");
            Ok(())
        }
        Err(error) => {
            app.clone_attempts.give_back(target, count);
            // Another change of the record came first; the next attempt raises the alarm, if it is not raised already.
            if matches!(error, StoreError::Conflict { .. }) { Ok(()) } else { Err(error) }
        }
    }
}

/// Reports whether two times are close. The time of a record may lie ahead, by the clock of another broker: a time far ahead is not
/// recent, or it would silence alarms until it comes.
fn is_recent(at: Timestamp, within: Duration, now: Timestamp) -> bool {
    now.duration_since(at).abs() < within.try_into().unwrap_or_default()
}
