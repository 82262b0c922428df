//! EC2 for tests: a moto server, behind a proxy that adds what moto lacks, counts the calls and plays faults.
//!
//! Both live on one host of a network, at fixed addresses of its loopback: every scenario has hosts of its own.

mod accounts;
mod cloud;
mod edits;
mod iam;
mod meter;
mod moto;
mod protocol;
mod proxy;
mod semantics;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{STEP_TIMEOUT, wait_until};
use crate::net::Host;
use crate::netns::Netns;
pub use accounts::{ACCOUNT, OTHER_ACCOUNT, REGION};
pub use cloud::{Cloud, RuleSpec, Snapshot};
pub use edits::Edit;
use moto::Moto;
pub use moto::python;
pub use postern_testkit::{CrashPoint, When};
pub use protocol::Call;
use proxy::Proxy;
pub use proxy::{Fault, refused, throttled};
pub use world::AwsWorld;

const MOTO: &str = "127.0.0.1:5000";
const PROXY: &str = "127.0.0.1:5001";

/// The environment in which a program finds its credentials: moto takes any.
pub(crate) const CREDENTIALS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_EC2_METADATA_DISABLED", "true")];

/// A running EC2.
#[derive(Debug)]
pub struct Ec2 {
    netns: Netns,
    proxy: Arc<Proxy>,
    #[allow(dead_code, reason = "it ends when this is dropped")]
    moto: Moto,
}

impl Ec2 {
    /// Starts EC2 on a host.
    ///
    /// # Panics
    /// moto is not installed, or does not come up.
    pub fn start(host: &Host, dir: &Path) -> Self {
        let netns = host.netns().clone();
        let moto = Moto::start(&netns, MOTO, dir);
        let proxy = Proxy::start(&netns, PROXY, MOTO);
        Self { netns, proxy, moto }
    }

    /// The endpoint's URL, on its host.
    pub fn endpoint(&self) -> String {
        format!("http://{PROXY}")
    }

    /// The lines of a broker's configuration that make it use this EC2.
    pub fn configuration(&self, accounts: &[(&str, &[&str])]) -> String {
        let mut lines = format!("[aws]\nendpoint = \"{}\"\n", self.endpoint());
        for (account, regions) in accounts {
            lines.push_str(&format!("[[aws.accounts]]\nid = {account:?}\nregions = {regions:?}\n"));
            if *account != ACCOUNT {
                lines.push_str(&format!("role_arn = \"arn:aws:iam::{account}:role/postern\"\n"));
            }
        }
        lines
    }

    /// The cloud of an account in a Region, seen past the proxy.
    pub fn cloud(&self, account: &str, region: &str) -> Cloud {
        Cloud::new(self.netns.clone(), &format!("http://{MOTO}"), account, region)
    }

    /// The cloud of an account in a Region, seen through the proxy, as the broker sees it.
    pub fn cloud_through_proxy(&self, account: &str, region: &str) -> Cloud {
        Cloud::new(self.netns.clone(), &self.endpoint(), account, region)
    }

    /// Returns every call since the last [`Self::forget_calls`].
    pub fn calls(&self) -> Vec<Call> {
        self.proxy.calls()
    }

    /// Starts counting from zero.
    pub fn forget_calls(&self) {
        self.proxy.forget_calls();
    }

    /// Lets the next calls of an action (any, for `*`) go wrong.
    pub fn fail(&self, action: &str, times: usize, fault: Fault) {
        self.proxy.faults().fail(action.to_owned(), times, fault);
    }

    /// Lets the change with this number from now on, from 1, go wrong.
    pub fn fail_change(&self, number: usize, fault: Fault) {
        self.proxy.faults().fail_change(number, fault);
    }

    /// Reports whether the change that should go wrong has come.
    pub fn has_failed(&self) -> bool {
        self.proxy.faults().has_failed()
    }

    /// Allows from now on what this policy of IAM allows, and no other call.
    ///
    /// # Panics
    /// It is not JSON.
    pub fn enforce(&self, policy: &str) {
        self.proxy.enforce(serde_json::from_str(policy).expect("a policy is JSON"));
    }

    /// Meters calls from now on as EC2 does, and throttles those that are too many.
    pub fn meter(&self) {
        self.proxy.meter();
    }

    /// The number of calls that the meter refused since [`Self::meter`].
    pub fn throttled(&self) -> usize {
        self.proxy.throttled()
    }

    /// Lets no call go wrong any more.
    pub fn forgive(&self) {
        self.proxy.faults().forgive();
    }

    /// Lets every call from now on be refused a connection, or ends that.
    pub fn outage(&self, down: bool) {
        self.proxy.faults().outage(down);
    }

    /// Lets reads answer for this long after each change what they did before it.
    pub fn stale_reads(&self, span: Duration) {
        self.proxy.stale_reads(span);
    }

    /// Has a service manage an interface, which EC2 then lets no one else change.
    pub fn manage(&self, interface: &str) {
        self.proxy.manage(interface);
    }

    /// Lets the next read whose request contains these words be answered by a replica that is behind: as before the last
    /// changes.
    pub fn stale_once(&self, words: &str) {
        self.proxy.stale_once(words);
    }

    /// Reports whether that read has come.
    pub fn was_stale(&self) -> bool {
        self.proxy.was_stale()
    }

    /// Lets no page hold more items than this, as EC2 may where more were asked for.
    pub fn short_pages(&self, items: usize) {
        self.proxy.short_pages(items);
    }

    /// Halts the world at a change: nothing is answered from there on until [`Self::go_on`].
    pub fn halt_at(&self, point: CrashPoint) {
        self.proxy.faults().halt_at(Some(point));
    }

    /// Reports whether the halting point was reached.
    pub fn has_halted(&self) -> bool {
        self.proxy.faults().has_halted()
    }

    /// Waits until the halting point is reached.
    pub fn wait_until_halted(&self) {
        wait_until("the halting point", STEP_TIMEOUT, || self.has_halted());
    }

    /// Answers again. What was held back is never answered.
    pub fn go_on(&self) {
        self.proxy.faults().halt_at(None);
    }
}
