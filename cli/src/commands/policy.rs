//! `policy apply | get | list | delete`.

use std::cell::Cell;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use postern_core::{Name, Policy};
use postern_proto::{convert, v1};

use super::pages;
use crate::args::{ConnectionArgs, PolicyCommand};
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{self, Console, json, table};
use crate::policy_file::{self, PolicyFileError};

/// Runs one of these commands. A policy file is read and checked completely before any call to a broker.
///
/// # Errors
/// The file cannot be used, or the broker refuses or is away.
pub(super) async fn run(
    connection: &ConnectionArgs,
    console: &mut Console,
    command: PolicyCommand,
) -> Result<(), Failure> {
    match command {
        PolicyCommand::Apply { file } => {
            let policies = policy_file::parse(&read(&file)?, file)?;
            apply(&BrokerClient::of(connection)?, console, &policies).await
        }
        PolicyCommand::Get { name } => get(&BrokerClient::of(connection)?, console, &name).await,
        PolicyCommand::List => list(&BrokerClient::of(connection)?, console).await,
        PolicyCommand::Delete { name } => delete(&BrokerClient::of(connection)?, console, &name).await,
    }
}

fn read(file: &Path) -> Result<String, PolicyFileError> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|source| PolicyFileError::Read { file: PathBuf::from(file), source })
}

/// Puts one policy after another. If one is refused, those before it stay, and the command shows them.
async fn apply(broker: &BrokerClient, console: &mut Console, policies: &[Policy]) -> Result<(), Failure> {
    let mut kept = Vec::new();
    let mut outcome = Ok(());
    for policy in policies {
        match put(broker, policy).await {
            Ok(policy) => kept.push(policy),
            Err(failure) => {
                let done = kept.len();
                console.note(&format!(
                    "policy {} was not applied; {done} of {} policies were applied before it",
                    policy.name,
                    policies.len()
                ));
                outcome = Err(failure);
                break;
            }
        }
    }
    console.show(&json::PoliciesJson { policies: kept }, table::policies)?;
    outcome
}

async fn put(broker: &BrokerClient, policy: &Policy) -> Result<json::PolicyJson, Failure> {
    let request = v1::PutPolicyRequest { policy: Some(convert::policy_to_wire(policy, 0)) };
    let answer = broker.call(broker.policies().put_policy(request)).await?;
    named(answer.policy).map(json::PolicyJson::from)
}

async fn get(broker: &BrokerClient, console: &mut Console, name: &Name) -> Result<(), Failure> {
    let request = v1::GetPolicyRequest { name: name.to_string() };
    let answer = broker.call(broker.policies().get_policy(request)).await?;
    let wire = named(answer.policy)?;
    if console.is_json() {
        return Ok(console.show(&json::PolicyJson::from(wire), |_, _| String::new())?);
    }
    let senseless = |what: String| Failure::BadAnswer { what };
    let (policy, version) = convert::policy(Some(&wire)).map_err(|e| senseless(e.to_string()))?;
    let toml = policy_file::write(&policy).map_err(|e| senseless(e.to_string()))?;
    Ok(console.text(&format!("# version {}\n{}", version.unwrap_or_default(), toml.trim_end()))?)
}

async fn list(broker: &BrokerClient, console: &mut Console) -> Result<(), Failure> {
    let warned = &Cell::new(false);
    let policies = pages::all(|page| async move {
        let request = v1::ListPoliciesRequest { page: Some(page) };
        let answer = broker.call(broker.policies().list_policies(request)).await?;
        // Each page has them.
        if !warned.replace(!answer.warnings.is_empty()) {
            answer.warnings.iter().for_each(|warning| output::warn(warning));
        }
        Ok((answer.policies, answer.next_page_token))
    })
    .await?;
    let policies = policies.into_iter().map(json::PolicyJson::from).collect();
    Ok(console.show(&json::PoliciesJson { policies }, table::policies)?)
}

async fn delete(broker: &BrokerClient, console: &mut Console, name: &Name) -> Result<(), Failure> {
    let request = v1::DeletePolicyRequest { name: name.to_string() };
    broker.call(broker.policies().delete_policy(request)).await?;
    let deleted = json::DeletedJson { deleted: name.to_string() };
    Ok(console.show(&deleted, |deleted, _| format!("policy {} is deleted", deleted.deleted))?)
}

fn named(policy: Option<v1::Policy>) -> Result<v1::Policy, Failure> {
    policy.ok_or_else(|| Failure::BadAnswer { what: "it contains no policy".to_owned() })
}
