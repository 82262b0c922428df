//! Single states that other principals make, and the way out of each.

use postern_provider::{Drift, Sighting};

use super::*;

fn ssh_from_anyone() -> NewGroupRule {
    rule(22, 22, RuleSource::Prefix("0.0.0.0/0".parse().unwrap()))
}

impl Model {
    fn own(&self, instance: usize) -> Option<String> {
        self.ec2.world().posterns().get(&names::own(&self.instances[instance])).cloned()
    }

    fn parked(&self, group: usize) -> Option<String> {
        self.ec2.world().posterns().get(&names::parked(&self.groups[group], 1)).cloned()
    }

    /// Takes a group off every interface, and deletes it.
    fn delete(&self, group: &str) {
        let mut world = self.ec2.world();
        for interface in world.interfaces.values_mut() {
            interface.groups.retain(|on| on != group);
        }
        world.delete(group).unwrap();
    }

    /// Returns the rules of the first group that expose a port of the first set.
    fn exposed_on_web(&self) -> Vec<String> {
        let web = format!(" of {} ", self.groups[0]);
        self.exposed(&port_sets()[0]).into_iter().filter(|rule| rule.contains(&web)).collect()
    }

    async fn drift(&self, instance: usize) -> Vec<Drift> {
        let target = self.target(instance);
        let sweep = self.aws.sweep().await;
        let is_it = |sighting: &&Sighting| sighting.target == target;
        let swept = sweep.sightings.iter().find(is_it).and_then(|sighting| sighting.held.clone());
        let seen = self.aws.observe(&target).await.unwrap();
        assert_eq!(swept.map(|held| held.drift), Some(seen.drift.clone()), "a sweep and a look agree");
        seen.drift
    }

    async fn drift_of_gone(&self) -> Vec<Drift> {
        self.rounds(1).await;
        self.aws
            .sweep()
            .await
            .sightings
            .into_iter()
            .flat_map(|sighting| sighting.held.unwrap().drift)
            .collect()
    }
}

/// Waits until every read shows what was written.
async fn later() {
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn i9_a_group_whose_rules_cannot_go_back_loses_no_record_of_another_and_holds_none_up() {
    for full in 0..2 {
        let model = Model::new();
        model.lock(1, 1).await.unwrap();
        later().await;
        let key = format!("{}{}", tags::HOLDER, model.instances[1]);
        for group in 0..2 {
            let parked = model.parked(group).unwrap();
            model.ec2.world().tags_of(&parked).unwrap().remove(&key);
        }
        model.delete(&model.own(1).unwrap());
        // Its owner's quota is higher than the configured one.
        {
            let mut world = model.ec2.world();
            let group = world.groups.get_mut(&model.groups[full]).unwrap();
            let like = group.ingress[0].clone();
            group.ingress.extend((0..60).map(|number| {
                let source = RuleSource::Prefix(format!("192.0.2.{number}/32").parse().unwrap());
                GroupRule { id: format!("sgr-more-{number}"), source, tags: Tags::new(), ..like.clone() }
            }));
        }
        let swept = model.aws.sweep().await;
        let other = &model.groups[1 - full];
        assert!(matches!(&swept.given_back[..], [what] if what.contains(other)), "{swept:?}");
        assert!(matches!(&swept.unread[..], [unread] if unread.place.contains("parked rules")), "{swept:?}");
        assert!(model.parked(full).is_some() && model.parked(1 - full).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn i6_an_instance_holds_no_group_of_an_interface_that_a_service_manages() {
    let model = Model::new();
    let before = model.rules();
    let task = {
        let mut world = model.ec2.world();
        let task = world.plug_in(&model.instances[0], &[&model.groups[1]]);
        world.interfaces.get_mut(&task).unwrap().is_managed = true;
        task
    };
    model.lock(0, 1).await.unwrap();
    model.lock(1, 1).await.unwrap();
    later().await;
    model.aws.release(&model.target(1)).await.unwrap();
    assert_eq!(model.parked(1), None, "only {task} of the other instance has the group");
    assert_eq!(model.rules()[1], before[1]);
    assert!(model.parked(0).is_some(), "the other instance needs it");
}

#[tokio::test(start_paused = true)]
async fn what_is_parked_of_a_group_that_is_gone_is_dropped_by_the_sweep_and_recorded() {
    let model = Model::new();
    let (group, instance) = {
        let mut world = model.ec2.world();
        let group = world.make_group("solo", Tags::new());
        world.allow(&group, &ssh_from_anyone()).unwrap();
        let instance = world.make_instance(&[&group]);
        (group, instance)
    };
    let mut model = model;
    model.instances[0] = instance;
    model.lock(0, 1).await.unwrap();
    later().await;
    model.ec2.world().terminate(&model.instances[0]);
    assert_eq!(
        model.aws.sweep().await.given_back,
        [""; 0],
        "the next instance of the group must not start open"
    );
    assert!(model.drift_of_gone().await[0].what.contains("`postern release aws:"));
    model.ec2.world().delete(&group).unwrap();
    let swept = model.aws.sweep().await;
    assert!(
        matches!(&swept.given_back[..], [what] if what.contains(&group) && what.contains("is gone")),
        "{swept:?}"
    );
    model.rounds(2).await;
    assert_eq!(model.ec2.world().posterns(), [].into());
}

#[tokio::test(start_paused = true)]
async fn i1_a_parked_group_that_another_principal_deletes_is_told_and_what_it_opened_is_shut_again() {
    for opens in [false, true] {
        let model = Model::new();
        model.lock(0, 0).await.unwrap();
        later().await;
        model.delete(&model.parked(0).unwrap());
        if opens {
            model.ec2.world().allow(&model.groups[0], &ssh_from_anyone()).unwrap();
        }
        let drift = model.drift(0).await;
        assert!(
            drift.iter().any(|drift| drift.repairable && drift.what.contains("took away what was parked")),
            "{drift:?}"
        );
        model.aws.repair(&model.target(0)).await.unwrap();
        assert_eq!(model.drift(0).await, []);
        assert_eq!(model.exposed_on_web(), [""; 0], "{opens}");
        assert_eq!(model.parked(0).is_some(), opens, "what was shut again can be put back");
    }
}

#[tokio::test(start_paused = true)]
async fn i1_a_holder_whose_rules_another_broker_put_back_is_shut_again() {
    let model = Model::new();
    model.lock(0, 0).await.unwrap();
    later().await;
    // Another broker has read neither the holder's tag nor its own group, and has given everything back.
    let (parked, group) = (model.parked(0).unwrap(), model.groups[0].clone());
    {
        let mut world = model.ec2.world();
        world.groups.get_mut(&group).unwrap().ingress.retain(|rule| !rule.tags.contains_key(tags::PIECE_OF));
        let originals = world.groups[&parked].ingress.clone();
        world.groups.remove(&parked);
        for original in originals {
            let GroupRule { traffic, source, description, .. } = original;
            let tags = [("team".to_owned(), String::new())].into();
            world.allow(&group, &NewGroupRule { traffic, source, description, tags }).unwrap();
        }
    }
    assert!(!model.exposed_on_web().is_empty());
    model.rounds(1).await;
    assert_eq!(model.exposed_on_web(), [""; 0]);
    assert_eq!(model.drift(0).await, []);
    model.aws.release(&model.target(0)).await.unwrap();
    assert_eq!(model.exposed_on_web().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn i1_a_group_of_posterns_on_an_interface_of_another_instance_is_taken_off() {
    let model = Model::new();
    model.lock(0, 1).await.unwrap();
    model.lock(1, 1).await.unwrap();
    later().await;
    let (own, parked) = (model.own(0).unwrap(), model.parked(0).unwrap());
    let interface = {
        let mut world = model.ec2.world();
        let (id, interface) = world
            .interfaces
            .iter_mut()
            .find(|(_, interface)| interface.instance == model.instances[1])
            .unwrap();
        interface.groups.extend([own.clone(), parked.clone()]);
        id.clone()
    };
    let drift = model.drift(1).await;
    assert_eq!(drift.iter().filter(|drift| drift.repairable && drift.what.contains(&interface)).count(), 2);
    model.aws.repair(&model.target(1)).await.unwrap();
    assert_eq!(model.drift(1).await, []);
    let on = model.ec2.world().interfaces[&interface].groups.clone();
    assert!(!on.contains(&own) && !on.contains(&parked), "{on:?}");
}

#[tokio::test(start_paused = true)]
async fn the_dry_run_of_a_release_names_what_keeps_ec2_from_deleting_a_group() {
    let model = Model::new();
    let target = model.target(0);
    model.lock(0, 0).await.unwrap();
    later().await;
    let (own, db) = (model.own(0).unwrap(), model.groups[1].clone());
    let named = model.ec2.world().allow(&db, &rule(8080, 8080, RuleSource::Group(own.clone()))).unwrap();
    let refused = |planned: Result<_, CloudError>| {
        let Err(CloudError::Refused { reason }) = planned else { panic!("not refused: {planned:?}") };
        reason
    };
    model.ec2.world().changes.clear();
    for planned in [model.aws.plan_release(&target).await, model.aws.release(&target).await] {
        let reason = refused(planned);
        assert!(
            reason.contains(&db) && reason.contains(&own) && reason.contains("remove those rules"),
            "{reason}"
        );
    }
    assert_eq!(model.ec2.world().changes, [""; 0]);
    model.ec2.world().groups.get_mut(&db).unwrap().ingress.retain(|rule| rule.id != named.id);
    let bare = model.ec2.world().plug_in(&model.instances[1], &[&own]);
    let reason = refused(model.aws.plan_release(&target).await);
    assert!(reason.contains(&bare) && reason.contains("give it another one"), "{reason}");
    model.ec2.world().interfaces.get_mut(&bare).unwrap().groups.push(db);
    model.aws.release(&target).await.unwrap();
    assert_eq!(model.ec2.world().posterns(), [].into());
}

#[tokio::test(start_paused = true)]
async fn a_lockdown_for_fewer_ports_opens_the_others_and_tells_which_it_shuts() {
    let model = Model::new();
    let target = model.target(1);
    let shut = async || model.aws.observe(&target).await.unwrap().shut;
    assert_eq!(shut().await, Some(BTreeSet::new()), "it is not under lockdown");
    let [ssh, both] = port_sets();
    let rdp: BTreeSet<ProtectedPort> = both.difference(&ssh).copied().collect();
    let open = model.exposed(&rdp);
    model.lock(1, 1).await.unwrap();
    assert_eq!((shut().await, model.exposed(&both)), (Some(both), vec![]));
    model.lock(1, 0).await.unwrap();
    assert_eq!((shut().await, model.exposed(&ssh)), (Some(ssh), vec![]));
    assert_eq!(model.exposed(&rdp).len(), open.len());
    assert_eq!(model.drift(1).await, []);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_gone_is_released_though_its_group_holds_a_window() {
    let model = Model::new();
    let target = model.target(0);
    model.lock(0, 0).await.unwrap();
    model.aws.open(&target, &[model.window(0, 1)].into()).await.unwrap();
    assert!(matches!(model.aws.plan_release(&target).await, Err(CloudError::Refused { .. })));
    model.ec2.world().terminate(&model.instances[0]);
    model.aws.release(&target).await.unwrap();
    assert_eq!(model.ec2.world().posterns(), [].into());
}
