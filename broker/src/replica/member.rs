//! The membership: renewed every second, and taken up anew where it has ended. Whoever renews hears which members are
//! gone, and takes over what they worked on.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use postern_core::TargetId;
use tokio::sync::watch;

use super::Replica;
use crate::authority::Standing;
use crate::clock::{Clock, boottime};
use crate::cloud::Clouds;
use crate::ending::Ending;
use crate::hub::Hub;
use crate::measure;
use crate::readiness::{self, Readiness};
use crate::reconcile::Wakeups;
use crate::store::StoreError;
use crate::store::members::{Beat, Card, Claim};

/// How often the membership is renewed.
const BEAT: Duration = Duration::from_secs(1);
/// How long a renewal may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long agents stay with a broker that has lost touch with its store: others may have it.
const AGENTS_STAY: Duration = Duration::from_secs(15);
/// An agent that has heard nothing for so long has gone to another broker: a broker that hung for longer has no agents.
const HUNG: Duration = Duration::from_secs(9);
/// How far the clocks of a broker and its store may be apart before the log says so.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(1);

/// Keeps this broker a member.
pub struct Member {
    /// What is kept.
    pub replica: Arc<Replica>,
    /// The agents that are here.
    pub hub: Arc<Hub>,
    /// The cloud layer.
    pub clouds: Arc<Clouds>,
    /// Where to look.
    pub wakeups: Arc<Wakeups>,
    /// Time.
    pub clock: Clock,
    /// The replica's name.
    pub name: String,
    /// Where the newest audit record's number is told.
    pub head: watch::Sender<u64>,
    /// Whether this broker can do its work.
    pub readiness: Readiness,
    /// How the authority's life stands.
    pub standing: Arc<Standing>,
    /// Whether the broker is ending: it says so, and takes nothing over.
    pub ending: watch::Receiver<Ending>,
}

/// How the membership went so far.
struct Course {
    card: Card,
    /// When the last renewal that was answered was sent.
    renewed: Duration,
    /// Set once a renewal was answered since this broker started: a broker that joins after that was a member before.
    was_member: bool,
    is_lost: bool,
    agents_left: bool,
    clock_said: bool,
    /// How many of its leases were taken away so far, by the store's count.
    losses: u64,
}

impl Course {
    fn of(card: Card) -> Self {
        Self {
            card,
            renewed: boottime(),
            was_member: false,
            is_lost: false,
            agents_left: false,
            clock_said: false,
            losses: 0,
        }
    }
}

impl Member {
    /// Renews the membership until the process ends. The first time before anything else: `ready` hears of it.
    ///
    /// # Errors
    /// The store was written by a newer broker, or was moved.
    pub async fn keep(self, ready: tokio::sync::oneshot::Sender<()>) -> anyhow::Result<()> {
        let card = Card {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: self.clock.now(),
            ..Card::default()
        };
        let mut course = Course::of(card);
        let mut ready = Some(ready);
        let mut before = boottime();
        loop {
            let sent = boottime();
            if sent.saturating_sub(std::mem::replace(&mut before, sent)) > HUNG {
                // Sessions that look alive are not: claiming their targets would take them from where the agents are.
                self.hub.lose_all("this broker hung; connect to another");
            }
            let card = self.card(&course);
            let beat = tokio::time::timeout(PATIENCE, self.replica.members.beat(&card)).await;
            match beat {
                Ok(Ok(beat)) => {
                    self.replica.leases.believe_from(sent);
                    self.renewed(&mut course, sent, beat).await;
                    if let Some(ready) = ready.take() {
                        // Whoever waited for it may have gone.
                        ready.send(()).ok();
                    }
                }
                Ok(Err(error @ (StoreError::NewerSchema { .. } | StoreError::Moving(_)))) => {
                    return Err(error.into());
                }
                Ok(Err(error)) => self.not_renewed(&mut course, &error.to_string()),
                Err(_) => self.not_renewed(&mut course, "there was no answer in time"),
            }
            tokio::time::sleep(BEAT.saturating_sub(boottime().saturating_sub(sent))).await;
        }
    }

    fn card(&self, course: &Course) -> Card {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        Card {
            agents: count(self.hub.sessions().len()),
            targets: count(self.replica.leases.len()),
            stuck: count(self.clouds.stuck()),
            ending: self.is_ending(),
            not_ready: readiness::in_words(&self.readiness.reasons()),
            warnings: self.standing.warnings(),
            ..course.card.clone()
        }
    }

    fn is_ending(&self) -> bool {
        *self.ending.borrow() > Ending::NotYet
    }

    async fn renewed(&self, course: &mut Course, sent: Duration, beat: Beat) {
        let was_member = std::mem::replace(&mut course.was_member, true);
        if beat.joined {
            // The membership of before is gone, and with it every lease: agents that are still here come first.
            let lost = self.replica.leases.forget();
            // Also where it holds no lease: news of the brokers that took them may have come first.
            if was_member {
                tracing::warn!(targets = lost.len(), "joined the other brokers anew");
            }
            self.clouds.let_go_of_all();
            self.wakeups.wake_all(lost);
            self.wakeups.wake_all(self.hub.sessions());
        } else if course.is_lost {
            tracing::info!("in touch with the store again");
        }
        (course.renewed, course.is_lost, course.agents_left) = (sent, false, false);
        self.readiness.clear(readiness::MEMBERSHIP);
        if let Some(store_time) = beat.store_time {
            let ahead = self.clock.now().duration_since(store_time);
            course.card.clock_ahead_ms = i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
            measure::clock_ahead_of_store(ahead);
            if ahead.abs() > CLOCK_TOLERANCE && !course.clock_said {
                course.clock_said = true;
                let seconds_ahead = ahead.as_secs_f64();
                tracing::warn!(
                    seconds_ahead,
                    "this broker's clock is not the store's: ends are off by as much between brokers"
                );
            }
        }
        if std::mem::replace(&mut course.losses, beat.losses) != beat.losses && !beat.joined {
            self.compare_leases().await;
        }
        self.head.send_if_modified(|head| std::mem::replace(head, beat.head) != beat.head);
        if !self.is_ending() {
            for gone in beat.gone {
                self.take_over(&gone).await;
            }
        }
    }

    /// Leases were taken away: news of that may have been lost.
    async fn compare_leases(&self) {
        match self.replica.members.held().await {
            Ok(held) => {
                let lost = self.replica.leases.keep_only(&held);
                for target in &lost {
                    self.clouds.let_go(target);
                    self.hub.doubt(target);
                }
                self.wakeups.wake_all(lost);
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "leases could not be compared");
            }
        }
    }

    /// Takes over what a member that is gone worked on, beside the others that are left.
    async fn take_over(&self, gone: &str) {
        loop {
            let taken = match self.replica.members.take_over(gone).await {
                Ok(taken) if taken.is_empty() => return,
                Ok(taken) => taken,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "what a broker left behind has to wait"
                    );
                    return;
                }
            };
            tracing::info!(targets = taken.len(), gone, "took over from a broker that is gone");
            let targets: Vec<TargetId> = taken.iter().map(|taken| taken.lease.target.clone()).collect();
            for taken in taken {
                self.replica.leases.took(taken, Claim::Free);
            }
            self.wakeups.wake_all(targets);
        }
    }

    fn not_renewed(&self, course: &mut Course, error: &str) {
        if self.replica.leases.is_member() {
            return;
        }
        if !course.is_lost {
            course.is_lost = true;
            self.readiness.set(readiness::MEMBERSHIP, error);
            tracing::error!(
                error,
                "lost touch with the store: nothing opens here, and what is open is closed at its end"
            );
        }
        let silent = boottime().saturating_sub(course.renewed);
        if silent > AGENTS_STAY && !course.agents_left {
            course.agents_left = true;
            // Another broker may well have the store: the agents look for one.
            self.hub.end_all("this broker has lost touch with its store; another may have it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing::Level;

    use super::*;
    use crate::logged::logged;
    use crate::samples::at;
    use crate::store::members::fake::Another;

    fn a_member() -> Member {
        let (clock, wakeups) = (Clock::start(at(0)), Arc::new(Wakeups::default()));
        let replica = Replica::of(Arc::new(Another::default()));
        Member {
            replica: Arc::clone(&replica),
            hub: Hub::new(clock, Arc::clone(&wakeups)),
            clouds: Clouds::new(BTreeMap::new(), clock, Arc::clone(&wakeups), replica),
            wakeups,
            clock,
            name: "broker-1".to_owned(),
            head: watch::channel(0).0,
            readiness: Readiness::default(),
            standing: Arc::new(Standing::at("root.key".into())),
            ending: watch::channel(Ending::NotYet).1,
        }
    }

    #[tokio::test]
    async fn i8_a_broker_that_joins_again_says_so_also_where_it_holds_no_lease_any_more() {
        let (logged, _guard) = logged(Level::WARN);
        let (member, mut course) = (a_member(), Course::of(Card::default()));
        let joined = || Beat { joined: true, ..Beat::default() };
        // A broker joins as it opens the store; where its first renewal comes late, it joins once more.
        for first in [Beat::default(), joined()] {
            course = Course::of(Card::default());
            member.renewed(&mut course, boottime(), first).await;
            member.renewed(&mut course, boottime(), Beat::default()).await;
        }
        assert_eq!(logged.lines(), 0, "its start is no return");
        member.renewed(&mut course, boottime(), joined()).await;
        assert_eq!(logged.lines(), 1);
    }
}
