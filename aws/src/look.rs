//! A look at one instance: everything that EC2 says of it, and what follows. Pure.

use std::collections::{BTreeMap, BTreeSet};

use postern_cloud::{Drift, Observation};
use postern_core::{ProtectedPort, TargetId};

use crate::assess::exposures;
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
    /// The instance's own group.
    pub(crate) fn own(&self) -> Option<&Group> {
        self.groups.iter().find(|group| is(group, tags::ROLE, tags::WINDOWS))
    }

    /// The groups that keep originals which the instance needs shut.
    pub(crate) fn parked(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|group| is(group, tags::ROLE, tags::PARKED))
    }

    /// How far the lockdown is; empty where there is none.
    pub(crate) fn state(&self) -> &str {
        self.own().and_then(|own| own.tags.get(tags::STATE)).map_or("", String::as_str)
    }

    /// The ports that are to be shut, by what the lockdown wrote down.
    pub(crate) fn ports(&self, instance: &str) -> BTreeSet<ProtectedPort> {
        self.groups.iter().filter_map(|group| tags::holders(&group.tags).remove(instance)).flatten().collect()
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

    /// The windows, and what is not as Postern left it.
    pub(crate) fn observation(&self, view: View<'_>) -> Observation {
        let windows = window::windows(view.target, &self.held(view.deployment));
        let mut drift = Vec::new();
        let mut found = |what: String, repairable| drift.push(Drift { what, repairable });
        match (self.own(), self.state()) {
            (None, _) => {
                let parked: Vec<_> =
                    self.parked().filter_map(|group| group.tags.get(tags::PARKED_FOR)).collect();
                if !parked.is_empty() && self.exists {
                    found("its own group is gone".into(), true);
                } else if !parked.is_empty() {
                    let groups = parked.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                    found(
                        format!("it is gone, and rules of {groups} are still parked for it: release it"),
                        false,
                    );
                }
            }
            (Some(_), tags::RELEASING) => found("a release was interrupted".into(), true),
            (Some(_), tags::LOCKED) => {
                for rule in self.strange(view.deployment) {
                    found(format!("somebody made a rule in its own group: {rule}"), true);
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
                    found(format!("it is not shut: {exposure}"), false);
                }
            }
            (Some(_), _) => found("a lockdown was interrupted".into(), true),
        }
        Observation { windows, drift, ..Observation::default() }
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
        groups.iter().flat_map(|group| tags::holders(&group.tags).into_keys()).collect()
    }

    /// One look for each instance that a group of ours serves.
    pub(crate) fn looks(self) -> BTreeMap<String, Look> {
        let mut looks: BTreeMap<String, Look> = BTreeMap::new();
        for group in &self.groups {
            for instance in tags::holders(&group.tags).into_keys() {
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
