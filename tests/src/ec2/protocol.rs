//! EC2's query protocol, as far as the proxy reads and writes it: calls, and the bodies of errors.

use std::convert::Infallible;

use http::HeaderMap;
use hyper::body::Bytes;

/// A call of EC2 or STS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The action.
    pub action: String,
    /// The Region.
    pub region: String,
    /// The access key's id of the credentials that signed the call.
    pub caller: String,
    /// The parameters, without the action.
    pub parameters: Vec<(String, String)>,
}

impl Call {
    /// Reads a call from a request's headers and its form.
    pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Self {
        let mut parameters: Vec<(String, String)> =
            form_urlencoded::parse(body).map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
        let action = parameters.iter().position(|(key, _)| key == "Action");
        let action = action.map(|at| parameters.remove(at).1).unwrap_or_default();
        // AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/<service>/aws4_request, …
        let scope = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let region = scope.split('/').nth(2).unwrap_or_default().to_owned();
        let caller =
            scope.split('/').next().and_then(|scope| scope.split_once('=')).map_or("", |(_, key)| key);
        Self { action, region, caller: caller.to_owned(), parameters }
    }

    /// Reports whether the call changes something.
    pub fn is_change(&self) -> bool {
        self.is_of_ec2() && !self.action.starts_with("Describe") && !self.action.starts_with("Get")
    }

    /// Reports whether the call is EC2's, and not STS's.
    pub(super) fn is_of_ec2(&self) -> bool {
        !self.action.starts_with("GetCallerIdentity") && !self.action.starts_with("AssumeRole")
    }

    /// The body with its account and Region, so that the same call of another account or Region has another key.
    pub(super) fn key(&self, body: &[u8]) -> Vec<u8> {
        [self.caller.as_bytes(), b"/", self.region.as_bytes(), b"?", body].concat()
    }

    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An outcome of a call after which the proxy breaks the connection.
#[derive(Debug)]
pub(super) struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is broken on purpose")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// An error as EC2 writes it.
pub(super) fn error_body(code: &str, message: &str) -> Bytes {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"
    )
    .into()
}
