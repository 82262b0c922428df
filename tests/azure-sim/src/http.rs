//! The HTTP server: it takes each request apart, carries out the faults that a test ordered, and routes to the logins and the state.
//!
//! axum routes. hyper serves the connections, because only an error of its service cuts a connection without an answer, and a
//! service of axum has no errors: the router marks the answers that must not be sent.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, routing};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_testkit::{Handling, serve_each};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt as _;

use crate::answer::Answer;
use crate::faults::{Call, Refusal};
use crate::login::Bearer;
use crate::rules;
use crate::sim::AzureSim;
use crate::state::{OperationLinks, ResourceId};

/// A request, taken apart.
struct SimRequest {
    method: Method,
    path: String,
    query: HashMap<String, String>,
    headers: HeaderMap,
    body: Bytes,
    /// The code with which the operation that the request starts fails in the end.
    failure: Option<&'static str>,
}

impl SimRequest {
    fn new(parts: &Parts, body: Bytes) -> Self {
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        Self {
            method: parts.method.clone(),
            path: decoded(parts.uri.path()),
            query: form_urlencoded::parse(query).into_owned().collect(),
            headers: parts.headers.clone(),
            body,
            failure: None,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn host(&self) -> &str {
        self.header("host").unwrap_or_default()
    }
}

/// A path with its escaped bytes, as the letters of a resource group's name arrive (RFC 3986, section 2.1).
fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut parts = path.split('%');
    bytes.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let byte = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) => bytes.extend([byte].into_iter().chain(part.bytes().skip(2))),
            None => bytes.extend(b"%".iter().copied().chain(part.bytes())),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The mark of an answer in whose place the connection is cut on purpose.
#[derive(Debug, Clone)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Cut {}

impl AzureSim {
    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// Connections cannot be accepted any more.
    pub(crate) async fn serve(self, listener: TcpListener) -> std::io::Result<Infallible> {
        let router = router(self);
        let serving = serve_each(listener, |stream| {
            let router = router.clone();
            async move {
                let service = service_fn(|request: hyper::Request<Incoming>| {
                    let answer = router.clone().oneshot(request);
                    async {
                        let Ok(answer) = answer.await;
                        if answer.extensions().get::<Cut>().is_some() { Err(Cut) } else { Ok(answer) }
                    }
                });
                // A connection that is cut on purpose ends with an error.
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok();
            }
        });
        serving.await
    }
}

fn router(sim: AzureSim) -> Router {
    Router::new()
        .route("/{tenant}/oauth2/v2.0/token", routing::post(token).fallback(resource))
        .route("/metadata/identity/oauth2/token", routing::get(metadata).fallback(resource))
        .fallback(resource)
        .layer(middleware::from_fn_with_state(sim.clone(), with_faults))
        .with_state(sim)
}

/// Takes the request apart, carries out the fault that was ordered for it, and records the call.
async fn with_faults(State(sim): State<AzureSim>, request: Request, next: Next) -> Response {
    let cut = || Extension(Cut).into_response();
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else { return cut() };
    let mut request = SimRequest::new(&parts, body);
    let call = Call { method: request.method.to_string(), path: request.path.clone(), status: None };
    let mut handling = sim.inner.faults.handle(&call);
    if let Handling::Refuse(Refusal::Operation(code)) = handling {
        request.failure = Some(code);
        handling = Handling::Serve;
    }
    let mut routed = Request::from_parts(parts, Body::empty());
    routed.extensions_mut().insert(Arc::new(request));
    let answer = handling.answer(next.run(routed), refusal).await;
    let status = answer.as_ref().map(|answer| answer.status().as_u16());
    sim.recorded().push(Call { status, ..call });
    sim.inner.faults.hold(&handling).await;
    answer.unwrap_or_else(cut)
}

/// Answers a refused call, or fails an operation at once.
fn refusal(refusal: &Refusal) -> Response {
    let (status, code) = match *refusal {
        Refusal::Status(status, code) => (status, code),
        Refusal::Operation(code) => (409, code),
    };
    Answer::error(status, code, "a test").with("retry-after", "0".into()).into_response()
}

async fn token(
    State(sim): State<AzureSim>,
    Path(tenant): Path<String>,
    Extension(request): Extension<Arc<SimRequest>>,
) -> Answer {
    sim.logins().token(request.host(), &tenant, &request.body)
}

async fn metadata(State(sim): State<AzureSim>, Extension(request): Extension<Arc<SimRequest>>) -> Answer {
    let has_header = request.header("metadata").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    sim.logins().metadata(&request.query, has_header)
}

async fn resource(
    State(sim): State<AzureSim>,
    Extension(request): Extension<Arc<SimRequest>>,
) -> Result<Answer, Answer> {
    let bearer = sim.logins().bearer(request.header("authorization"))?;
    sim.resource(&request, &bearer)
}

impl AzureSim {
    fn resource(&self, request: &SimRequest, bearer: &Bearer) -> Result<Answer, Answer> {
        let path = request.path.trim_end_matches('/');
        let lower = path.to_ascii_lowercase();
        if !request.query.contains_key("api-version") {
            return Err(Answer::error(
                400,
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required.",
            ));
        }
        if let Some(number) =
            lower.rsplit_once("/operations/").or_else(|| lower.rsplit_once("/operationresults/"))
        {
            return self.operation(number.1, lower.contains("/operations/"));
        }
        if lower.ends_with("/providers/microsoft.authorization/permissions") {
            return Ok(Answer::json(200, &self.logins().permissions_of(bearer)));
        }
        if let Some(interface) = lower.strip_suffix("/effectivenetworksecuritygroups") {
            return self.effective(bearer, interface);
        }
        match ResourceId::read(path) {
            Some(id) => {
                let kind = id.child.map_or(id.kind.clone(), |(child, _)| format!("{}/{child}", id.kind));
                self.one(request, bearer, path, &kind)
            }
            None => self.list(request, bearer, path),
        }
    }

    fn one(&self, request: &SimRequest, bearer: &Bearer, id: &str, kind: &str) -> Result<Answer, Answer> {
        let kind = usual_kind(kind);
        let verb = match request.method {
            Method::GET => "read",
            Method::PUT | Method::PATCH => "write",
            Method::DELETE => "delete",
            _ => return Err(Answer::error(405, "MethodNotAllowed", "The method is not allowed.")),
        };
        self.logins().may(bearer, &format!("{kind}/{verb}"), id)?;
        let mut state = self.state();
        if request.method == Method::GET {
            return state.read(id).map(|found| Answer::json(200, &found)).ok_or_else(|| state.not_found(id));
        }
        if let Some(expected) = request.header("if-match").filter(|_| !state.takes_any_etag) {
            let etag = state.read(id).and_then(|known| known["etag"].as_str().map(str::to_owned));
            if !etag.is_some_and(|etag| expected == "*" || etag == expected) {
                return Err(Answer::error(
                    412,
                    "PreconditionFailed",
                    "The etag is not the resource's any more.",
                ));
            }
        }
        if state.is_busy(id) {
            // Azure uses either code.
            let count = self.recorded().len();
            return Err(if count.is_multiple_of(2) {
                Answer::error(
                    409,
                    "AnotherOperationInProgress",
                    "Another operation on this or dependent resource is in progress.",
                )
            } else {
                Answer::error(
                    429,
                    "RetryableErrorDueToAnotherOperation",
                    "Operation was preempted by another.",
                )
                .with("retry-after", "0".into())
            });
        }
        let (number, status) = if request.method == Method::DELETE {
            match state.delete(id, request.failure)? {
                Some(number) => (number, 202),
                None => return Ok(Answer::empty(204)),
            }
        } else {
            let body: Value = serde_json::from_slice(&request.body).map_err(|error| {
                Answer::error(
                    400,
                    "InvalidRequestContent",
                    &format!("The request content was invalid: {error}"),
                )
            })?;
            if !body.is_object() {
                return Err(Answer::error(400, "InvalidRequestContent", "The request content is no object."));
            }
            if kind == "Microsoft.Network/azureFirewalls" {
                let mut logins = self.logins();
                logins.may(bearer, "Microsoft.Network/publicIPAddresses/join/action", id)?;
                logins.may(bearer, "Microsoft.Network/virtualNetworks/subnets/join/action", id)?;
            }
            // A rule that names application security groups needs the permission to join them.
            let names_application_groups = ["source", "destination"]
                .iter()
                .any(|side| !rules::application_groups(&body["properties"], side).is_empty());
            if kind == "Microsoft.Network/networkSecurityGroups/securityRules" && names_application_groups {
                let action = "Microsoft.Network/applicationSecurityGroups/joinNetworkSecurityRule/action";
                self.logins().may(bearer, action, id)?;
            }
            let (number, is_new) = state.write(id, body, request.failure)?;
            (number, if is_new { 201 } else { 200 })
        };
        let subscription = ResourceId::read(id).map(|id| id.subscription.to_owned()).unwrap_or_default();
        let place = |what: &str| {
            format!(
                "http://{}/subscriptions/{subscription}/providers/Microsoft.Network/locations/westeurope/{what}/{number}?api-version=2024-03-01",
                request.host()
            )
        };
        let answer = if status == 202 {
            Answer::empty(202)
        } else {
            Answer::json(status, &state.read(id).unwrap_or_default())
        };
        let answer = answer.with("retry-after", state.retry_after.to_string());
        Ok(match state.links {
            OperationLinks::AsyncOperation if status == 202 => answer
                .with("location", place("operationResults"))
                .with("azure-asyncoperation", place("operations")),
            OperationLinks::AsyncOperation => answer.with("azure-asyncoperation", place("operations")),
            OperationLinks::Location => answer.with("location", place("operationResults")),
            OperationLinks::None => answer,
        })
    }

    fn operation(&self, number: &str, as_status: bool) -> Result<Answer, Answer> {
        let state = self.state();
        let found = number.parse().ok().and_then(|number| state.operation(number));
        let retry_after = state.retry_after.to_string();
        match (found, as_status) {
            (None, _) => Err(Answer::error(404, "OperationNotFound", "There is no such operation.")),
            (Some((false, _)), true) => {
                Ok(Answer::json(200, &json!({"status": "InProgress"})).with("retry-after", retry_after))
            }
            (Some((true, None)), true) => Ok(Answer::json(200, &json!({"status": "Succeeded"}))),
            (Some((true, Some(code))), true) => Ok(Answer::json(
                200,
                &json!({"status": "Failed", "error": {"code": code, "message": "a test"}}),
            )),
            (Some((false, _)), false) => Ok(Answer::empty(202).with("retry-after", retry_after)),
            (Some((true, None)), false) => Ok(Answer::empty(204)),
            (Some((true, Some(code))), false) => Err(Answer::error(409, code, "a test")),
        }
    }

    fn list(&self, request: &SimRequest, bearer: &Bearer, path: &str) -> Result<Answer, Answer> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (subscription, group, kind) = match parts[..] {
            [_, subscription, providers, namespace, kind] if providers.eq_ignore_ascii_case("providers") => {
                (subscription, None, format!("{namespace}/{kind}"))
            }
            [_, subscription, _, group, providers, namespace, kind]
                if providers.eq_ignore_ascii_case("providers") =>
            {
                (subscription, Some(group), format!("{namespace}/{kind}"))
            }
            _ => {
                return Err(Answer::error(
                    404,
                    "InvalidResourceType",
                    "The resource type could not be found.",
                ));
            }
        };
        if request.method != Method::GET {
            return Err(Answer::error(405, "MethodNotAllowed", "The method is not allowed."));
        }
        self.logins().may(bearer, &format!("{}/read", usual_kind(&kind)), path)?;
        let skip = request.query.get("$skiptoken").and_then(|skip| skip.parse().ok()).unwrap_or(0);
        let state = self.state();
        let (page, has_more) = state.list(subscription, group, &kind, skip)?;
        let mut body = json!({"value": page});
        if has_more {
            let (version, next) = (&request.query["api-version"], skip + state.page_size);
            body["nextLink"] =
                json!(format!("http://{}{path}?api-version={version}&$skiptoken={next}", request.host()));
        }
        Ok(Answer::json(200, &body))
    }

    fn effective(&self, bearer: &Bearer, interface: &str) -> Result<Answer, Answer> {
        self.logins().may(
            bearer,
            "Microsoft.Network/networkInterfaces/effectiveNetworkSecurityGroups/action",
            interface,
        )?;
        let state = self.state();
        let found = state.read(interface).ok_or_else(|| state.not_found(interface))?;
        let groups: Vec<Value> = crate::oracle::groups_of(&state, &found)
            .into_iter()
            .map(|id| json!({"networkSecurityGroup": {"id": id}, "effectiveSecurityRules": state.in_force(&id), "defaultRules": rules::defaults(&id)}))
            .collect();
        Ok(Answer::json(200, &json!({"value": groups})))
    }
}

/// A type as the documentation spells it: requests may use any letter case, and permissions name this spelling.
fn usual_kind(kind: &str) -> String {
    const KINDS: [&str; 10] = [
        "Microsoft.Network/networkSecurityGroups",
        "Microsoft.Network/networkSecurityGroups/securityRules",
        "Microsoft.Network/networkInterfaces",
        "Microsoft.Network/virtualNetworks",
        "Microsoft.Network/virtualNetworks/subnets",
        "Microsoft.Network/routeTables",
        "Microsoft.Network/azureFirewalls",
        "Microsoft.Network/publicIPAddresses",
        "Microsoft.Network/loadBalancers",
        "Microsoft.Compute/virtualMachines",
    ];
    let known = KINDS.iter().find(|known| known.eq_ignore_ascii_case(kind));
    known.map_or_else(|| kind.to_owned(), |known| (*known).to_owned())
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = match self.body {
            Some(body) => {
                ([(CONTENT_TYPE, "application/json; charset=utf-8")], body.to_string()).into_response()
            }
            None => ().into_response(),
        };
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap();
        for (name, value) in self.headers {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        response
    }
}
