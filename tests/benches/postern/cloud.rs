//! The cloud layer on EC2, which is a moto server here: what a grant costs in calls and in time, and what a sweep does.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_ec2::types::{IpPermission, IpRange, ResourceType, Tag, TagSpecification};
use postern_aws::{Aws, AwsAccount, AwsSettings};
use postern_proto::v1::Layers;
use postern_provider::Provider as _;
use postern_tests::Net;
use postern_tests::clock::monotonic;
use postern_tests::ec2::{ACCOUNT, AwsWorld, Cloud, Ec2, REGION, RuleSpec};
use tempfile::TempDir;

use crate::lines::{Samples, line, note, percentiles};

/// The number of grants that are opened one after the other.
const GRANTS: usize = 40;
/// The number of instances of the fleet.
const FLEET: usize = 2000;

/// Opens and closes grants in both layers, and makes the same change of EC2 by hand in between.
pub(crate) fn grants() {
    let world = AwsWorld::new(Layers::Both);
    let bare = world.ec2.cloud_through_proxy(ACCOUNT, REGION);
    let own = bare.own_group(&world.instance).unwrap();
    // The broker has looked at the target for the first time.
    let warm = world.alice.open(&world.ask());
    world.alice.revoke(&warm.id).unwrap();
    world.ec2.forget_calls();

    let (mut to_active, mut to_closed, mut round_trip) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
    for number in 0..GRANTS {
        // A sweep may fall between the two: the calls that change something are what a grant costs. A close makes one read
        // besides, which shows that its rules are gone.
        let count = |calls: &mut BTreeMap<&str, usize>, phase| {
            let changes = world.ec2.calls().iter().filter(|call| call.is_change()).count();
            *calls.entry(phase).or_default() += changes;
            world.ec2.forget_calls();
        };
        world.ec2.forget_calls();
        let start = monotonic();
        let grant = world.alice.open(&world.ask());
        to_active.add(start.elapsed());
        count(&mut calls, "opened");
        let start = monotonic();
        world.alice.revoke(&grant.id).unwrap();
        to_closed.add(start.elapsed());
        count(&mut calls, "closed");

        let rule = RuleSpec::tcp(22, 22, &format!("198.51.100.{number}/32"));
        let start = monotonic();
        bare.allow(&own, &rule);
        round_trip.add(start.elapsed());
        world.cloud.revoke(&own, &rule);
    }
    for (phase, calls) in calls {
        let each = f64::from(u32::try_from(calls).unwrap()) / f64::from(u32::try_from(GRANTS).unwrap());
        line(&format!("ec2-calls-per-grant-{phase}"), each, "fewest", 1.0, "calls");
    }
    percentiles("request-to-active-both-layers", &to_active, "sdk-round-trip", &round_trip);
    percentiles("revoke-to-closed-both-layers", &to_closed, "sdk-round-trip", &round_trip);
}

/// Sweeps a fleet under lockdown, each instance with one window.
pub(crate) fn sweep() {
    let dir = TempDir::with_prefix("postern-").unwrap();
    let net = Net::new();
    let ec2 = Ec2::start(&net.hub, dir.path());
    let cloud = ec2.cloud(ACCOUNT, REGION);
    let start = monotonic();
    fleet(&cloud);
    note(&format!("{FLEET} instances under lockdown were made in {:.0} s", start.elapsed().as_secs_f64()));
    let settings = AwsSettings {
        deployment: "postern".to_owned(),
        endpoint: Some(ec2.endpoint()),
        rules_per_group: 60,
        groups_per_interface: 5,
        tags: [].into(),
        accounts: vec![AwsAccount {
            id: ACCOUNT.to_owned(),
            regions: vec![REGION.to_owned()],
            role_arn: None,
            external_id: None,
        }],
    };
    let aws = Arc::new(net.hub.netns().run(Aws::connect(settings)));
    ec2.forget_calls();
    let start = monotonic();
    let swept = net.hub.netns().run(async move { aws.sweep().await });
    let took = start.elapsed();
    assert_eq!(swept.unread, []);
    let windows: usize =
        swept.sightings.iter().map(|sighting| sighting.held.as_ref().unwrap().windows.len()).sum();
    assert_eq!((swept.sightings.len(), windows), (FLEET, FLEET));
    assert!(swept.sightings.iter().all(|sighting| sighting.held.as_ref().unwrap().drift.is_empty()));

    let mut by_action: BTreeMap<String, u32> = BTreeMap::new();
    let calls = ec2.calls().into_iter().filter(|call| call.action.starts_with("Describe"));
    calls.for_each(|call| *by_action.entry(call.action).or_default() += 1);
    let total: u32 = by_action.values().sum();
    // Groups, interfaces, and the rules of the windows, in pages of a thousand.
    let fewest = 3 * FLEET.div_ceil(1000);
    note(&format!("{by_action:?}"));
    line(
        "ec2-calls-per-sweep-of-2000",
        total.into(),
        "fewest",
        f64::from(u32::try_from(fewest).unwrap()),
        "calls",
    );
    line("ec2-sweep-of-2000", took.as_secs_f64(), "time-between-sweeps", 600.0, "s");
}

/// Makes instances and what a lockdown and a grant would have made for them, past every limit of calls.
fn fleet(cloud: &Cloud) {
    let (web, vpc) = (cloud.group("web", &[RuleSpec::tcp(443, 443, "0.0.0.0/0")]), cloud.vpc());
    let mut instances = Vec::new();
    while instances.len() < FLEET {
        instances.extend(cloud.instances("fleet", 100, &[&[&web]]));
    }
    for (number, instance) in instances.into_iter().enumerate() {
        let interfaces = cloud.interfaces(&instance);
        let interface = interfaces.into_keys().next().unwrap();
        let (vpc, web) = (vpc.clone(), web.clone());
        cloud.run(|client| async move {
            let tagged = |kind, pairs: &[(&str, &str)]| {
                let tag = |(key, value): &(&str, &str)| Tag::builder().key(*key).value(*value).build();
                TagSpecification::builder()
                    .resource_type(kind)
                    .set_tags(Some(pairs.iter().map(tag).collect()))
                    .build()
            };
            let holder = format!("postern:holder:{instance}");
            let tags = tagged(
                ResourceType::SecurityGroup,
                &[
                    ("postern:managed-by", "postern"),
                    ("postern:role", "windows"),
                    ("postern:instance", &instance),
                    ("postern:state", "locked"),
                    ("postern:interfaces", "all"),
                    (&holder, "tcp/22"),
                ],
            );
            let name = format!("postern-{instance}");
            let made = client.create_security_group().group_name(name).description("a fleet").vpc_id(vpc);
            let own = made.tag_specifications(tags).send().await.unwrap().group_id.unwrap();
            let everything = IpPermission::builder()
                .ip_protocol("-1")
                .ip_ranges(IpRange::builder().cidr_ip("0.0.0.0/0").build())
                .build();
            let shut = client.revoke_security_group_egress().group_id(&own).ip_permissions(everything);
            shut.send().await.unwrap();
            let attach = client.modify_network_interface_attribute().network_interface_id(interface);
            attach.groups(web).groups(&own).send().await.unwrap();
            let (id, end) = (format!("{number:026}"), "2100-01-01T00:00:00Z");
            let tags = tagged(
                ResourceType::SecurityGroupRule,
                &[
                    ("postern:managed-by", "postern"),
                    (&format!("postern:grant:{id}"), end),
                    ("postern:grant", &id),
                    ("postern:not-after", end),
                ],
            );
            let described = format!("Postern: grant {id} until {end}");
            let window = IpPermission::builder()
                .ip_protocol("tcp")
                .from_port(22)
                .to_port(22)
                .ip_ranges(IpRange::builder().cidr_ip("192.0.2.7/32").description(described).build())
                .build();
            let open = client.authorize_security_group_ingress().group_id(&own).ip_permissions(window);
            open.tag_specifications(tags).send().await.unwrap();
        });
    }
}
