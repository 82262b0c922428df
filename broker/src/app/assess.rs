//! Assessment: the VMs that need just-in-time access, as their clouds answer right now. It keeps nothing and changes nothing.
//!
//! A cloud returns the windows that are open; the store has the open grants that want them. Any other window is an exposure:
//! its end was put off, or its grant is over.

use std::collections::BTreeSet;

use postern_core::plan::{LayerWindow, desired_cloud};
use postern_core::{Grant, ProtectedPort, TargetId};
use postern_provider::{Assessment, AssessmentReport, CloudError, Health, Hidden, Unread};

use super::App;

/// Assesses these VMs by these ports, in the order of their ids; every VM if none is named. A named VM that no cloud shows is
/// in the answer too, with the reason.
pub async fn assess(
    app: &App,
    targets: &[TargetId],
    management: &BTreeSet<ProtectedPort>,
) -> AssessmentReport {
    // Read before and after: a grant may open or close while the clouds are read.
    let before = app.store.open_grants().await;
    let mut survey = app.cloud.assess(management).await;
    match (before, app.store.open_grants().await) {
        (Ok(before), Ok(after)) => {
            let grants: Vec<Grant> = before.into_iter().chain(after).map(|grant| grant.record).collect();
            let now = app.clock.now();
            for assessment in &mut survey.assessments {
                let wanted = desired_cloud(&assessment.target, &grants, now);
                expose(assessment, &wanted);
            }
        }
        (Err(error), _) | (_, Err(error)) => {
            let reason = format!("open windows cannot be compared with the grants: {error}");
            let (error, hides) = (CloudError::unavailable(reason), Hidden::Nothing);
            survey.unread.push(Unread { place: "the store".into(), error, hides });
        }
    }
    if !targets.is_empty() {
        survey.assessments.retain(|assessment| targets.contains(&assessment.target));
        let seen: BTreeSet<TargetId> =
            survey.assessments.iter().map(|assessment| assessment.target.clone()).collect();
        let unseen = targets.iter().filter(|target| !seen.contains(target));
        let unknown: Vec<Assessment> = unseen.map(|target| unknown(app, target, &survey.unread)).collect();
        survey.assessments.extend(unknown);
    }
    survey.assessments.sort_by(|one, other| one.target.cmp(&other.target));
    survey
}

/// Marks a VM as unhealthy if a window is open on it that no open grant wants.
fn expose(assessment: &mut Assessment, wanted: &BTreeSet<LayerWindow>) {
    let reason = |window: &LayerWindow| {
        let LayerWindow { port, source, grant, not_after, .. } = window;
        format!(
            "{port} exposed: a rule lets {source} in until {not_after}, and the grant {grant} that it names opens no such window"
        )
    };
    let mut found: Vec<String> = assessment.windows.difference(wanted).map(reason).collect();
    if found.is_empty() {
        return;
    }
    if let Health::Unhealthy { reasons } = &mut assessment.health {
        reasons.append(&mut found);
    } else {
        assessment.health = Health::Unhealthy { reasons: found };
    }
}

fn unknown(app: &App, target: &TargetId, unread: &[Unread]) -> Assessment {
    let hiding = unread.iter().find(|place| place.may_hide(target));
    let reason = match hiding {
        _ if !app.cloud.drives(target) => {
            "this broker drives no cloud for it; configure its provider".to_owned()
        }
        Some(Unread { place, error, .. }) => format!("the broker could not read {place}: {error}"),
        None => "its cloud shows no such VM to this broker".to_owned(),
    };
    let health = Health::NotApplicable { reason };
    Assessment {
        target: target.clone(),
        name: String::new(),
        locked: false,
        windows: BTreeSet::new(),
        health,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::default_management_ports;
    use crate::testing::TestApp;

    fn vm(number: u8) -> TargetId {
        format!("aws:123456789012/eu-central-1/i-{number:017x}").parse().unwrap()
    }

    fn words(survey: &AssessmentReport) -> Vec<(TargetId, &'static str)> {
        let word = |one: &Assessment| (one.target.clone(), one.health.word());
        survey.assessments.iter().map(word).collect()
    }

    #[test]
    fn the_management_ports_are_those_of_administrators() {
        let ports: Vec<_> = default_management_ports().iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["tcp/22", "tcp/3389", "tcp/5985", "tcp/5986"]);
    }

    #[tokio::test]
    async fn every_vm_is_assessed_unless_some_are_named() {
        let test = TestApp::new();
        test.cloud.unlock(&vm(2));
        test.cloud.unlock(&vm(1));
        let ports = default_management_ports();
        let all = assess(&test.app, &[], &ports).await;
        assert_eq!(words(&all), [(vm(1), "unhealthy"), (vm(2), "unhealthy")]);
        let two = assess(&test.app, &[vm(2)], &ports).await;
        assert_eq!(words(&two), [(vm(2), "unhealthy")]);
        assert!(test.events().await.is_empty(), "looking is no change");
    }

    #[tokio::test]
    async fn i2_a_window_that_no_open_grant_wants_makes_its_vm_unhealthy() {
        let test = TestApp::new();
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let window = LayerWindow {
            target: vm(1),
            grant: postern_core::GrantId::from_parts(at(0), 7),
            port: "tcp/22".parse().unwrap(),
            source: "192.0.2.7".parse().unwrap(),
            not_after: at(4_000_000_000),
        };
        test.cloud.tamper(window);
        let survey = assess(&test.app, &[vm(1)], &default_management_ports()).await;
        let Health::Unhealthy { reasons } = &survey.assessments[0].health else { panic!("{survey:?}") };
        assert!(reasons[0].contains("tcp/22 exposed: a rule lets 192.0.2.7"), "{reasons:?}");
    }

    #[tokio::test]
    async fn a_vm_in_a_place_that_could_not_be_read_says_so() {
        let test = TestApp::new();
        let unread = Unread {
            place: "eu-central-1".to_owned(),
            error: CloudError::refused("no permission"),
            hides: Hidden::Everything,
        };
        let one = unknown(&test.app, &vm(1), &[unread]);
        let Health::NotApplicable { reason } = one.health else { panic!("{one:?}") };
        assert_eq!(reason, "the broker could not read eu-central-1: no permission");
    }

    #[tokio::test]
    async fn a_vm_that_no_cloud_shows_is_in_the_answer() {
        let test = TestApp::new();
        let azure: TargetId =
            "azure:/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm"
                .parse()
                .unwrap();
        let survey = assess(&test.app, &[azure.clone(), vm(9)], &default_management_ports()).await;
        let mut expected = [(vm(9), "not applicable"), (azure.clone(), "not applicable")];
        expected.sort();
        assert_eq!(words(&survey), expected);
        let reason = |target: &TargetId| {
            let found = survey.assessments.iter().find(|one| one.target == *target).unwrap();
            let Health::NotApplicable { reason } = &found.health else { panic!("{found:?}") };
            reason.clone()
        };
        assert!(reason(&azure).contains("drives no cloud"));
        assert!(reason(&vm(9)).contains("no such VM"));
    }
}
