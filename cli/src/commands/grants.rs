//! `grants`, `show` and `revoke`.

use postern_core::GrantId;
use postern_proto::v1;

use super::pages;
use super::wait::{self, Goal};
use super::watch::{GrantWatch, WatchEvent};
use crate::args::{GrantsArgs, RevokeArgs, StateArg};
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, table};

/// Lists grants, or follows them.
///
/// # Errors
/// The broker refuses or is away.
pub(super) async fn grants(
    broker: &BrokerClient,
    console: &mut Console,
    asked: GrantsArgs,
) -> Result<(), Failure> {
    let filter = filter(broker, &asked)?;
    if asked.watch {
        return follow(broker, console, filter).await;
    }
    let limit = usize::try_from(asked.limit).unwrap_or(usize::MAX);
    let (grants, more) = pages::collect(limit, |page| {
        let request = v1::ListGrantsRequest { filter: Some(filter.clone()), page: Some(page) };
        async move {
            let answer = broker.call(broker.access().list_grants(request)).await?;
            Ok((answer.grants, answer.next_page_token))
        }
    })
    .await?;
    let grants = grants.into_iter().map(json::GrantJson::from).collect();
    let ids = console.ids();
    Ok(console.show(&json::GrantsJson { grants, more }, |it, now| table::grants(it, now, ids))?)
}

/// Shows one grant.
///
/// # Errors
/// The caller may see no such grant.
pub(super) async fn show(
    broker: &BrokerClient,
    console: &mut Console,
    grant: GrantId,
) -> Result<(), Failure> {
    let request = v1::GetGrantRequest { grant_id: grant.to_string() };
    let answer = broker.call(broker.access().get_grant(request)).await?;
    let ids = console.ids();
    Ok(console.show(&named(answer.grant)?.into(), |it, now| table::grant(it, now, ids))?)
}

/// Closes a grant before its end.
///
/// # Errors
/// The caller may not close the grant, or it was not closed in time.
pub(super) async fn revoke(
    broker: &BrokerClient,
    console: &mut Console,
    asked: RevokeArgs,
) -> Result<(), Failure> {
    let request = v1::RevokeAccessRequest {
        grant_id: asked.grant.to_string(),
        reason: asked.reason.map(String::from).unwrap_or_default(),
        terminate: false,
        wait: None,
    };
    let answer = broker.call(broker.access().revoke_access(request)).await?;
    let grant = named(answer.grant)?;
    let (grant, outcome) = if asked.no_wait {
        (grant, Ok(()))
    } else {
        wait::until(Goal::Closed, asked.timeout, grant, broker, console).await
    };
    let ids = console.ids();
    console.show(&grant.into(), |it, now| table::grant(it, now, ids))?;
    outcome
}

async fn follow(
    broker: &BrokerClient,
    console: &mut Console,
    filter: v1::GrantFilter,
) -> Result<(), Failure> {
    let mut watch = GrantWatch::new(broker, filter);
    loop {
        if let WatchEvent::Grant(grant) = watch.next().await? {
            let ids = console.ids();
            console.item(&json::GrantJson::from(*grant), |it, now| table::grant_line(it, now, ids))?;
        }
    }
}

fn filter(broker: &BrokerClient, asked: &GrantsArgs) -> Result<v1::GrantFilter, Failure> {
    let principal = if asked.mine { Some(broker.principal()?) } else { asked.principal.clone() };
    Ok(v1::GrantFilter {
        target: asked.target.as_ref().map(ToString::to_string).unwrap_or_default(),
        states: asked.states.iter().map(|state| v1::GrantState::from(*state).into()).collect(),
        principal: principal.map(String::from).unwrap_or_default(),
        grant_id: String::new(),
    })
}

fn named(grant: Option<v1::Grant>) -> Result<v1::Grant, Failure> {
    grant.ok_or_else(|| Failure::BadAnswer { what: "it contains no grant".to_owned() })
}

impl From<StateArg> for v1::GrantState {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::PendingApproval => Self::PendingApproval,
            StateArg::Opening => Self::Opening,
            StateArg::Active => Self::Active,
            StateArg::Closing => Self::Closing,
            StateArg::Closed => Self::Closed,
            StateArg::Denied => Self::Denied,
            StateArg::Failed => Self::Failed,
        }
    }
}
