//! What every provider must do, whichever cloud it drives.

use jiff::Timestamp;
use postern_core::GrantId;
use postern_core::plan::CloudWindow;

use super::fake::FakeCloud;
use super::{CloudError, Provider};

/// Runs the suite on a provider and a target of its that holds no window of ours.
pub(crate) async fn run(provider: &dyn Provider, target: &str, missing: &str) {
    let window = |grant: u128, source: &str| CloudWindow {
        target: target.parse().unwrap(),
        grant: GrantId::from_parts(Timestamp::UNIX_EPOCH, grant),
        port: "tcp/22".parse().unwrap(),
        source: source.parse().unwrap(),
        not_after: Timestamp::from_second(4_000_000_000).unwrap(),
    };
    let observed = async || provider.observe(&target.parse().unwrap()).await.unwrap();
    let (first, second) = (window(1, "192.0.2.1"), window(2, "2001:db8::/64"));

    assert!(observed().await.is_empty(), "nothing of ours at first");
    provider.open(&first).await.unwrap();
    provider.open(&second).await.unwrap();
    provider.open(&first).await.unwrap();
    assert_eq!(observed().await, [first.clone(), second.clone()].into(), "opening twice opens once");

    let shared = window(3, "192.0.2.1");
    provider.open(&shared).await.unwrap();
    provider.close(&first).await.unwrap();
    assert_eq!(observed().await, [shared.clone(), second.clone()].into(), "the other grant's window stays");

    provider.close(&first).await.unwrap();
    provider.close(&shared).await.unwrap();
    provider.close(&second).await.unwrap();
    assert!(observed().await.is_empty(), "closing what is closed is fine");

    let gone = provider.observe(&missing.parse().unwrap()).await;
    assert!(matches!(gone, Err(CloudError::NotFound { .. })), "a missing target is the typed not-found");
}

#[tokio::test]
async fn the_fake_conforms() {
    let missing = "aws:123456789012/eu-central-1/i-00000000000000000";
    let cloud = FakeCloud::default();
    cloud.terminate(&missing.parse().unwrap());
    run(&cloud, "aws:123456789012/eu-central-1/i-0123456789abcdef0", missing).await;
}
