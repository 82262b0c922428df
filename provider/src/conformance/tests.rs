//! The conformance suite, run on the fake.

use super::*;
use crate::ConcernKind;
use crate::fake::{FakeCloud, Fault};

fn targets() -> [TargetId; 2] {
    ["i-0123456789abcdef0", "i-0123456789abcdef1"]
        .map(|instance| format!("aws:123456789012/eu-central-1/{instance}").parse().unwrap())
}

#[tokio::test]
async fn the_fake_conforms() {
    let cloud = FakeCloud::default();
    let missing = "aws:123456789012/eu-central-1/i-00000000000000000".parse().unwrap();
    cloud.terminate(&missing);
    cloud.concern(vec![FakeCloud::a_concern(ConcernKind::Cut)]);
    cloud.put_foreign(&targets()[0], "tcp/443 from everywhere");
    run(&Subject { provider: &cloud, targets: targets(), missing }).await;
    assert_eq!(cloud.foreign(&targets()[0]).len(), 1, "the customer's rule is as it was");
}

#[tokio::test]
async fn a_fault_befalls_one_call_and_only_a_lost_answer_takes_effect() {
    let (cloud, [target, _]) = (FakeCloud::default(), targets());
    let ssh = window(&target, 1, "tcp/22", "192.0.2.1");
    let open = || async { cloud.open(&target, &one(&ssh)).await };
    cloud.fail_next([Fault::unavailable(), Fault::throttled(), Fault::refused("the quota is used up")]);
    for _ in 0..2 {
        assert!(matches!(open().await, Err(CloudError::Unavailable { .. })));
    }
    assert!(matches!(open().await, Err(CloudError::Refused { .. })));
    assert!(cloud.windows(&target).is_empty());

    cloud.fail_next([Fault::After]);
    assert!(matches!(open().await, Err(CloudError::Unavailable { .. })));
    assert_eq!(cloud.windows(&target), one(&ssh));
    open().await.unwrap();
    assert_eq!(cloud.calls(), 5);

    cloud.outage(Some(CloudError::Unavailable { reason: "a test".into() }));
    assert!(cloud.close(&target, &one(&ssh)).await.is_err() && open().await.is_err());
    cloud.outage(None);
    assert_eq!(cloud.observe(&target).await.unwrap().windows, one(&ssh));
}
