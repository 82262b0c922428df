//! The tokens of Microsoft Entra and of the instance metadata service, and the actions that each token allows.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

use crate::answer::Answer;

#[derive(Debug)]
pub(crate) struct Logins {
    secrets: HashMap<(String, String), String>,
    certificates: HashMap<(String, String), Vec<u8>>,
    federated: HashMap<(String, String), String>,
    managed: Vec<Option<String>>,
    tokens: HashMap<String, Instant>,
    callers: HashMap<String, (Value, BTreeSet<String>)>,
    issued: u64,
    pub(crate) lifetime: Duration,
    pub(crate) actions: Option<Vec<String>>,
    pub(crate) used: BTreeSet<String>,
}

impl Default for Logins {
    fn default() -> Self {
        Self {
            secrets: HashMap::new(),
            certificates: HashMap::new(),
            federated: HashMap::new(),
            managed: Vec::new(),
            tokens: HashMap::new(),
            callers: HashMap::new(),
            issued: 0,
            lifetime: Duration::from_secs(3600),
            actions: None,
            used: BTreeSet::new(),
        }
    }
}

/// The owner of a token.
#[derive(Debug, Clone)]
pub(crate) enum Bearer {
    /// An application.
    Application,
    /// A caller.
    Caller(String),
}

impl Logins {
    pub(crate) fn secret(&mut self, tenant: &str, client_id: &str, secret: &str) {
        self.secrets.insert((tenant.into(), client_id.into()), secret.into());
    }

    pub(crate) fn certificate(&mut self, tenant: &str, client_id: &str, der: &[u8]) {
        self.certificates.insert((tenant.into(), client_id.into()), der.into());
    }

    pub(crate) fn federated(&mut self, tenant: &str, client_id: &str, token: &str) {
        self.federated.insert((tenant.into(), client_id.into()), token.into());
    }

    pub(crate) fn managed(&mut self, client_id: Option<&str>) {
        self.managed.push(client_id.map(str::to_owned));
    }

    pub(crate) fn caller(&mut self, token: &str, permissions: Value, reads: &[&str]) {
        let reads = reads.iter().map(|id| id.to_ascii_lowercase()).collect();
        self.callers.insert(token.into(), (permissions, reads));
    }

    pub(crate) fn forget(&mut self) {
        self.tokens.clear();
    }

    fn issue(&mut self) -> Value {
        self.issued += 1;
        let token = format!("token-{}", self.issued);
        self.tokens.insert(token.clone(), Instant::now() + self.lifetime);
        json!({"token_type": "Bearer", "access_token": token})
    }

    /// `POST /{tenant}/oauth2/v2.0/token`.
    pub(crate) fn token(&mut self, host: &str, tenant: &str, body: &[u8]) -> Answer {
        let form: HashMap<String, String> = form_urlencoded::parse(body).into_owned().collect();
        let field = |name: &str| form.get(name).cloned().unwrap_or_default();
        let refuse = |error: &str, words: &str| {
            Answer::json(400, &json!({"error": error, "error_description": words}))
        };
        if field("grant_type") != "client_credentials" {
            return refuse("unsupported_grant_type", "AADSTS70003");
        }
        if !field("scope").ends_with("/.default") {
            return refuse("invalid_scope", "AADSTS70011");
        }
        let who = (tenant.to_owned(), field("client_id"));
        let is_known = match (form.get("client_secret"), form.get("client_assertion")) {
            (Some(secret), None) => self.secrets.get(&who) == Some(secret),
            (None, Some(assertion)) => {
                field("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
                    && (self.federated.get(&who) == Some(assertion)
                        || self.certificates.get(&who).is_some_and(|der| {
                            is_signed(
                                assertion,
                                der,
                                &who.1,
                                &format!("http://{host}/{tenant}/oauth2/v2.0/token"),
                            )
                        }))
            }
            (Some(_), Some(_)) | (None, None) => false,
        };
        if !is_known {
            return refuse("invalid_client", "AADSTS7000215: Invalid client secret or assertion provided.");
        }
        let seconds = self.lifetime.as_secs();
        let mut answer = self.issue();
        answer["expires_in"] = json!(seconds);
        Answer::json(200, &answer)
    }

    /// `GET /metadata/identity/oauth2/token`.
    pub(crate) fn metadata(&mut self, query: &HashMap<String, String>, has_header: bool) -> Answer {
        let refuse =
            |words: &str| Answer::json(400, &json!({"error": "invalid_request", "error_description": words}));
        if !has_header {
            return refuse("Required metadata header not specified");
        }
        if !query.contains_key("resource")
            || query.get("api-version").is_none_or(|version| version != "2018-02-01")
        {
            return refuse("resource or api-version is missing");
        }
        let asked = query.get("client_id").cloned();
        if !self.managed.contains(&asked) {
            return refuse("Identity not found");
        }
        let seconds = self.lifetime.as_secs();
        let mut answer = self.issue();
        answer["expires_in"] = json!(seconds.to_string());
        Answer::json(200, &answer)
    }

    /// Returns the owner of the token.
    pub(crate) fn bearer(&self, authorization: Option<&str>) -> Result<Bearer, Answer> {
        let refuse =
            |code: &str| Answer::error(401, code, "The access token is missing, invalid or expired.");
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| refuse("AuthenticationFailed"))?;
        if self.callers.contains_key(token) {
            return Ok(Bearer::Caller(token.to_owned()));
        }
        match self.tokens.get(token) {
            Some(ends) if Instant::now() < *ends => Ok(Bearer::Application),
            Some(_) => Err(refuse("ExpiredAuthenticationToken")),
            None => Err(refuse("InvalidAuthenticationToken")),
        }
    }

    /// Checks that the token's owner may take an action on a resource.
    pub(crate) fn may(&mut self, bearer: &Bearer, action: &str, id: &str) -> Result<(), Answer> {
        let refuse = |code: &str| {
            let words = format!(
                "The client does not have authorization to perform action '{action}' over scope '{id}'."
            );
            Err(Answer::error(403, code, &words))
        };
        match bearer {
            Bearer::Application => {
                let allows = |actions: &Vec<String>| actions.iter().any(|allowed| matches(allowed, action));
                if self.actions.as_ref().is_none_or(allows) {
                    self.used.insert(action.to_owned());
                    Ok(())
                } else if action.contains("/join") {
                    refuse("LinkedAuthorizationFailed")
                } else {
                    refuse("AuthorizationFailed")
                }
            }
            Bearer::Caller(token) => {
                let reads = self
                    .callers
                    .get(token)
                    .is_some_and(|(_, reads)| reads.contains(&id.to_ascii_lowercase()));
                if action.ends_with("/read") && reads { Ok(()) } else { refuse("AuthorizationFailed") }
            }
        }
    }

    /// Returns the permissions of the token's owner.
    pub(crate) fn permissions_of(&self, bearer: &Bearer) -> Value {
        match bearer {
            Bearer::Caller(token) => {
                self.callers.get(token).map(|(permissions, _)| permissions.clone()).unwrap_or_default()
            }
            Bearer::Application => json!({"value": [{"actions": ["*"], "notActions": []}]}),
        }
    }
}

/// Reports whether a pattern with `*` names an action. Letter case does not count.
fn matches(pattern: &str, action: &str) -> bool {
    let (pattern, action) = (pattern.to_ascii_lowercase(), action.to_ascii_lowercase());
    let parts: Vec<&str> = pattern.split('*').collect();
    let [first, middle @ .., last] = &parts[..] else { return pattern == action };
    let Some(mut rest) = action.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Reports whether the application has signed an assertion for this audience (Microsoft Learn, "Microsoft identity platform
/// application authentication certificate credentials": PS256 with x5t#S256).
fn is_signed(assertion: &str, der: &[u8], client_id: &str, audience: &str) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let [header, claims, signature] = assertion.split('.').collect::<Vec<_>>()[..] else { return false };
    let read = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
    let json = |part: &str| serde_json::from_slice::<Value>(&read(part)?).ok();
    let (Some(head), Some(claimed), Some(signature)) = (json(header), json(claims), read(signature)) else {
        return false;
    };
    let key =
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, &certificate.public_key().subject_public_key.data);
    let now = ASN1Time::now().timestamp();
    head["alg"] == "PS256"
        && head["x5t#S256"] == BASE64URL_NOPAD.encode(&Sha256::digest(der))
        && key.verify(format!("{header}.{claims}").as_bytes(), &signature).is_ok()
        && claimed["aud"] == audience
        && claimed["iss"] == client_id
        && claimed["sub"] == client_id
        && claimed["nbf"].as_i64().is_some_and(|begin| begin <= now)
        && claimed["exp"].as_i64().is_some_and(|end| now < end)
}
