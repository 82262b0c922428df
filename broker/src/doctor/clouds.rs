//! The checks of the permissions in each cloud. On AWS each action is tried as a dry run. Azure has no dry run of a change: what a
//! subscription lets the broker read is tried, and its changes are not.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_aws::{Aws, PermissionTrial, TrialOutcome};
use postern_azure::Azure;
use postern_provider::Provider as _;
use postern_runtime::findings::Finding;

use crate::config::BrokerConfig;

/// The longest time for all of one cloud.
const CLOUD_TIMEOUT: Duration = Duration::from_secs(120);

/// Checks each cloud that the configuration names.
pub(super) async fn check(config: &BrokerConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(settings) = config.aws.clone() {
        let trials = tokio::time::timeout(CLOUD_TIMEOUT, async {
            Aws::connect(settings).await.try_permissions().await
        });
        findings.extend(trials.await.map_or_else(|_| vec![too_slow("AWS")], judged));
    }
    if let Some(settings) = config.azure.clone() {
        findings.extend(match Azure::connect(settings) {
            Err(error) => vec![Finding::error(format!("Azure: {error}"), "correct [azure]")],
            Ok(azure) => {
                let read = tokio::time::timeout(CLOUD_TIMEOUT, azure.assess(&config.management_ports)).await;
                read.map_or_else(|_| vec![too_slow("Azure")], |report| {
                    let unread = report.unread.iter().map(|unread| {
                        let remedy = "compare the role of the broker's identity with packaging/azure/role.json, and where it is assigned";
                        Finding::error(format!("{} cannot be read: {}", unread.place, unread.error), remedy)
                    });
                    let unread: Vec<Finding> = unread.collect();
                    if unread.is_empty() {
                        vec![Finding::good(format!(
                            "Azure lets the broker read all that it needs ({} virtual machines); changes cannot be tried: \
                             `postern lockdown TARGET --dry-run` plans one",
                            report.assessments.len()
                        ))]
                    } else {
                        unread
                    }
                })
            }
        });
    }
    findings
}

fn too_slow(cloud: &str) -> Finding {
    Finding::error(
        format!("{cloud} does not answer within {} s", CLOUD_TIMEOUT.as_secs()),
        "check that this machine reaches the cloud's endpoints",
    )
}

/// Returns one finding for each account and Region and each outcome.
fn judged(trials: Vec<PermissionTrial>) -> Vec<Finding> {
    let remedy =
        "compare the role's permissions with packaging/aws/policy.json, and the tags that it asks for";
    let mut findings = Vec::new();
    let mut by_place: BTreeMap<String, (Vec<&str>, Vec<String>)> = BTreeMap::new();
    for PermissionTrial { place, action, outcome } in trials {
        let (allowed, unknown) = by_place.entry(place.clone()).or_default();
        match outcome {
            TrialOutcome::Allowed => allowed.push(action),
            TrialOutcome::Denied(why) => {
                findings.push(Finding::error(format!("{place}: {action} is denied: {why}"), remedy))
            }
            TrialOutcome::Unknown(why) => unknown.push(format!("{action} ({why})")),
            TrialOutcome::Unreachable(why) => {
                let remedy = "correct the credentials, the role or the Region, and check that this machine reaches EC2 and STS";
                findings.push(Finding::error(format!("{place}: {why}"), remedy));
            }
        }
    }
    for (place, (allowed, unknown)) in by_place {
        if !allowed.is_empty() {
            findings.push(Finding::good(format!("{place}: a dry run allows {}", allowed.join(", "))));
        }
        if !unknown.is_empty() {
            findings.push(Finding::warning(
                format!("{place}: a dry run tells nothing of {}", unknown.join(", ")),
                "run this again once a target is under lockdown",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use postern_runtime::findings::Severity;

    use super::*;

    #[test]
    fn each_denied_action_is_an_error_and_what_was_not_tried_a_warning() {
        let trial = |action, outcome| PermissionTrial { place: "account 1 in r".to_owned(), action, outcome };
        let findings = judged(vec![
            trial("DescribeInstances", TrialOutcome::Allowed),
            trial("CreateSecurityGroup", TrialOutcome::Denied("no".to_owned())),
            trial("CreateTags", TrialOutcome::Unknown("nothing".to_owned())),
        ]);
        let of =
            |severity| findings.iter().find(|finding| finding.severity == severity).unwrap().what.clone();
        assert!(of(Severity::Error).contains("CreateSecurityGroup is denied: no"));
        assert!(of(Severity::Warning).contains("CreateTags (nothing)"));
        assert!(of(Severity::Good).contains("DescribeInstances"));
    }
}
