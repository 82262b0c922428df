//! The conformance suite: the promises of every provider, whichever cloud it drives, as tests that each
//! implementation runs. A test panics if a promise is broken.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a suite of tests, built for tests alone")]

use std::collections::BTreeSet;

use futures_util::future::join_all;
use jiff::Timestamp;
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, ProtectedPort, TargetId};

use crate::{CloudError, Consent, Health, LockdownOrder, Provider};

/// A provider, and the resources that the suite needs in the cloud behind it.
pub struct Subject<'a> {
    /// The provider.
    pub provider: &'a dyn Provider,
    /// Two targets that exist, under lockdown and without a window, and expose tcp/22 when released. They share no rule.
    pub targets: [TargetId; 2],
    /// A target that does not exist.
    pub missing: TargetId,
}

/// Runs every test. Each leaves the targets as it found them.
pub async fn run(subject: &Subject<'_>) {
    opening_and_closing_twice_is_the_same_as_once(subject).await;
    an_observed_window_equals_the_opened_one_in_every_field(subject).await;
    a_close_leaves_the_windows_of_other_grants_on_the_same_rule(subject).await;
    windows_at_once_are_opened_whole_and_closed_in_any_part(subject).await;
    targets_do_not_see_each_others_windows(subject).await;
    an_observation_after_a_takeover_shows_the_cloud_as_it_is(subject).await;
    calls_at_once_all_take_effect(subject).await;
    a_target_that_does_not_exist_is_the_typed_not_found(subject).await;
    i2_a_sweep_finds_every_window_from_the_cloud_alone(subject).await;
    a_release_waits_for_the_windows_and_a_lockdown_comes_back(subject).await;
}

/// Returns a window of a grant whose end is between two seconds: a cloud must keep all of it.
fn window(target: &TargetId, grant: u128, port: &str, source: &str) -> LayerWindow {
    LayerWindow {
        target: target.clone(),
        grant: GrantId::from_parts(Timestamp::UNIX_EPOCH, grant),
        port: port.parse().unwrap(),
        source: source.parse().unwrap(),
        not_after: Timestamp::from_nanosecond(4_000_000_000_123_456_789).unwrap(),
    }
}

impl Subject<'_> {
    async fn open(&self, windows: &[&LayerWindow]) {
        for window in windows {
            self.provider.open(&window.target, &one(window)).await.unwrap();
        }
    }

    async fn close(&self, windows: &[&LayerWindow]) {
        for window in windows {
            self.provider.close(&window.target, &one(window)).await.unwrap();
        }
    }

    async fn holds(&self, target: &TargetId, windows: &[&LayerWindow]) {
        let expected: BTreeSet<LayerWindow> = windows.iter().copied().cloned().collect();
        let observed = self.provider.observe(target).await.unwrap();
        assert_eq!((observed.windows, observed.partial), (expected, BTreeSet::new()));
    }
}

fn one(window: &LayerWindow) -> BTreeSet<LayerWindow> {
    [window.clone()].into()
}

async fn opening_and_closing_twice_is_the_same_as_once(subject: &Subject<'_>) {
    let target = &subject.targets[0];
    let one = window(target, 1, "tcp/22", "192.0.2.1");
    subject.holds(target, &[]).await;
    subject.close(&[&one]).await;
    subject.open(&[&one, &one]).await;
    subject.holds(target, &[&one]).await;
    subject.close(&[&one, &one]).await;
    subject.holds(target, &[]).await;
}

async fn an_observed_window_equals_the_opened_one_in_every_field(subject: &Subject<'_>) {
    let target = &subject.targets[0];
    let first = window(target, 1, "tcp/22", "192.0.2.1");
    let all = [
        first.clone(),
        window(target, u128::MAX >> 48, "tcp/22", "192.0.2.1"),
        window(target, 1, "udp/22", "192.0.2.1"),
        window(target, 1, "tcp/65535", "192.0.2.1"),
        window(target, 1, "tcp/22", "192.0.2.0/24"),
        window(target, 1, "tcp/22", "2001:db8::/64"),
        window(target, 1, "tcp/22", "2001:db8::1"),
    ];
    let all: Vec<&LayerWindow> = all.iter().collect();
    subject.open(&all).await;
    subject.holds(target, &all).await;
    subject.close(&all[1..]).await;
    subject.holds(target, &[&first]).await;
    subject.close(&[&first]).await;
    subject.holds(target, &[]).await;
}

async fn a_close_leaves_the_windows_of_other_grants_on_the_same_rule(subject: &Subject<'_>) {
    let target = &subject.targets[0];
    let (first, second) =
        (window(target, 1, "tcp/22", "192.0.2.1"), window(target, 2, "tcp/22", "192.0.2.1"));
    subject.open(&[&first, &second]).await;
    subject.close(&[&first]).await;
    subject.holds(target, &[&second]).await;
    subject.close(&[&second]).await;
    subject.holds(target, &[]).await;
}

async fn windows_at_once_are_opened_whole_and_closed_in_any_part(subject: &Subject<'_>) {
    let (target, provider) = (&subject.targets[0], subject.provider);
    let ports = ["tcp/22", "tcp/3389", "udp/22"];
    let sources = ["192.0.2.1", "198.51.100.0/24", "2001:db8::1"];
    let mut all: BTreeSet<LayerWindow> = ports
        .iter()
        .flat_map(|port| sources.iter().map(move |source| window(target, 1, port, source)))
        .collect();
    all.remove(&window(target, 1, "udp/22", "192.0.2.1"));
    provider.open(target, &all).await.unwrap();
    subject.holds(target, &all.iter().collect::<Vec<_>>()).await;
    let (some, rest): (BTreeSet<_>, BTreeSet<_>) =
        all.iter().cloned().partition(|window| window.port.port.get() == 22 && window.source.is_ipv4());
    provider.close(target, &some).await.unwrap();
    subject.holds(target, &rest.iter().collect::<Vec<_>>()).await;
    provider.open(target, &all).await.unwrap();
    subject.holds(target, &all.iter().collect::<Vec<_>>()).await;
    provider.close(target, &all).await.unwrap();
    subject.holds(target, &[]).await;
}

async fn targets_do_not_see_each_others_windows(subject: &Subject<'_>) {
    let [here, there] = &subject.targets;
    let (one, other) = (window(here, 1, "tcp/22", "192.0.2.1"), window(there, 1, "tcp/22", "192.0.2.1"));
    subject.open(&[&one, &other]).await;
    subject.holds(here, &[&one]).await;
    subject.close(&[&one]).await;
    subject.holds(here, &[]).await;
    subject.holds(there, &[&other]).await;
    subject.close(&[&other]).await;
    subject.holds(there, &[]).await;
}

async fn an_observation_after_a_takeover_shows_the_cloud_as_it_is(subject: &Subject<'_>) {
    let target = &subject.targets[0];
    let (first, second) =
        (window(target, 1, "tcp/22", "192.0.2.1"), window(target, 2, "tcp/22", "192.0.2.1"));
    subject.open(&[&first, &second]).await;
    subject.provider.taken_over(target);
    subject.holds(target, &[&first, &second]).await;
    subject.close(&[&first]).await;
    subject.provider.taken_over(target);
    subject.holds(target, &[&second]).await;
    subject.close(&[&second]).await;
    subject.holds(target, &[]).await;
}

async fn calls_at_once_all_take_effect(subject: &Subject<'_>) {
    let target = &subject.targets[0];
    let windows: Vec<LayerWindow> =
        (1..=8).map(|grant| window(target, grant, "tcp/22", "192.0.2.1")).collect();
    let each: Vec<_> = windows.iter().map(one).collect();
    let opened = join_all(each.iter().map(|one| subject.provider.open(target, one))).await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    subject.holds(target, &windows.iter().collect::<Vec<_>>()).await;
    let closed = join_all(each.iter().map(|one| subject.provider.close(target, one))).await;
    assert!(closed.iter().all(Result::is_ok), "{closed:?}");
    subject.holds(target, &[]).await;
}

async fn a_target_that_does_not_exist_is_the_typed_not_found(subject: &Subject<'_>) {
    let missing = &subject.missing;
    let windows = one(&window(missing, 1, "tcp/22", "192.0.2.1"));
    let answers = [
        subject.provider.observe(missing).await.map(drop),
        subject.provider.open(missing, &windows).await.map(drop),
        subject.provider.close(missing, &windows).await,
    ];
    for answer in answers {
        assert!(matches!(&answer, Err(CloudError::NotFound { target }) if target == missing), "{answer:?}");
    }
}

async fn i2_a_sweep_finds_every_window_from_the_cloud_alone(subject: &Subject<'_>) {
    let [here, there] = &subject.targets;
    let (one, other) = (window(here, 1, "tcp/22", "192.0.2.1"), window(there, 2, "tcp/3389", "::/0"));
    subject.open(&[&one, &other]).await;
    let sweep = subject.provider.sweep().await;
    assert_eq!(sweep.unread, []);
    for window in [&one, &other] {
        let sighting = sweep.sightings.iter().find(|sighting| sighting.target == window.target);
        let held = sighting.unwrap().held.clone().unwrap();
        assert_eq!((held.windows, held.drift), ([window.clone()].into(), vec![]));
    }
    subject.close(&[&one, &other]).await;
}

async fn a_release_waits_for_the_windows_and_a_lockdown_comes_back(subject: &Subject<'_>) {
    let (target, provider) = (&subject.targets[0], subject.provider);
    let order = LockdownOrder {
        target: target.clone(),
        ports: ["tcp/22".parse().unwrap(), "tcp/3389".parse().unwrap()].into(),
        consent: Consent::all(),
        together: [].into(),
    };
    let ssh = window(target, 1, "tcp/22", "192.0.2.1");
    assert_eq!(provider.lockdown(&order).await.unwrap().changes, [], "it is locked already");
    subject.open(&[&ssh]).await;
    let refused = provider.release(target).await;
    assert!(matches!(refused, Err(CloudError::Refused { .. })), "{refused:?}");
    subject.close(&[&ssh]).await;
    assert!(matches!(health(subject, target).await, Health::Healthy { .. }));

    let planned = provider.plan_release(target).await.unwrap();
    assert!(!planned.changes.is_empty());
    assert_eq!(provider.release(target).await.unwrap(), planned);
    assert_eq!(provider.release(target).await.unwrap().changes, [], "it is released already");
    assert!(matches!(health(subject, target).await, Health::Unhealthy { .. }));
    let refused = provider.open(target, &one(&ssh)).await;
    assert!(matches!(refused, Err(CloudError::Refused { .. })), "{refused:?}");
    provider.close(target, &one(&ssh)).await.unwrap();

    let asked = LockdownOrder { consent: Consent::default(), ..order.clone() };
    let planned = provider.plan_lockdown(&asked).await.unwrap();
    if !asked.consent.unmet(&planned.concerns).is_empty() {
        assert_eq!(provider.lockdown(&asked).await.unwrap(), planned);
        assert!(matches!(health(subject, target).await, Health::Unhealthy { .. }), "nothing was changed");
    }
    let planned = provider.plan_lockdown(&order).await.unwrap();
    assert_eq!(provider.lockdown(&order).await.unwrap(), planned);
    subject.open(&[&ssh]).await;
    subject.holds(target, &[&ssh]).await;
    subject.close(&[&ssh]).await;
}

async fn health(subject: &Subject<'_>, target: &TargetId) -> Health {
    let ssh: ProtectedPort = "tcp/22".parse().unwrap();
    let report = subject.provider.assess(&[ssh].into()).await;
    report.assessments.into_iter().find(|assessment| assessment.target == *target).unwrap().health
}

#[cfg(test)]
mod tests;
