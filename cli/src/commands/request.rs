//! `request`: one grant for one command, however often an answer is lost, and then the wait for it to open.

use std::io;
use std::path::Path;

use postern_core::{Invalid, SourcePrefix};
use postern_proto::{CALLER_TOKEN, convert, v1};
use postern_runtime::error_chain::error_chain;
use postern_runtime::private_file;
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use ulid::Ulid;

use super::retry::Retry;
use super::wait::{self, Goal};
use crate::args;
use crate::connect::{BrokerClient, CALL_TIMEOUT};
use crate::error::Failure;
use crate::output::{Console, json, table};

/// Requests access.
///
/// # Errors
/// The broker refused the request, or the grant did not become active in time. The command still shows a grant that
/// exists.
pub(super) async fn request(
    broker: &BrokerClient,
    console: &mut Console,
    asked: args::RequestArgs,
) -> Result<(), Failure> {
    let (no_wait, timeout) = (asked.no_wait, asked.timeout);
    let key_was_given = asked.idempotency_key.is_some();
    let token = asked.cloud_token.as_deref().map(cloud_token).transpose()?;
    let addresses = if asked.sources.is_empty() { broker.caller_addresses().await } else { Vec::new() };
    let request = v1::RequestAccessRequest { caller_addresses: addresses.clone(), ..to_wire(asked) };
    let answer = send(broker, request, token).await?;
    // Under a key of the command's own, a repeated request is one whose first answer was lost.
    if let Some(grant) = answer.grant.as_ref().filter(|_| !(answer.repeated_request && key_was_given)) {
        note_addresses(console, &addresses, grant);
    }
    let grant = answer.grant.ok_or_else(|| Failure::BadAnswer { what: "it contains no grant".to_owned() })?;
    if answer.repeated_request && key_was_given {
        console.note("this idempotency key was used before; this is the grant that it created");
    }
    let (grant, outcome) = if no_wait {
        (grant, Ok(()))
    } else {
        wait::until(Goal::Active, timeout, grant, broker, console).await
    };
    let result = json::RequestedJson {
        grant: grant.into(),
        source_from_caller: answer.source_from_caller,
        repeated_request: answer.repeated_request,
    };
    let ids = console.ids();
    console.show(&result, |it, now| table::requested(it, now, ids))?;
    outcome
}

/// Notes for which of this machine's addresses a grant has windows, if the broker sees the machine at two.
fn note_addresses(console: &mut Console, addresses: &[v1::CallerAddress], grant: &v1::Grant) {
    let has_window = |address: &&v1::CallerAddress| {
        let source = address.address.parse().map(SourcePrefix::single).map(|source| source.to_string());
        source.is_ok_and(|source| grant.windows.iter().any(|window| window.source == source))
    };
    let names = |addresses: &[&v1::CallerAddress]| {
        addresses.iter().map(|address| address.address.as_str()).collect::<Vec<_>>().join(" and ")
    };
    let (open, closed): (Vec<_>, Vec<_>) = addresses.iter().partition(has_window);
    let note = match (&open[..], &closed[..]) {
        // The broker sees one address alone, or the command named the sources.
        ([], _) => return,
        (open, []) => format!("the broker sees this machine at {}; the grant is for both", names(open)),
        (open, closed) => format!(
            "the broker also sees this machine at {}; the grant has no window for that address, because the policies do not allow it or \
             the target has no address of that family; connect to the target from {}",
            names(closed),
            names(open)
        ),
    };
    console.note(&note);
}

fn to_wire(asked: args::RequestArgs) -> v1::RequestAccessRequest {
    v1::RequestAccessRequest {
        targets: asked.targets.iter().map(ToString::to_string).collect(),
        ports: asked.ports.iter().map(|port| convert::port_to_wire(port.with(asked.proto))).collect(),
        sources: asked.sources.iter().map(ToString::to_string).collect(),
        duration: Some(convert::duration_to_wire(asked.duration)),
        justification: asked.reason.to_string(),
        idempotency_key: asked
            .idempotency_key
            .unwrap_or_else(|| Ulid::new().to_string().to_ascii_lowercase()),
        wait: None,
        caller_addresses: Vec::new(),
    }
}

/// The longest token that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// Reads the caller's own access token for a cloud.
fn cloud_token(file: &Path) -> Result<AsciiMetadataValue, Invalid> {
    let wrong = |problem: String| {
        let remedy = "name a file that contains only the access token, or - for standard input";
        Invalid::new("--cloud-token", problem, remedy)
    };
    let text = if file == Path::new("-") {
        io::read_to_string(io::stdin())
            .map_err(|error| wrong(format!("cannot read standard input: {error}")))?
    } else {
        private_file::read(file, MAX_TOKEN_BYTES).map_err(|error| wrong(error_chain(&error)))?
    };
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(wrong(format!("{} does not contain a token", file.display())));
    }
    let mut token = AsciiMetadataValue::try_from(token)
        .map_err(|_| wrong(format!("{} does not contain a token", file.display())))?;
    token.set_sensitive(true);
    Ok(token)
}

/// Sends the request until the broker answers. Its idempotency key makes that safe: the broker creates one grant
/// for all attempts.
async fn send(
    broker: &BrokerClient,
    request: v1::RequestAccessRequest,
    token: Option<AsciiMetadataValue>,
) -> Result<v1::RequestAccessResponse, Failure> {
    let mut maybe_received = false;
    let sending = send_until_answered(broker, &request, token.as_ref(), &mut maybe_received);
    let failure = match tokio::time::timeout(CALL_TIMEOUT, sending).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(failure)) if !(failure.is_transient() && maybe_received) => return Err(failure),
        Ok(Err(failure)) => failure,
        Err(_) => broker.unanswered(CALL_TIMEOUT),
    };
    Err(Failure::Unanswered { key: request.idempotency_key, source: Box::new(failure) })
}

async fn send_until_answered(
    broker: &BrokerClient,
    request: &v1::RequestAccessRequest,
    token: Option<&AsciiMetadataValue>,
    maybe_received: &mut bool,
) -> Result<v1::RequestAccessResponse, Failure> {
    let mut retry = Retry::for_call();
    loop {
        let mut call = Request::new(request.clone());
        if let Some(token) = token {
            call.metadata_mut().insert(CALLER_TOKEN, token.clone());
        }
        let failure = match broker.call(broker.access().request_access(call)).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        *maybe_received |= failure.may_have_been_received();
        retry.pause_after(failure).await?;
    }
}
