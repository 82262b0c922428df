//! A model of other principals: whatever they do to Postern's groups, rules and tags, and between whichever two calls of
//! a lockdown, a release, an opening, a close, a repair or a sweep, the target shuts again or is reported with the command
//! that helps, and a lockdown and a release get out of every state.

mod cases;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, ProtectedPort, Protocol, TargetId};
use postern_provider::{CloudError, Consent, LockdownOrder, Observation, Provider as _};
use proptest::prelude::*;

use crate::assess::exposures;
use crate::fake_ec2::{FakeEc2, Interference, World};
use crate::resource::NewGroupRule;
use crate::rule::{Ec2Traffic, GroupRule, RuleSource, Tags};
use crate::settings::AwsSettings;
use crate::{Aws, names, tags};

/// The deployment.
const DEPLOYMENT: &str = "postern";
/// The time that a call gets: more than all pauses of a call together.
const LONG: Duration = Duration::from_secs(3600);

/// Two customer's groups, two instances behind the first, of which one has the second as well, and a broker.
struct Model {
    ec2: FakeEc2,
    aws: Aws,
    groups: [String; 2],
    instances: [String; 2],
}

/// What a broker does.
#[derive(Debug, Clone)]
enum Op {
    Lock(usize, usize),
    Release(usize),
    Open(usize, u128),
    Close(usize),
    /// The rounds of a sweep and the repairs that it asks for.
    Rounds,
}

/// What happens at a later call of the broker, counted from the next.
#[derive(Debug, Clone)]
enum Trouble {
    Edit(Edit),
    Lost,
    Refused(&'static str),
    Killed,
}

/// A change by another principal, which the world's state makes one of a kind.
#[derive(Debug, Clone, Copy)]
struct Edit {
    kind: u8,
    which: usize,
    what: usize,
}

impl Model {
    fn new() -> Self {
        let ec2 = FakeEc2::default();
        let (groups, instances) = {
            let mut world = ec2.world();
            let groups = ["web", "db"].map(|name| world.make_group(name, Tags::new()));
            let [web, db] = &groups;
            for (group, rule) in [
                (web, rule(20, 25, RuleSource::Prefix("0.0.0.0/0".parse().unwrap()))),
                (web, rule(443, 443, RuleSource::Prefix("0.0.0.0/0".parse().unwrap()))),
                (web, rule(22, 22, RuleSource::Group(db.clone()))),
                (db, rule(0, 65535, RuleSource::Group(web.clone()))),
                (db, rule(3389, 3389, RuleSource::Prefix("10.0.0.0/8".parse().unwrap()))),
            ] {
                world.allow(group, &rule).unwrap();
            }
            let instances = [world.make_instance(&[web]), world.make_instance(&[web, db])];
            (groups, instances)
        };
        let aws = broker(&ec2);
        Self { ec2, aws, groups, instances }
    }

    fn target(&self, instance: usize) -> TargetId {
        format!("aws:123456789012/eu-central-1/{}", self.instances[instance]).parse().unwrap()
    }

    fn exists(&self, instance: usize) -> bool {
        self.ec2.world().instances.contains_key(&self.instances[instance])
    }

    fn window(&self, instance: usize, grant: u128) -> LayerWindow {
        LayerWindow {
            target: self.target(instance),
            grant: GrantId::from_parts(Timestamp::UNIX_EPOCH, grant),
            port: "tcp/22".parse().unwrap(),
            source: "192.0.2.7".parse().unwrap(),
            not_after: "2100-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    /// Does what a broker does. A call that never ends is the end of the broker, and another one starts.
    async fn run(&mut self, op: &Op) -> Result<(), CloudError> {
        let work = async {
            match op {
                Op::Lock(instance, ports) => self.lock(*instance, *ports).await,
                Op::Release(instance) => self.aws.release(&self.target(*instance)).await.map(drop),
                Op::Open(instance, grant) => {
                    let windows = [self.window(*instance, *grant)].into();
                    self.aws.open(&self.target(*instance), &windows).await.map(drop)
                }
                Op::Close(instance) => self.close(*instance).await,
                Op::Rounds => {
                    self.rounds(2).await;
                    Ok(())
                }
            }
        };
        match tokio::time::timeout(LONG, work).await {
            Ok(done) => done,
            Err(_) => {
                self.aws = broker(&self.ec2);
                Err(CloudError::unavailable("the broker was killed"))
            }
        }
    }

    async fn lock(&self, instance: usize, ports: usize) -> Result<(), CloudError> {
        let order = LockdownOrder {
            target: self.target(instance),
            ports: port_sets()[ports].clone(),
            consent: Consent::all(),
            together: [].into(),
        };
        self.aws.lockdown(&order).await.map(drop)
    }

    /// Closes every window of an instance.
    async fn close(&self, instance: usize) -> Result<(), CloudError> {
        let target = self.target(instance);
        let Observation { windows, partial, .. } = self.aws.observe(&target).await?;
        self.aws.close(&target, &windows.union(&partial).cloned().collect()).await
    }

    /// Sweeps, and repairs what a sweep asks for.
    async fn rounds(&self, count: usize) {
        for _ in 0..count {
            for sighting in self.aws.sweep().await.sightings {
                let is_asked = sighting.held.is_none_or(|held| {
                    !held.strays.is_empty() || held.drift.iter().any(|drift| drift.repairable)
                });
                if is_asked {
                    self.aws.repair(&sighting.target).await.ok();
                }
            }
        }
    }

    fn exposed(&self, ports: &BTreeSet<ProtectedPort>) -> Vec<String> {
        let world = self.ec2.world();
        let rules: Vec<GroupRule> = self
            .groups
            .iter()
            .filter_map(|id| world.groups.get(id))
            .flat_map(|group| group.ingress.clone())
            .collect();
        exposures(&rules, ports).iter().map(ToString::to_string).collect()
    }

    /// Returns the rules of the customer's groups, without ids.
    fn rules(&self) -> Vec<BTreeSet<NewGroupRule>> {
        let world = self.ec2.world();
        let plain = |rule: &GroupRule| NewGroupRule {
            traffic: rule.traffic.clone(),
            source: rule.source.clone(),
            description: rule.description.clone(),
            tags: rule.tags.clone(),
        };
        let rules = |id: &String| world.groups[id].ingress.iter().map(plain).collect();
        self.groups.iter().filter(|id| world.groups.contains_key(*id)).map(rules).collect()
    }

    /// Repeats an administrator's command, with what its error asks for, until it is done.
    async fn command(&mut self, op: Op) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..6 {
            match self.run(&op).await {
                Ok(()) => return Ok(()),
                Err(CloudError::NotFound { .. }) if matches!(op, Op::Release(_)) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
            self.follow(&last);
            self.rounds(1).await;
        }
        Err(last)
    }

    /// Does what an error asks an administrator for: removes the rules of the named groups whose source is a group of
    /// Postern's, and gives the named interfaces another group in the place of Postern's.
    fn follow(&self, error: &str) {
        let mut world = self.ec2.world();
        let posterns: BTreeSet<String> = world.posterns().into_values().collect();
        let other = self.groups.iter().find(|id| world.groups.contains_key(*id)).cloned();
        for (_, group) in world.groups.iter_mut().filter(|(id, _)| error.contains(*id)) {
            let names = |rule: &GroupRule| matches!(&rule.source, RuleSource::Group(source) if posterns.contains(source));
            group.ingress.retain(|rule| !names(rule));
        }
        for (_, interface) in world.interfaces.iter_mut().filter(|(id, _)| error.contains(*id)) {
            interface.groups.extend(other.clone());
            interface.groups.retain(|group| !posterns.contains(group) || !error.contains(group));
        }
    }
}

fn broker(ec2: &FakeEc2) -> Aws {
    let settings = AwsSettings {
        deployment: DEPLOYMENT.to_owned(),
        endpoint: None,
        rules_per_group: 60,
        groups_per_interface: 5,
        tags: [].into(),
        accounts: Vec::new(),
    };
    Aws::over(Box::new(ec2.clone()), settings)
}

fn rule(from: u16, to: u16, source: RuleSource) -> NewGroupRule {
    NewGroupRule {
        traffic: Ec2Traffic::Ports { protocol: Protocol::Tcp, from, to },
        source,
        description: format!("{from}-{to}"),
        tags: [("team".to_owned(), from.to_string())].into(),
    }
}

fn port_sets() -> [BTreeSet<ProtectedPort>; 2] {
    [&["tcp/22"][..], &["tcp/22", "tcp/3389"]]
        .map(|ports| ports.iter().map(|port| port.parse().unwrap()).collect())
}

impl Edit {
    /// Makes the change, if the world has what it needs.
    fn apply(self, world: &mut World) {
        let posterns: Vec<(String, String)> = world.posterns().into_iter().collect();
        let rules: Vec<(String, String)> = world
            .groups
            .iter()
            .flat_map(|(id, group)| group.ingress.iter().map(|rule| (id.clone(), rule.id.clone())))
            .collect();
        let interfaces: Vec<String> = world.interfaces.keys().cloned().collect();
        let nth = |count: usize| (count > 0).then(|| self.which % count);
        let own = |posterns: &[(String, String)]| {
            let own: Vec<String> = posterns
                .iter()
                .filter(|(name, _)| names::instance(name).is_some())
                .map(|(_, id)| id.clone())
                .collect();
            nth(own.len()).map(|at| own[at].clone())
        };
        match self.kind {
            // A tag of a group or a rule goes, or gets another value.
            0..=3 => {
                let resource = match (self.kind % 2, nth(posterns.len()), nth(rules.len())) {
                    (0, Some(at), _) => posterns[at].1.clone(),
                    (1, _, Some(at)) => rules[at].1.clone(),
                    _ => return,
                };
                let Some(tags) = world.tags_of(&resource) else { return };
                let keys: Vec<String> = tags.keys().filter(|key| tags::is_posterns(key)).cloned().collect();
                let Some(key) = (!keys.is_empty()).then(|| keys[self.what % keys.len()].clone()) else {
                    return;
                };
                if self.kind < 2 {
                    tags.remove(&key);
                } else if key != tags::MANAGED_BY {
                    let values = [
                        "",
                        "locked",
                        "locking",
                        "releasing",
                        "preparing",
                        "tcp/3389",
                        "2200-01-01T00:00:00Z",
                    ];
                    tags.insert(key, values[self.what / 7 % values.len()].to_owned());
                }
            }
            // A group of Postern's is taken off every interface, and deleted if nothing names it.
            4 => {
                let Some(at) = nth(posterns.len()) else { return };
                let id = &posterns[at].1;
                for interface in world.interfaces.values_mut().filter(|interface| interface.groups.len() > 1)
                {
                    interface.groups.retain(|group| group != id);
                }
                world.delete(id).ok();
            }
            // A rule goes, or is widened.
            5 | 6 => {
                let Some(at) = nth(rules.len()) else { return };
                let (group, rule) = &rules[at];
                let Some(group) = world.groups.get_mut(group) else { return };
                if self.kind == 5 {
                    group.ingress.retain(|there| there.id != *rule);
                    return;
                }
                let wide = Ec2Traffic::Ports { protocol: Protocol::Tcp, from: 0, to: u16::MAX };
                let source =
                    group.ingress.iter().find(|there| there.id == *rule).map(|rule| rule.source.clone());
                if group
                    .ingress
                    .iter()
                    .all(|there| Some(&there.source) != source.as_ref() || there.traffic != wide)
                    && let Some(found) = group.ingress.iter_mut().find(|there| there.id == *rule)
                {
                    found.traffic = wide;
                }
            }
            // A rule is added, also to Postern's groups.
            7 | 8 => {
                let ids: Vec<String> = world.groups.keys().cloned().collect();
                let id = &ids[self.which % ids.len()];
                let source = if self.kind == 8 {
                    RuleSource::Group(ids[self.what % ids.len()].clone())
                } else {
                    RuleSource::Prefix("0.0.0.0/0".parse().unwrap())
                };
                world.allow(id, &rule(22, 22, source)).ok();
            }
            9 => {
                let Some(at) = nth(interfaces.len()) else { return };
                let Some(found) = world.interfaces.get_mut(&interfaces[at]) else { return };
                let ids: Vec<&String> = posterns.iter().map(|(_, id)| id).collect();
                let left: Vec<String> =
                    found.groups.iter().filter(|group| !ids.contains(group)).cloned().collect();
                if !left.is_empty() {
                    found.groups = left;
                }
            }
            // The own group of one instance comes on any interface.
            10 => {
                let (Some(id), Some(at)) =
                    (own(&posterns), (!interfaces.is_empty()).then(|| self.what % interfaces.len()))
                else {
                    return;
                };
                let Some(found) = world.interfaces.get_mut(&interfaces[at]) else { return };
                if !found.groups.contains(&id) && found.groups.len() < 5 {
                    found.groups.push(id);
                }
            }
            11 => {
                let Some(at) = nth(posterns.len()) else { return };
                let Some(group) = world.groups.get_mut(&posterns[at].1) else { return };
                let rule = GroupRule {
                    id: format!("sgr-egress-{}", self.what),
                    group: posterns[at].1.clone(),
                    traffic: Ec2Traffic::All,
                    source: RuleSource::Prefix("0.0.0.0/0".parse().unwrap()),
                    description: String::new(),
                    tags: Tags::new(),
                };
                if group.egress.is_empty() {
                    group.egress.push(rule);
                }
            }
            12 => {
                let instances: Vec<String> = world.instances.keys().cloned().collect();
                if let Some(at) = nth(instances.len()) {
                    world.terminate(&instances[at]);
                }
            }
            13 => {
                let instances: Vec<String> = world.instances.keys().cloned().collect();
                let groups: Vec<String> = world.groups.keys().cloned().collect();
                if let Some(at) = nth(instances.len()) {
                    world.plug_in(&instances[at], &[&groups[self.what % groups.len()]]);
                }
            }
            // A customer's group is deleted, if EC2 lets it go.
            14 => {
                let ids: Vec<String> = world.groups.keys().cloned().collect();
                world.delete(&ids[self.which % ids.len()]).ok();
            }
            // A group of Postern's gets the tag of another holder.
            15 => {
                let instances: Vec<String> = world.instances.keys().cloned().collect();
                let (Some(at), false) = (nth(posterns.len()), instances.is_empty()) else { return };
                let key = format!("{}{}", tags::HOLDER, instances[self.what % instances.len()]);
                if let Some(group) = world.groups.get_mut(&posterns[at].1) {
                    group.tags.insert(key, "tcp/22".to_owned());
                }
            }
            // A stranger makes a group with the name of an instance's own group.
            _ => {
                let instances: Vec<String> = world.instances.keys().cloned().collect();
                let Some(at) = nth(instances.len()) else { return };
                let name = names::own(&instances[at]);
                if world.groups.values().all(|group| group.name != name) {
                    world.make_group(&name, Tags::new());
                }
            }
        }
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0usize..2, 0usize..2).prop_map(|(instance, ports)| Op::Lock(instance, ports)),
        2 => (0usize..2).prop_map(Op::Release),
        2 => (0usize..2, 1u128..3).prop_map(|(instance, grant)| Op::Open(instance, grant)),
        1 => (0usize..2).prop_map(Op::Close),
        2 => Just(Op::Rounds),
    ]
}

fn any_edit() -> impl Strategy<Value = Edit> {
    (0u8..17, 0usize..50, 0usize..200).prop_map(|(kind, which, what)| Edit { kind, which, what })
}

fn any_fault() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        Just(Trouble::Lost),
        Just(Trouble::Killed),
        prop_oneof![Just("RequestLimitExceeded"), Just("InternalError"), Just("UnauthorizedOperation")]
            .prop_map(Trouble::Refused),
    ]
}

/// Runs an operation, with troubles at its calls to come.
async fn troubled(model: &mut Model, op: &Op, troubles: Vec<(usize, Trouble)>) {
    {
        let mut world = model.ec2.world();
        world.interference.clear();
        for (ahead, trouble) in troubles {
            let at = world.calls + 1 + ahead;
            let interference = match trouble {
                Trouble::Edit(edit) => Interference::Edit(Box::new(move |world| edit.apply(world))),
                Trouble::Lost => Interference::Lost,
                Trouble::Refused(code) => Interference::Refused(code),
                Trouble::Killed => Interference::Killed,
            };
            world.interference.insert(at, interference);
        }
    }
    model.run(op).await.ok();
    model.ec2.world().interference.clear();
}

fn on_paused_clock<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work)
}

/// Brings every target out of whatever state it is in, and checks each step of the way.
async fn get_out(model: &mut Model, locks: bool) -> Result<(), TestCaseError> {
    // All writes are old by now.
    tokio::time::sleep(Duration::from_secs(60)).await;
    model.rounds(4).await;
    for sighting in model.aws.sweep().await.sightings {
        for drift in sighting.held.into_iter().flat_map(|held| held.drift) {
            let says = drift.repairable
                || ["`postern ", "give the interface another"].iter().any(|words| drift.what.contains(words));
            prop_assert!(says, "no way out is shown: {drift:?}");
        }
    }
    for instance in (0..2).filter(|_| locks) {
        if !model.exists(instance) {
            continue;
        }
        let locked = model.command(Op::Lock(instance, 1)).await;
        prop_assert_eq!(&locked, &Ok(()), "locked");
        let seen = model.aws.observe(&model.target(instance)).await.unwrap();
        prop_assert_eq!((&seen.drift, seen.shut.as_ref()), (&vec![], Some(&port_sets()[1])));
    }
    if locks && (0..2).all(|instance| model.exists(instance)) {
        prop_assert_eq!(model.exposed(&port_sets()[1]), Vec::<String>::new());
    }
    for instance in 0..2 {
        let target = model.target(instance);
        match model.aws.observe(&target).await {
            Err(CloudError::NotFound { .. }) => {}
            seen => drop(seen.unwrap()),
        }
        if model.exists(instance) {
            prop_assert_eq!(model.command(Op::Close(instance)).await, Ok(()));
        }
        prop_assert_eq!(model.command(Op::Release(instance)).await, Ok(()), "released {}", instance);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    model.rounds(3).await;
    prop_assert_eq!(model.ec2.world().posterns(), [].into());
    prop_assert_eq!(model.aws.sweep().await.sightings.len(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn i6_no_change_by_others_at_any_call_makes_a_state_without_a_way_out(
        turns in prop::collection::vec(
            (any_op(), prop::collection::vec(
                (0usize..30, prop_oneof![4 => any_edit().prop_map(Trouble::Edit), 1 => any_fault()]), 0..3,
            )), 1..6,
        ),
        last in prop::collection::vec(any_edit(), 0..3),
        locks in any::<bool>(),
    ) {
        on_paused_clock(async {
            let mut model = Model::new();
            for (op, troubles) in turns {
                troubled(&mut model, &op, troubles).await;
            }
            for edit in last {
                edit.apply(&mut model.ec2.world());
            }
            get_out(&mut model, locks).await
        })?;
    }

    #[test]
    fn i6_faults_and_deaths_at_any_call_leave_no_trace_after_the_release(
        turns in prop::collection::vec(
            (any_op(), prop::collection::vec((0usize..40, any_fault()), 0..3)), 1..6,
        ),
        locks in any::<bool>(),
    ) {
        on_paused_clock(async {
            let mut model = Model::new();
            let before = model.rules();
            for (op, troubles) in turns {
                troubled(&mut model, &op, troubles).await;
            }
            get_out(&mut model, locks).await?;
            prop_assert_eq!(model.rules(), before);
            Ok(())
        })?;
    }
}
