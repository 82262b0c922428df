//! The inventory of a whole subscription: the sweep and the assessment.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::try_join;
use postern_core::{ProtectedPort, TargetId};
use postern_provider::kit::CallError;
use postern_provider::{Assessment, CloudError, Health, Sighting};

use crate::id::{ArmId, brief};
use crate::layer::Azure;
use crate::names::{self, Key, RuleName};
use crate::network::{Network, RulePeer, UnreadKind, UnreadPart, exposures};
use crate::reader::{Reader, VirtualMachine};
use crate::settings::AzureSettings;
use crate::snapshot::{LockedRules, MachineSnapshot, MachineView};

/// The target of a virtual machine.
fn target(vm: &ArmId) -> Option<TargetId> {
    TargetId::from_segments(&["azure", vm.subscription(), vm.group(), vm.name()]).ok()
}

/// The targets for which a subscription holds rules of Postern's.
#[derive(Default)]
pub(crate) struct SubscriptionSweep {
    /// The targets in the subscription.
    pub(crate) sightings: Vec<Sighting>,
    /// The targets in other subscriptions: a hub's firewall holds rules for them.
    pub(crate) of_others: Vec<TargetId>,
    /// The targets whose windows could not be judged, each with the reason.
    pub(crate) unjudged: Vec<(TargetId, CloudError)>,
    /// The targets that were locked, released or repaired while the subscription was read: the reading may be the older one.
    pub(crate) changed: Vec<TargetId>,
    /// The parts of the network that could not be read.
    pub(crate) unread: Vec<UnreadPart>,
}

/// Finds every target that holds rules of Postern's, from the names of rules alone (I2).
///
/// # Errors
/// The subscription could not be read.
pub(crate) async fn sweep(azure: &Azure, subscription: &str) -> Result<SubscriptionSweep, CloudError> {
    let (reading, before, adding) = (azure.targets.start_reading(), azure.groups.epochs(), azure.adding());
    let network = azure.reader().subscription(subscription).await?;
    azure.groups.record(&network.groups, &before);
    let deployment = &azure.settings.deployment;
    let machines: BTreeMap<Key, (TargetId, ArmId)> = network
        .interfaces
        .iter()
        .filter_map(|interface| interface.vm.clone())
        .filter_map(|vm| Some((target(&vm)?, vm)))
        .map(|(target, vm)| (Key::of(deployment, &target), (target, vm)))
        .collect();
    let mut seen = traces(&network, &azure.settings);
    // Another principal may have deleted all of Postern's rules of a target: then only this process knows of the lockdown.
    let is_here =
        |target: &TargetId| matches!(target, TargetId::Azure { subscription: of, .. } if of == subscription);
    let locked_rules = azure.targets.locked_targets().into_iter().filter(is_here);
    for target in locked_rules {
        let key = Key::of(deployment, &target);
        seen.entry(key).or_default().named = Some(target);
    }
    let mut swept = SubscriptionSweep::default();
    for (key, traces) in seen {
        match (machines.get(&key), traces.named) {
            (Some((target, vm)), _) => {
                let snapshot = MachineSnapshot::among(&network, vm, &traces.groups);
                if !azure.targets.compare(target, &snapshot, reading) {
                    swept.changed.push(target.clone());
                    continue;
                }
                if let Err(error) = snapshot.check_read(target, deployment) {
                    swept.unjudged.push((target.clone(), error));
                    continue;
                }
                let locked_rules = azure.targets.locked_rules(target);
                let observation =
                    azure.observation(&snapshot.view(target, deployment, &locked_rules), &adding);
                swept.sightings.push(Sighting { target: target.clone(), held: Some(observation) });
            }
            (None, Some(target)) if azure.targets.is_older(reading, &target) => swept.changed.push(target),
            (None, Some(target)) if is_here(&target) => {
                swept.sightings.push(Sighting { target, held: None });
            }
            (None, Some(target)) => swept.of_others.push(target),
            (None, None) => tracing::warn!(
                %key, subscription, "Postern's rules of a deleted machine remain, and its name is too long to be in them: delete them by hand"
            ),
        }
    }
    swept.unread = network.unread;
    Ok(swept)
}

/// The places that hold rules of Postern's for one target.
#[derive(Debug, Default)]
struct Traces {
    /// The target, if a description names it.
    named: Option<TargetId>,
    groups: BTreeSet<ArmId>,
}

/// Collects the keys in the names of Postern's rules.
fn traces(network: &Network, settings: &AzureSettings) -> BTreeMap<Key, Traces> {
    let deployment = &settings.deployment;
    let in_groups = network.groups.values().flat_map(|group| {
        group.rules.iter().map(|rule| (&group.id, rule.name.as_str(), rule.description.as_str()))
    });
    let in_firewalls = network.firewalls.iter().flat_map(|firewall| {
        firewall.nat.iter().map(|rule| (&firewall.id, rule.name.as_str(), rule.description.as_str()))
    });
    let mut traces: BTreeMap<Key, Traces> = BTreeMap::new();
    for (place, rule, description) in in_groups.chain(in_firewalls) {
        let Some(key) = RuleName::read(rule).and_then(|name| name.key().cloned()) else { continue };
        if key.is_of(deployment) {
            let of_key = traces.entry(key.clone()).or_default();
            // A group is in the subscription of its machines; a firewall need not be.
            let of = |subscription: &str| names::target_of(description, subscription, &key, deployment);
            let elsewhere = || settings.subscriptions.iter().find_map(|subscription| of(subscription));
            let named = || of(place.subscription()).or_else(elsewhere);
            of_key.named = of_key.named.take().or_else(named);
            of_key.groups.insert(place.clone());
        }
    }
    traces
}

/// Assesses every virtual machine of a subscription.
///
/// # Errors
/// The subscription could not be read.
pub(crate) async fn assess(
    azure: &Azure,
    subscription: &str,
    management: &BTreeSet<ProtectedPort>,
) -> Result<(Vec<Assessment>, Vec<UnreadPart>), CloudError> {
    let reader = azure.reader();
    let (network, machines) = try_join!(reader.subscription(subscription), reader.machines(subscription))?;
    let mut network = network;
    let machines = network.items(UnreadKind::Reach, machines);
    Reader::add_hidden_interfaces(&mut network, &machines);
    let nothing = LockedRules::default();
    for VirtualMachine { id, .. } in &machines {
        if ArmId::new(id).and_then(|id| target(&id)).is_none() {
            let reason = "a target's resource group and name are letters, digits and . _ - only";
            let error = CallError::NotSent { reason: reason.to_owned() };
            network.lacks(UnreadKind::Reach, format!("the virtual machine {}", brief(id)), error);
        }
    }
    let traces = traces(&network, &azure.settings);
    let nowhere = BTreeSet::new();
    let judge = |vm: ArmId| {
        let target = target(&vm)?;
        let trace = traces.get(&Key::of(&azure.settings.deployment, &target));
        let snapshot = MachineSnapshot::among(&network, &vm, trace.map_or(&nowhere, |trace| &trace.groups));
        let view = snapshot.view(&target, &azure.settings.deployment, &nothing);
        let locked = view.is_locked();
        let health = judge(&view, management, locked);
        let windows = view.observation(azure.settings.flush_connection).windows;
        Some(Assessment { name: vm.name().to_owned(), target: target.clone(), locked, windows, health })
    };
    let ids = machines.iter().filter_map(|machine| ArmId::new(&machine.id));
    let assessments = ids.filter_map(judge).collect();
    Ok((assessments, network.unread))
}

fn judge(view: &MachineView<'_>, management: &BTreeSet<ProtectedPort>, locked: bool) -> Health {
    let machine = view.machine;
    if let Some(front) = &machine.front
        && let Some(policy) = &front.policy
    {
        let reason = format!(
            "the firewall {} in front is managed by the policy {policy}: only classic rules can be changed",
            front.firewall.name()
        );
        return Health::NotApplicable { reason };
    }
    if let Some(reason) = machine.unread.first().filter(|_| machine.groups.is_empty()) {
        return Health::NotApplicable { reason: reason.clone() };
    }
    if machine.doors.is_empty() {
        return Health::NotApplicable { reason: "it has no interface with an address".into() };
    }
    if machine.groups.is_empty() {
        let reason = "it has no network security group, neither on an interface nor on a subnet";
        return Health::NotApplicable { reason: reason.into() };
    }
    let is_window_rule =
        |rule: &str| RuleName::read(rule).is_some_and(|name| matches!(name, RuleName::Allow(_)));
    let by_groups = exposures(view.groups, &machine.doors, management)
        .into_iter()
        .filter(|exposure| {
            !exposure.by_default && !exposure.rules.iter().any(|(_, rule, _)| is_window_rule(rule))
        })
        .map(|exposure| format!("{} exposed: {exposure}", exposure.port));
    let reasons: Vec<String> = by_groups.chain(through_firewall(view, management)).collect();
    match machine.gap() {
        Some(reason) if reasons.is_empty() => Health::NotApplicable { reason },
        Some(_) | None => Health::of(reasons, locked),
    }
}

/// Finds rules of the firewall in front that lead to a management port which no group shuts to the firewall.
fn through_firewall(view: &MachineView<'_>, management: &BTreeSet<ProtectedPort>) -> Vec<String> {
    let Some(front) = &view.machine.front else { return Vec::new() };
    let seen_as: Vec<RulePeer> = front.seen_as.iter().map(|source| RulePeer::from(*source)).collect();
    let rules = view.firewall.into_iter().flat_map(|firewall| &firewall.nat);
    let mut found = Vec::new();
    for rule in rules.filter(|rule| RuleName::read(&rule.name).is_none()) {
        let Some((ip, port)) = rule.translated else { continue };
        let exposed =
            management.iter().filter(|it| it.port.get() == port && rule.protocols.contains(&it.protocol));
        for port in exposed {
            for door in view.machine.doors.iter().filter(|door| door.ip == ip) {
                let passes = door.groups.iter().filter_map(|id| view.groups.get(id)).all(|group| {
                    let admitted = group.admissions(door, *port);
                    admitted.iter().any(|it| seen_as.iter().any(|seen| it.source.meets(seen)))
                });
                if passes {
                    let (name, collection, firewall) = (&rule.name, &rule.collection, front.firewall.name());
                    let sources: Vec<String> = rule.sources.iter().map(ToString::to_string).collect();
                    let sources = sources.join(", ");
                    found.push(format!(
                        "{port} exposed: rule {name} of the collection {collection} of the firewall {firewall} leads {sources} to it"
                    ));
                }
            }
        }
    }
    found
}
