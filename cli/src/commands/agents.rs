//! `agents token | list | ban | forget`.

use std::time::Duration;

use postern_core::{Justification, TargetId};
use postern_proto::{convert, v1};

use super::pages;
use crate::args::AgentsCommand;
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, table};

/// Runs one of these commands.
///
/// # Errors
/// The broker refuses or is away.
pub(super) async fn run(
    broker: &BrokerClient,
    console: &mut Console,
    command: AgentsCommand,
) -> Result<(), Failure> {
    match command {
        AgentsCommand::Token { target, valid_for } => token(broker, console, &target, valid_for).await,
        AgentsCommand::List => list(broker, console).await,
        AgentsCommand::Ban { target, reason } => ban(broker, console, &target, reason).await,
        AgentsCommand::Forget { target, reason, accept_held_windows } => {
            forget(broker, console, &target, reason, accept_held_windows).await
        }
    }
}

async fn token(
    broker: &BrokerClient,
    console: &mut Console,
    target: &TargetId,
    valid_for: Duration,
) -> Result<(), Failure> {
    let valid_for = Some(convert::duration_to_wire(valid_for));
    let request = v1::CreateJoinTokenRequest { target: target.to_string(), valid_for };
    let answer = broker.call(broker.agents().create_join_token(request)).await?;
    let token = json::TokenJson {
        target: target.to_string(),
        enroll_command: "postern-agent enroll --token-file -".to_owned(),
        token: answer.token,
        expires_at: json::time(answer.expires_at),
    };
    Ok(console.show(&token, table::token)?)
}

async fn list(broker: &BrokerClient, console: &mut Console) -> Result<(), Failure> {
    let agents = pages::all(|page| async move {
        let request = v1::ListAgentsRequest { page: Some(page) };
        let answer = broker.call(broker.agents().list_agents(request)).await?;
        Ok((answer.agents, answer.next_page_token))
    })
    .await?;
    let agents = agents.into_iter().map(json::AgentJson::from).collect();
    let ids = console.ids();
    Ok(console.show(&json::AgentsJson { agents }, |it, now| table::agents(it, now, ids))?)
}

async fn ban(
    broker: &BrokerClient,
    console: &mut Console,
    target: &TargetId,
    reason: Option<Justification>,
) -> Result<(), Failure> {
    let reason = reason.map(String::from).unwrap_or_default();
    let request = v1::BanAgentRequest { target: target.to_string(), reason };
    let answer = broker.call(broker.agents().ban_agent(request)).await?;
    let agent = answer.agent.ok_or_else(|| Failure::BadAnswer { what: "it contains no agent".to_owned() })?;
    let ids = console.ids();
    Ok(console.show(&agent.into(), |it, now| table::agent(it, now, ids))?)
}

async fn forget(
    broker: &BrokerClient,
    console: &mut Console,
    target: &TargetId,
    reason: Option<Justification>,
    accept_held_windows: bool,
) -> Result<(), Failure> {
    let (target, reason) = (target.to_string(), reason.map(String::from).unwrap_or_default());
    let request = v1::ForgetAgentRequest { target, reason, accept_held_windows };
    let answer = broker.call(broker.agents().forget_agent(request)).await?;
    Ok(console.show(&json::ForgottenJson::from(answer), table::forgotten)?)
}
