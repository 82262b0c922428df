//! What every provider promises, whichever cloud it drives, as tests that each implementation runs.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use jiff::Timestamp;
use postern_core::plan::CloudWindow;
use postern_core::{GrantId, TargetId};

use super::fake::{FakeCloud, Fault};
use super::{CloudError, Provider};

/// A provider, and what the suite needs of the cloud behind it.
pub(crate) struct Subject<'a> {
    pub(crate) provider: &'a dyn Provider,
    /// Two targets that exist and hold no window of ours.
    pub(crate) targets: [TargetId; 2],
    /// A target that does not exist.
    pub(crate) missing: TargetId,
}

/// Runs every test. Each leaves the targets as it found them.
pub(crate) async fn run(subject: &Subject<'_>) {
    opening_and_closing_twice_is_the_same_as_once(subject).await;
    what_is_observed_is_what_was_opened_to_the_last_field(subject).await;
    a_close_leaves_what_others_share_with_it(subject).await;
    targets_do_not_see_each_others_windows(subject).await;
    calls_at_once_all_take_effect(subject).await;
    a_target_that_does_not_exist_is_the_typed_not_found(subject).await;
}

/// A window of a grant, with an end between two seconds: a cloud must keep all of it.
fn window(target: &TargetId, grant: u128, port: &str, source: &str) -> CloudWindow {
    CloudWindow {
        target: target.clone(),
        grant: GrantId::from_parts(Timestamp::UNIX_EPOCH, grant),
        port: port.parse().unwrap(),
        source: source.parse().unwrap(),
        not_after: Timestamp::from_nanosecond(4_000_000_000_123_456_789).unwrap(),
    }
}

impl Subject<'_> {
    async fn open(&self, windows: &[&CloudWindow]) {
        for window in windows {
            self.provider.open(window).await.unwrap();
        }
    }

    async fn close(&self, windows: &[&CloudWindow]) {
        for window in windows {
            self.provider.close(window).await.unwrap();
        }
    }

    async fn holds(&self, target: &TargetId, windows: &[&CloudWindow]) {
        let expected: BTreeSet<CloudWindow> = windows.iter().copied().cloned().collect();
        assert_eq!(self.provider.observe(target).await.unwrap(), expected);
    }
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

async fn what_is_observed_is_what_was_opened_to_the_last_field(subject: &Subject<'_>) {
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
    let all: Vec<&CloudWindow> = all.iter().collect();
    subject.open(&all).await;
    subject.holds(target, &all).await;
    subject.close(&all[1..]).await;
    subject.holds(target, &[&first]).await;
    subject.close(&[&first]).await;
    subject.holds(target, &[]).await;
}

async fn a_close_leaves_what_others_share_with_it(subject: &Subject<'_>) {
    let target = &subject.targets[0];
    let (mine, theirs) = (window(target, 1, "tcp/22", "192.0.2.1"), window(target, 2, "tcp/22", "192.0.2.1"));
    subject.open(&[&mine, &theirs]).await;
    subject.close(&[&mine]).await;
    subject.holds(target, &[&theirs]).await;
    subject.close(&[&theirs]).await;
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

async fn calls_at_once_all_take_effect(subject: &Subject<'_>) {
    let target = &subject.targets[0];
    let windows: Vec<CloudWindow> =
        (1..=8).map(|grant| window(target, grant, "tcp/22", "192.0.2.1")).collect();
    let opened = join_all(windows.iter().map(|window| subject.provider.open(window))).await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    subject.holds(target, &windows.iter().collect::<Vec<_>>()).await;
    let closed = join_all(windows.iter().map(|window| subject.provider.close(window))).await;
    assert!(closed.iter().all(Result::is_ok), "{closed:?}");
    subject.holds(target, &[]).await;
}

async fn a_target_that_does_not_exist_is_the_typed_not_found(subject: &Subject<'_>) {
    let missing = &subject.missing;
    let one = window(missing, 1, "tcp/22", "192.0.2.1");
    let answers = [
        subject.provider.observe(missing).await.map(drop),
        subject.provider.open(&one).await,
        subject.provider.close(&one).await,
    ];
    for answer in answers {
        assert!(matches!(&answer, Err(CloudError::NotFound { target }) if target == missing), "{answer:?}");
    }
}

fn targets() -> [TargetId; 2] {
    ["i-0123456789abcdef0", "i-0123456789abcdef1"]
        .map(|instance| format!("aws:123456789012/eu-central-1/{instance}").parse().unwrap())
}

#[tokio::test]
async fn the_fake_conforms() {
    let cloud = FakeCloud::default();
    let missing = "aws:123456789012/eu-central-1/i-00000000000000000".parse().unwrap();
    cloud.terminate(&missing);
    cloud.put_foreign(&targets()[0], "tcp/443 from everywhere");
    run(&Subject { provider: &cloud, targets: targets(), missing }).await;
    assert_eq!(cloud.foreign(&targets()[0]).len(), 1, "what is not ours is as it was");
}

#[tokio::test]
async fn a_fault_befalls_one_call_and_only_a_lost_answer_takes_effect() {
    let (cloud, [target, _]) = (FakeCloud::default(), targets());
    let one = window(&target, 1, "tcp/22", "192.0.2.1");
    cloud.fail_next([Fault::unavailable(), Fault::throttled(), Fault::refused("the quota is used up")]);
    for _ in 0..2 {
        assert!(matches!(cloud.open(&one).await, Err(CloudError::Unavailable { .. })));
    }
    assert!(matches!(cloud.open(&one).await, Err(CloudError::Refused { .. })));
    assert!(cloud.windows(&target).is_empty());

    cloud.fail_next([Fault::After]);
    assert!(matches!(cloud.open(&one).await, Err(CloudError::Unavailable { .. })));
    assert_eq!(cloud.windows(&target), [one.clone()].into());
    cloud.open(&one).await.unwrap();
    assert_eq!(cloud.calls(), 5);

    cloud.outage(Some(CloudError::Unavailable { reason: "a test".into() }));
    assert!(cloud.close(&one).await.is_err() && cloud.close(&one).await.is_err());
    cloud.outage(None);
    assert_eq!(cloud.observe(&target).await.unwrap(), [one].into());
}
