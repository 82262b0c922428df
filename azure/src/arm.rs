//! The calls of Azure Resource Manager. This module does not know what they are for.
//!
//! The SDK builds the requests for single security rules, and its models parse the answers. A resource that must keep fields
//! that the models do not know is sent as it came, through the same transport. The SDK's own pollers wait too long, lose the
//! reason of a failed operation, and send the token wherever a header leads: this module follows operations itself.

use std::sync::Arc;
use std::time::Duration;

use azure_core::auth::TokenCredential;
use azure_core::headers::{AUTHORIZATION, CONTENT_TYPE, HeaderName, Headers, IF_MATCH};
use azure_core::{
    ClientOptions, Context, Method, Pipeline, Request, RetryOptions, StatusCode, TransportOptions, Url,
};
use azure_mgmt_network::package_2024_03::models::SecurityRule;
use bytes::Bytes;
use postern_provider::kit::CallError;
use postern_runtime::backoff::Backoff;
use postern_runtime::error_chain::error_chain;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::clock;
use crate::credential::{self, EntraIdentity};
use crate::error::{answered, call_error};
use crate::id::{ArmId, brief};
use crate::settings::{Credential, Environment, Rates};
use crate::transport::{Transport, http, retry_after};

/// The version of Microsoft.Network's API, that of the SDK's models.
pub(crate) const NETWORK: &str = "2024-03-01";
/// The version of Microsoft.Compute's API.
pub(crate) const COMPUTE: &str = "2024-07-01";
/// The version of Microsoft.Authorization's API.
pub(crate) const AUTHORIZATION_API: &str = "2022-04-01";

/// The time that an operation is followed: a firewall takes five minutes for each, and one may be under way already.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(900);
/// The delay before the first poll of an operation, where Azure asks for none: a user waits for the port. Each delay is twice
/// the one before.
const FIRST_POLL_DELAY: Duration = Duration::from_millis(20);
/// The longest delay between polls, where Azure asks for none.
const MAX_POLL_DELAY: Duration = Duration::from_secs(2);
/// More pages than any list has.
const MAX_PAGES: usize = 10_000;

/// Azure Resource Manager, for the broker's identity.
#[derive(Clone)]
pub(crate) struct Arm {
    network: azure_mgmt_network::package_2024_03::Client,
    pipeline: Pipeline,
    credential: Arc<EntraIdentity>,
    endpoint: Url,
}

/// A list of resources. One that cannot be parsed must not hide the others, nor be missing without a word.
pub(crate) struct Listed<T> {
    pub(crate) items: Vec<T>,
    /// The resources that cannot be parsed: the id of each, and the reason.
    pub(crate) unparsed: Vec<(String, CallError)>,
}

/// The token that a request carries.
enum Bearer<'a> {
    /// The token of the broker.
    Own,
    /// The token of a caller.
    Of(&'a str),
}

#[derive(Deserialize)]
struct ListPage {
    #[serde(default)]
    value: Vec<Value>,
    #[serde(default, rename = "nextLink")]
    next_link: Option<String>,
}

/// An answer that is no error.
struct Reply {
    status: StatusCode,
    headers: Headers,
    body: Bytes,
}

/// The place where an operation is followed (azure-resource-manager-rpc, "Asynchronous operations").
enum OperationPlace {
    /// The URL of `Azure-AsyncOperation`: it answers with the state of the operation.
    State(Url),
    /// The URL of `Location`: it answers with 202 until the operation is done, and then with its result.
    Result(Url),
    /// The resource that was written: it says itself when it is done.
    Resource(Url),
    /// The group of a rule that was deleted: it is done when neither the rule nor a change is there any more.
    Group(Url, String),
}

/// The fields of a resource that say whether its last write is done.
#[derive(Default, Deserialize)]
struct WrittenResource {
    #[serde(default)]
    properties: Option<WrittenProperties>,
}

#[derive(Default, Deserialize)]
struct WrittenProperties {
    #[serde(default, rename = "provisioningState")]
    state: Option<String>,
    #[serde(default, rename = "securityRules")]
    rules: Vec<NamedRule>,
}

#[derive(Deserialize)]
struct NamedRule {
    #[serde(default)]
    name: String,
}

/// The state of an operation (Microsoft Learn, "Track asynchronous Azure operations").
#[derive(Deserialize)]
struct Operation {
    status: String,
    #[serde(default)]
    error: Option<OperationError>,
}

#[derive(Deserialize, Default)]
struct OperationError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Arm {
    /// Prepares the clients. No call is made.
    ///
    /// # Errors
    /// The endpoint is not a URL, or TLS cannot be set up.
    pub(crate) fn new(
        environment: &Environment,
        credential: Credential,
        rates: &Rates,
    ) -> Result<Self, String> {
        let endpoint: Url = environment.resource_manager.parse().map_err(|error| {
            format!("the endpoint {:?} is not a URL: {error}", environment.resource_manager)
        })?;
        let http = http().map_err(|error| error_chain(&error))?;
        let transport =
            TransportOptions::new(Arc::new(Transport::new(http.clone(), endpoint.clone(), rates)));
        let credential = Arc::new(EntraIdentity::new(credential, environment.clone(), http));
        // The transport makes all retries: it knows which calls it may repeat.
        let options = ClientOptions::default().transport(transport).retry(RetryOptions::none());
        let (name, version) = (option_env!("CARGO_PKG_NAME"), option_env!("CARGO_PKG_VERSION"));
        let pipeline = Pipeline::new(name, version, options.clone(), Vec::new(), Vec::new());
        let scopes = vec![credential::scope(environment)];
        let token: Arc<dyn TokenCredential> = Arc::clone(&credential) as _;
        let network =
            azure_mgmt_network::package_2024_03::Client::new(endpoint.clone(), token, scopes, options);
        Ok(Self { network, pipeline, credential, endpoint })
    }

    /// Reads a resource, or any other path.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, version: &str) -> Result<T, CallError> {
        let call = format!("GET {}", brief(path));
        let url = self.url(path, version, &call)?;
        let reply = self.send(&call, Method::Get, url, None, None, &Bearer::Own).await?;
        read(&call, &reply.body)
    }

    /// Reads a resource as it came, byte for byte.
    pub(crate) async fn get_raw(&self, id: &ArmId, version: &str) -> Result<Bytes, CallError> {
        let call = format!("GET {}", brief(id.as_str()));
        let url = self.url(id.as_str(), version, &call)?;
        Ok(self.send(&call, Method::Get, url, None, None, &Bearer::Own).await?.body)
    }

    /// Reads a path with a caller's own token.
    pub(crate) async fn get_as<T: DeserializeOwned>(
        &self,
        caller: &str,
        path: &str,
        version: &str,
    ) -> Result<T, CallError> {
        let call = format!("GET {} for the caller", brief(path));
        let url = self.url(path, version, &call)?;
        let reply = self.send(&call, Method::Get, url, None, None, &Bearer::Of(caller)).await?;
        read(&call, &reply.body)
    }

    /// Lists every resource of a kind, page after page.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        version: &str,
    ) -> Result<Listed<T>, CallError> {
        self.pages(&format!("list {}", brief(path)), path, version, &Bearer::Own).await
    }

    /// Lists everything of a kind with a caller's own token, without the items that cannot be parsed.
    pub(crate) async fn list_as<T: DeserializeOwned>(
        &self,
        caller: &str,
        path: &str,
        version: &str,
    ) -> Result<Vec<T>, CallError> {
        let listed = self
            .pages(&format!("list {} for the caller", brief(path)), path, version, &Bearer::Of(caller))
            .await;
        Ok(listed?.items)
    }

    async fn pages<T: DeserializeOwned>(
        &self,
        call: &str,
        path: &str,
        version: &str,
        bearer: &Bearer<'_>,
    ) -> Result<Listed<T>, CallError> {
        let mut url = self.url(path, version, call)?;
        let mut listed = Listed { items: Vec::new(), unparsed: Vec::new() };
        for _ in 0..MAX_PAGES {
            let reply = self.send(call, Method::Get, url, None, None, bearer).await?;
            let page: ListPage = read(call, &reply.body)?;
            for item in page.value {
                let id = item.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
                match serde_json::from_value(item) {
                    Ok(item) => listed.items.push(item),
                    Err(error) => {
                        let error = CallError::no_answer(call, format!("it cannot be parsed: {error}"));
                        listed.unparsed.push((id, error));
                    }
                }
            }
            let Some(next) = page.next_link.filter(|next| !next.is_empty()) else { return Ok(listed) };
            url = link(call, &next)?;
        }
        Err(CallError::no_answer(call, "the list has no end"))
    }

    /// Writes one security rule, and waits until it is in force.
    pub(crate) async fn put_rule(
        &self,
        group: &ArmId,
        name: &str,
        rule: SecurityRule,
    ) -> Result<(), CallError> {
        let call = format!("PUT {name} in {}", group.name());
        let rules = self.network.security_rules_client();
        let sent = rules
            .create_or_update(group.group(), group.name(), name, rule, group.subscription())
            .send()
            .await;
        let answer = sent.map_err(|error| call_error(&call, &error))?;
        let resource = self.url(&format!("{group}/securityRules/{name}"), NETWORK, &call)?;
        let reply = reply(&call, answer.into_raw_response()).await?;
        self.follow(&call, OperationPlace::Resource(resource), reply).await
    }

    /// Deletes one security rule, and waits until it is out of force. A rule that does not exist counts as deleted.
    pub(crate) async fn delete_rule(&self, group: &ArmId, name: &str) -> Result<(), CallError> {
        let call = format!("DELETE {name} in {}", group.name());
        let rules = self.network.security_rules_client();
        let sent = rules.delete(group.group(), group.name(), name, group.subscription()).send().await;
        match sent.map_err(|error| call_error(&call, &error)) {
            Ok(answer) => {
                let group = self.url(group.as_str(), NETWORK, &call)?;
                let reply = reply(&call, answer.into_raw_response()).await?;
                self.follow(&call, OperationPlace::Group(group, name.to_owned()), reply).await
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes a resource as given, if Azure still has this etag, and waits until the change is done.
    pub(crate) async fn put_raw(
        &self,
        path: &str,
        version: &str,
        body: Bytes,
        etag: Option<&str>,
    ) -> Result<(), CallError> {
        let call = format!("PUT {}", brief(path));
        let url = self.url(path, version, &call)?;
        let reply = self.send(&call, Method::Put, url.clone(), Some(body), etag, &Bearer::Own).await?;
        self.follow(&call, OperationPlace::Resource(url), reply).await
    }

    /// Waits until the operation of an answer is done. Where the answer names no place to follow it, `written` shows its end.
    async fn follow(&self, call: &str, written: OperationPlace, reply: Reply) -> Result<(), CallError> {
        let header = |name| reply.headers.get_optional_str(&HeaderName::from_static(name));
        let place = match (header("azure-asyncoperation"), header("location")) {
            (Some(url), _) => OperationPlace::State(link(call, url)?),
            (None, Some(url)) => OperationPlace::Result(link(call, url)?),
            (None, None) if reply.status == StatusCode::Accepted || !is_written(call, &reply.body)? => {
                written
            }
            (None, None) => return Ok(()),
        };
        let deadline = clock::instant() + OPERATION_TIMEOUT;
        let mut asked = retry_after(&reply.headers);
        let mut polls = Backoff { first: FIRST_POLL_DELAY, longest: MAX_POLL_DELAY }.endless();
        loop {
            // A poll before the delay that Azure asks for counts against the rate, and may be refused.
            let wait = polls.next().unwrap_or(MAX_POLL_DELAY).max(asked.unwrap_or_default());
            tokio::time::sleep(wait).await;
            match self.poll(call, &place).await? {
                None => return Ok(()),
                Some(_) if clock::instant() > deadline => {
                    let reason = format!("the operation was not done in {} s", OPERATION_TIMEOUT.as_secs());
                    return Err(CallError::no_answer(call, reason));
                }
                Some(headers) => asked = retry_after(&headers).or(asked),
            }
        }
    }

    /// Asks whether an operation is done: none where it is, or else the headers of the answer.
    async fn poll(&self, call: &str, place: &OperationPlace) -> Result<Option<Headers>, CallError> {
        let (OperationPlace::State(url)
        | OperationPlace::Result(url)
        | OperationPlace::Resource(url)
        | OperationPlace::Group(url, _)) = place;
        let polled = self.send(call, Method::Get, url.clone(), None, None, &Bearer::Own).await;
        let reply = match (polled, place) {
            // A group that is gone holds no rule.
            (Err(error), OperationPlace::Group(..)) if error.is_not_found() => return Ok(None),
            (polled, _) => polled?,
        };
        let is_done = match place {
            _ if reply.status == StatusCode::Accepted => false,
            OperationPlace::State(_) => state(call, &reply.body)?,
            OperationPlace::Result(_) | OperationPlace::Resource(_) => is_written(call, &reply.body)?,
            OperationPlace::Group(_, rule) => {
                let group: WrittenResource = read(call, &reply.body)?;
                let rules = group.properties.unwrap_or_default().rules;
                let is_there = rules.iter().any(|it| it.name.eq_ignore_ascii_case(rule));
                if is_written(call, &reply.body)? && is_there {
                    return Err(CallError::no_answer(call, "the rule is still there"));
                }
                is_written(call, &reply.body)?
            }
        };
        Ok((!is_done).then_some(reply.headers))
    }

    async fn send(
        &self,
        call: &str,
        method: Method,
        url: Url,
        body: Option<Bytes>,
        etag: Option<&str>,
        bearer: &Bearer<'_>,
    ) -> Result<Reply, CallError> {
        let failed = |error: azure_core::Error| call_error(call, &error);
        let mut request = Request::new(url, method);
        let token = match bearer {
            Bearer::Own => self.credential.get_token(&[]).await.map_err(failed)?.token.secret().to_owned(),
            Bearer::Of(token) => (*token).to_owned(),
        };
        request.insert_header(AUTHORIZATION, format!("Bearer {token}"));
        if let Some(etag) = etag {
            request.insert_header(IF_MATCH, etag.to_owned());
        }
        match body {
            Some(body) => {
                request.insert_header(CONTENT_TYPE, "application/json");
                request.set_body(body);
            }
            None => request.set_body(azure_core::EMPTY_BODY),
        }
        let sent = self.pipeline.send(&Context::default(), &mut request).await;
        if let (Err(error), Bearer::Own) = (&sent, bearer)
            && error.as_http_error().is_some_and(|answer| answer.status() == StatusCode::Unauthorized)
        {
            // Entra revoked the token before its end: the next call asks for a new one.
            self.credential.clear_cache().await.map_err(failed)?;
        }
        reply(call, sent.map_err(failed)?).await
    }

    fn url(&self, path: &str, version: &str, call: &str) -> Result<Url, CallError> {
        let invalid = |error| CallError::no_answer(call, format!("the path is invalid: {error}"));
        let mut url = self.endpoint.join(path).map_err(invalid)?;
        url.query_pairs_mut().append_pair("api-version", version);
        Ok(url)
    }
}

/// Reports whether an operation is done, by the answer that tells its state.
fn state(call: &str, body: &[u8]) -> Result<bool, CallError> {
    // Such an URL may answer with the changed resource, or with nothing.
    let Ok(operation) = serde_json::from_slice::<Operation>(body) else { return is_written(call, body) };
    let OperationError { code, message } = operation.error.unwrap_or_default();
    is_final(call, operation.status, code, message)
}

/// Reports whether the last write of a resource is done, as the resource itself says. An answer without a body or without a state is
/// final; one that cannot be parsed decides nothing.
fn is_written(call: &str, body: &[u8]) -> Result<bool, CallError> {
    if body.trim_ascii().is_empty() {
        return Ok(true);
    }
    let resource = read::<Option<WrittenResource>>(call, body)?.unwrap_or_default();
    let state = resource.properties.and_then(|properties| properties.state);
    state.map_or(Ok(true), |state| is_final(call, state, String::new(), String::new()))
}

/// Reports whether a state is final; one that is no success is an error.
fn is_final(call: &str, state: String, code: String, message: String) -> Result<bool, CallError> {
    match state.to_ascii_lowercase().as_str() {
        "succeeded" => Ok(true),
        "failed" | "canceled" => {
            let code = if code.is_empty() { state } else { code };
            Err(answered(call, 200, code, message))
        }
        _ => Ok(false),
    }
}

async fn reply(call: &str, answer: azure_core::Response) -> Result<Reply, CallError> {
    let (status, headers, body) = answer.deconstruct();
    let body = body.collect().await.map_err(|error| call_error(call, &error))?;
    Ok(Reply { status, headers, body })
}

fn read<T: DeserializeOwned>(call: &str, body: &[u8]) -> Result<T, CallError> {
    let unreadable = |error| CallError::no_answer(call, format!("the answer cannot be parsed: {error}"));
    serde_json::from_slice(body).map_err(unreadable)
}

fn link(call: &str, url: &str) -> Result<Url, CallError> {
    let reason = || format!("the answer leads to {url:?}, which is not a URL");
    url.parse().map_err(|_| CallError::no_answer(call, reason()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i5_an_answer_that_cannot_be_parsed_is_no_end_of_an_operation() {
        let written =
            |body: &str| is_written("PUT a rule", body.as_bytes()).map_err(|error| error.to_string());
        for body in [
            "",
            " \r\n",
            "null",
            "{}",
            r#"{"properties":null}"#,
            r#"{"properties":{"provisioningState":"Succeeded"}}"#,
        ] {
            assert_eq!(written(body), Ok(true), "{body}");
            assert!(state("PUT a rule", body.as_bytes()).unwrap(), "{body}");
        }
        assert_eq!(written(r#"{"properties":{"provisioningState":"Updating"}}"#), Ok(false));
        for body in [
            "<html>503</html>",
            r#"{"properties":{"provisioningState":"Upd"#,
            "\"done\"",
            r#"{"properties":7}"#,
        ] {
            assert!(written(body).is_err_and(|error| error.contains("cannot be parsed")), "{body}");
            assert!(state("PUT a rule", body.as_bytes()).is_err(), "{body}");
        }
        assert!(!state("PUT a rule", br#"{"status":"InProgress"}"#).unwrap());
    }
}
