//! A laboratory: one host with an EC2 on it, and the provider beside it, without a broker.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use postern_aws::{Aws, AwsAccount, AwsSettings};
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, TargetId};
use postern_provider::{
    CloudError, Consent, LockdownOrder, LockdownReport, Observation, Provider, SweepReport,
};
use postern_tests::Net;
use postern_tests::ec2::{ACCOUNT, Cloud, Ec2, OTHER_ACCOUNT, REGION};
use tempfile::TempDir;

/// The end of every window in a laboratory.
pub(crate) const END: &str = "2100-01-01T00:00:00.123456789Z";

/// A laboratory. What is dropped first stands first.
pub(crate) struct Lab {
    pub(crate) aws: Arc<Aws>,
    pub(crate) cloud: Cloud,
    pub(crate) ec2: Ec2,
    pub(crate) net: Net,
    #[allow(dead_code, reason = "it is removed when this is dropped")]
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = TempDir::with_prefix("postern-").unwrap();
        let net = Net::new();
        let ec2 = Ec2::start(&net.hub, dir.path());
        let aws = provider(&net, &ec2, &usual());
        Self { aws, cloud: ec2.cloud(ACCOUNT, REGION), ec2, net, dir }
    }

    /// A provider that knows nothing yet, as after a restart.
    pub(crate) fn restart(&mut self) {
        self.aws = provider(&self.net, &self.ec2, &usual());
    }

    /// A provider for other accounts, each with its role.
    pub(crate) fn provider(&self, accounts: &[(&str, Option<&str>)]) -> Arc<Aws> {
        let account = |(id, role): &(&str, Option<&str>)| account(id, &[REGION], role.map(ToOwned::to_owned));
        provider(&self.net, &self.ec2, &accounts.iter().map(account).collect::<Vec<_>>())
    }

    /// Runs work with the provider, on the host where EC2 is.
    pub(crate) fn with<T, F>(&self, work: impl FnOnce(Arc<Aws>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.net.hub.netns().run(work(Arc::clone(&self.aws)))
    }

    pub(crate) fn lock(&self, instance: &str) -> TargetId {
        let report = self.try_lock(instance, Consent::all()).unwrap();
        assert!(!report.changes.is_empty(), "it was not locked yet");
        self.target(instance)
    }

    pub(crate) fn try_lock(&self, instance: &str, consent: Consent) -> Result<LockdownReport, CloudError> {
        let order = order(&self.target(instance), consent);
        self.with(|aws| async move { aws.lockdown(&order).await })
    }

    pub(crate) fn release(&self, instance: &str) -> Result<LockdownReport, CloudError> {
        let target = self.target(instance);
        self.with(|aws| async move { aws.release(&target).await })
    }

    pub(crate) fn open(&self, window: &LayerWindow) -> Result<(), CloudError> {
        self.open_all(&window.target, &[window.clone()].into())
    }

    pub(crate) fn close(&self, window: &LayerWindow) -> Result<(), CloudError> {
        self.close_all(&window.target, &[window.clone()].into())
    }

    pub(crate) fn open_all(
        &self,
        target: &TargetId,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        let (target, windows) = (target.clone(), windows.clone());
        self.with(|aws| async move { aws.open(&target, &windows).await.map(drop) })
    }

    pub(crate) fn close_all(
        &self,
        target: &TargetId,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        let (target, windows) = (target.clone(), windows.clone());
        self.with(|aws| async move { aws.close(&target, &windows).await })
    }

    pub(crate) fn observe(&self, target: &TargetId) -> Result<Observation, CloudError> {
        let target = target.clone();
        self.with(|aws| async move { aws.observe(&target).await })
    }

    pub(crate) fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        let target = target.clone();
        self.with(|aws| async move { aws.repair(&target).await })
    }

    pub(crate) fn sweep(&self) -> SweepReport {
        self.with(|aws| async move { aws.sweep().await })
    }

    pub(crate) fn target(&self, instance: &str) -> TargetId {
        self.cloud.target(instance).parse().unwrap()
    }

    /// Returns the number of calls of each action since the test last asked.
    pub(crate) fn actions(&self) -> Vec<String> {
        let actions = self.ec2.calls().into_iter().map(|call| call.action).collect();
        self.ec2.forget_calls();
        actions
    }
}

fn account(id: &str, regions: &[&str], role_arn: Option<String>) -> AwsAccount {
    let regions = regions.iter().map(|region| (*region).to_owned()).collect();
    AwsAccount { id: id.to_owned(), regions, role_arn, external_id: None }
}

/// An account of one's own with two Regions, and another one with a role.
fn usual() -> [AwsAccount; 2] {
    [
        account(ACCOUNT, &[REGION, "us-east-1"], None),
        account(OTHER_ACCOUNT, &[REGION], Some(format!("arn:aws:iam::{OTHER_ACCOUNT}:role/postern"))),
    ]
}

fn provider(net: &Net, ec2: &Ec2, accounts: &[AwsAccount]) -> Arc<Aws> {
    let settings = AwsSettings {
        deployment: "postern".to_owned(),
        endpoint: Some(ec2.endpoint()),
        rules_per_group: 60,
        groups_per_interface: 5,
        tags: [].into(),
        accounts: accounts.to_vec(),
    };
    Arc::new(net.hub.netns().run(Aws::connect(settings)))
}

pub(crate) fn order(target: &TargetId, consent: Consent) -> LockdownOrder {
    LockdownOrder {
        target: target.clone(),
        ports: ["tcp/22", "tcp/3389"].map(|port| port.parse().unwrap()).into(),
        consent,
        together: [].into(),
    }
}

/// A window of a grant on SSH.
pub(crate) fn window(target: &TargetId, grant: u128, source: &str) -> LayerWindow {
    LayerWindow {
        target: target.clone(),
        grant: GrantId::from_parts(Timestamp::UNIX_EPOCH, grant),
        port: "tcp/22".parse().unwrap(),
        source: source.parse().unwrap(),
        not_after: END.parse().unwrap(),
    }
}
