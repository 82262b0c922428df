//! A whole account and Region at once: the sweep and the assessment, in as few calls as their pages allow.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{Assessment, CloudError, Health, Sighting};

use crate::accounts::Place;
use crate::api::Find;
use crate::assess::exposures;
use crate::look::{Look, Panorama, View};
use crate::resource::{Group, Instance, Interface};
use crate::rule::Rule;
use crate::tags;
use crate::window::{self, Held};

/// Everything of ours, from tags alone (I2). Each look is shown to `seen`.
pub(crate) async fn sweep(
    place: &Place,
    deployment: &str,
    seen: impl Fn(&TargetId, &Look),
) -> Result<Vec<Sighting>, CloudError> {
    let ec2 = place.ec2().await?;
    let mut groups = ec2.groups(Find::Where("tag:postern:managed-by", &[deployment.to_owned()])).await?;
    let served: Vec<String> = Panorama::served(&groups).into_iter().collect();
    if served.is_empty() {
        return Ok(Vec::new());
    }
    let interfaces = ec2.interfaces(Find::Where("attachment.instance-id", &served)).await?;
    let lost = lost(&groups, &interfaces);
    if !lost.is_empty() {
        groups.extend(ec2.groups(Find::Where("group-id", &lost)).await?);
        groups.retain(|group| group.is_ours(deployment));
    }
    let attached: BTreeSet<&String> = interfaces.iter().filter_map(|found| found.instance.as_ref()).collect();
    let bare: Vec<String> = served.iter().filter(|instance| !attached.contains(instance)).cloned().collect();
    let bare =
        if bare.is_empty() { Vec::new() } else { ec2.instances(Find::Where("instance-id", &bare)).await? };
    let bare = bare.into_iter().map(|instance| instance.id).collect();

    let mut rules = ec2.rules(Find::Where("tag:postern:managed-by", &[deployment.to_owned()])).await?;
    // A group that has other rules than those with our tag was changed by somebody: it is read in full, like the groups
    // that are not ours. What is parked holds nothing open.
    let count = |side: &BTreeMap<String, Vec<Rule>>, id: &String| side.get(id).map_or(0, Vec::len);
    let tagged = |id: &String| count(&rules.ingress, id) + count(&rules.egress, id);
    let ours: BTreeSet<&String> = groups.iter().map(|group| &group.id).collect();
    let odd = groups.iter().filter(|group| group.parked_for().is_none() && group.rules != tagged(&group.id));
    let others =
        interfaces.iter().flat_map(|interface| &interface.groups).filter(|group| !ours.contains(group));
    let ids: BTreeSet<String> = odd.map(|group| &group.id).chain(others).cloned().collect();
    let ids: Vec<String> = ids.into_iter().collect();
    if !ids.is_empty() {
        let read = ec2.rules(Find::Where("group-id", &ids)).await?;
        for (whole, read) in [(&mut rules.ingress, read.ingress), (&mut rules.egress, read.egress)] {
            ids.iter().for_each(|id| drop(whole.remove(id)));
            whole.extend(read);
        }
    }
    let looks = Panorama { groups, interfaces, rules, bare }.looks();
    let sighting = |(instance, look): (&String, &Look)| {
        let sighting = sighting(place, deployment, instance, look)?;
        seen(&sighting.target, look);
        Some(sighting)
    };
    Ok(looks.iter().filter_map(sighting).collect())
}

/// Groups that by their names are own groups of instances, and that were not found by their tags.
pub(crate) fn lost(groups: &[Group], interfaces: &[Interface]) -> Vec<String> {
    let found: BTreeSet<&String> = groups.iter().map(|group| &group.id).collect();
    let named = interfaces.iter().filter_map(|interface| interface.own.as_ref());
    let lost: BTreeSet<String> = named.filter(|id| !found.contains(id)).cloned().collect();
    lost.into_iter().collect()
}

fn sighting(place: &Place, deployment: &str, instance: &str, look: &Look) -> Option<Sighting> {
    let target = target(place, instance)?;
    let is_left_behind = !look.exists && look.own().is_some();
    let held = (!is_left_behind).then(|| look.observation(View { target: &target, instance, deployment }));
    Some(Sighting { target, held })
}

/// Every instance, judged.
pub(crate) async fn assess(
    place: &Place,
    deployment: &str,
    management: &BTreeSet<ProtectedPort>,
) -> Result<Vec<Assessment>, CloudError> {
    let ec2 = place.ec2().await?;
    let instances = ec2.instances(Find::All).await?;
    let interfaces = ec2.interfaces(Find::All).await?;
    let groups = ec2.groups(Find::Where("tag:postern:managed-by", &[deployment.to_owned()])).await?;
    let rules = ec2.rules(Find::All).await?;
    let mut by_instance: BTreeMap<&str, Vec<&Interface>> = BTreeMap::new();
    for interface in &interfaces {
        if let Some(instance) = &interface.instance {
            by_instance.entry(instance).or_default().push(interface);
        }
    }
    let ours: BTreeSet<&String> = groups.iter().map(|group| &group.id).collect();
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
            .filter(|id| !ours.contains(id))
            .collect();
        let of_others = groups.into_iter().filter_map(|group| rules.ingress.get(group)).flatten();
        // A rule in a group of Postern's own is a window, or it must not be there.
        let in_ours =
            interfaces.iter().flat_map(|interface| &interface.groups).filter(|id| ours.contains(id));
        let in_ours =
            in_ours.collect::<BTreeSet<_>>().into_iter().filter_map(|group| rules.ingress.get(group));
        let (windows, strange): (Vec<_>, Vec<_>) = in_ours
            .flatten()
            .map(|rule| (rule, Held::read(rule, deployment)))
            .partition(|(_, held)| held.is_some());
        let windows: Vec<Held> = windows.into_iter().filter_map(|(_, held)| held).collect();
        let strange = strange.into_iter().map(|(rule, _)| rule);
        let shut = shut.get(&instance.id).into_iter().flatten().chain(management).copied().collect();
        let exposed = exposures(strange, &shut).into_iter().chain(exposures(of_others, management));
        let reasons: Vec<String> = exposed.map(|exposure| exposure.to_string()).collect();
        let locked = locked.contains(&instance.id);
        let target = target(place, &instance.id)?;
        Some(Assessment {
            windows: window::windows(&target, &windows),
            target,
            name: instance.tags.get("Name").cloned().unwrap_or_default(),
            locked,
            health: health(interfaces, reasons, locked),
        })
    };
    Ok(instances.into_iter().filter_map(judge).collect())
}

fn health(interfaces: &[&Interface], reasons: Vec<String>, locked: bool) -> Health {
    if interfaces.is_empty() {
        return Health::NotApplicable {
            reason: "it has no network interface in a VPC, so no security group".into(),
        };
    }
    match (reasons.is_empty(), locked) {
        (false, _) => Health::Unhealthy { reasons },
        (true, true) => {
            Health::Healthy { reason: "it is under lockdown, and no rule exposes a management port".into() }
        }
        (true, false) => Health::Healthy { reason: "no rule exposes a management port".into() },
    }
}

fn target(place: &Place, instance: &str) -> Option<TargetId> {
    TargetId::from_segments(&["aws", &place.account, &place.region, instance]).ok()
}
