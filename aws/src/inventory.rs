//! A whole account and Region at once: the sweep and the assessment, in as few calls as their pages allow.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{Assessment, CloudError, Health, Sighting};

use crate::accounts::AccountRegion;
use crate::assess::exposures;
use crate::ec2::Find;
use crate::names;
use crate::resource::{Ec2Group, Ec2Interface, Instance};
use crate::rule::GroupRule;
use crate::rule_codec::{self, MarkedRule};
use crate::snapshot::{InstanceContext, InstanceSnapshot, RegionSnapshot};
use crate::tags;

/// The findings of a sweep of one account and Region.
pub(crate) struct RegionSweep {
    pub(crate) sightings: Vec<Sighting>,
    /// The customer's groups whose rules are parked although no tag lists a holder, or which are on no interface of
    /// a holder: a group that is gone is one of these.
    pub(crate) orphaned: Vec<String>,
}

/// Finds all of Postern's resources from tags alone (I2). Passes each snapshot to `seen`.
pub(crate) async fn sweep(
    place: &AccountRegion,
    deployment: &str,
    seen: impl Fn(&TargetId, &InstanceSnapshot),
) -> Result<RegionSweep, CloudError> {
    let ec2 = place.ec2().await?;
    let mut groups = ec2.groups(Find::Where("tag:postern:managed-by", &[deployment.to_owned()])).await?;
    let served: Vec<String> = RegionSnapshot::served(&groups).into_iter().collect();
    if served.is_empty() {
        return Ok(RegionSweep { sightings: Vec::new(), orphaned: orphaned(&groups, &[]) });
    }
    let interfaces = ec2.interfaces(Find::Where("attachment.instance-id", &served)).await?;
    let orphaned = orphaned(&groups, &interfaces);
    let mut untagged = own_groups_without_tags(&groups, &served);
    untagged.extend(parked_groups_without_tags(&groups));
    if !untagged.is_empty() {
        groups.extend(ec2.groups(Find::Where("group-name", &untagged)).await?);
        groups.retain(|group| group.is_managed(deployment));
    }
    let attached: BTreeSet<&String> = interfaces.iter().filter_map(|found| found.instance.as_ref()).collect();
    let bare: Vec<String> = served.iter().filter(|instance| !attached.contains(instance)).cloned().collect();
    let bare =
        if bare.is_empty() { Vec::new() } else { ec2.instances(Find::Where("instance-id", &bare)).await? };
    let bare = bare.into_iter().map(|instance| instance.id).collect();

    let mut rules = ec2.rules(Find::Where("tag:postern:managed-by", &[deployment.to_owned()])).await?;
    // Another principal changed a group that has other rules than those with Postern's tag: the sweep reads
    // it in full, like the customer's groups. Parked rules hold nothing open.
    let count = |side: &BTreeMap<String, Vec<GroupRule>>, id: &String| side.get(id).map_or(0, Vec::len);
    let tagged = |id: &String| count(&rules.ingress, id) + count(&rules.egress, id);
    let managed: BTreeSet<&String> = groups.iter().map(|group| &group.id).collect();
    let edited =
        groups.iter().filter(|group| group.parked_for().is_none() && group.rules != tagged(&group.id));
    let others =
        interfaces.iter().flat_map(|interface| &interface.groups).filter(|group| !managed.contains(group));
    let ids: BTreeSet<String> = edited.map(|group| &group.id).chain(others).cloned().collect();
    let ids: Vec<String> = ids.into_iter().collect();
    if !ids.is_empty() {
        let read = ec2.rules(Find::Where("group-id", &ids)).await?;
        for (whole, read) in [(&mut rules.ingress, read.ingress), (&mut rules.egress, read.egress)] {
            ids.iter().for_each(|id| drop(whole.remove(id)));
            whole.extend(read);
        }
    }
    let snapshots = RegionSnapshot { groups, interfaces, rules, bare }.instances();
    let sighting = |(instance, snapshot): (&String, &InstanceSnapshot)| {
        let sighting = sighting(place, deployment, instance, snapshot)?;
        seen(&sighting.target, snapshot);
        Some(sighting)
    };
    Ok(RegionSweep { sightings: snapshots.iter().filter_map(sighting).collect(), orphaned })
}

/// Returns the customer's groups with parked groups that list no holder with the group on an interface. Whether the
/// rules go is decided when the groups are read in full.
fn orphaned(groups: &[Ec2Group], interfaces: &[Ec2Interface]) -> Vec<String> {
    let mut on: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for interface in interfaces {
        let groups = interface.groups.iter().map(String::as_str);
        on.entry(interface.instance.as_deref().unwrap_or_default()).or_default().extend(groups);
    }
    let mut is_held: BTreeMap<&str, bool> = BTreeMap::new();
    for group in groups {
        if let Some(parked_for) = group.parked_for() {
            let holders = tags::holders(&group.tags);
            *is_held.entry(parked_for).or_default() |=
                holders.keys().any(|of| on.get(of.as_str()).is_some_and(|on| on.contains(parked_for)));
        }
    }
    is_held.into_iter().filter(|(_, held)| !held).map(|(group, _)| group.to_owned()).collect()
}

/// Returns the names of the first parked groups that own groups name in their tags, and that were not found by their tags.
fn parked_groups_without_tags(groups: &[Ec2Group]) -> BTreeSet<String> {
    let found: BTreeSet<&str> = groups.iter().filter_map(Ec2Group::parked_for).collect();
    let shuts = groups.iter().flat_map(|group| tags::shuts(&group.tags));
    shuts.filter(|group| !found.contains(group.as_str())).map(|group| names::parked(&group, 1)).collect()
}

/// Returns the names of the own groups of these instances that were not found by their tags.
fn own_groups_without_tags(groups: &[Ec2Group], instances: &[String]) -> Vec<String> {
    let found: BTreeSet<&String> = groups.iter().map(|group| &group.name).collect();
    instances.iter().map(|instance| names::own(instance)).filter(|name| !found.contains(name)).collect()
}

fn sighting(
    place: &AccountRegion,
    deployment: &str,
    instance: &str,
    snapshot: &InstanceSnapshot,
) -> Option<Sighting> {
    let target = target(place, instance)?;
    let is_left_behind = !snapshot.exists && snapshot.own().is_some();
    let held = (!is_left_behind)
        .then(|| snapshot.observation(InstanceContext { target: &target, instance, deployment }));
    Some(Sighting { target, held })
}

/// Assesses every instance.
pub(crate) async fn assess(
    place: &AccountRegion,
    deployment: &str,
    management: &BTreeSet<ProtectedPort>,
) -> Result<Vec<Assessment>, CloudError> {
    let ec2 = place.ec2().await?;
    let instances = ec2.instances(Find::All).await?;
    let interfaces = ec2.interfaces(Find::All).await?;
    let groups = ec2.groups(Find::Where("tag:postern:managed-by", &[deployment.to_owned()])).await?;
    let rules = ec2.rules(Find::All).await?;
    let mut by_instance: BTreeMap<&str, Vec<&Ec2Interface>> = BTreeMap::new();
    // The interfaces that a service manages carry containers, whose ports are not the machine's.
    for interface in interfaces.iter().filter(|interface| interface.is_guarded(false)) {
        if let Some(instance) = &interface.instance {
            by_instance.entry(instance).or_default().push(interface);
        }
    }
    let managed: BTreeSet<&String> = groups.iter().map(|group| &group.id).collect();
    let locked: BTreeSet<&String> = groups
        .iter()
        .filter(|group| group.tags.get(tags::STATE).is_some_and(|state| state == tags::LOCKED))
        .filter_map(|group| group.tags.get(tags::INSTANCE))
        .collect();
    let shut: BTreeMap<String, BTreeSet<ProtectedPort>> =
        groups.iter().flat_map(|group| tags::holders(&group.tags)).collect();
    let judge = |instance: Instance| {
        let interfaces = by_instance.get(instance.id.as_str()).map_or(&[][..], Vec::as_slice);
        let groups: BTreeSet<&String> = interfaces
            .iter()
            .flat_map(|interface| &interface.groups)
            .filter(|id| !managed.contains(id))
            .collect();
        let customer_rules = groups.into_iter().filter_map(|group| rules.ingress.get(group)).flatten();
        // A rule in a group of Postern's is a window, or it must not be there.
        let in_managed =
            interfaces.iter().flat_map(|interface| &interface.groups).filter(|id| managed.contains(id));
        let in_managed =
            in_managed.collect::<BTreeSet<_>>().into_iter().filter_map(|group| rules.ingress.get(group));
        let (windows, strays): (Vec<_>, Vec<_>) = in_managed
            .flatten()
            .map(|rule| (rule, MarkedRule::read(rule, deployment)))
            .partition(|(_, held)| held.is_some());
        let windows: Vec<MarkedRule> = windows.into_iter().filter_map(|(_, held)| held).collect();
        let strays = strays.into_iter().map(|(rule, _)| rule);
        let shut = shut.get(&instance.id).into_iter().flatten().chain(management).copied().collect();
        let exposed = exposures(strays, &shut).into_iter().chain(exposures(customer_rules, management));
        let reasons: Vec<String> = exposed.map(|exposure| exposure.to_string()).collect();
        let locked = locked.contains(&instance.id);
        let target = target(place, &instance.id)?;
        Some(Assessment {
            windows: rule_codec::windows(&target, &windows),
            target,
            name: instance.tags.get("Name").cloned().unwrap_or_default(),
            locked,
            health: health(interfaces, reasons, locked),
        })
    };
    Ok(instances.into_iter().filter_map(judge).collect())
}

fn health(interfaces: &[&Ec2Interface], reasons: Vec<String>, locked: bool) -> Health {
    if interfaces.is_empty() {
        return Health::NotApplicable {
            reason: "it has no network interface in a VPC, so no security group".into(),
        };
    }
    Health::of(reasons, locked)
}

fn target(place: &AccountRegion, instance: &str) -> Option<TargetId> {
    TargetId::from_segments(&["aws", &place.account, &place.region, instance]).ok()
}
