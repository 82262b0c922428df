//! The rounds of the broker's tasks: when each task last went round, and with what result.
//!
//! **The problem.** A task that ends takes the process down, but a task that hangs or keeps failing looks like one that has
//! nothing to do. Its failures are lines of a log, and its silence is nothing at all.
//!
//! **The words.**
//!
//! - A *round* is one turn of a task's loop: a renewal, a sweep, a commit of records. It ends well or with an error.
//! - The *period* is the longest pause between two rounds of a task. A task that only waits for events has none.
//! - A task is *overdue* if it has not ended a round for three of its periods.
//! - A task is *failing* if no round has ended well for longer than one of its periods.
//!
//! **The rule.** [`Rounds`] has one entry for each [`Task`] and never more. Each task reports through its own
//! [`RoundReporter`], and time is an argument: a count that never steps. No task counts as overdue or failing within half a
//! minute, so that neither a busy machine nor a store that fails over is an alarm. A task without a period is never overdue
//! or failing: its events may stay away for as long as the broker runs.
//!
//! **On failure.** A round that fails replaces the result of the one before, and the next one that ends well replaces it in
//! turn. A task whose loop hangs reports nothing more, and its age says so. After the machine slept, a task is overdue until
//! it has gone round again, because its age counts the sleep.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The number of periods without a round after which a task is overdue.
const MAX_PERIODS: u32 = 3;
/// The time within which no task counts as overdue or failing, however short its period.
const GRACE: Duration = Duration::from_secs(30);
/// The longest text of an error that is kept, in characters.
const MAX_ERROR: usize = 200;

/// A task that lasts as long as the broker and goes round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Brings grants and layers together.
    Reconciler,
    /// Drives the cloud targets.
    CloudLayer,
    /// Reads every cloud for what the store does not know.
    Sweep,
    /// Writes the cloud layer's records into the audit log.
    AuditOutbox,
    /// Renews the broker's membership.
    Membership,
    /// Follows the changes of the other brokers.
    Follower,
    /// Publishes the status of targets for the other brokers.
    PeerStatus,
    /// Renews the certificates of the authority and of the broker.
    Authority,
    /// Records how many refusals were omitted.
    Denials,
    /// Asks the store whether it answers.
    Readiness,
    /// Keeps the gRPC health service at the broker's readiness.
    Health,
    /// Compares the wall clock with the broker's.
    Clock,
    /// Counts the grants for the metrics.
    Sample,
    /// Keeps the recorder of the metrics small.
    Metrics,
    /// Reads the revocations of principals, and records their certificates.
    Principals,
    /// Removes records that are over from the store.
    Retention,
    /// Makes and checks checkpoints of the audit log.
    Checkpoints,
    /// Verifies the whole audit log.
    Verification,
    /// Reports the forged records that reads of the store met.
    Forgeries,
}

impl Task {
    /// Returns the task's name.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reconciler => "reconciler",
            Self::CloudLayer => "cloud layer",
            Self::Sweep => "sweep",
            Self::AuditOutbox => "audit outbox",
            Self::Membership => "membership",
            Self::Follower => "follower",
            Self::PeerStatus => "peer status",
            Self::Authority => "authority",
            Self::Denials => "denials",
            Self::Readiness => "readiness",
            Self::Health => "health",
            Self::Clock => "clock",
            Self::Sample => "sample",
            Self::Metrics => "metrics",
            Self::Principals => "principals",
            Self::Retention => "retention",
            Self::Checkpoints => "checkpoints",
            Self::Verification => "verification",
            Self::Forgeries => "forgeries",
        }
    }
}

/// The last round of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// The task.
    pub task: Task,
    /// The period; none for a task that waits for events.
    pub every: Option<Duration>,
    /// The moment at which the task began.
    pub began: Duration,
    /// The end of the last round; none before the first.
    pub last: Option<Duration>,
    /// The result of that round: the error is one line.
    pub result: Result<(), String>,
    /// The end of the first of the failed rounds since the last that ended well.
    failing_since: Option<Duration>,
}

impl Round {
    /// Returns the time since the last round, or since the task began if there was none.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last.unwrap_or(self.began))
    }

    /// Reports whether the task has not gone round for three of its periods.
    pub fn is_overdue(&self, now: Duration) -> bool {
        self.every.is_some_and(|every| self.age(now) > every.saturating_mul(MAX_PERIODS).max(GRACE))
    }

    /// Reports whether every round has failed for longer than one period.
    pub fn is_failing(&self, now: Duration) -> bool {
        let for_long = |every: Duration, since| now.saturating_sub(since) > every.max(GRACE);
        self.every.zip(self.failing_since).is_some_and(|(every, since)| for_long(every, since))
    }
}

/// The last round of each task.
#[derive(Debug, Default)]
pub struct Rounds(Mutex<BTreeMap<Task, Round>>);

impl Rounds {
    /// Enters a task that begins now, and returns what it reports through.
    pub fn reporter(self: &Arc<Self>, task: Task, every: Option<Duration>, now: Duration) -> RoundReporter {
        let round = Round { task, every, began: now, last: None, result: Ok(()), failing_since: None };
        self.lock().insert(task, round);
        RoundReporter { rounds: Arc::clone(self), task }
    }

    /// Returns the time since a task's last round; none before the first.
    pub fn age(&self, task: Task, now: Duration) -> Option<Duration> {
        let last = self.lock().get(&task)?.last?;
        Some(now.saturating_sub(last))
    }

    /// Returns the last round of each task that has begun.
    pub fn list(&self) -> Vec<Round> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Task, Round>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports the rounds of one task.
#[derive(Debug, Clone)]
pub struct RoundReporter {
    rounds: Arc<Rounds>,
    task: Task,
}

impl RoundReporter {
    /// Records that a round ended well.
    pub fn succeeded(&self, now: Duration) {
        self.record(now, Ok(()));
    }

    /// Records that a round failed.
    pub fn failed(&self, now: Duration, error: impl Display) {
        self.record(now, Err(one_line(&error.to_string())));
    }

    /// Records that a round ended with this result.
    pub fn report(&self, now: Duration, result: Result<(), impl Display>) {
        match result {
            Ok(()) => self.succeeded(now),
            Err(error) => self.failed(now, error),
        }
    }

    fn record(&self, now: Duration, result: Result<(), String>) {
        if let Some(round) = self.rounds.lock().get_mut(&self.task) {
            round.last = Some(now);
            round.failing_since = result.is_err().then(|| round.failing_since.unwrap_or(now));
            round.result = result;
        }
    }
}

/// Returns the beginning of a text, on one line; an empty text still says that there was an error.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.chars().count() {
        0 => "it failed".to_owned(),
        count if count <= MAX_ERROR => line,
        _ => line.chars().take(MAX_ERROR - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A task that began at second 100, and the state of its entry at a second.
    fn a_task(every: Option<Duration>) -> (Arc<Rounds>, RoundReporter) {
        let rounds = Arc::new(Rounds::default());
        let reporter = rounds.reporter(Task::Sample, every, s(100));
        (rounds, reporter)
    }

    fn only(rounds: &Rounds) -> Round {
        let [round] = <[Round; 1]>::try_from(rounds.list()).unwrap();
        round
    }

    #[test]
    fn the_last_round_is_kept_with_its_result() {
        let (rounds, reporter) = a_task(Some(s(30)));
        assert_eq!((only(&rounds).last, only(&rounds).age(s(104))), (None, s(4)));
        reporter.failed(s(105), "the store is away");
        assert_eq!(only(&rounds).result, Err("the store is away".to_owned()));
        reporter.succeeded(s(110));
        let round = only(&rounds);
        assert_eq!((round.last, round.result.clone(), round.age(s(122))), (Some(s(110)), Ok(()), s(12)));
    }

    #[test]
    fn a_task_is_overdue_after_three_of_its_periods_also_before_its_first_round() {
        let (rounds, reporter) = a_task(Some(s(30)));
        let is_overdue = |at| only(&rounds).is_overdue(s(at));
        assert_eq!((is_overdue(190), is_overdue(191)), (false, true));
        reporter.succeeded(s(191));
        assert_eq!((is_overdue(191), is_overdue(281), is_overdue(282)), (false, false, true));
    }

    #[test]
    fn a_short_period_gives_no_alarm_within_half_a_minute() {
        let (rounds, reporter) = a_task(Some(s(1)));
        assert_eq!([130, 131].map(|at| only(&rounds).is_overdue(s(at))), [false, true]);
        reporter.failed(s(200), "no route");
        assert_eq!([230, 231].map(|at| only(&rounds).is_failing(s(at))), [false, true]);
    }

    #[test]
    fn a_task_fails_if_no_round_ends_well_for_longer_than_a_period() {
        let (rounds, reporter) = a_task(Some(s(600)));
        let is_failing = |at| only(&rounds).is_failing(s(at));
        reporter.failed(s(200), "a region cannot be read");
        assert!(!is_failing(800));
        reporter.failed(s(801), "a region cannot be read");
        assert!(is_failing(801));
        reporter.succeeded(s(1400));
        assert!(!is_failing(2001));
        reporter.failed(s(2001), "again");
        assert!(!is_failing(2601), "the count begins again after a round that ended well");
    }

    #[test]
    fn a_task_that_waits_for_events_is_neither_overdue_nor_failing() {
        let (rounds, reporter) = a_task(None);
        assert!(!only(&rounds).is_overdue(s(1_000_000)));
        reporter.failed(s(101), "no route");
        let round = only(&rounds);
        assert!(!round.is_overdue(s(1_000_000)) && !round.is_failing(s(1_000_000)));
    }

    #[test]
    fn there_is_one_entry_for_each_task_however_often_it_reports() {
        let rounds = Arc::new(Rounds::default());
        for second in 0..1000 {
            rounds.reporter(Task::Sweep, None, s(second)).succeeded(s(second));
            rounds.reporter(Task::Reconciler, None, s(second)).failed(s(second), "an error");
        }
        let tasks: Vec<Task> = rounds.list().iter().map(|round| round.task).collect();
        assert_eq!(tasks, [Task::Reconciler, Task::Sweep]);
    }

    #[test]
    fn an_error_is_one_bounded_line() {
        let (rounds, reporter) = a_task(None);
        let result = || only(&rounds).result.unwrap_err();
        reporter.failed(s(101), "no route\n  to it\t");
        assert_eq!(result(), "no route to it");
        reporter.failed(s(102), "ü".repeat(201));
        assert_eq!(result(), format!("{}…", "ü".repeat(199)));
        reporter.failed(s(103), "ü".repeat(200));
        assert_eq!(result(), "ü".repeat(200));
        reporter.failed(s(104), "\n");
        assert_eq!(result(), "it failed");
    }
}
