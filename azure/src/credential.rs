//! The tokens of Microsoft Entra for the broker itself.
//!
//! The credentials of `azure_identity` 0.21 read a federated token once, and need OpenSSL for a certificate. These read their
//! files whenever a token is needed, so that an operator can rotate secrets under a running broker.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use azure_core::auth::{AccessToken, Secret, TokenCredential};
use azure_core::error::ErrorKind;
use data_encoding::BASE64URL_NOPAD;
use postern_runtime::error_chain::error_chain;
use postern_runtime::private_file;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PSS_SHA256, RsaKeyPair};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock;
use crate::settings::{Application, Credential, Environment};

/// The time before its end at which a token is renewed.
const RENEW_BEFORE_END: Duration = Duration::from_secs(300);
/// The lifetime of a client assertion.
const ASSERTION_LIFETIME: Duration = Duration::from_secs(300);
/// Azure's word for an assertion that is a signed token (RFC 7523).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The broker's identity: it fetches tokens, and keeps each until shortly before its end.
pub(crate) struct EntraIdentity {
    credential: Credential,
    environment: Environment,
    http: reqwest::Client,
    kept: Mutex<Option<CachedToken>>,
}

struct CachedToken {
    token: AccessToken,
    renew_at: Instant,
    ends_at: Instant,
}

/// An answer to a request for a token. The instance metadata service writes numbers as text.
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    expires_in: SecondsField,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SecondsField {
    Number(u64),
    Text(String),
}

/// An answer that is an error (RFC 6749, section 5.2).
#[derive(Deserialize)]
struct TokenRefusal {
    error: String,
    #[serde(default)]
    error_description: String,
}

/// The head of a client assertion: how it is signed, and the digest of the certificate.
#[derive(Serialize)]
struct Header {
    alg: &'static str,
    typ: &'static str,
    #[serde(rename = "x5t#S256")]
    x5t_s256: String,
}

/// The claims of a client assertion (Microsoft Learn, "Microsoft identity platform application authentication certificate
/// credentials").
#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    iss: &'a str,
    sub: &'a str,
    jti: String,
    nbf: i64,
    exp: i64,
}

impl EntraIdentity {
    pub(crate) fn new(credential: Credential, environment: Environment, http: reqwest::Client) -> Self {
        Self { credential, environment, http, kept: Mutex::default() }
    }

    async fn fetch(&self) -> Result<CachedToken, String> {
        let request = match &self.credential {
            Credential::ManagedIdentity { client_id } => self.metadata_request(client_id.as_deref()),
            Credential::WorkloadIdentity { application, token_file } => {
                let assertion = read(token_file).await?;
                self.entra_request(
                    application,
                    &[("client_assertion_type", ASSERTION_TYPE), ("client_assertion", &assertion)],
                )
            }
            Credential::ClientSecret { application, secret_file } => {
                let secret = read_private(secret_file)?;
                self.entra_request(application, &[("client_secret", &secret)])
            }
            Credential::ClientCertificate { application, certificate, key } => {
                let (certificate, key) = (read(certificate).await?, read_private(key)?);
                let assertion = assertion(&self.token_url(application), application, &certificate, &key)?;
                self.entra_request(
                    application,
                    &[("client_assertion_type", ASSERTION_TYPE), ("client_assertion", &assertion)],
                )
            }
        };
        let asked_at = clock::instant();
        let answer = request.send().await.map_err(|error| error_chain(&error.without_url()))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| error_chain(&error.without_url()))?;
        if !status.is_success() {
            let words = serde_json::from_slice::<TokenRefusal>(&body).map_or_else(
                |_| format!("status {status}"),
                |refusal| format!("{}: {}", refusal.error, refusal.error_description),
            );
            return Err(words);
        }
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| "the answer holds no token".to_owned())?;
        let seconds = match answer.expires_in {
            SecondsField::Number(seconds) => seconds,
            SecondsField::Text(text) => {
                text.parse().map_err(|_| "the token's end is not a number".to_owned())?
            }
        };
        let lifetime = Duration::from_secs(seconds.min(86_400));
        let token = AccessToken::new(Secret::new(answer.access_token), clock::wall() + lifetime);
        let ends_at = asked_at + lifetime;
        Ok(CachedToken { token, renew_at: ends_at - RENEW_BEFORE_END.min(lifetime / 2), ends_at })
    }

    fn metadata_request(&self, client_id: Option<&str>) -> reqwest::RequestBuilder {
        let url = format!("{}/metadata/identity/oauth2/token", self.environment.metadata);
        let resource = ("resource", self.environment.resource_manager.as_str());
        let request = self.http.get(url).header("Metadata", "true");
        let request = request.query(&[("api-version", "2018-02-01"), resource]);
        match client_id {
            Some(client_id) => request.query(&[("client_id", client_id)]),
            None => request,
        }
    }

    fn entra_request(&self, application: &Application, proof: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let scope = scope(&self.environment);
        let common = [
            ("grant_type", "client_credentials"),
            ("client_id", application.client_id.as_str()),
            ("scope", scope.as_str()),
        ];
        let form: Vec<_> = common.iter().chain(proof).collect();
        self.http.post(self.token_url(application)).form(&form)
    }

    fn token_url(&self, application: &Application) -> String {
        format!("{}/{}/oauth2/v2.0/token", self.environment.authority, application.tenant)
    }
}

/// The longest file of a secret that is read, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// The scope of the tokens.
pub(crate) fn scope(environment: &Environment) -> String {
    format!("{}/.default", environment.resource_manager)
}

/// Reads a secret, if no other user can read or change its file.
fn read_private(path: &Path) -> Result<String, String> {
    let text = private_file::read(path, MAX_SECRET_BYTES).map_err(|error| error_chain(&error))?;
    Ok(text.trim().to_owned())
}

async fn read(path: &Path) -> Result<String, String> {
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// A token that proves the possession of a certificate's key.
fn assertion(
    audience: &str,
    application: &Application,
    certificate: &str,
    key: &str,
) -> Result<String, String> {
    let certificate =
        pem::parse(certificate).map_err(|error| format!("the certificate is not PEM: {error}"))?;
    let key = rsa_key(key)?;
    let thumbprint = BASE64URL_NOPAD.encode(&Sha256::digest(certificate.contents()));
    let now = clock::wall();
    let header = Header { alg: "PS256", typ: "JWT", x5t_s256: thumbprint };
    let claims = Claims {
        aud: audience,
        iss: &application.client_id,
        sub: &application.client_id,
        jti: ulid::Ulid::new().to_string(),
        // Clocks differ.
        nbf: (now - Duration::from_secs(60)).unix_timestamp(),
        exp: (now + ASSERTION_LIFETIME).unix_timestamp(),
    };
    let unsigned = format!("{}.{}", part(&header)?, part(&claims)?);
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PSS_SHA256, &SystemRandom::new(), unsigned.as_bytes(), &mut signature)
        .map_err(|_| "the certificate's key does not sign".to_owned())?;
    Ok(format!("{unsigned}.{}", BASE64URL_NOPAD.encode(&signature)))
}

/// Reads a key in PKCS #8 or PKCS #1. An error holds nothing of the key.
fn rsa_key(pem: &str) -> Result<RsaKeyPair, String> {
    let wrong = || "the certificate's key is not an RSA key of 2048 bits or more in PEM".to_owned();
    let key = pem::parse(pem).map_err(|_| wrong())?;
    let read = if key.tag() == "RSA PRIVATE KEY" { RsaKeyPair::from_der } else { RsaKeyPair::from_pkcs8 };
    read(key.contents()).map_err(|_| wrong())
}

/// A part of a signed token (RFC 7515).
fn part(value: &impl Serialize) -> Result<String, String> {
    let text = serde_json::to_vec(value).map_err(|error| error.to_string())?;
    Ok(BASE64URL_NOPAD.encode(&text))
}

#[async_trait::async_trait]
impl TokenCredential for EntraIdentity {
    async fn get_token(&self, _: &[&str]) -> azure_core::Result<AccessToken> {
        let mut kept = self.kept.lock().await;
        let now = clock::instant();
        if let Some(kept) = kept.as_ref().filter(|kept| now < kept.renew_at) {
            return Ok(kept.token.clone());
        }
        match (self.fetch().await, kept.as_ref()) {
            (Ok(fetched), _) => Ok(kept.insert(fetched).token.clone()),
            (Err(reason), Some(kept)) if now < kept.ends_at => {
                tracing::warn!(%reason, "cannot renew the token of Microsoft Entra; the current one is used until it ends");
                Ok(kept.token.clone())
            }
            (Err(reason), _) => Err(azure_core::Error::message(ErrorKind::Credential, reason)),
        }
    }

    async fn clear_cache(&self) -> azure_core::Result<()> {
        *self.kept.lock().await = None;
        Ok(())
    }
}

impl fmt::Debug for EntraIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntraIdentity").field("credential", &self.credential).finish_non_exhaustive()
    }
}
