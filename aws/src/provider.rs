//! The provider: the seam's calls, each led to the place of its target.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use futures_util::future::join_all;
use postern_core::plan::CloudWindow;
use postern_core::{ProtectedPort, TargetId};
use postern_provider::{
    CloudError, LockdownOrder, LockdownReport, Observation, Provider, Reach, Survey, Sweep, Unread,
};
use tokio::sync::Mutex;

use crate::accounts::{self, Place};
use crate::locking::Locking;
use crate::look::{Look, View};
use crate::settings::Settings;
use crate::windows::{Book, Desk};
use crate::{fleet, patience, tags};

/// The cloud layer on AWS.
pub struct Aws {
    settings: Settings,
    places: BTreeMap<(String, String), Arc<Place>>,
    books: std::sync::Mutex<HashMap<TargetId, Arc<Mutex<Book>>>>,
}

impl Aws {
    /// Prepares the clients. No call is made: what is wrong with an account shows on its targets.
    pub async fn connect(settings: Settings) -> Self {
        let places = accounts::connect(&settings).await;
        Self { settings, places, books: std::sync::Mutex::default() }
    }

    /// The place of a target, and the id of its instance.
    fn place<'a>(&self, target: &'a TargetId) -> Result<(&Place, &'a str), CloudError> {
        let TargetId::Aws { account, region, instance } = target else {
            return Err(CloudError::refused(format!("{target} is not in AWS")));
        };
        let place = self.places.get(&(account.clone(), region.clone()));
        let place = place.ok_or_else(|| {
            CloudError::refused(format!(
                "the account {account} in {region} is not in the configuration; add it to aws.accounts"
            ))
        })?;
        Ok((place, instance))
    }

    /// The place of a target, and what works with it there.
    async fn desk<'a>(&'a self, target: &'a TargetId) -> Result<(&'a Place, Desk<'a>), CloudError> {
        let (place, instance) = self.place(target)?;
        let view = View { target, instance, deployment: &self.settings.deployment };
        Ok((place, Desk { ec2: place.ec2().await?, view }))
    }

    /// What is known of the target: one call at a time works with it.
    fn book(&self, target: &TargetId) -> Arc<Mutex<Book>> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(books.entry(target.clone()).or_default())
    }

    /// A sweep has seen the target: what is known of it holds only if that agrees.
    fn doubt(&self, target: &TargetId, look: &Look) {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is being worked with is newer than what was seen.
        if let Some(Ok(mut book)) = books.get(target).map(|book| book.try_lock()) {
            book.doubt(look, &self.settings.deployment);
        }
    }

    fn locking<'a>(&self, desk: &Desk<'a>) -> Locking<'a> {
        let Desk { ec2, view: View { target, instance, deployment } } = *desk;
        Locking { ec2, target, instance, deployment, rules_per_group: self.settings.rules_per_group }
    }

    /// Puts right what a look shows amiss in a lockdown: it goes on with one that was broken off, and puts back what others undid.
    async fn mend(&self, desk: &Desk<'_>, look: &Look) -> Result<(), CloudError> {
        let locking = self.locking(desk);
        match (look.own(), look.state()) {
            (Some(own), _) if !look.exists => return locking.delete(&own.id).await,
            (None, _) if look.parked().next().is_none() || !look.exists => return Ok(()),
            (Some(_), tags::RELEASING) => return locking.release(look).await.map(drop),
            (Some(_), tags::LOCKED) => {
                for (rule, named) in look.misnamed(&self.settings.deployment) {
                    desk.ec2.tag(&rule, named).await?;
                }
                locking.mend(look).await?;
            }
            (None, _) => {}
            // Nothing says what to go on with.
            (Some(_), _) if !look.knows_ports(desk.view) => return Ok(()),
            (Some(_), _) => return locking.resume_lock(look).await,
        }
        locking.reattach(look).await
    }
}

#[async_trait]
impl Provider for Aws {
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError> {
        let (_, desk) = self.desk(target).await?;
        desk.observe(&mut *self.book(target).lock().await).await
    }

    async fn open(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<Reach, CloudError> {
        let (_, desk) = self.desk(target).await?;
        desk.open(&mut *self.book(target).lock().await, windows).await?;
        // EC2 translates a connection's destination, and never its port or its source.
        Ok(Reach::default())
    }

    async fn close(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<(), CloudError> {
        let (_, desk) = self.desk(target).await?;
        desk.close(&mut *self.book(target).lock().await, windows).await
    }

    fn needs_look(&self, target: &TargetId) -> bool {
        let book = self.book(target);
        book.try_lock().map_or(true, |book| book.surprised)
    }

    async fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        let (place, desk) = self.desk(target).await?;
        let book = self.book(target);
        let mut book = book.lock().await;
        let _turn = place.lockdowns.lock().await;
        book.forget();
        let mut look = desk.look().await?;
        let deployment = &self.settings.deployment;
        let strange = look.strange(deployment).iter().map(|rule| rule.id.clone()).collect::<Vec<_>>();
        // Whatever else there is to do: what is no window may expose a port. A stray that stays keeps nothing else from being
        // repaired.
        let mut expelled = Ok(());
        if let Some(own) = look.own().filter(|_| look.exists && !strange.is_empty()) {
            expelled = desk.expel(&own.id, &strange).await.map_err(CloudError::from);
            look.forget(&strange);
        }
        let mended = self.mend(&desk, &look).await;
        expelled.and(mended)
    }

    async fn sweep(&self) -> Sweep {
        let parts = join_all(self.places.values().map(|place| async {
            match fleet::sweep(place, &self.settings.deployment, |target, look| self.doubt(target, look))
                .await
            {
                Ok(sightings) => Sweep { sightings, unread: Vec::new() },
                Err(error) => Sweep { sightings: Vec::new(), unread: vec![unread(place, error)] },
            }
        }));
        parts.await.into_iter().fold(Sweep::default(), |mut sweep, part| {
            sweep.sightings.extend(part.sightings);
            sweep.unread.extend(part.unread);
            sweep
        })
    }

    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> Survey {
        let parts = join_all(self.places.values().map(|place| async {
            match fleet::assess(place, &self.settings.deployment, management).await {
                Ok(assessments) => Survey { assessments, unread: Vec::new() },
                Err(error) => Survey { assessments: Vec::new(), unread: vec![unread(place, error)] },
            }
        }));
        parts.await.into_iter().fold(Survey::default(), |mut survey, part| {
            survey.assessments.extend(part.assessments);
            survey.unread.extend(part.unread);
            survey
        })
    }

    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let (_, desk) = self.desk(&order.target).await?;
        self.locking(&desk).plan_lock(order, &desk.look().await?).await
    }

    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let (place, desk) = self.desk(&order.target).await?;
        let book = self.book(&order.target);
        let mut book = book.lock().await;
        let _turn = place.lockdowns.lock().await;
        book.forget();
        let locking = self.locking(&desk);
        let report = locking.lock(order, &desk.look().await?).await?;
        if report.changes.is_empty() || !order.consent.unmet(&report.concerns).is_empty() {
            return Ok(report);
        }
        // Whoever asks for access a moment later must find it locked down.
        for wait in patience::waits() {
            if locking.plan_lock(order, &desk.look().await?).await?.changes.is_empty() {
                return Ok(report);
            }
            tokio::time::sleep(wait).await;
        }
        Err(not_shown(&order.target, "locked down"))
    }

    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let (_, desk) = self.desk(target).await?;
        self.locking(&desk).plan_release(&desk.look().await?).await
    }

    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let (place, desk) = self.desk(target).await?;
        let book = self.book(target);
        let mut book = book.lock().await;
        let _turn = place.lockdowns.lock().await;
        book.forget();
        let locking = self.locking(&desk);
        let report = locking.release(&desk.look().await?).await?;
        if report.changes.is_empty() {
            return Ok(report);
        }
        for wait in patience::waits() {
            match locking.plan_release(&desk.look().await?).await {
                Ok(left) if !left.changes.is_empty() => tokio::time::sleep(wait).await,
                Ok(_) | Err(CloudError::NotFound { .. }) => return Ok(report),
                Err(error) => return Err(error),
            }
        }
        Err(not_shown(target, "released"))
    }
}

/// What was done is read back, for EC2 is eventually consistent and others may have undone it.
fn not_shown(target: &TargetId, deed: &str) -> CloudError {
    CloudError::unavailable(format!(
        "every change was made, and EC2 does not show {target} as {deed} yet; the next sweep looks again"
    ))
}

fn unread(place: &Place, error: CloudError) -> Unread {
    Unread { place: place.name(), error }
}
