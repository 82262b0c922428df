//! The cloud of a storm: a few EC2 instances under lockdown, and a watcher that reads their rules all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aws_sdk_ec2::types::Filter;
use postern_tests::Host;
use postern_tests::clock::wall;
use postern_tests::ec2::{ACCOUNT, Cloud, Ec2, REGION, RuleSpec};

use crate::history::{Look, Opening};

/// The pause between two looks.
const STEP: Duration = Duration::from_millis(100);

/// An EC2 with some instances.
#[derive(Debug)]
pub(crate) struct FakeClouds {
    ec2: Ec2,
    cloud: Cloud,
    instances: Vec<String>,
}

/// The groups whose rules are windows, each with its target.
type Groups = BTreeMap<String, String>;

/// A watch that goes on.
#[derive(Debug)]
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    looks: JoinHandle<Vec<Look>>,
}

impl FakeClouds {
    /// Starts so many instances, with one group that lets everyone in.
    pub(crate) fn start(host: &Host, dir: &Path, instances: usize) -> Self {
        let ec2 = Ec2::start(host, dir);
        let cloud = ec2.cloud(ACCOUNT, REGION);
        let group = cloud.group("web", &[RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh")]);
        let instances = cloud.instances("web", i32::try_from(instances).unwrap(), &[&[&group]]);
        Self { ec2, cloud, instances }
    }

    /// The sections of a broker's configuration that make it use this EC2.
    pub(crate) fn configuration(&self) -> String {
        let aws = self.ec2.configuration(&[(ACCOUNT, &[REGION])]);
        format!("[cloud]\nsweep_every = \"5s\"\n{aws}")
    }

    /// The instances as targets.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.instances.iter().map(|instance| self.cloud.target(instance)).collect()
    }

    /// Returns the windows that are open now.
    pub(crate) fn look(&self) -> Look {
        look(&self.cloud, &self.groups())
    }

    /// Looks again and again until it is stopped. Everything must be under lockdown already.
    pub(crate) fn watch(&self) -> Watcher {
        let (cloud, groups, stop) = (self.cloud.clone(), self.groups(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let looks = thread::spawn(move || {
            let mut looks = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                looks.push(look(&cloud, &groups));
                thread::sleep(STEP);
            }
            looks
        });
        Watcher { stop, looks }
    }

    fn groups(&self) -> Groups {
        let group = |instance: &String| {
            let group = self.cloud.own_group(instance).unwrap();
            (group, self.cloud.target(instance))
        };
        self.instances.iter().map(group).collect()
    }
}

impl Watcher {
    /// Stops, and returns what was seen.
    pub(crate) fn stop(self) -> Vec<Look> {
        self.stop.store(true, Ordering::Relaxed);
        self.looks.join().unwrap()
    }
}

fn look(cloud: &Cloud, groups: &Groups) -> Look {
    let asked = wall();
    let filter =
        Filter::builder().name("group-id").set_values(Some(groups.keys().cloned().collect())).build();
    let found = cloud
        .run(|client| async move { client.describe_security_group_rules().filters(filter).send().await });
    let rules = found.unwrap().security_group_rules.unwrap_or_default();
    let windows = rules.iter().filter(|rule| rule.is_egress() != Some(true)).map(|rule| {
        let source = rule.cidr_ipv4().or(rule.cidr_ipv6()).unwrap_or_default();
        Opening::new(&groups[rule.group_id().unwrap_or_default()], source)
    });
    let open: BTreeSet<_> = windows.collect();
    Look { asked, answered: wall(), open }
}
