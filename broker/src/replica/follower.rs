//! The follower: hears what other brokers changed, and says where to look.
//!
//! News tell of every commit which audit records it made. Whoever finds a record missing between two of them, or behind the
//! store's own head, reads the audit log from there: a lost message costs a second.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postern_core::audit::AuditRecord;
use postern_core::{GrantId, TargetId};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::Replica;
use crate::app::Feed;
use crate::cloud::Clouds;
use crate::hub::Hub;
use crate::reconcile::Wakeups;
use crate::store::members::{Changed, News};
use crate::store::{Store, StoreError};

/// How late news may be before the audit log is read instead.
const LATE: Duration = Duration::from_secs(1);
/// How long a failing store is left alone.
const RETRY: Duration = Duration::from_millis(500);
/// How many audit records are read at once.
const PAGE: usize = 500;
/// So many missing records are not read one by one: everything is looked at instead.
const TOO_MANY: u64 = 20_000;

/// Hears what others do.
pub struct Follower {
    /// Who they are.
    pub replica: Arc<Replica>,
    /// What they change.
    pub store: Arc<dyn Store>,
    /// The agents that are here.
    pub hub: Arc<Hub>,
    /// The cloud layer.
    pub clouds: Arc<Clouds>,
    /// Where to look.
    pub wakeups: Arc<Wakeups>,
    /// Who else wants to know.
    pub feed: Feed,
    /// The number of the newest audit record, as the membership's renewals find it.
    pub head: watch::Receiver<u64>,
}

impl Follower {
    /// Follows until the process ends.
    ///
    /// # Errors
    /// Never: a broken connection is made anew.
    pub async fn follow(mut self) -> anyhow::Result<()> {
        let mut last = *self.head.borrow();
        loop {
            match self.replica.members.subscribe().await {
                Ok(mut news) => {
                    // What happened between two subscriptions was told to nobody.
                    self.catch_up_later();
                    self.hear(news.as_mut(), &mut last).await;
                    tracing::debug!("the channel of news is broken");
                }
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no news"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Everything here is looked at again: what the news of leases said is not in the audit log.
    fn catch_up_later(&self) {
        self.wakeups.wake_all(self.replica.leases.targets());
        self.wakeups.wake_all(self.hub.sessions());
    }

    async fn hear(&mut self, news: &mut dyn crate::store::members::Subscription, last: &mut u64) {
        let mut behind = *last;
        let mut tick = tokio::time::interval(LATE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                news = news.next() => match news {
                    Some(News::Changed(changed)) => self.changed(changed, last).await,
                    Some(news) => self.heard(news),
                    None => return,
                },
                // Renewals find the head by themselves: news of what was there a while ago are not coming.
                _ = tick.tick() => {
                    let head = *self.head.borrow_and_update();
                    let missing = std::mem::replace(&mut behind, head);
                    if *last < missing {
                        self.catch_up(last, missing).await;
                    }
                }
            }
        }
    }

    async fn changed(&self, changed: Changed, last: &mut u64) {
        if changed.before > *last {
            self.catch_up(last, changed.before).await;
        }
        *last = changed.after.max(*last);
        // What this broker changed it has seen to already.
        if changed.own {
            return;
        }
        for grant in changed.grants {
            self.feed.changed(grant);
        }
        self.wakeups.wake_all(changed.targets);
        if changed.policies {
            self.wakeups.wake_all(self.replica.leases.targets());
        }
        for agent in changed.agents {
            self.look_at_agent(&agent).await;
        }
    }

    fn heard(&self, news: News) {
        match news {
            News::Changed(_) | News::Taken { mine: true, .. } => {}
            News::Taken { target, turn, mine: false } => {
                if self.replica.leases.lose(&target) {
                    tracing::debug!(%target, turn, "another broker took its lease");
                }
                self.clouds.let_go(&target);
                if turn {
                    // Its agent stays: the lease comes back, and nobody else can tell it anything meanwhile.
                } else {
                    self.hub.lose(&target, "its agent has a newer session with another broker");
                }
            }
            News::Free(target) => {
                if self.hub.has_session(&target) {
                    self.wakeups.wake(&target);
                }
            }
            News::Viewed(targets) => {
                self.wakeups.wake_all(targets.into_iter().filter(|target| self.replica.leases.holds(target)));
            }
            News::Look(target) => {
                if self.replica.leases.holds(&target) {
                    self.clouds.look_again(&target);
                }
            }
            // The membership's next renewal takes over what it left.
            News::Left => {}
        }
    }

    /// An agent's record changed: one that was banned, or that enrolled anew since, has no session any more.
    async fn look_at_agent(&self, target: &TargetId) {
        if !self.hub.has_session(target) {
            return;
        }
        match self.store.agent(target).await {
            Ok(Some(agent)) if agent.record.banned.is_some() => self.hub.end(target, "the agent was banned"),
            Ok(Some(agent)) => {
                self.hub.end_before(target, agent.record.enrolled_at, "the target enrolled anew")
            }
            Ok(None) => self.hub.end(target, "the agent is not known any more"),
            // Not known is not allowed: it connects again, and is asked about then.
            Err(_) => self.hub.end(target, "it cannot be told whether the agent is banned"),
        }
    }

    /// Reads what was missed.
    async fn catch_up(&self, last: &mut u64, to: u64) {
        while let Err(error) = self.try_catch_up(last, to).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "what others did has to wait");
            if matches!(error, StoreError::Corrupt { .. }) {
                self.look_everywhere();
                *last = to;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn try_catch_up(&self, last: &mut u64, to: u64) -> Result<(), StoreError> {
        if to.saturating_sub(*last) > TOO_MANY {
            self.look_everywhere();
            for agent in self.hub.sessions() {
                self.look_at_agent(&agent).await;
            }
            *last = to;
        }
        while *last < to {
            let lines = self.store.audit_lines(*last, PAGE).await?;
            let Some((newest, _)) = lines.last() else { return Ok(()) };
            let newest = *newest;
            let records = lines.iter().filter_map(|(_, line)| serde_json::from_str::<AuditRecord>(line).ok());
            let (mut grants, mut agents, mut policies) = (BTreeSet::new(), BTreeSet::new(), false);
            for AuditRecord { event, .. } in records {
                policies |= event.action.starts_with("policy.");
                grants.extend(event.grant);
                agents.extend(event.target.filter(|_| event.action.starts_with("agent.")));
            }
            if policies {
                self.wakeups.wake_all(self.replica.leases.targets());
            }
            for grant in grants {
                self.look_at_grant(grant).await?;
            }
            for agent in agents {
                self.look_at_agent(&agent).await;
            }
            *last = newest;
        }
        Ok(())
    }

    async fn look_at_grant(&self, id: GrantId) -> Result<(), StoreError> {
        self.feed.changed(id);
        if let Some(grant) = self.store.grant(id).await? {
            self.wakeups.wake_all(grant.record.targets().into_iter().cloned());
        }
        Ok(())
    }

    fn look_everywhere(&self) {
        self.feed.missed();
        self.catch_up_later();
        self.wakeups.wake_all(self.clouds.targets());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use postern_core::audit::AuditEvent;

    use super::*;
    use crate::clock::Clock;
    use crate::samples::{a_grant, at};
    use crate::store::members::fake::Another;
    use crate::store::memory::Memory;
    use crate::store::{Change, Expect, Transaction};

    #[tokio::test]
    async fn i8_a_change_whose_news_are_lost_is_found_in_the_audit_log() {
        let (clock, wakeups) = (Clock::start(at(0)), Arc::new(Wakeups::default()));
        let (store, feed) = (Arc::new(Memory::default()), Feed::default());
        let replica = Replica::of(Arc::new(Another::default()));
        let (head, heads) = watch::channel(0);
        let follower = Follower {
            replica: Arc::clone(&replica),
            store: Arc::clone(&store) as _,
            hub: Hub::new(clock, Arc::clone(&wakeups)),
            clouds: Clouds::new(BTreeMap::new(), clock, Arc::clone(&wakeups), replica),
            wakeups: Arc::clone(&wakeups),
            feed: feed.clone(),
            head: heads,
        };
        let mut changes = feed.watch();
        let grant = a_grant().build();
        let change = Change::PutGrant { grant: grant.clone(), expect: Expect::Absent };
        let event = AuditEvent::done(at(0), "another", "grant.requested").on_grant(grant.id);
        let seq = store.commit(Transaction::default().change(change).audit(event)).await.unwrap().seq;
        let found = async {
            // A renewal finds the log further on, and after that nothing happens any more.
            tokio::time::sleep(Duration::from_millis(100)).await;
            head.send_replace(seq);
            let woken = wakeups.take().await;
            (woken, changes.recv().await.unwrap())
        };
        let found = tokio::select! {
            found = found => found,
            ended = follower.follow() => panic!("{ended:?}"),
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("it is not found"),
        };
        let expected =
            (grant.targets().into_iter().cloned().collect(), crate::app::feed::Change::Of(grant.id));
        assert_eq!(found, expected);
    }
}
