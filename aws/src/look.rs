//! A look at one instance: everything that EC2 says of it, and what follows. Pure.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{Drift, Observation, Stray};

use crate::assess::exposures;
use crate::names;
use crate::parking;
use crate::resource::{Group, Interface, Rules};
use crate::rule::Rule;
use crate::tags;
use crate::window::{self, Held};

/// What EC2 says of one instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look {
    /// The groups of ours that serve it: its own, and the parked ones that hold it.
    pub(crate) groups: Vec<Group>,
    /// Its network interfaces.
    pub(crate) interfaces: Vec<Interface>,
    /// The rules of its own group and of every group on its interfaces.
    pub(crate) rules: Rules,
    /// Whether it exists.
    pub(crate) exists: bool,
    /// Whether it is a node of a Kubernetes cluster, which lends its other interfaces to pods. Asked before a lockdown.
    pub(crate) primary_only: bool,
}

/// What a look needs to know beside what it saw.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) target: &'a TargetId,
    pub(crate) instance: &'a str,
    pub(crate) deployment: &'a str,
}

impl Look {
    /// The instance's own group, also where somebody took its tags off.
    pub(crate) fn own(&self) -> Option<&Group> {
        let is_named = |group: &Group| names::instance(&group.name).is_some();
        self.groups.iter().find(|group| is(group, tags::ROLE, tags::WINDOWS) || is_named(group))
    }

    /// The tags that its own group should have and has not, but for its state.
    fn lost_tags(&self, view: View<'_>) -> Vec<String> {
        let Some(own) = self.own() else { return Vec::new() };
        let owner = [
            (tags::MANAGED_BY, view.deployment),
            (tags::ROLE, tags::WINDOWS),
            (tags::INSTANCE, view.instance),
        ];
        let wrong =
            owner.into_iter().filter(|(key, value)| !is(own, key, value)).map(|(key, _)| key.to_owned());
        let which = [tags::ALL, tags::PRIMARY].iter().all(|value| !is(own, tags::INTERFACES, value));
        let holder = format!("{}{}", tags::HOLDER, view.instance);
        let is_held = own.tags.contains_key(&holder);
        wrong.chain(which.then(|| tags::INTERFACES.to_owned())).chain((!is_held).then_some(holder)).collect()
    }

    /// The groups that keep originals which the instance needs shut.
    pub(crate) fn parked(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|group| group.parked_for().is_some())
    }

    /// How far the lockdown is; empty where there is none.
    pub(crate) fn state(&self) -> &str {
        self.own().and_then(|own| own.tags.get(tags::STATE)).map_or("", String::as_str)
    }

    /// The ports that are to be shut, by what the lockdown wrote down.
    pub(crate) fn ports(&self, instance: &str) -> BTreeSet<ProtectedPort> {
        self.groups.iter().filter_map(|group| tags::holders(&group.tags).remove(instance)).flatten().collect()
    }

    /// Whether anything says yet which ports are to be shut.
    pub(crate) fn knows_ports(&self, view: View<'_>) -> bool {
        !self.ports(view.instance).is_empty()
    }

    /// What an administrator does where nothing says any more which ports are shut.
    fn remedy(&self, view: View<'_>) -> &'static str {
        if self.knows_ports(view) { "" } else { ", and nothing says for which ports: lock it down again" }
    }

    /// The interfaces whose ports are to be shut: all, or the primary one where the others are Kubernetes's.
    pub(crate) fn guarded(&self) -> impl Iterator<Item = &Interface> {
        let primary_only =
            self.primary_only || self.own().is_some_and(|own| is(own, tags::INTERFACES, tags::PRIMARY));
        self.interfaces.iter().filter(move |interface| !primary_only || interface.index == 0)
    }

    /// The interfaces on which the own group belongs: those of its VPC, which is the primary one's.
    pub(crate) fn served(&self) -> impl Iterator<Item = &Interface> {
        let vpc = self.vpc();
        self.guarded().filter(move |interface| interface.vpc == vpc)
    }

    /// The VPC of the own group.
    pub(crate) fn vpc(&self) -> &str {
        let primary = || self.interfaces.iter().min_by_key(|interface| interface.index);
        self.own()
            .map(|own| &own.vpc)
            .or_else(|| primary().map(|primary| &primary.vpc))
            .map_or("", String::as_str)
    }

    /// The interfaces that lack the own group.
    pub(crate) fn unattached(&self) -> Vec<&Interface> {
        let Some(own) = self.own() else { return Vec::new() };
        self.served().filter(|interface| !interface.groups.contains(&own.id)).collect()
    }

    /// The rules of windows.
    pub(crate) fn held(&self, deployment: &str) -> Vec<Held> {
        self.own_rules().iter().filter_map(|rule| Held::read(rule, deployment)).collect()
    }

    /// Takes in that these rules are gone.
    pub(crate) fn forget(&mut self, gone: &[String]) {
        self.rules.ingress.values_mut().for_each(|rules| rules.retain(|rule| !gone.contains(&rule.id)));
    }

    /// The rules of the own group that are no windows. A group that is not locked yet has the egress rule of EC2's own.
    fn strays(&self, deployment: &str) -> BTreeSet<Stray> {
        let ingress = self.strange(deployment).into_iter().map(|rule| (rule.id.clone(), rule.to_string()));
        let is_locked = self.state() == tags::LOCKED;
        let egress = self.egress().iter().filter(|_| is_locked).map(|rule| {
            let Rule { id, group, traffic, source, .. } = rule;
            (id.clone(), format!("rule {id} of {group} lets {traffic} out to {source}"))
        });
        let strays = ingress.chain(egress).filter(|_| self.exists);
        strays.map(|(rule, what)| Stray { rule, what }).collect()
    }

    /// The windows' rules whose tags for people do not name the grant that ends last, with the tags that do.
    pub(crate) fn misnamed(&self, deployment: &str) -> Vec<(String, Vec<(String, String)>)> {
        let held = self.held(deployment).into_iter().filter(|held| !held.named);
        held.map(|held| (held.id, tags::of_latest(&held.marks))).collect()
    }

    /// Rules of the own group that are no window's.
    pub(crate) fn strange(&self, deployment: &str) -> Vec<&Rule> {
        self.own_rules().iter().filter(|rule| Held::read(rule, deployment).is_none()).collect()
    }

    /// Egress rules of the own group: it must have none, or it would widen what the others let out.
    pub(crate) fn egress(&self) -> &[Rule] {
        self.own().and_then(|own| self.rules.egress.get(&own.id)).map_or(&[], Vec::as_slice)
    }

    /// The groups of others on the instance's interfaces.
    pub(crate) fn customer_groups(&self) -> BTreeSet<&String> {
        let own = self.own().map(|own| &own.id);
        let groups = self.guarded().flat_map(|interface| &interface.groups);
        groups.filter(|group| Some(*group) != own).collect()
    }

    fn own_rules(&self) -> &[Rule] {
        self.own().and_then(|own| self.rules.ingress.get(&own.id)).map_or(&[], Vec::as_slice)
    }

    fn customer_rules(&self) -> impl Iterator<Item = &Rule> {
        self.customer_groups().into_iter().filter_map(|group| self.rules.ingress.get(group)).flatten()
    }

    /// The customers' groups with a piece that somebody widened over one of these ports.
    pub(crate) fn widened(&self, ports: &BTreeSet<ProtectedPort>, deployment: &str) -> Vec<String> {
        let exposures = exposures(self.customer_rules(), ports).into_iter().map(|exposure| exposure.rule);
        let pieces = exposures.filter(|rule| self.is_guarded_piece(rule, deployment));
        pieces.map(|rule| rule.group).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether a rule is a piece that a lockdown of this instance left, so that it exposes nothing unless somebody widens it.
    /// Those of a group that is shut for others alone are not this instance's to change.
    fn is_guarded_piece(&self, rule: &Rule, deployment: &str) -> bool {
        let is_held = self.parked().any(|group| group.parked_for() == Some(&rule.group));
        is_held && parking::is_piece(rule, deployment)
    }

    /// The windows, and what is not as Postern left it.
    pub(crate) fn observation(&self, view: View<'_>) -> Observation {
        let windows = window::windows(view.target, &self.held(view.deployment));
        let mut drift = Vec::new();
        let mut found = |what: String, repairable| drift.push(Drift { what, repairable });
        match (self.own(), self.state()) {
            (None, _) => {
                let parked: Vec<&str> = self.parked().filter_map(Group::parked_for).collect();
                if !parked.is_empty() && self.exists {
                    found("its own group is gone".into(), true);
                } else if !parked.is_empty() {
                    let groups = parked.join(", ");
                    found(
                        format!("it is gone, and rules of {groups} are still parked for it: release it"),
                        false,
                    );
                }
            }
            (Some(_), tags::RELEASING) => found("a release was interrupted".into(), true),
            (Some(_), tags::LOCKED) => {
                let lost = self.lost_tags(view);
                if !lost.is_empty() {
                    let lost = lost.join(", ");
                    found(
                        format!("somebody took {lost} off its own group{}", self.remedy(view)),
                        self.knows_ports(view),
                    );
                }
                for rule in self.strange(view.deployment) {
                    found(format!("somebody made a rule in its own group: {rule}"), true);
                }
                for (rule, _) in self.misnamed(view.deployment) {
                    found(format!("the tags of {rule} do not name the grant that ends last"), true);
                }
                for rule in self.egress() {
                    found(
                        format!("somebody let its own group send: {} to {}", rule.traffic, rule.source),
                        true,
                    );
                }
                for interface in self.unattached() {
                    found(format!("its own group is not on {}", interface.id), true);
                }
                for exposure in exposures(self.customer_rules(), &self.ports(view.instance)) {
                    let is_ours = self.is_guarded_piece(&exposure.rule, view.deployment);
                    found(format!("it is not shut: {exposure}"), is_ours);
                }
            }
            (Some(_), _) => {
                found(format!("a lockdown was interrupted{}", self.remedy(view)), self.knows_ports(view));
            }
        }
        Observation { windows, drift, strays: self.strays(view.deployment), ..Observation::default() }
    }
}

/// Looks at many instances at once, from one reading of everything of ours.
pub(crate) struct Panorama {
    pub(crate) groups: Vec<Group>,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) rules: Rules,
    /// The instances without an interface that exist all the same.
    pub(crate) bare: BTreeSet<String>,
}

impl Panorama {
    /// The instances that groups of ours serve.
    pub(crate) fn served(groups: &[Group]) -> BTreeSet<String> {
        groups.iter().flat_map(Group::serves).collect()
    }

    /// One look for each instance that a group of ours serves.
    pub(crate) fn looks(self) -> BTreeMap<String, Look> {
        let mut looks: BTreeMap<String, Look> = BTreeMap::new();
        for group in &self.groups {
            for instance in group.serves() {
                looks.entry(instance).or_default().groups.push(group.clone());
            }
        }
        for interface in self.interfaces {
            let look = interface.instance.as_ref().and_then(|instance| looks.get_mut(instance));
            if let Some(look) = look {
                look.exists = true;
                look.interfaces.push(interface);
            }
        }
        for (instance, look) in &mut looks {
            look.exists |= self.bare.contains(instance);
            let own = look.own().map(|own| own.id.clone());
            let groups: BTreeSet<String> = look.customer_groups().into_iter().cloned().chain(own).collect();
            let pick = |side: &BTreeMap<String, Vec<Rule>>| {
                groups.iter().filter_map(|id| Some((id.clone(), side.get(id)?.clone()))).collect()
            };
            look.rules = Rules { ingress: pick(&self.rules.ingress), egress: pick(&self.rules.egress) };
        }
        looks
    }
}

fn is(group: &Group, key: &str, value: &str) -> bool {
    group.tags.get(key).is_some_and(|is| is == value)
}

#[cfg(test)]
mod tests;
