//! The records of refusals and of tampering in the audit log, and the summaries of those that are omitted (I9, I10).
//!
//! **The problem.** Each refusal is a record, and a record costs a synced commit. A caller that is refused thousands of times
//! each second would fill the disk, and slow every other commit down. So would an agent that reports tampering, or a contradiction between checkpoints, without end.
//!
//! **The words.** Each caller has a bucket of tokens, and all callers together have one more. A refusal that finds a token in
//! both is *recorded* as it is. Any other is *omitted*: counted for its caller. An agent's reports take the same tokens
//! as its refusals, and are counted apart.
//!
//! **The rule.** A caller is refused whether its refusal is recorded or omitted. A *summary* (`denials.omitted`) is one record
//! with the caller, the number of refusals that were omitted, and the time of the first; that of reports is `tampering.omitted`. The
//! broker writes one for each
//! caller and minute, also after the flood has ended and when it shuts down, so that records and counts add up to the calls.
//!
//! **On failure.** The counts stay until the store takes them. A refusal for which the store has no room counts, too. A broker
//! that is killed loses the counts of its last minute; `postern_denials_omitted_total` had them. At most 1,024
//! callers are counted apart: a summary with `callers = "others"` counts the rest.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::TargetId;
use postern_core::audit::AuditEvent;
use postern_runtime::error_chain::error_chain;
use postern_store::{StoreError, Transaction};

mod omitted;

pub use omitted::Denials;
use omitted::Omitted;

use super::App;
use crate::clock::boottime;
use crate::limits::Owner;
use crate::signals::rounds::RoundReporter;

/// The interval at which the broker looks for summaries that are due.
pub const SUMMARY_INTERVAL: Duration = Duration::from_secs(5);
/// The time from a caller's first omitted refusal to the summary.
const SUMMARY_AGE: Duration = Duration::from_secs(60);

impl App {
    /// Records a refusal of this caller in the audit log, or counts it. Reports whether it was recorded.
    ///
    /// # Errors
    /// The store failed for another reason than a lack of room; the refusal is neither recorded nor counted.
    pub async fn record_denial(
        &self,
        caller: impl Into<Owner>,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.record_or_count(caller.into(), event).await
    }

    /// Records an agent's report of tampering, or of checkpoints that contradict each other, in the audit log, or counts it. Returns whether
    /// it was recorded.
    ///
    /// # Errors
    /// As [`Self::record_denial`].
    pub async fn record_report(&self, agent_of: &TargetId, event: AuditEvent) -> Result<bool, StoreError> {
        self.record_or_count(agent_of.into(), event).await
    }

    /// Reports whether an agent may cause one more record of a change that it can report without end. Otherwise the change is left
    /// out, as no count of it is worth a record.
    pub(super) fn may_record(&self, agent_of: &TargetId) -> bool {
        self.denials.passes(&agent_of.into())
    }

    async fn record_or_count(&self, caller: Owner, event: AuditEvent) -> Result<bool, StoreError> {
        if !self.denials.passes(&caller) {
            self.denials.omit(caller, &event);
            return Ok(false);
        }
        match self.store.commit(Transaction::default().audit(event.clone()).giving_way()).await {
            // Nothing was written: the summary that is written once there is room counts it.
            Err(StoreError::Full(_) | StoreError::LowOnSpace { .. }) => {
                self.denials.omit(caller, &event);
                Ok(false)
            }
            recorded => recorded.map(|_| true),
        }
    }

    /// Writes every summary that is due, or at the end every one.
    ///
    /// # Errors
    /// The store failed; the counts stay.
    pub async fn summarize_denials(&self, at_end: bool) -> Result<(), StoreError> {
        let now = self.clock.now();
        let due = self.denials.take(now, if at_end { Duration::ZERO } else { SUMMARY_AGE });
        if due.is_empty() {
            return Ok(());
        }
        let events = due.iter().flat_map(|(caller, omitted)| summaries(caller.as_ref(), omitted, now));
        let transaction = events.fold(Transaction::default(), Transaction::audit);
        // The last ones are few, and no later attempt follows.
        let transaction = if at_end { transaction } else { transaction.giving_way() };
        match self.store.commit(transaction).await {
            Ok(_) => Ok(()),
            Err(error) => {
                due.into_iter().for_each(|(caller, omitted)| self.denials.add(caller, omitted));
                Err(error)
            }
        }
    }
}

/// Makes the records that count the omitted refusals and reports of one caller.
fn summaries(caller: Option<&Owner>, omitted: &Omitted, now: Timestamp) -> Vec<AuditEvent> {
    let seconds = now.duration_since(omitted.since).as_secs();
    let refusals = AuditEvent::denied(now, &omitted.actor, "denials.omitted");
    let reports = AuditEvent::done(now, &omitted.actor, "tampering.omitted");
    let counts = [
        (refusals, omitted.refusals, "refusals"),
        (reports, omitted.reports, "reports of tampering or of checkpoints"),
    ];
    let counts = counts.into_iter().filter(|(_, count, _)| *count > 0);
    let summary = |(event, count, what): (AuditEvent, u64, &str)| {
        let event = event
            .with("count", count)
            .with("since", omitted.since)
            .with("message", format!("{} more {what} in {seconds} s", grouped(count)));
        if caller.is_some() { event } else { event.with("callers", "others") }
    };
    counts.map(summary).collect()
}

/// Returns a number with a comma between each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes the summaries until the process ends.
///
/// # Errors
/// Never: if the store fails, the counts stay.
pub async fn keep_summarizing(app: Arc<App>, reporter: RoundReporter) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(SUMMARY_INTERVAL).await;
        let result = app.summarize_denials(false).await;
        if let Err(error) = &result {
            tracing::debug!(error = error as &dyn std::error::Error, "cannot record omitted refusals");
        }
        reporter.report(boottime(), result.map_err(|error| error_chain(&error)));
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use postern_core::{PrincipalKey, Role};
    use postern_store::testing::memory::Fault;

    use super::*;
    use crate::limits::{Limit, Limits, MAX_OWNERS};
    use crate::testing::counted::Counted;
    use crate::testing::{TestApp, caller};

    /// Refuses a caller so many times, and returns the number of records.
    async fn deny(test: &TestApp, who: &str, times: u64) -> u64 {
        let caller = caller(Role::Requester, who);
        let mut recorded = 0;
        for _ in 0..times {
            let event = AuditEvent::denied(test.app.clock.now(), &caller.principal, "rpc.called");
            recorded += u64::from(test.app.record_denial(&caller, event).await.unwrap_or(false));
        }
        recorded
    }

    /// The actor and the count of each summary.
    async fn summaries(test: &TestApp) -> Vec<(String, u64)> {
        let events = test.events().await.into_iter().filter(|event| event.action == "denials.omitted");
        events.map(|event| (event.actor, event.details["count"].parse().unwrap())).collect()
    }

    #[tokio::test]
    async fn i9_a_flood_of_refusals_leaves_few_records_and_a_count_that_adds_up() {
        let test = TestApp::new();
        let recorded = deny(&test, "mallory", 10_000).await;
        let at_most = u64::from(Limits::default().denials_per_caller) + 60;
        assert!(recorded > 0 && recorded <= at_most, "{recorded}");
        assert_eq!(deny(&test, "alice", 1).await, 1, "another caller is recorded as ever");
        test.app.summarize_denials(false).await.unwrap();
        assert_eq!(summaries(&test).await, [], "none is due within a minute");
        test.app.summarize_denials(true).await.unwrap();
        assert_eq!(summaries(&test).await, [("requester/mallory".to_owned(), 10_000 - recorded)]);
        assert_eq!(test.audited("rpc.called").await.len() as u64, recorded + 1);
        test.app.summarize_denials(true).await.unwrap();
        assert_eq!(summaries(&test).await.len(), 1, "nothing is counted twice");
    }

    #[tokio::test]
    async fn i10_refusals_without_a_record_are_counted() {
        let (counted, test) = (Counted::here(), TestApp::new());
        let limits = Limits::default();
        let recorded = deny(&test, "mallory", 200).await;
        assert_eq!(counted.of(Limit::DenialsPerCaller), 200 - recorded);
        for caller in 0..2 * limits.denials / limits.denials_per_caller {
            deny(&test, &format!("mallory-{caller}"), 100).await;
        }
        assert!(counted.of(Limit::Denials) > 0);
    }

    #[tokio::test]
    async fn i9_a_summary_that_cannot_be_written_is_kept() {
        let test = TestApp::new();
        test.store.fail_next([Fault::Full]);
        assert_eq!(deny(&test, "mallory", 1).await, 0, "a refusal without room is counted");
        test.store.fail_next([Fault::Before]);
        test.app.summarize_denials(true).await.unwrap_err();
        assert_eq!(summaries(&test).await, []);
        test.app.summarize_denials(true).await.unwrap();
        assert_eq!(summaries(&test).await, [("requester/mallory".to_owned(), 1)]);
    }

    #[test]
    fn a_summary_is_due_a_minute_after_its_first_refusal() {
        let denials = Denials::new(&Limits::default());
        let (first, owner) = (Timestamp::UNIX_EPOCH, || Owner::from(&caller(Role::Requester, "mallory")));
        let at = |seconds| first + SignedDuration::from_secs(seconds);
        for seconds in [0, 30, 59] {
            denials.omit(owner(), &AuditEvent::denied(at(seconds), "requester/mallory", "rpc.called"));
        }
        assert!(denials.take(at(59), SUMMARY_AGE).is_empty());
        let [(of, omitted)] = &denials.take(at(60), SUMMARY_AGE)[..] else { panic!("one is due") };
        let events =
            super::summaries(of.as_ref(), &Omitted { refusals: 1_234_567, ..omitted.clone() }, at(60));
        let [event] = &events[..] else { panic!("it has reported no tampering") };
        assert_eq!((omitted.refusals, &*event.details["message"]), (3, "1,234,567 more refusals in 60 s"));
    }

    #[test]
    fn i10_callers_past_the_bound_are_counted_together() {
        let denials = Denials::new(&Limits::default());
        let event = AuditEvent::denied(Timestamp::UNIX_EPOCH, "requester/mallory", "rpc.called");
        for n in 0..MAX_OWNERS + 50 {
            let key: PrincipalKey = format!("mallory-{n}").parse().unwrap();
            denials.omit(Owner::Principal(key), &event);
        }
        let taken = denials.take(Timestamp::UNIX_EPOCH, Duration::ZERO);
        assert_eq!(taken.len(), MAX_OWNERS + 1);
        assert_eq!(taken.iter().find(|(caller, _)| caller.is_none()).unwrap().1.refusals, 50);
    }
}
