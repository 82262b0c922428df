//! The trial of the broker's permissions: each action that it needs, as a dry run. EC2 judges the permission and does nothing.
//!
//! A permission to change a resource may depend on its tags. So the changes are tried on Postern's own resources, where a target is under
//! lockdown; without one, only the creation of a group can be tried.

use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{IpPermission, IpRange, ResourceType, Tag, TagSpecification};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use postern_provider::kit::CallError;

use crate::ec2::{Ec2, Find};
use crate::error::call_error;
use crate::resource::Ec2Group;
use crate::trial::TrialOutcome;
use crate::{names, tags};

/// EC2's answer to a dry run that would have been carried out.
const WOULD_SUCCEED: &str = "DryRunOperation";
/// EC2's answer to a caller without the permission.
const DENIED: &str = "UnauthorizedOperation";
/// The number of groups that are read to find a VPC; the fewest that EC2 lets a page have.
const FEW: i32 = 5;
/// An instance that no account has, for the name of a group that is not made.
const NO_INSTANCE: &str = "i-00000000000000000";

/// What a trial calls in one account and Region.
pub(crate) struct DryRuns<'a> {
    /// The client for reads.
    pub(crate) reads: &'a Client,
    /// The client for changes.
    pub(crate) writes: &'a Client,
    /// The calls in the terms of this crate.
    pub(crate) ec2: &'a dyn Ec2,
}

/// Sends a call as a dry run and judges the answer.
macro_rules! trial {
    ($action:literal, $call:expr) => {
        ($action, judged($action, $call.dry_run(true).send().await))
    };
}

/// Tries each action in one account and Region.
pub(crate) async fn in_place(ec2: &DryRuns<'_>, deployment: &str) -> Vec<(&'static str, TrialOutcome)> {
    let reads = ec2.reads;
    let mut trials = vec![
        trial!("DescribeInstances", reads.describe_instances()),
        trial!("DescribeNetworkInterfaces", reads.describe_network_interfaces()),
        trial!("DescribeSecurityGroups", reads.describe_security_groups()),
        trial!("DescribeSecurityGroupRules", reads.describe_security_group_rules()),
        trial!("DescribeManagedPrefixLists", reads.describe_managed_prefix_lists()),
    ];
    if trials.iter().any(|(_, outcome)| *outcome != TrialOutcome::Allowed) {
        return trials;
    }
    let few = reads.describe_security_groups().max_results(FEW).send().await;
    let vpc = few.ok().and_then(|page| {
        page.security_groups().iter().find_map(|group| group.vpc_id().map(ToOwned::to_owned))
    });
    trials.push(match vpc {
        None => ("CreateSecurityGroup", TrialOutcome::Unknown("there is no VPC to try it in".to_owned())),
        Some(vpc) => {
            let tags =
                [(tags::MANAGED_BY, deployment), (tags::ROLE, tags::WINDOWS), (tags::INSTANCE, NO_INSTANCE)];
            let call = ec2
                .writes
                .create_security_group()
                .group_name(names::own(NO_INSTANCE))
                .description("Postern: a dry run")
                .vpc_id(vpc);
            trial!(
                "CreateSecurityGroup",
                call.tag_specifications(specification(ResourceType::SecurityGroup, &tags))
            )
        }
    });
    trials.extend(on_own_group(ec2, deployment).await);
    trials
}

/// Tries the changes of a lockdown's own resources.
async fn on_own_group(ec2: &DryRuns<'_>, deployment: &str) -> Vec<(&'static str, TrialOutcome)> {
    const ACTIONS: [&str; 5] = [
        "AuthorizeSecurityGroupIngress",
        "RevokeSecurityGroupIngress",
        "CreateTags",
        "DeleteSecurityGroup",
        "ModifyNetworkInterfaceAttribute",
    ];
    let all = |outcome: TrialOutcome| ACTIONS.map(|action| (action, outcome.clone())).to_vec();
    let own = match ec2.ec2.groups(Find::Where("tag:postern:managed-by", &[deployment.to_owned()])).await {
        Ok(groups) => groups
            .into_iter()
            .find(|group| group.tags.get(tags::ROLE).is_some_and(|role| role == tags::WINDOWS)),
        Err(error) => return all(TrialOutcome::Unknown(error.to_string())),
    };
    let Some(own) = own else {
        return all(TrialOutcome::Unknown(
            "no target is under lockdown, so there is nothing to try it on".to_owned(),
        ));
    };
    let (writes, id) = (ec2.writes, own.id.as_str());
    let range = IpRange::builder().cidr_ip("192.0.2.1/32").build();
    let traffic = IpPermission::builder().ip_protocol("tcp").from_port(1).to_port(1).ip_ranges(range).build();
    let made_by = [(tags::MANAGED_BY, deployment)];
    let rule_tags = specification(ResourceType::SecurityGroupRule, &made_by);
    let state = Tag::builder().key(tags::STATE).value(tags::LOCKED).build();
    vec![
        trial!(
            "AuthorizeSecurityGroupIngress",
            writes
                .authorize_security_group_ingress()
                .group_id(id)
                .ip_permissions(traffic.clone())
                .tag_specifications(rule_tags)
        ),
        trial!(
            "RevokeSecurityGroupIngress",
            writes.revoke_security_group_ingress().group_id(id).ip_permissions(traffic)
        ),
        trial!("CreateTags", writes.create_tags().resources(id).tags(state)),
        trial!("DeleteSecurityGroup", writes.delete_security_group().group_id(id)),
        on_interface(ec2, &own).await,
    ]
}

/// Tries to give an interface the groups that it has.
async fn on_interface(ec2: &DryRuns<'_>, own: &Ec2Group) -> (&'static str, TrialOutcome) {
    const ACTION: &str = "ModifyNetworkInterfaceAttribute";
    let found = match ec2.ec2.interfaces(Find::Where("group-id", std::slice::from_ref(&own.id))).await {
        Ok(found) => found.into_iter().next(),
        Err(error) => return (ACTION, TrialOutcome::Unknown(error.to_string())),
    };
    let Some(interface) = found else {
        return (ACTION, TrialOutcome::Unknown(format!("no interface has the group {}", own.id)));
    };
    let call = ec2.writes.modify_network_interface_attribute().network_interface_id(interface.id);
    trial!("ModifyNetworkInterfaceAttribute", call.set_groups(Some(interface.groups)))
}

fn specification(resource: ResourceType, tags: &[(&str, &str)]) -> TagSpecification {
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(*key).value(*value).build()).collect();
    TagSpecification::builder().resource_type(resource).set_tags(Some(tags)).build()
}

fn judged<T, E>(action: &'static str, answer: Result<T, SdkError<E, HttpResponse>>) -> TrialOutcome
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let Err(error) = answer else { return TrialOutcome::Allowed };
    let error = call_error(action, &error);
    let CallError::Answered { code, .. } = &error else {
        return TrialOutcome::Unreachable(error.to_string());
    };
    match code.as_str() {
        WOULD_SUCCEED => TrialOutcome::Allowed,
        DENIED => TrialOutcome::Denied(error.to_string()),
        _ => TrialOutcome::Unknown(error.to_string()),
    }
}
