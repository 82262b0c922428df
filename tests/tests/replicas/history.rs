//! The history of a run, by the wall clock of this machine: everything that the checker judges, and nothing else.
//!
//! A window is known by its target and its source: no two requests of a run share a source, but for one that extends
//! another.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use postern_proto::v1::{CloseReason, GrantState};

use crate::schedule::Fault;

/// A run.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// The events at the hosts, in order for each host.
    pub(crate) hosts: Vec<HostEvent>,
    /// The windows that were open in the cloud, look after look.
    pub(crate) looks: Vec<Look>,
    /// The events of sessions, as the agents saw them.
    pub(crate) sessions: Vec<SessionEvent>,
    /// The requests for access.
    pub(crate) asked: Vec<Asked>,
    /// The requests to close a grant.
    pub(crate) revoked: Vec<Revoked>,
    /// The faults.
    pub(crate) faults: Vec<FaultSpan>,
    /// The grants that the store holds in the end.
    pub(crate) stored: Vec<Stored>,
    /// The fault of the audit log in the end; none where it is sound.
    pub(crate) audit_problem: Option<String>,
    /// The time at which everything was healed, all ends were past, and it had been quiet for a while.
    pub(crate) quiet: Timestamp,
}

/// An opening: a target and a source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Opening {
    pub(crate) target: String,
    pub(crate) source: String,
}

/// A window at a host was changed.
#[derive(Debug, Clone)]
pub(crate) struct HostEvent {
    pub(crate) at: Timestamp,
    pub(crate) opening: Opening,
    pub(crate) change: WindowChange,
    /// The number of the agent's session.
    pub(crate) session: u64,
}

/// An event of an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WindowChange {
    /// The window was opened, and the kernel will end it at this time.
    Opened(Timestamp),
    /// The window's end was changed.
    Changed(Timestamp),
    /// The kernel ended it, or the agent took it away.
    Closed,
}

/// A look at the cloud: what it showed was there at some moment between the two.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look {
    pub(crate) asked: Timestamp,
    pub(crate) answered: Timestamp,
    pub(crate) open: BTreeSet<Opening>,
}

/// A session of an agent began or ended.
#[derive(Debug, Clone)]
pub(crate) struct SessionEvent {
    pub(crate) at: Timestamp,
    pub(crate) target: String,
    pub(crate) number: u64,
    /// The time that the session took to open, where it began.
    pub(crate) took: SignedDuration,
    /// The reason for which the session ended; none where it began.
    pub(crate) ended: Option<String>,
}

/// A request for access: one idempotency key, however often it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) source: String,
    pub(crate) targets: Vec<String>,
    pub(crate) at: Timestamp,
    pub(crate) answered: Timestamp,
    /// The reason for each time that the request was sent again.
    pub(crate) retries: Vec<String>,
    pub(crate) answer: Answer,
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The broker acknowledged the request.
    Granted { id: String, state: GrantState },
    /// The broker refused the request, in a way that asking again would not mend.
    Refused(String),
    /// The requester sent the request repeatedly without success.
    GivenUp,
}

/// A request to close a grant.
#[derive(Debug, Clone)]
pub(crate) struct Revoked {
    pub(crate) grant: String,
    pub(crate) at: Timestamp,
    pub(crate) retries: Vec<String>,
    /// The answer; none where the requester gave up.
    pub(crate) answer: Option<Result<GrantState, String>>,
}

/// A fault, from its beginning until what it struck worked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FaultSpan {
    pub(crate) fault: Fault,
    pub(crate) from: Timestamp,
    /// The time at which the fault was undone.
    pub(crate) undone: Timestamp,
    pub(crate) until: Timestamp,
}

/// A grant as the store has it in the end.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) id: String,
    pub(crate) state: GrantState,
    pub(crate) reason: CloseReason,
    pub(crate) requested_at: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) opened_at: Option<Timestamp>,
    pub(crate) openings: BTreeSet<Opening>,
}

impl Opening {
    pub(crate) fn new(target: &str, source: &str) -> Self {
        let source = source.strip_suffix("/32").unwrap_or(source);
        Self { target: target.to_owned(), source: source.to_owned() }
    }
}

impl History {
    /// Tells what happened to one opening, a line for each event, in the order of time. It is for people who look for a
    /// cause.
    pub(crate) fn story(&self, of: &Opening) -> String {
        let mut lines: Vec<(Timestamp, String)> = Vec::new();
        let hosts = self.hosts.iter().filter(|event| event.opening == *of);
        lines.extend(
            hosts.map(|event| (event.at, format!("host: {:?} in session {}", event.change, event.session))),
        );
        let mut was_seen = false;
        for look in &self.looks {
            let is_seen = look.open.contains(of);
            if is_seen != was_seen {
                lines.push((look.asked, format!("cloud: {}", if is_seen { "open" } else { "closed" })));
            }
            was_seen = is_seen;
        }
        let grants: Vec<_> = self.stored.iter().filter(|grant| grant.openings.contains(of)).collect();
        for grant in &grants {
            let Stored { id, state, reason, not_after, opened_at, .. } = grant;
            let end = format!("until {not_after}, opened {opened_at:?}, now {state:?} {reason:?}");
            lines.push((grant.requested_at, format!("grant {id}: {end}")));
        }
        for asked in self.asked.iter().filter(|asked| asked.source == of.source) {
            lines.push((asked.at, format!("asked for {:?}", asked.targets)));
            lines.push((asked.answered, format!("{:?} after {:?}", asked.answer, asked.retries)));
        }
        let revoked =
            self.revoked.iter().filter(|revoked| grants.iter().any(|grant| grant.id == revoked.grant));
        lines.extend(revoked.map(|revoked| {
            (revoked.at, format!("revoked: {:?} after {:?}", revoked.answer, revoked.retries))
        }));
        let Some((from, until)) =
            lines.iter().map(|(at, _)| *at).min().zip(lines.iter().map(|(at, _)| *at).max())
        else {
            return format!("{of:?}: no event speaks of it\n");
        };
        let during = |at: Timestamp| from <= at && at <= until;
        let sessions = self.sessions.iter().filter(|event| event.target == of.target && during(event.at));
        lines.extend(sessions.map(|event| {
            let what = event
                .ended
                .as_ref()
                .map_or(format!("began, after {:?}", event.took), |why| format!("ended: {why}"));
            (event.at, format!("session {} {what}", event.number))
        }));
        for span in self.faults.iter().filter(|span| span.from <= until && span.until >= from) {
            lines.push((span.from, format!("fault: {:?}", span.fault)));
            lines.push((span.undone, format!("fault undone: {:?}", span.fault)));
            lines.push((span.until, format!("fault over: {:?}", span.fault)));
        }
        lines.sort();
        let lines = lines.iter().map(|(at, what)| format!("  {at:.3} {what}\n"));
        format!("{} from {}\n{}", of.target, of.source, lines.collect::<String>())
    }
}
