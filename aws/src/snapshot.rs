//! A snapshot of one instance: everything that EC2 shows for it, and the conclusions. Pure.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{Drift, Observation, Stray};

use crate::assess::exposures;
use crate::names;
use crate::parking;
use crate::resource::{Ec2Group, Ec2Interface, Rules};
use crate::rule::{GroupRule, RuleSource};
use crate::rule_codec::{self, MarkedRule};
use crate::tags;

/// The state of one instance in EC2, from one read.
#[derive(Debug, Clone, Default)]
pub(crate) struct InstanceSnapshot {
    /// Postern's groups that serve it: its own, and the parked ones of which it is a holder.
    pub(crate) groups: Vec<Ec2Group>,
    /// Its network interfaces.
    pub(crate) interfaces: Vec<Ec2Interface>,
    /// The rules of its own group, of every group on its interfaces, and of its parked groups.
    pub(crate) rules: Rules,
    /// The instance exists.
    pub(crate) exists: bool,
    /// The instance is a node of a Kubernetes cluster, which lends its other interfaces to pods. Read only before a
    /// lockdown.
    pub(crate) primary_only: bool,
}

/// The names that the interpretation of a snapshot needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InstanceContext<'a> {
    pub(crate) target: &'a TargetId,
    pub(crate) instance: &'a str,
    pub(crate) deployment: &'a str,
}

impl InstanceSnapshot {
    /// Returns the instance's own group, also if it has lost its tags.
    pub(crate) fn own(&self) -> Option<&Ec2Group> {
        let is_named = |group: &Ec2Group| names::instance(&group.name).is_some();
        self.groups.iter().find(|group| has_tag(group, tags::ROLE, tags::WINDOWS) || is_named(group))
    }

    /// Returns the tags that its own group lacks, except its state.
    fn lost_tags(&self, context: InstanceContext<'_>) -> Vec<String> {
        let Some(own) = self.own() else { return Vec::new() };
        let owner = [
            (tags::MANAGED_BY, context.deployment),
            (tags::ROLE, tags::WINDOWS),
            (tags::INSTANCE, context.instance),
        ];
        let wrong =
            owner.into_iter().filter(|(key, value)| !has_tag(own, key, value)).map(|(key, _)| key.to_owned());
        let which = [tags::ALL, tags::PRIMARY].iter().all(|value| !has_tag(own, tags::INTERFACES, value));
        let holder = format!("{}{}", tags::HOLDER, context.instance);
        let is_held = own.tags.contains_key(&holder);
        let shuts = tags::of_shuts(self.recorded()).into_keys().filter(|key| !own.tags.contains_key(key));
        wrong
            .chain(which.then(|| tags::INTERFACES.to_owned()))
            .chain((!is_held).then_some(holder))
            .chain(shuts)
            .collect()
    }

    /// Returns the groups that keep originals which the instance needs shut.
    pub(crate) fn parked(&self) -> impl Iterator<Item = &Ec2Group> {
        self.groups.iter().filter(|group| group.parked_for().is_some())
    }

    /// Returns the customer's groups of which originals are parked for the instance.
    pub(crate) fn recorded(&self) -> BTreeSet<&str> {
        self.parked().filter_map(Ec2Group::parked_for).collect()
    }

    /// Returns the customer's groups of which the lockdown parked originals, and for which no parked group lists the
    /// instance any more: another principal deleted it, or its tags, or put the rules back.
    pub(crate) fn lost(&self) -> BTreeSet<String> {
        let recorded = self.recorded();
        let mut shuts = self.own().map(|own| tags::shuts(&own.tags)).unwrap_or_default();
        shuts.retain(|group| !recorded.contains(group.as_str()));
        shuts
    }

    /// Returns the state of the lockdown; empty if there is none.
    pub(crate) fn state(&self) -> &str {
        self.own().and_then(|own| own.tags.get(tags::STATE)).map_or("", String::as_str)
    }

    /// Returns the ports to shut, which the lockdown recorded in tags.
    pub(crate) fn ports(&self, instance: &str) -> BTreeSet<ProtectedPort> {
        self.groups.iter().filter_map(|group| tags::holders(&group.tags).remove(instance)).flatten().collect()
    }

    /// Reports whether any tag still records the ports to shut.
    pub(crate) fn knows_ports(&self, context: InstanceContext<'_>) -> bool {
        !self.ports(context.instance).is_empty()
    }

    /// Returns the remedy if no tag records the ports to shut any more.
    fn remedy(&self, context: InstanceContext<'_>) -> String {
        let target = context.target;
        if self.knows_ports(context) {
            return String::new();
        }
        format!(
            ", and no tag says for which ports: run `postern lockdown {target}` or `postern release {target}`"
        )
    }

    /// Returns the interfaces whose ports must be shut: all but those that a service manages, which carry
    /// containers, or the primary one if the others are Kubernetes's.
    pub(crate) fn guarded(&self) -> impl Iterator<Item = &Ec2Interface> {
        let primary_only =
            self.primary_only || self.own().is_some_and(|own| has_tag(own, tags::INTERFACES, tags::PRIMARY));
        self.interfaces.iter().filter(move |interface| interface.is_guarded(primary_only))
    }

    /// Returns the interfaces that must have the own group: those in its VPC, which is the primary
    /// interface's.
    pub(crate) fn served(&self) -> impl Iterator<Item = &Ec2Interface> {
        let vpc = self.vpc();
        self.guarded().filter(move |interface| interface.vpc == vpc)
    }

    /// Returns the VPC of the own group.
    pub(crate) fn vpc(&self) -> &str {
        let primary = || self.interfaces.iter().min_by_key(|interface| interface.index);
        self.own()
            .map(|own| &own.vpc)
            .or_else(|| primary().map(|primary| &primary.vpc))
            .map_or("", String::as_str)
    }

    /// Returns the interfaces that lack the own group.
    pub(crate) fn unattached(&self) -> Vec<&Ec2Interface> {
        let Some(own) = self.own() else { return Vec::new() };
        self.served().filter(|interface| !interface.groups.contains(&own.id)).collect()
    }

    /// Returns the interfaces with groups of Postern's that do not belong there, each with such a group, and with whether
    /// the interface can do without: EC2 leaves none without a group.
    pub(crate) fn misplaced(&self) -> Vec<(&Ec2Interface, &String, bool)> {
        let own = self.own().map(|own| &own.id);
        let gets_own: BTreeSet<&String> =
            self.unattached().into_iter().map(|interface| &interface.id).collect();
        let mut found = Vec::new();
        for interface in self.interfaces.iter().filter(|interface| !interface.is_managed) {
            let Ec2Interface { id, groups, misplaced, .. } = interface;
            let belongs = |group: &String| Some(group) == own || !misplaced.contains(group);
            let is_dispensable = groups.iter().any(belongs) || gets_own.contains(id);
            found.extend(misplaced.iter().map(|group| (interface, group, is_dispensable)));
        }
        found
    }

    /// Returns the rules of windows.
    pub(crate) fn window_rules(&self, deployment: &str) -> Vec<MarkedRule> {
        self.own_rules().iter().filter_map(|rule| MarkedRule::read(rule, deployment)).collect()
    }

    /// Removes these rules from the snapshot.
    pub(crate) fn forget(&mut self, gone: &[String]) {
        self.rules.ingress.values_mut().for_each(|rules| rules.retain(|rule| !gone.contains(&rule.id)));
    }

    /// Returns the rules of the own group that are not windows, for reports. Egress counts only once the
    /// group is locked: EC2 creates a group with an egress rule.
    fn strays(&self, deployment: &str) -> BTreeSet<Stray> {
        let ingress =
            self.stray_rules(deployment).into_iter().map(|rule| (rule.id.clone(), rule.to_string()));
        let is_locked = self.state() == tags::LOCKED;
        let egress = self.egress().iter().filter(|_| is_locked).map(|rule| {
            let GroupRule { id, group, traffic, source, .. } = rule;
            (id.clone(), format!("rule {id} of {group} lets {traffic} out to {source}"))
        });
        let strays = ingress.chain(egress).filter(|_| self.exists);
        strays.map(|(rule, what)| Stray { rule, what }).collect()
    }

    /// Returns the rules of windows whose tags for people do not name the grant that ends last, with the tags
    /// that do.
    pub(crate) fn misnamed(&self, deployment: &str) -> Vec<(String, Vec<(String, String)>)> {
        let held = self.window_rules(deployment).into_iter().filter(|held| !held.named);
        held.map(|held| (held.id, tags::of_latest(&held.marks))).collect()
    }

    /// Returns the ingress rules of the own group that are not windows.
    pub(crate) fn stray_rules(&self, deployment: &str) -> Vec<&GroupRule> {
        self.own_rules().iter().filter(|rule| MarkedRule::read(rule, deployment).is_none()).collect()
    }

    /// Returns the egress rules of the own group. It must have none, or it would widen what the other groups
    /// let out.
    pub(crate) fn egress(&self) -> &[GroupRule] {
        self.own().and_then(|own| self.rules.egress.get(&own.id)).map_or(&[], Vec::as_slice)
    }

    /// Returns the customer's groups on the instance's interfaces.
    pub(crate) fn customer_groups(&self) -> BTreeSet<&String> {
        let own = self.own().map(|own| &own.id);
        let groups = self.guarded().flat_map(|interface| {
            interface.groups.iter().filter(|group| !interface.misplaced.contains(*group))
        });
        groups.filter(|group| Some(*group) != own).collect()
    }

    fn own_rules(&self) -> &[GroupRule] {
        self.own().and_then(|own| self.rules.ingress.get(&own.id)).map_or(&[], Vec::as_slice)
    }

    fn customer_rules(&self) -> impl Iterator<Item = &GroupRule> {
        self.customer_groups().into_iter().filter_map(|group| self.rules.ingress.get(group)).flatten()
    }

    /// Returns the customer's groups with a piece that another principal widened over one of these ports, or
    /// with an original that was put back.
    pub(crate) fn widened(&self, ports: &BTreeSet<ProtectedPort>, deployment: &str) -> Vec<String> {
        let exposures = exposures(self.customer_rules(), ports).into_iter().map(|exposure| exposure.rule);
        let pieces = exposures.filter(|rule| self.is_recorded(rule, deployment));
        pieces.map(|rule| rule.group).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Reports whether the lockdown of this instance recorded a rule that exposes a port: it is a piece that
    /// another principal widened, or an original that was put back, or a rule of a group whose originals are gone from
    /// where they were parked.
    fn is_recorded(&self, rule: &GroupRule, deployment: &str) -> bool {
        let mut parked = self.parked().filter(|group| group.parked_for() == Some(&rule.group));
        let is_original = parked.any(|group| {
            let copies = self.rules.ingress.get(&group.id).into_iter().flatten();
            copies.into_iter().any(|copy| copy.identity() == rule.identity())
        });
        is_original || self.is_guarded_piece(rule, deployment) || self.lost().contains(&rule.group)
    }

    /// Reports whether a rule is a piece that a lockdown of this instance left: it exposes a port only if
    /// another principal widened it. A piece in a group that is shut for other instances alone is not this
    /// instance's to change.
    fn is_guarded_piece(&self, rule: &GroupRule, deployment: &str) -> bool {
        let is_held = self.parked().any(|group| group.parked_for() == Some(&rule.group));
        is_held && parking::is_piece(rule, deployment)
    }

    /// Names the groups that EC2 does not delete while parked rules of these groups name them.
    fn kept_by_parked(&self) -> String {
        let rules = self.parked().flat_map(|group| self.rules.ingress.get(&group.id).into_iter().flatten());
        let named: BTreeSet<&str> = rules
            .filter_map(
                |rule| if let RuleSource::Group(group) = &rule.source { Some(group.as_str()) } else { None },
            )
            .collect();
        if named.is_empty() {
            return String::new();
        }
        let parked: BTreeSet<&str> = self.parked().map(|group| group.name.as_str()).collect();
        let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
        format!(", in {}, whose rules keep EC2 from deleting {}", list(parked), list(named))
    }

    /// Returns the open windows and the drift.
    pub(crate) fn observation(&self, context: InstanceContext<'_>) -> Observation {
        let windows = rule_codec::windows(context.target, &self.window_rules(context.deployment));
        let mut drift = Vec::new();
        let mut found = |what: String, repairable| drift.push(Drift { what, repairable });
        match (self.own(), self.state()) {
            (None, _) => {
                let parked: Vec<&str> = self.parked().filter_map(Ec2Group::parked_for).collect();
                if !parked.is_empty() && self.exists {
                    found("its own group is gone".into(), true);
                } else if !parked.is_empty() {
                    let (groups, target) = (parked.join(", "), context.target);
                    found(
                        format!(
                            "it is gone, and rules of {groups} are still parked for it{}: run `postern release {target}`",
                            self.kept_by_parked()
                        ),
                        false,
                    );
                }
            }
            (Some(_), tags::RELEASING) => found("a release was interrupted".into(), true),
            (Some(_), tags::PREPARING) => {
                found("a lockdown was refused or interrupted before it changed a rule".into(), true);
            }
            (Some(_), tags::LOCKED) => {
                let lost = self.lost_tags(context);
                if !lost.is_empty() {
                    let lost = lost.join(", ");
                    found(
                        format!(
                            "another principal removed {lost} from its own group{}",
                            self.remedy(context)
                        ),
                        self.knows_ports(context),
                    );
                }
                for rule in self.stray_rules(context.deployment) {
                    found(format!("another principal made a rule in its own group: {rule}"), true);
                }
                for (rule, _) in self.misnamed(context.deployment) {
                    found(format!("the tags of {rule} do not name the grant that ends last"), true);
                }
                for rule in self.egress() {
                    found(
                        format!(
                            "another principal let its own group send: {} to {}",
                            rule.traffic, rule.source
                        ),
                        true,
                    );
                }
                for interface in self.unattached() {
                    found(format!("its own group is not on {}", interface.id), true);
                }
                for (Ec2Interface { id, .. }, group, is_dispensable) in self.misplaced() {
                    let remedy =
                        if is_dispensable { "" } else { "; give the interface another security group" };
                    found(
                        format!("{group} of Postern's is on {id}, where its rules do not belong{remedy}"),
                        is_dispensable,
                    );
                }
                for group in self.lost() {
                    found(
                        format!(
                            "another principal took away what was parked of {group}, or its tags: rules that are lost cannot be put back, and their pieces are the customer's"
                        ),
                        true,
                    );
                }
                for exposure in exposures(self.customer_rules(), &self.ports(context.instance)) {
                    let is_repairable = self.is_recorded(&exposure.rule, context.deployment);
                    let target = context.target;
                    let remedy = if is_repairable {
                        String::new()
                    } else {
                        format!("; remove the rule, or run `postern lockdown {target}` to shut it")
                    };
                    found(format!("it is not shut: {exposure}{remedy}"), is_repairable);
                }
            }
            (Some(_), _) => {
                found(
                    format!("a lockdown was interrupted{}", self.remedy(context)),
                    self.knows_ports(context),
                );
            }
        }
        let ports = self.ports(context.instance);
        let is_locked = self.state() == tags::LOCKED && !ports.is_empty();
        let is_unlocked = self.own().is_none() && self.recorded().is_empty();
        let shut = (self.exists && (is_locked || is_unlocked)).then_some(ports);
        let strays = self.strays(context.deployment);
        Observation { windows, drift, strays, shut, ..Observation::default() }
    }
}

/// The state of all managed instances of a Region, from one read of Postern's resources.
pub(crate) struct RegionSnapshot {
    pub(crate) groups: Vec<Ec2Group>,
    pub(crate) interfaces: Vec<Ec2Interface>,
    pub(crate) rules: Rules,
    /// The instances that exist without an interface.
    pub(crate) bare: BTreeSet<String>,
}

impl RegionSnapshot {
    /// Returns the instances that Postern's groups serve.
    pub(crate) fn served(groups: &[Ec2Group]) -> BTreeSet<String> {
        groups.iter().flat_map(Ec2Group::serves).collect()
    }

    /// Returns one snapshot for each instance that a group of Postern's serves.
    pub(crate) fn instances(self) -> BTreeMap<String, InstanceSnapshot> {
        let mut snapshots: BTreeMap<String, InstanceSnapshot> = BTreeMap::new();
        for group in &self.groups {
            for instance in group.serves() {
                snapshots.entry(instance).or_default().groups.push(group.clone());
            }
        }
        for interface in self.interfaces {
            let snapshot = interface.instance.as_ref().and_then(|instance| snapshots.get_mut(instance));
            if let Some(snapshot) = snapshot {
                snapshot.exists = true;
                snapshot.interfaces.push(interface);
            }
        }
        for (instance, snapshot) in &mut snapshots {
            snapshot.exists |= self.bare.contains(instance);
            let own = snapshot.own().map(|own| own.id.clone());
            let parked = snapshot.parked().map(|parked| parked.id.clone()).collect::<Vec<_>>();
            let groups: BTreeSet<String> =
                snapshot.customer_groups().into_iter().cloned().chain(own).chain(parked).collect();
            let pick = |side: &BTreeMap<String, Vec<GroupRule>>| {
                groups.iter().filter_map(|id| Some((id.clone(), side.get(id)?.clone()))).collect()
            };
            snapshot.rules = Rules { ingress: pick(&self.rules.ingress), egress: pick(&self.rules.egress) };
        }
        snapshots
    }
}

fn has_tag(group: &Ec2Group, key: &str, value: &str) -> bool {
    group.tags.get(key).is_some_and(|is| is == value)
}

#[cfg(test)]
mod tests;
