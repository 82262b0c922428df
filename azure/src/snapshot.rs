//! The state that Azure holds for one machine, from the names and contents of Postern's rules. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use postern_core::plan::LayerWindow;
use postern_core::{ProtectedPort, SourcePrefix, TargetId};
use postern_provider::{CloudError, Drift, Observation, Reach, Stray};

use crate::firewall::NewNatRule;
use crate::id::ArmId;
use crate::machine::Machine;
use crate::names::{self, AllowName, Content, DenyName, Family, Key, RuleName};
use crate::network::{
    Firewall, NatRule, Network, Nsg, NsgRule, RulePeer, RuleProtocol, RuleState, UnreadKind, exposures,
};
use crate::settings::Flush;

/// A machine, and the groups and the firewall on its way, as they were read.
#[derive(Debug, Clone)]
pub(crate) struct MachineSnapshot {
    pub(crate) machine: Machine,
    pub(crate) groups: BTreeMap<ArmId, Nsg>,
    pub(crate) firewall: Option<Firewall>,
    /// The reason that a firewall in front may be unknown.
    pub(crate) unread: Option<CloudError>,
}

impl MachineSnapshot {
    /// Takes the machine with every group that was read.
    pub(crate) fn of(network: &Network, vm: &ArmId) -> Self {
        Self::with(network, vm, |_| true)
    }

    /// Takes the machine with the groups on its way, and with those that hold rules of Postern's for it.
    pub(crate) fn among(network: &Network, vm: &ArmId, traced: &BTreeSet<ArmId>) -> Self {
        Self::with(network, vm, |id| traced.contains(id))
    }

    fn with(network: &Network, vm: &ArmId, concerns: impl Fn(&ArmId) -> bool) -> Self {
        let machine = Machine::of(network, vm);
        let firewall = machine.front.as_ref().and_then(|front| {
            network.firewalls.iter().find(|firewall| firewall.id == front.firewall).cloned()
        });
        let groups = network.groups.iter().filter(|(id, _)| machine.groups.contains(id) || concerns(id));
        let groups = groups.map(|(id, group)| (id.clone(), group.clone())).collect();
        let unread = network.unread.iter().find(|part| part.kind == UnreadKind::Front);
        let unread = unread.filter(|_| machine.may_have_front).map(|part| part.error.clone().into());
        Self { machine, groups, firewall, unread }
    }

    pub(crate) fn view<'a>(
        &'a self,
        target: &'a TargetId,
        deployment: &'a str,
        locked_rules: &'a LockedRules,
    ) -> MachineView<'a> {
        let (machine, groups, firewall) = (&self.machine, &self.groups, self.firewall.as_ref());
        MachineView { target, deployment, machine, groups, firewall, locked_rules }
    }

    /// Checks that the rules of windows can be judged.
    ///
    /// # Errors
    /// A group holds a rule that only the firewall in front explains, and that could not be read: it is the rule of a window
    /// through the firewall, or one that another principal edited.
    pub(crate) fn check_read(&self, target: &TargetId, deployment: &str) -> Result<(), CloudError> {
        let nothing = LockedRules::default();
        let strays = self.view(target, deployment, &nothing).strays();
        let is_window =
            |(_, name): &(ArmId, String)| RuleName::read(name).and_then(RuleName::allow).is_some();
        match &self.unread {
            Some(error) if strays.iter().any(is_window) => Err(error.clone()),
            Some(_) | None => Ok(()),
        }
    }
}

/// A target, its snapshot, and the memory of the rules that shut its ports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MachineView<'a> {
    pub(crate) target: &'a TargetId,
    pub(crate) deployment: &'a str,
    pub(crate) machine: &'a Machine,
    /// The groups that were read, on the way or not.
    pub(crate) groups: &'a BTreeMap<ArmId, Nsg>,
    /// The firewall in front.
    pub(crate) firewall: Option<&'a Firewall>,
    /// The rules that shut ports at the last read: after another principal deletes all of them, only this memory has them.
    pub(crate) locked_rules: &'a LockedRules,
}

/// The rules of Postern's that shut ports at the last read: the group, the name and the priority of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LockedRules {
    rules: BTreeMap<ArmId, BTreeMap<String, u16>>,
    /// True if they stay behind the customer's rules.
    is_behind: bool,
}

impl LockedRules {
    /// Records the rules that shut ports on the way of a machine now.
    pub(crate) fn record(&mut self, view: &MachineView<'_>) {
        if !view.shut().is_empty() {
            self.is_behind = view.is_behind();
        }
        for group in view.on_the_way() {
            let good = view.denies(group).into_iter().filter(|(_, _, is_good)| *is_good);
            let good: Vec<_> = good.map(|(rule, ..)| (rule.name.clone(), rule.priority)).collect();
            if !good.is_empty() {
                self.rules.entry(group.id.clone()).or_default().extend(good);
            }
        }
    }

    /// The rules that a group had, with their priorities.
    pub(crate) fn of(&self, group: &ArmId) -> impl Iterator<Item = (DenyName, u16)> + '_ {
        let rules = self.rules.get(group).into_iter().flatten();
        rules.filter_map(|(name, priority)| Some((RuleName::read(name)?.deny()?, *priority)))
    }

    /// The ports that were shut.
    pub(crate) fn ports(&self) -> BTreeSet<ProtectedPort> {
        self.rules.keys().flat_map(|group| self.of(group)).flat_map(|(deny, _)| deny.protected()).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// A rule of Postern's that opens windows of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllowRule {
    pub(crate) name: String,
    pub(crate) allow: AllowName,
    pub(crate) windows: BTreeSet<LayerWindow>,
    /// True if Azure says that it is in force, and no rule before it may deny what it allows.
    pub(crate) is_settled: bool,
}

impl<'a> MachineView<'a> {
    pub(crate) fn key(&self) -> Key {
        Key::of(self.deployment, self.target)
    }

    /// The groups on the way that were read.
    pub(crate) fn on_the_way(&self) -> impl Iterator<Item = &'a Nsg> {
        self.machine.groups.iter().filter_map(|id| self.groups.get(id))
    }

    /// Postern's rules for the machine in a group, edited or not.
    pub(crate) fn managed_rules(&self, group: &'a Nsg) -> impl Iterator<Item = (&'a NsgRule, RuleName)> {
        let key = self.key();
        let named = group.rules.iter().filter_map(|rule| Some((rule, RuleName::read(&rule.name)?)));
        named.filter(move |(_, name)| name.key() == Some(&key))
    }

    /// The rules of a group that open windows and are as Postern wrote them.
    pub(crate) fn window_rules(&self, group: &'a Nsg) -> Vec<AllowRule> {
        let shut = self.denies(group).iter().map(|(rule, ..)| rule.priority).min().unwrap_or(u16::MAX);
        let held = |(rule, name): (&NsgRule, RuleName)| {
            let allow = name.allow()?;
            // A rule of a window behind a rule that shuts ports opens nothing.
            let windows = self.windows_of(rule, &allow).filter(|_| rule.priority < shut)?;
            let is_settled = rule.is_in_force() && self.obstacle_of(group, rule).is_none();
            Some(AllowRule { name: rule.name.clone(), allow, windows, is_settled })
        };
        self.managed_rules(group).filter_map(held).collect()
    }

    /// The windows of a rule in a group; none where the rule is not as its name says that it was written.
    fn windows_of(&self, rule: &NsgRule, allow: &AllowName) -> Option<BTreeSet<LayerWindow>> {
        let content = content(rule)?;
        let family = content.sources.first().map(|source| Family::of(*source))?;
        let addresses: BTreeSet<RulePeer> =
            self.machine.addresses(family).into_iter().map(|ip| RulePeer::Net(ip.into())).collect();
        let destinations: BTreeSet<RulePeer> = rule.traffic.destinations.iter().cloned().collect();
        if !rule.allows || addresses != destinations {
            return None;
        }
        let not_after = names::very_end(allow, &rule.description);
        if !names::is_description(self.target, allow, not_after, &rule.description) {
            return None;
        }
        if allow.is_of(&content) {
            return Some(content.windows(self.target, allow.grant, not_after));
        }
        // Behind a firewall a group sees the firewall's addresses: the firewall's rule holds the sources.
        let front = self.machine.front.as_ref()?;
        let seen_as: BTreeSet<SourcePrefix> = front.seen_as.iter().copied().collect();
        let nat = self.managed_nat_rules().find(|(_, name)| name == allow)?;
        (content.sources == seen_as).then(|| self.windows_of_nat(nat.0, allow)).flatten()
    }

    /// Postern's rules for the machine in the firewall in front.
    pub(crate) fn managed_nat_rules(&self) -> impl Iterator<Item = (&'a NatRule, AllowName)> {
        let key = self.key();
        let rules = self.firewall.into_iter().flat_map(|firewall| &firewall.nat);
        rules.filter_map(move |rule| {
            let allow = RuleName::read(&rule.name)?.allow()?;
            (allow.key == key).then_some((rule, allow))
        })
    }

    /// Returns the windows that a new rule of the firewall opens; none if it is another machine's.
    pub(crate) fn windows_of_new(&self, rule: &NewNatRule) -> Option<BTreeSet<LayerWindow>> {
        let allow = RuleName::read(&rule.name)?.allow().filter(|allow| allow.key == self.key())?;
        let content =
            Content { protocol: rule.protocol, ports: [rule.port].into(), sources: rule.sources.clone() };
        let not_after = names::very_end(&allow, &rule.description);
        Some(content.windows(self.target, allow.grant, not_after))
    }

    fn windows_of_nat(&self, rule: &NatRule, allow: &AllowName) -> Option<BTreeSet<LayerWindow>> {
        let (ip, port) = rule.translated?;
        let [protocol] = rule.protocols[..] else { return None };
        let content = Content { protocol, ports: [port_of(port)?].into(), sources: sources(&rule.sources)? };
        let not_after = names::very_end(allow, &rule.description);
        let public = self.machine.front.as_ref().and_then(|front| front.public);
        let at = |public: IpAddr| rule.destinations == [RulePeer::Net(public.into())];
        let is_one_port = matches!(&rule.ports[..], [range] if range.start() == range.end());
        let is_managed = self.machine.addresses(Family::V4).contains(&ip)
            && allow.is_of(&content)
            && rule.collection == names::collection(self.deployment)
            && public.is_none_or(at)
            && is_one_port
            && names::is_description(self.target, allow, not_after, &rule.description);
        is_managed.then(|| content.windows(self.target, allow.grant, not_after))
    }

    /// The firewall's rules that open windows and are as Postern wrote them.
    pub(crate) fn nat_window_rules(&self) -> Vec<AllowRule> {
        let held = |(rule, allow): (&NatRule, AllowName)| {
            let windows = self.windows_of_nat(rule, &allow)?;
            // A write of a firewall takes minutes, and the rules that were there before stay in force.
            let is_settled = self.firewall.is_none_or(|firewall| firewall.state != RuleState::Failed);
            Some(AllowRule { name: rule.name.clone(), allow, windows, is_settled })
        };
        self.managed_nat_rules().filter_map(held).collect()
    }

    /// The ports that Postern's rules shut, wherever they are, or shut at the last read.
    pub(crate) fn locked(&self) -> BTreeSet<ProtectedPort> {
        &self.shut() | &self.locked_rules.ports()
    }

    /// The ports that Postern's rules shut, wherever they are.
    pub(crate) fn shut(&self) -> BTreeSet<ProtectedPort> {
        let groups = self.groups.values().flat_map(|group| self.managed_rules(group));
        let denies =
            groups.filter_map(|(_, name)| if let RuleName::Deny(deny) = name { Some(deny) } else { None });
        denies.flat_map(|deny| deny.protected()).collect()
    }

    /// The ports that a group on the way shuts, by rules that are as Postern wrote them and that Azure has finished.
    pub(crate) fn shut_in(&self, group: &Nsg, family: Family) -> BTreeSet<ProtectedPort> {
        self.denies(group)
            .into_iter()
            .filter(|(rule, deny, is_good)| *is_good && rule.is_in_force() && deny.family == family)
            .flat_map(|(_, deny, _)| deny.protected())
            .collect()
    }

    /// The rules that shut ports in a group, each with whether it is as Postern wrote it.
    pub(crate) fn denies<'b>(&self, group: &'b Nsg) -> Vec<(&'b NsgRule, DenyName, bool)> {
        let key = self.key();
        let denies = group.rules.iter().filter_map(|rule| {
            let deny = RuleName::read(&rule.name)?.deny()?;
            (deny.key == key).then_some((rule, deny))
        });
        denies
            .map(|(rule, deny)| {
                let what = crate::rules::RuleMatch::Ports {
                    protocol: deny.protocol,
                    sources: None,
                    addresses: self.machine.addresses(deny.family),
                    ports: deny.ports.clone(),
                };
                let is_good = !rule.allows && rule.traffic.is_same(&what.traffic());
                (rule, deny, is_good)
            })
            .collect()
    }

    /// Reports whether Postern's rules for the machine stay behind the customer's: no consent was given to move those.
    pub(crate) fn is_behind(&self) -> bool {
        let mut denies = self.groups.values().flat_map(|group| self.denies(group)).peekable();
        match denies.peek() {
            Some(_) => denies.all(|(rule, ..)| names::is_behind(&rule.description)),
            None => self.locked_rules.is_behind,
        }
    }

    /// Reports whether a release of the machine is under way.
    pub(crate) fn is_releasing(&self) -> bool {
        self.groups
            .values()
            .any(|group| self.managed_rules(group).any(|(_, name)| matches!(name, RuleName::Release(_))))
    }

    /// Reports whether every group on the way shuts each port that one of them shuts.
    pub(crate) fn is_locked(&self) -> bool {
        let locked = self.locked();
        !locked.is_empty() && !self.is_releasing() && self.gaps(&locked).next().is_none()
    }

    /// The groups and address families in which a locked port is not shut.
    pub(crate) fn gaps<'b>(
        &'b self,
        ports: &'b BTreeSet<ProtectedPort>,
    ) -> impl Iterator<Item = (&'a Nsg, Family, BTreeSet<ProtectedPort>)> + 'b {
        self.on_the_way().flat_map(move |group| {
            self.machine.families().filter_map(move |family| {
                let missing: BTreeSet<ProtectedPort> = ports - &self.shut_in(group, family);
                (!missing.is_empty()).then_some((group, family, missing))
            })
        })
    }

    /// Postern's rules for the machine that are in a wrong place, or not as Postern wrote them, by group.
    pub(crate) fn strays(&self) -> Vec<(ArmId, String)> {
        let mut strays = Vec::new();
        for group in self.groups.values() {
            let is_on_the_way = self.machine.groups.contains(&group.id);
            let good: BTreeSet<String> = self.window_rules(group).into_iter().map(|held| held.name).collect();
            let denies: BTreeSet<String> = self
                .denies(group)
                .into_iter()
                .filter(|(_, _, is_good)| *is_good)
                .map(|(rule, ..)| rule.name.clone())
                .collect();
            for (rule, name) in self.managed_rules(group) {
                let is_good = is_on_the_way && (good.contains(&rule.name) || denies.contains(&rule.name));
                if !is_good && !matches!(name, RuleName::Release(_)) {
                    strays.push((group.id.clone(), rule.name.clone()));
                }
            }
        }
        strays
    }

    /// Postern's rules for the machine in the firewall that are not as Postern wrote them.
    pub(crate) fn stray_nat_rules(&self) -> Vec<String> {
        let good: BTreeSet<String> = self.nat_window_rules().into_iter().map(|held| held.name).collect();
        let all = self.managed_nat_rules().map(|(rule, _)| rule.name.clone());
        all.filter(|name| !good.contains(name)).collect()
    }

    /// The customer's rules that still admit a source to these ports, in words.
    pub(crate) fn still_open(&self, ports: &BTreeSet<ProtectedPort>) -> Vec<String> {
        let is_managed = |rule: &str| {
            RuleName::read(rule).is_some_and(|name| name.key().is_some_and(|key| key.is_of(self.deployment)))
        };
        let by_groups = exposures(self.groups, &self.machine.doors, ports)
            .into_iter()
            .filter(|exposure| {
                !exposure.by_default && !exposure.rules.iter().any(|(_, rule, _)| is_managed(rule))
            })
            .map(|exposure| exposure.to_string());
        let by_firewall = self.firewall.into_iter().flat_map(|firewall| {
            firewall.nat.iter().filter(|rule| RuleName::read(&rule.name).is_none()).filter_map(|rule| {
                let (ip, port) = rule.translated?;
                let port = ports.iter().find(|locked| {
                    locked.port.get() == port && rule.protocols.contains(&locked.protocol)
                })?;
                let is_here = self.machine.doors.iter().any(|door| door.ip == ip);
                let (name, collection, firewall) = (&rule.name, &rule.collection, firewall.id.name());
                is_here.then(|| {
                    format!("rule {name} of the collection {collection} of the firewall {firewall} translates to {port}, and while a window is open it lets its own sources in too")
                })
            })
        });
        by_groups.chain(by_firewall).collect()
    }

    /// Returns the state that Azure holds for the machine. A write of a whole group that is under way is no difference: Azure
    /// shows every rule as being updated then.
    pub(crate) fn observation(&self, flush: Flush) -> Observation {
        if !self.groups.values().any(Nsg::is_changing) {
            return self.settled_observation(flush);
        }
        let groups = self.groups.iter().map(|(id, group)| (id.clone(), group.once_settled())).collect();
        MachineView { groups: &groups, ..*self }.settled_observation(flush)
    }

    fn settled_observation(&self, flush: Flush) -> Observation {
        let windows = |held: Vec<AllowRule>| {
            let settled = held.into_iter().filter(|held| held.is_settled);
            settled.flat_map(|held| held.windows).collect::<BTreeSet<_>>()
        };
        let mut places: Vec<BTreeSet<LayerWindow>> =
            self.on_the_way().map(|group| windows(self.window_rules(group))).collect();
        if self.machine.front.is_some() {
            // A window whose connections come straight needs no rule in the firewall.
            let straight =
                places.iter().flatten().filter(|window| self.machine.front_of(window.source).is_none());
            let through = windows(self.nat_window_rules());
            places.push(straight.cloned().chain(through).collect());
        }
        let begun =
            self.on_the_way().flat_map(|group| self.window_rules(group)).flat_map(|held| held.windows);
        let all: BTreeSet<LayerWindow> = places.iter().flatten().cloned().chain(begun).collect();
        let (windows, partial) =
            all.into_iter().partition(|window| places.iter().all(|place| place.contains(window)));
        Observation {
            windows,
            partial,
            drift: self.drift(flush),
            reach: self.reach(),
            strays: self.stray_rules(),
            shut: None,
        }
    }

    /// The rules with the name of a window that are not as Postern writes a window's rule. A release deletes them itself.
    fn stray_rules(&self) -> BTreeSet<Stray> {
        if self.is_releasing() {
            return BTreeSet::new();
        }
        let in_groups = self.strays().into_iter().filter_map(|(id, name)| {
            RuleName::read(&name)?.allow()?;
            let group = self.groups.get(&id)?;
            let what = format!("{} of {}", group.rule(&name)?, group.id.name());
            Some(Stray { rule: format!("{name} of {}", group.id.name()), what })
        });
        let in_firewall = self.managed_nat_rules().map(|(rule, _)| rule);
        let names = self.stray_nat_rules();
        let in_firewall = in_firewall.filter(|rule| names.contains(&rule.name)).map(|rule| Stray {
            rule: format!("{} of the firewall", rule.name),
            what: format!("{rule} of the firewall"),
        });
        in_groups.chain(in_firewall).collect()
    }

    /// Returns the endpoints of the ports that windows open.
    pub(crate) fn reach(&self) -> Reach {
        self.machine.reach(&self.shut(), self.mapped())
    }

    /// The ports of the firewall that lead to the machine's ports.
    fn mapped(&self) -> BTreeMap<ProtectedPort, SocketAddr> {
        let Some(public) = self.machine.front.as_ref().and_then(|front| front.public) else {
            return BTreeMap::new();
        };
        let mapped = self.managed_nat_rules().filter_map(|(rule, _)| {
            let (_, port) = rule.translated?;
            let (protocol, at) = (*rule.protocols.first()?, *rule.ports.first()?.start());
            Some((ProtectedPort { protocol, port: port_of(port)? }, SocketAddr::new(public, at)))
        });
        mapped.collect()
    }

    /// Finds what differs from the state that Postern left.
    fn drift(&self, flush: Flush) -> Vec<Drift> {
        let mut drift = Vec::new();
        let mut found = |what: String, repairable| drift.push(Drift { what, repairable });
        if self.is_releasing() {
            found("a release is not finished".into(), true);
            return drift;
        }
        let locked = self.locked();
        for (group, name) in self.strays() {
            found(
                format!("rule {name} of {} is not as Postern wrote it, or not in its place", group.name()),
                true,
            );
        }
        for name in self.stray_nat_rules() {
            found(format!("rule {name} of the firewall is not as Postern wrote it"), true);
        }
        for (group, _, missing) in self.gaps(&locked) {
            let ports: Vec<String> = missing.iter().map(ToString::to_string).collect();
            let unfinished = self.denies(group).into_iter().find(|(rule, deny, is_good)| {
                *is_good && !rule.is_in_force() && deny.protected().any(|port| missing.contains(&port))
            });
            let (name, ports) = (group.id.name(), ports.join(", "));
            match unfinished {
                Some((rule, ..)) if rule.state == RuleState::Failed => found(
                    format!(
                        "rule {} of {name} does not shut {ports}: Azure says that its last write failed",
                        rule.name
                    ),
                    true,
                ),
                Some((rule, ..)) => found(
                    format!(
                        "rule {} of {name} does not shut {ports} yet: Azure has not finished its last write",
                        rule.name
                    ),
                    true,
                ),
                None => found(format!("no rule of {name} shuts {ports}"), true),
            }
        }
        for group in self.on_the_way() {
            for (rule, _) in self.managed_rules(group).filter(|(_, name)| name.clone().allow().is_some()) {
                if let Some(obstacle) = self.obstacle_of(group, rule) {
                    let (group, rule) = (group.id.name(), &rule.name);
                    found(format!("{obstacle} of {group} before the window's rule {rule}"), false);
                }
            }
        }
        for (group, rule) in self.unmoved() {
            found(
                format!("rule {} of {} is not yet moved behind Postern's", rule.name, group.id.name()),
                true,
            );
        }
        if !locked.is_empty() {
            if let Some(reason) = self.machine.gap() {
                found(format!("not locked: {reason}"), false);
            }
            for open in self.still_open(&locked) {
                found(format!("not locked: {open}"), false);
            }
            for group in self.on_the_way().filter(|group| group.flushes) {
                let then = match flush {
                    Flush::Refuse => "no window opens until it is off",
                    Flush::Warn => "an expiry cuts connections that are established",
                };
                found(format!("{} has flushConnection on: {then}", group.id.name()), false);
            }
        }
        drift
    }

    /// The customer's rules that are noted as moved and still have their old priority, each with its group, by priority: a
    /// lockdown that goes on moves them in the order in which it was planned, so that none passes another rule than planned.
    pub(crate) fn unmoved(&self) -> Vec<(&'a Nsg, &'a NsgRule)> {
        // The notes are of other machines then.
        if self.is_behind() {
            return Vec::new();
        }
        let unmoved = self.on_the_way().flat_map(|group| {
            // If Postern's rules come before it by now, there is nothing to move.
            let last = self.denies(group).iter().map(|(deny, ..)| deny.priority).max().unwrap_or(u16::MAX);
            notes(group, self.deployment).filter_map(move |(_, note)| {
                let rule = group.rules.iter().find(|rule| note.was(&rule.name))?;
                (rule.priority == note.priority && rule.priority < last).then_some((group, rule))
            })
        });
        let mut unmoved: Vec<_> = unmoved.collect();
        // The notes lie from the end of the list, the last one first.
        unmoved.sort_by_key(|(group, rule)| (&group.id, rule.priority));
        unmoved
    }
}

/// The notes of moved rules in a group.
pub(crate) fn notes<'a>(
    group: &'a Nsg,
    deployment: &'a str,
) -> impl Iterator<Item = (&'a NsgRule, names::Moved)> + 'a {
    group.rules.iter().filter_map(move |rule| {
        let note = RuleName::read(&rule.name)?.moved()?;
        note.is_of(deployment).then_some((rule, note))
    })
}

/// The content of a rule; none where Postern never writes such a rule.
pub(crate) fn content(rule: &NsgRule) -> Option<Content> {
    let RuleProtocol::One(protocol) = rule.traffic.protocol else { return None };
    let ports = rule
        .traffic
        .ports
        .iter()
        .map(|range| if range.start() == range.end() { port_of(*range.start()) } else { None });
    let ports: Option<BTreeSet<_>> = ports.collect();
    Some(Content { protocol, ports: ports?, sources: sources(&rule.traffic.sources)? })
        .filter(|content| rule.traffic.any_source_port && !content.ports.is_empty())
}

fn sources(peers: &[RulePeer]) -> Option<BTreeSet<SourcePrefix>> {
    let source = |peer: &RulePeer| match peer {
        RulePeer::Any => "0.0.0.0/0".parse().ok(),
        RulePeer::Net(net) => net.to_string().parse().ok(),
        RulePeer::Tag(_) | RulePeer::ApplicationGroup(_) | RulePeer::IpGroup(_) => None,
    };
    peers.iter().map(source).collect()
}

fn port_of(port: u16) -> Option<postern_core::Port> {
    postern_core::Port::new(port.into()).ok()
}
