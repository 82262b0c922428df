//! A double of EC2 in memory, for tests of what the provider does: one account in one Region, with one VPC.
//!
//! It refuses what EC2 refuses (EC2 API reference, "Error codes"; EC2 User Guide, "Tag restrictions"; Amazon VPC quotas,
//! "Security groups"): a second group of a name, a second rule with the same traffic and source, a rule too many, a tag too
//! many, a group too many on an interface or none, an unknown source group, and the deletion of a group that an interface
//! has or a rule names. Reads show the last change at once. [`Interference`] puts other principals' changes and faults
//! between two calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use postern_provider::kit::CallError;

use crate::ec2::{Ec2, Find};
use crate::error::answered;
use crate::names;
use crate::resource::{Ec2Group, Ec2Interface, Instance, NewGroupRule, PrefixList, Rules};
use crate::rule::{Ec2Traffic, GroupRule, RuleSource, Tags};
use crate::tags;
use crate::trial::TrialOutcome;

/// The VPC of everything.
pub(crate) const VPC: &str = "vpc-1";

/// The state of the double, which tests change as other principals do.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) groups: BTreeMap<String, FakeGroup>,
    pub(crate) interfaces: BTreeMap<String, FakeInterface>,
    pub(crate) instances: BTreeMap<String, Tags>,
    /// What happens at the calls to come, the next one first.
    pub(crate) interference: BTreeMap<usize, Interference>,
    /// The number of calls so far.
    pub(crate) calls: usize,
    /// The names of the changes so far, without those that failed.
    pub(crate) changes: Vec<&'static str>,
    made: usize,
}

/// A security group.
#[derive(Debug, Clone)]
pub(crate) struct FakeGroup {
    pub(crate) name: String,
    pub(crate) tags: Tags,
    pub(crate) ingress: Vec<GroupRule>,
    pub(crate) egress: Vec<GroupRule>,
}

/// A network interface of an instance.
#[derive(Debug, Clone)]
pub(crate) struct FakeInterface {
    pub(crate) instance: String,
    pub(crate) index: i32,
    pub(crate) groups: Vec<String>,
    pub(crate) is_managed: bool,
}

/// What happens at one call.
pub(crate) enum Interference {
    /// Another principal changes something right before the call.
    Edit(Box<dyn FnOnce(&mut World) + Send>),
    /// The call takes effect, and its answer is lost.
    Lost,
    /// EC2 answers with this code and does nothing.
    Refused(&'static str),
    /// The call takes effect, and the broker ends before the answer.
    Killed,
}

impl std::fmt::Debug for Interference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Edit(_) => "an edit",
            Self::Lost => "a lost answer",
            Self::Refused(code) => code,
            Self::Killed => "a death",
        })
    }
}

/// The double.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeEc2(Arc<Mutex<World>>);

impl FakeEc2 {
    /// Returns the state.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call, with what interferes at it.
    async fn call<T: Send>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut World) -> Result<T, CallError> + Send,
    ) -> Result<T, CallError> {
        let (answer, dies) = {
            let mut world = self.world();
            world.calls += 1;
            let number = world.calls;
            match world.interference.remove(&number) {
                Some(Interference::Refused(code)) => return Err(refused(action, code)),
                Some(Interference::Edit(edit)) => {
                    edit(&mut world);
                    (work(&mut world), false)
                }
                Some(Interference::Lost) => {
                    let answer = work(&mut world);
                    (answer.and(Err(CallError::no_answer(action, "the answer was lost"))), false)
                }
                Some(Interference::Killed) => (work(&mut world), true),
                None => (work(&mut world), false),
            }
        };
        if dies {
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn change<T: Send>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut World) -> Result<T, CallError> + Send,
    ) -> Result<T, CallError> {
        self.call(action, |world| {
            let answer = work(world)?;
            world.changes.push(action);
            Ok(answer)
        })
        .await
    }
}

fn refused(action: &'static str, code: &str) -> CallError {
    answered(action, if code == "RequestLimitExceeded" { 503 } else { 400 }, code, "the double refuses")
}

impl World {
    fn id(&mut self, prefix: &str) -> String {
        self.made += 1;
        format!("{prefix}-{:017x}", self.made)
    }

    /// Makes a group, and returns its id.
    pub(crate) fn make_group(&mut self, name: &str, tags: Tags) -> String {
        let (id, egress) = (self.id("sg"), self.id("sgr"));
        let everyone = RuleSource::Prefix("0.0.0.0/0".parse().unwrap());
        let egress = GroupRule {
            id: egress,
            group: id.clone(),
            traffic: Ec2Traffic::All,
            source: everyone,
            description: String::new(),
            tags: Tags::new(),
        };
        let (name, ingress) = (name.to_owned(), Vec::new());
        self.groups.insert(id.clone(), FakeGroup { name, tags, ingress, egress: vec![egress] });
        id
    }

    /// Makes an instance with one interface that has these groups.
    pub(crate) fn make_instance(&mut self, groups: &[&str]) -> String {
        let id = self.id("i");
        self.instances.insert(id.clone(), Tags::new());
        self.plug_in(&id, groups);
        id
    }

    /// Gives an instance another interface, and returns its id.
    pub(crate) fn plug_in(&mut self, instance: &str, groups: &[&str]) -> String {
        let id = self.id("eni");
        let of_it = self.interfaces.values().filter(|interface| interface.instance == instance).count();
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let (instance, index) = (instance.to_owned(), i32::try_from(of_it).unwrap());
        self.interfaces.insert(id.clone(), FakeInterface { instance, index, groups, is_managed: false });
        id
    }

    /// Ends an instance.
    pub(crate) fn terminate(&mut self, instance: &str) {
        self.instances.remove(instance);
        self.interfaces.retain(|_, interface| interface.instance != instance);
    }

    /// Adds a rule unless EC2 would refuse it, and returns it.
    pub(crate) fn allow(&mut self, group: &str, rule: &NewGroupRule) -> Result<GroupRule, CallError> {
        const ACTION: &str = "AuthorizeSecurityGroupIngress";
        if let RuleSource::Group(source) = &rule.source
            && !self.groups.contains_key(source)
        {
            return Err(refused(ACTION, "InvalidGroup.NotFound"));
        }
        let id = self.id("sgr");
        let found = self.groups.get_mut(group).ok_or_else(|| refused(ACTION, "InvalidGroup.NotFound"))?;
        if found.ingress.iter().any(|there| there.identity() == (&rule.traffic, &rule.source)) {
            return Err(refused(ACTION, "InvalidPermission.Duplicate"));
        }
        if found.ingress.len() >= 60 {
            return Err(refused(ACTION, "RulesPerSecurityGroupLimitExceeded"));
        }
        if rule.tags.len() > tags::MAX_TAGS {
            return Err(refused(ACTION, "TagLimitExceeded"));
        }
        let NewGroupRule { traffic, source, description, tags } = rule.clone();
        let made = GroupRule { id, group: group.to_owned(), traffic, source, description, tags };
        found.ingress.push(made.clone());
        Ok(made)
    }

    /// Deletes a group unless something uses it.
    pub(crate) fn delete(&mut self, id: &str) -> Result<(), CallError> {
        const ACTION: &str = "DeleteSecurityGroup";
        if !self.groups.contains_key(id) {
            return Err(refused(ACTION, "InvalidGroup.NotFound"));
        }
        let is_on = self.interfaces.values().any(|interface| interface.groups.iter().any(|on| on == id));
        if is_on || !self.naming(id).is_empty() {
            return Err(refused(ACTION, "DependencyViolation"));
        }
        self.groups.remove(id);
        Ok(())
    }

    /// Returns the other groups with a rule that names this group.
    fn naming(&self, id: &str) -> Vec<String> {
        let names = |rule: &GroupRule| rule.source == RuleSource::Group(id.to_owned());
        let others = self
            .groups
            .iter()
            .filter(|(other, group)| *other != id && group.ingress.iter().chain(&group.egress).any(names));
        others.map(|(other, _)| other.clone()).collect()
    }

    /// Returns the tags of a group or a rule.
    pub(crate) fn tags_of(&mut self, resource: &str) -> Option<&mut Tags> {
        if self.groups.contains_key(resource) {
            return self.groups.get_mut(resource).map(|group| &mut group.tags);
        }
        let rules =
            self.groups.values_mut().flat_map(|group| group.ingress.iter_mut().chain(&mut group.egress));
        rules.into_iter().find(|rule| rule.id == resource).map(|rule| &mut rule.tags)
    }

    /// Returns Postern's groups, by name.
    pub(crate) fn posterns(&self) -> BTreeMap<String, String> {
        let is_posterns =
            |group: &FakeGroup| names::instance(&group.name).or(names::parked_for(&group.name)).is_some();
        let groups = self.groups.iter().filter(|(_, group)| is_posterns(group));
        groups.map(|(id, group)| (group.name.clone(), id.clone())).collect()
    }

    fn shown(&self, id: &str, group: &FakeGroup) -> Ec2Group {
        let rules = group.ingress.len() + group.egress.len();
        let (name, tags) = (group.name.clone(), group.tags.clone());
        Ec2Group { id: id.to_owned(), name, vpc: VPC.into(), tags, rules }
    }
}

fn has(values: &[String], value: &str) -> bool {
    values.iter().any(|wanted| wanted == value)
}

#[async_trait]
impl Ec2 for FakeEc2 {
    async fn groups(&self, find: Find<'_>) -> Result<Vec<Ec2Group>, CallError> {
        self.call("DescribeSecurityGroups", |world| {
            let is_found = |id: &str, group: &FakeGroup| match find {
                Find::All => true,
                Find::Where("group-id", values) => has(values, id),
                Find::Where("group-name", values) => has(values, &group.name),
                Find::Where("tag-key", values) => group.tags.keys().any(|key| has(values, key)),
                Find::Where("ip-permission.group-id", values) => {
                    let names =
                        |rule: &GroupRule| matches!(&rule.source, RuleSource::Group(of) if has(values, of));
                    group.ingress.iter().any(names)
                }
                Find::Where("egress.ip-permission.group-id", values) => {
                    let names =
                        |rule: &GroupRule| matches!(&rule.source, RuleSource::Group(of) if has(values, of));
                    group.egress.iter().any(names)
                }
                Find::Where("tag:postern:managed-by", values) => {
                    group.tags.get(tags::MANAGED_BY).is_some_and(|owner| has(values, owner))
                }
                Find::Where(other, _) => panic!("no filter {other}"),
            };
            let found = world.groups.iter().filter(|(id, group)| is_found(id, group));
            Ok(found.map(|(id, group)| world.shown(id, group)).collect())
        })
        .await
    }

    async fn has_group(&self, id: &str) -> Result<bool, CallError> {
        self.call("DescribeSecurityGroups", |world| Ok(world.groups.contains_key(id))).await
    }

    async fn interfaces(&self, find: Find<'_>) -> Result<Vec<Ec2Interface>, CallError> {
        self.call("DescribeNetworkInterfaces", |world| {
            let is_found = |id: &str, interface: &FakeInterface| match find {
                Find::All => true,
                Find::Where("attachment.instance-id", values) => has(values, &interface.instance),
                Find::Where("network-interface-id", values) => has(values, id),
                Find::Where("group-id", values) => interface.groups.iter().any(|group| has(values, group)),
                Find::Where(other, _) => panic!("no filter {other}"),
            };
            let shown = |(id, interface): (&String, &FakeInterface)| {
                let is_misplaced = |id: &&String| {
                    let name = world.groups.get(*id).map_or("", |group| &group.name);
                    names::is_misplaced(name, Some(&interface.instance))
                };
                Ec2Interface {
                    id: id.clone(),
                    instance: Some(interface.instance.clone()),
                    index: interface.index,
                    vpc: VPC.into(),
                    groups: interface.groups.clone(),
                    misplaced: interface.groups.iter().filter(is_misplaced).cloned().collect(),
                    is_managed: interface.is_managed,
                    description: String::new(),
                }
            };
            Ok(world.interfaces.iter().filter(|(id, interface)| is_found(id, interface)).map(shown).collect())
        })
        .await
    }

    async fn instances(&self, find: Find<'_>) -> Result<Vec<Instance>, CallError> {
        self.call("DescribeInstances", |world| {
            let is_found = |id: &String| match find {
                Find::All => true,
                Find::Where("instance-id", values) => has(values, id),
                Find::Where(other, _) => panic!("no filter {other}"),
            };
            let found = world.instances.iter().filter(|(id, _)| is_found(id));
            Ok(found.map(|(id, tags)| Instance { id: id.clone(), tags: tags.clone() }).collect())
        })
        .await
    }

    async fn rules(&self, find: Find<'_>) -> Result<Rules, CallError> {
        self.call("DescribeSecurityGroupRules", |world| {
            let is_found = |rule: &&GroupRule| match find {
                Find::All => true,
                Find::Where("group-id", values) => has(values, &rule.group),
                Find::Where("tag:postern:managed-by", values) => {
                    rule.tags.get(tags::MANAGED_BY).is_some_and(|owner| has(values, owner))
                }
                Find::Where(other, _) => panic!("no filter {other}"),
            };
            let mut found = Rules::default();
            for (id, group) in &world.groups {
                for (rules, side) in
                    [(&group.ingress, &mut found.ingress), (&group.egress, &mut found.egress)]
                {
                    let rules: Vec<GroupRule> = rules.iter().filter(is_found).cloned().collect();
                    if !rules.is_empty() {
                        side.insert(id.clone(), rules);
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    async fn prefix_lists(&self, _: &[String]) -> Result<BTreeMap<String, PrefixList>, CallError> {
        self.call("DescribeManagedPrefixLists", |_| Ok(BTreeMap::new())).await
    }

    async fn create_group(&self, name: &str, _: &str, vpc: &str, tags: &Tags) -> Result<String, CallError> {
        const ACTION: &str = "CreateSecurityGroup";
        self.change(ACTION, |world| {
            if vpc != VPC {
                return Err(refused(ACTION, "InvalidVpcID.NotFound"));
            }
            if world.groups.values().any(|group| group.name == name) {
                return Err(refused(ACTION, "InvalidGroup.Duplicate"));
            }
            if tags.len() > tags::MAX_TAGS {
                return Err(refused(ACTION, "TagLimitExceeded"));
            }
            Ok(world.make_group(name, tags.clone()))
        })
        .await
    }

    async fn delete_group(&self, id: &str) -> Result<(), CallError> {
        self.change("DeleteSecurityGroup", |world| world.delete(id)).await
    }

    async fn authorize(&self, group: &str, rules: &[NewGroupRule]) -> Result<Vec<GroupRule>, CallError> {
        self.change("AuthorizeSecurityGroupIngress", |world| {
            let before = world.groups.get(group).cloned();
            let made: Result<Vec<GroupRule>, CallError> =
                rules.iter().map(|rule| world.allow(group, rule)).collect();
            if let (Err(_), Some(before)) = (&made, before) {
                world.groups.insert(group.to_owned(), before);
            }
            made
        })
        .await
    }

    async fn revoke(&self, group: &str, rules: &[String]) -> Result<(), CallError> {
        const ACTION: &str = "RevokeSecurityGroupIngress";
        self.change(ACTION, |world| {
            let found = world.groups.get_mut(group);
            let found = found.ok_or_else(|| refused(ACTION, "InvalidGroup.NotFound"))?;
            if rules.iter().any(|id| found.ingress.iter().all(|rule| rule.id != *id)) {
                return Err(refused(ACTION, "InvalidSecurityGroupRuleId.NotFound"));
            }
            found.ingress.retain(|rule| !rules.contains(&rule.id));
            Ok(())
        })
        .await
    }

    async fn revoke_like(&self, group: &str, rule: &NewGroupRule) -> Result<(), CallError> {
        const ACTION: &str = "RevokeSecurityGroupIngress";
        self.change(ACTION, |world| {
            let found = world.groups.get_mut(group);
            let found = found.ok_or_else(|| refused(ACTION, "InvalidGroup.NotFound"))?;
            let before = found.ingress.len();
            found.ingress.retain(|there| there.identity() != (&rule.traffic, &rule.source));
            if found.ingress.len() == before {
                Err(refused(ACTION, "InvalidPermission.NotFound"))
            } else {
                Ok(())
            }
        })
        .await
    }

    async fn revoke_egress(&self, group: &str, rules: &[String]) -> Result<(), CallError> {
        const ACTION: &str = "RevokeSecurityGroupEgress";
        self.change(ACTION, |world| {
            let found = world.groups.get_mut(group);
            let found = found.ok_or_else(|| refused(ACTION, "InvalidGroup.NotFound"))?;
            if rules.iter().any(|id| found.egress.iter().all(|rule| rule.id != *id)) {
                return Err(refused(ACTION, "InvalidSecurityGroupRuleId.NotFound"));
            }
            found.egress.retain(|rule| !rules.contains(&rule.id));
            Ok(())
        })
        .await
    }

    async fn tag(&self, resource: &str, new: &Tags) -> Result<(), CallError> {
        const ACTION: &str = "CreateTags";
        self.change(ACTION, |world| {
            let found = world.tags_of(resource).ok_or_else(|| refused(ACTION, not_found(resource)))?;
            let mut all = found.clone();
            all.extend(new.clone());
            if all.len() > tags::MAX_TAGS {
                return Err(refused(ACTION, "TagLimitExceeded"));
            }
            *found = all;
            Ok(())
        })
        .await
    }

    async fn untag(&self, resource: &str, keys: &[String]) -> Result<(), CallError> {
        const ACTION: &str = "DeleteTags";
        self.change(ACTION, |world| {
            let found = world.tags_of(resource).ok_or_else(|| refused(ACTION, not_found(resource)))?;
            found.retain(|key, _| !keys.contains(key));
            Ok(())
        })
        .await
    }

    async fn set_groups(&self, interface: &str, groups: &[String]) -> Result<(), CallError> {
        const ACTION: &str = "ModifyNetworkInterfaceAttribute";
        self.change(ACTION, |world| {
            if groups.is_empty() {
                return Err(refused(ACTION, "InvalidParameterValue"));
            }
            if groups.len() > 5 {
                return Err(refused(ACTION, "SecurityGroupsPerInterfaceLimitExceeded"));
            }
            if groups.iter().any(|group| !world.groups.contains_key(group)) {
                return Err(refused(ACTION, "InvalidGroup.NotFound"));
            }
            let found = world.interfaces.get_mut(interface);
            let found = found.ok_or_else(|| refused(ACTION, "InvalidNetworkInterfaceID.NotFound"))?;
            if found.is_managed {
                return Err(refused(ACTION, "OperationNotPermitted"));
            }
            found.groups = groups.to_vec();
            Ok(())
        })
        .await
    }

    async fn try_permissions(&self, _deployment: &str) -> Vec<(&'static str, TrialOutcome)> {
        Vec::new()
    }
}

fn not_found(resource: &str) -> &'static str {
    if resource.starts_with("sgr-") { "InvalidSecurityGroupRuleId.NotFound" } else { "InvalidGroup.NotFound" }
}
