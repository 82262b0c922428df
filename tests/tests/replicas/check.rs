//! The checker: what a history must not show. It reads nothing else.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use postern_proto::v1::{CloseReason, GrantState};

use crate::history::{Answer, FaultSpan, History, Look, Opening, SessionEvent, Stored, WindowChange};
use crate::schedule::Fault;

/// The time after its end for which a host's window may be open: the kernel ends it.
const HOST_LATE: SignedDuration = SignedDuration::from_millis(150);
/// The time until another replica has taken over the work of a dead one.
const TAKEOVER: SignedDuration = SignedDuration::from_secs(6);
/// The time that a close in the cloud may take, without a fault, on a machine that is busy.
const CLOUD_LATE: SignedDuration = SignedDuration::from_secs(3);
/// The time before its end at which a window may be closed at a host, on a machine that is busy: it errs to the early side
/// by a trip through the network.
const EARLY: SignedDuration = SignedDuration::from_millis(500);
/// The interval of an agent's heartbeats: for that long the broker goes on with a late report.
const HEARTBEAT: SignedDuration = SignedDuration::from_secs(5);

/// A layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Host,
    Cloud,
}

/// A violation of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Violation {
    /// A grant was acknowledged, and the store does not know it, or knows another.
    Lost { grant: String },
    /// A grant has not come to its end although everything is quiet.
    NotFinal { grant: String, state: GrantState },
    /// A window was open past its end, by so much more than is allowed.
    Late { at: Layer, opening: Opening, end: Timestamp, by: SignedDuration },
    /// A window is open although everything is quiet.
    Stray { at: Layer, opening: Opening },
    /// A window was open that no grant in the store is for.
    Unrecorded { at: Layer, opening: Opening },
    /// A window was closed and opened again before its end.
    Flapped { at: Layer, opening: Opening, closed: Timestamp, again: Timestamp },
    /// A window was closed before its end, and no caller wanted that.
    Early { opening: Opening, closed: Timestamp, end: Timestamp },
    /// A grant was said to be active while the window was not open at its host.
    NotOpen { grant: String, opening: Opening, said: Timestamp },
    /// A request was refused that the policy allows.
    Refused { source: String, why: String },
    /// The audit log is not sound.
    Audit(String),
}

impl Violation {
    /// The opening that it is about, if it is about one.
    pub(crate) fn opening(&self, history: &History) -> Option<Opening> {
        match self {
            Self::Late { opening, .. }
            | Self::Stray { opening, .. }
            | Self::Unrecorded { opening, .. }
            | Self::Flapped { opening, .. }
            | Self::Early { opening, .. }
            | Self::NotOpen { opening, .. } => Some(opening.clone()),
            Self::NotFinal { grant, .. } | Self::Lost { grant } => {
                let is_it = |answer: &Answer| matches!(answer, Answer::Granted { id, .. } if id == grant);
                let asked = history.asked.iter().find(|asked| is_it(&asked.answer))?;
                Some(Opening::new(asked.targets.first()?, &asked.source))
            }
            Self::Refused { source, .. } => {
                let asked = history.asked.iter().find(|asked| asked.source == *source)?;
                Some(Opening::new(asked.targets.first()?, source))
            }
            Self::Audit(_) => None,
        }
    }
}

/// Returns every violation of a history.
pub(crate) fn violations(history: &History) -> Vec<Violation> {
    let grants = Grants::of(&history.stored);
    let spans = host_spans(history);
    let mut found = Vec::new();
    found.extend(lost(history));
    found.extend(
        history
            .stored
            .iter()
            .filter(|grant| !is_final(grant.state))
            .map(|grant| Violation::NotFinal { grant: grant.id.clone(), state: grant.state }),
    );
    found.extend(at_hosts(history, &spans, &grants));
    found.extend(in_the_cloud(history, &grants));
    found.extend(not_open(history, &spans, &grants));
    found.extend(history.asked.iter().filter_map(|asked| match &asked.answer {
        Answer::Refused(why) => Some(Violation::Refused { source: asked.source.clone(), why: why.clone() }),
        Answer::Granted { .. } | Answer::GivenUp => None,
    }));
    found.extend(history.audit_problem.iter().cloned().map(Violation::Audit));
    found
}

/// The grants of each opening.
struct Grants<'a>(HashMap<&'a Opening, Vec<&'a Stored>>);

impl<'a> Grants<'a> {
    fn of(stored: &'a [Stored]) -> Self {
        let mut all: HashMap<&Opening, Vec<&Stored>> = HashMap::new();
        for grant in stored {
            grant.openings.iter().for_each(|opening| all.entry(opening).or_default().push(grant));
        }
        Self(all)
    }

    fn on(&self, opening: &Opening) -> &[&'a Stored] {
        self.0.get(opening).map(Vec::as_slice).unwrap_or_default()
    }

    /// The end of the last grant of an opening.
    fn end(&self, opening: &Opening) -> Option<Timestamp> {
        self.on(opening).iter().map(|grant| grant.not_after).max()
    }

    /// Reports whether a window that was closed, and is there again, should have been there all the time. `early` is how
    /// long before its end it may be closed.
    fn flapped(&self, opening: &Opening, closed: Timestamp, again: Timestamp, early: SignedDuration) -> bool {
        let grants = self.on(opening);
        grants.iter().any(|grant| {
            // Of several, one that was confirmed before the gap; a lone one is what was open before it.
            let was_open = grants.len() == 1 || grant.opened_at.is_some_and(|opened| opened <= closed);
            was_open && again < grant.not_after && closed + early < grant.not_after
        })
    }
}

/// The span for which a window was open at a host; it has no end where the window still is.
type Span = (Timestamp, Option<Timestamp>);

fn host_spans(history: &History) -> BTreeMap<&Opening, Vec<Span>> {
    let mut spans: BTreeMap<&Opening, Vec<Span>> = BTreeMap::new();
    for event in &history.hosts {
        let spans = spans.entry(&event.opening).or_default();
        match (event.change, spans.last_mut()) {
            (WindowChange::Opened(_), _) => spans.push((event.at, None)),
            (WindowChange::Closed, Some((_, until))) => *until = Some(event.at),
            (WindowChange::Closed, None) | (WindowChange::Changed(_), _) => {}
        }
    }
    spans
}

fn is_final(state: GrantState) -> bool {
    match state {
        GrantState::Closed | GrantState::Denied | GrantState::Failed => true,
        GrantState::Unspecified
        | GrantState::PendingApproval
        | GrantState::Opening
        | GrantState::Active
        | GrantState::Closing => false,
    }
}

fn lost(history: &History) -> impl Iterator<Item = Violation> {
    let stored: HashMap<&str, &Stored> =
        history.stored.iter().map(|grant| (grant.id.as_str(), grant)).collect();
    history.asked.iter().filter_map(move |asked| {
        let Answer::Granted { id, .. } = &asked.answer else { return None };
        let wanted: BTreeSet<_> =
            asked.targets.iter().map(|target| Opening::new(target, &asked.source)).collect();
        let is_kept = stored.get(id.as_str()).is_some_and(|grant| grant.openings == wanted);
        (!is_kept).then(|| Violation::Lost { grant: id.clone() })
    })
}

fn at_hosts(history: &History, spans: &BTreeMap<&Opening, Vec<Span>>, grants: &Grants<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (opening, spans) in spans {
        let opening = || (*opening).clone();
        let Some(end) = grants.end(&opening()) else {
            found.push(Violation::Unrecorded { at: Layer::Host, opening: opening() });
            continue;
        };
        for (number, (from, until)) in spans.iter().enumerate() {
            let Some(closed) = *until else {
                found.push(Violation::Stray { at: Layer::Host, opening: opening() });
                continue;
            };
            let by = closed.duration_since(end);
            if by > HOST_LATE {
                found.push(Violation::Late { at: Layer::Host, opening: opening(), end, by });
            }
            let early = may_be_early(history, &opening(), *from, closed);
            if let Some((again, _)) = spans.get(number + 1)
                && grants.flapped(&opening(), closed, *again, early)
            {
                let again = *again;
                found.push(Violation::Flapped { at: Layer::Host, opening: opening(), closed, again });
            }
        }
        found.extend(early(history, &opening(), spans, grants));
    }
    found
}

/// A grant that came to its end by itself was open until then.
fn early(history: &History, opening: &Opening, spans: &[Span], grants: &Grants<'_>) -> Option<Violation> {
    let (from, until) = spans.last()?;
    let closed = (*until)?;
    let end = expired(grants.on(opening), closed)?;
    let allowed = may_be_early(history, opening, *from, closed);
    (end.duration_since(closed) > allowed).then(|| Violation::Early { opening: opening.clone(), closed, end })
}

/// The latest end that was reached by grants that were confirmed before something was closed.
fn expired(grants: &[&Stored], closed: Timestamp) -> Option<Timestamp> {
    let expired = grants.iter().filter(|grant| grant.reason == CloseReason::Expired);
    let confirmed = |grant: &&&Stored| grant.opened_at.is_some_and(|opened| opened <= closed);
    expired.filter(confirmed).map(|grant| grant.not_after).max()
}

/// Returns the time before its end at which a window may be closed at a host. A report that an agent sends while its broker
/// is stopped, or while its session is being opened, arrives late, and until the next report ends are counted from the time
/// at which the agent sent the late one.
fn may_be_early(history: &History, opening: &Opening, from: Timestamp, closed: Timestamp) -> SignedDuration {
    let since = from - HEARTBEAT - EARLY;
    let is_stop = |span: &&FaultSpan| match span.fault {
        Fault::StopBroker(_) => since <= span.undone && span.from <= closed,
        Fault::KillBroker(_)
        | Fault::CutLine(_)
        | Fault::HangLine(_)
        | Fault::KillRedis
        | Fault::StopRedis
        | Fault::BrokerEnded(_) => false,
    };
    let stops = history.faults.iter().filter(is_stop).map(|span| span.undone.duration_since(span.from));
    let is_near =
        |event: &&SessionEvent| event.target == opening.target && since <= event.at && event.at <= closed;
    let openings = history.sessions.iter().filter(is_near).map(|event| event.took);
    EARLY + stops.chain(openings).max().unwrap_or_default()
}

fn in_the_cloud(history: &History, grants: &Grants<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut latest: BTreeMap<&Opening, Timestamp> = BTreeMap::new();
    let mut gaps: BTreeMap<&Opening, Timestamp> = BTreeMap::new();
    let mut before: Option<&Look> = None;
    for look in &history.looks {
        for gone in before.into_iter().flat_map(|before| before.open.difference(&look.open)) {
            gaps.insert(gone, look.answered);
        }
        for opening in &look.open {
            latest.insert(opening, look.asked);
            let Some(closed) = gaps.remove(opening) else { continue };
            if grants.flapped(opening, closed, look.asked, SignedDuration::ZERO) {
                let (opening, again) = (opening.clone(), look.asked);
                found.push(Violation::Flapped { at: Layer::Cloud, opening, closed, again });
            }
        }
        before = Some(look);
    }
    for (opening, seen) in latest {
        let Some(end) = grants.end(opening) else {
            found.push(Violation::Unrecorded { at: Layer::Cloud, opening: opening.clone() });
            continue;
        };
        let by = seen.duration_since(cloud_deadline(end, &history.faults));
        if by.is_positive() {
            found.push(Violation::Late { at: Layer::Cloud, opening: opening.clone(), end, by });
        }
    }
    let left = history.looks.last().filter(|look| look.asked >= history.quiet);
    let left = left.into_iter().flat_map(|look| &look.open);
    found.extend(left.map(|opening| Violation::Stray { at: Layer::Cloud, opening: opening.clone() }));
    found
}

/// Returns the time by which a cloud's window of this end must be closed: after a takeover, and after every fault
/// meanwhile.
fn cloud_deadline(end: Timestamp, faults: &[FaultSpan]) -> Timestamp {
    let mut deadline = end + TAKEOVER + CLOUD_LATE;
    loop {
        let within = |fault: &FaultSpan| Some((fault.from.max(end), fault.until.min(deadline)));
        let mut spans: Vec<_> =
            faults.iter().filter_map(within).filter(|(from, until)| from < until).collect();
        spans.sort();
        let (mut faulty, mut counted) = (SignedDuration::ZERO, end);
        for (from, until) in spans {
            let from = from.max(counted);
            if from < until {
                faulty += until.duration_since(from);
                counted = until;
            }
        }
        let next = end + TAKEOVER + CLOUD_LATE + faulty;
        if next == deadline {
            return deadline;
        }
        deadline = next;
    }
}

/// Finds grants that were reported active and whose requester could not connect, unless they were closed meanwhile.
fn not_open(history: &History, spans: &BTreeMap<&Opening, Vec<Span>>, grants: &Grants<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for asked in &history.asked {
        let Answer::Granted { id, state: GrantState::Active } = &asked.answer else { continue };
        for target in &asked.targets {
            let opening = Opening::new(target, &asked.source);
            let spans = spans.get(&opening).map(Vec::as_slice).unwrap_or_default();
            let was_open = spans.iter().any(|(from, _)| *from <= asked.answered);
            // What had ended by the host's own count when the host received it was not opened any more.
            let early = may_be_early(history, &opening, asked.answered, asked.answered);
            let grant = grants.on(&opening).iter().find(|grant| grant.id == *id);
            let had_ended = grant.is_some_and(|grant| grant.not_after <= asked.answered + early);
            if !was_open && !had_ended {
                found.push(Violation::NotOpen { grant: id.clone(), opening, said: asked.answered });
            }
        }
    }
    found
}

/// The largest differences between the ends of windows and their closing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Worst {
    /// The longest after the end at a host.
    pub(crate) host: Option<SignedDuration>,
    /// The longest after the end in the cloud.
    pub(crate) cloud: Option<SignedDuration>,
    /// The longest time before the end at a host, among windows that no caller closed.
    pub(crate) early: Option<SignedDuration>,
}

/// Returns the largest differences between the ends of windows and their closing.
pub(crate) fn worst(history: &History) -> Worst {
    let grants = Grants::of(&history.stored);
    let late = |opening: &Opening, at: Timestamp| Some(at.duration_since(grants.end(opening)?));
    let spans = host_spans(history);
    let last = |spans: &Vec<Span>| spans.last()?.1;
    let closed = spans.iter().filter_map(|(opening, spans)| late(opening, last(spans)?));
    let seen = history.looks.iter();
    let seen = seen.flat_map(|look| look.open.iter().filter_map(|opening| late(opening, look.asked)));
    let early = spans.iter().filter_map(|(opening, spans)| {
        Some(expired(grants.on(opening), last(spans)?)?.duration_since(last(spans)?))
    });
    Worst { host: closed.max(), cloud: seen.max(), early: early.max() }
}
