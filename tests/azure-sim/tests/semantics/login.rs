//! The tokens of applications: how an application gets one, and when it ends.

use std::process::Command;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PSS_SHA256, RsaKeyPair};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_parser::time::ASN1Time;

use crate::client::{Cloud, Reply};

const SCOPE: (&str, &str) = ("scope", "https://management.azure.com/.default");
const GRANT: (&str, &str) = ("grant_type", "client_credentials");
const APP: (&str, &str) = ("client_id", "app");
const SECRET: (&str, &str) = ("client_secret", "secret");
const ASSERTION_TYPE: (&str, &str) =
    ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");

/// An error of OAuth, which is shaped otherwise than one of Azure Resource Manager.
fn refusal(reply: &Reply) -> &str {
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(reply.body["error_description"].is_string(), "{reply:?}");
    reply.body["error"].as_str().unwrap()
}

impl Cloud {
    async fn takes(&self, login: Reply) {
        let login = login.good();
        assert_eq!(login["token_type"], json!("Bearer"));
        let reply = self.get_as(login["access_token"].as_str().unwrap(), &self.nsg()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    async fn assert(&self, assertion: &str) -> Reply {
        let proof = ("client_assertion", assertion);
        self.login("tenant", &[GRANT, APP, SCOPE, ASSERTION_TYPE, proof]).await
    }
}

#[tokio::test]
async fn a_secret_is_its_applications_in_its_tenant_alone() {
    let cloud = Cloud::new().await;
    let good = [GRANT, APP, SCOPE, SECRET];
    let login = cloud.login("tenant", &good).await;
    assert_eq!(login.body["expires_in"], json!(3600));
    cloud.takes(login).await;

    assert_eq!(refusal(&cloud.login("other", &good).await), "invalid_client");
    let assertion = ("client_assertion", "x");
    for (form, error) in [
        (vec![GRANT, APP, SCOPE, ("client_secret", "wrong")], "invalid_client"),
        (vec![GRANT, APP, SCOPE, ("client_secret", "")], "invalid_client"),
        (vec![GRANT, APP, SCOPE], "invalid_client"),
        (vec![GRANT, APP, SCOPE, SECRET, ASSERTION_TYPE, assertion], "invalid_client"),
        (vec![GRANT, ("client_id", "other"), SCOPE, SECRET], "invalid_client"),
        (vec![GRANT, APP, SECRET], "invalid_scope"),
        (vec![GRANT, APP, SECRET, ("scope", "https://management.azure.com/")], "invalid_scope"),
        (vec![("grant_type", "password"), APP, SCOPE, SECRET], "unsupported_grant_type"),
        (vec![APP, SCOPE, SECRET], "unsupported_grant_type"),
    ] {
        assert_eq!(refusal(&cloud.login("tenant", &form).await), error, "{form:?}");
    }
}

/// A new RSA key, and a certificate over it in DER. ring makes no such keys, so rcgen does not, either.
fn certificate() -> (RsaKeyPair, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=app", "-days", "1"])
        .args(["-keyout", "key.pem", "-outform", "DER", "-out", "certificate.der"])
        .current_dir(dir.path())
        .output()
        .expect("openssl makes the key");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let key = pem::parse(read("key.pem")).unwrap();
    (RsaKeyPair::from_pkcs8(key.contents()).unwrap(), read("certificate.der"))
}

fn signed(key: &RsaKeyPair, certificate: &[u8], claims: &Value) -> String {
    let thumbprint = BASE64URL_NOPAD.encode(&Sha256::digest(certificate));
    token(key, &json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint}), claims)
}

fn token(key: &RsaKeyPair, header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let unsigned = format!("{}.{}", part(header), part(claims));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PSS_SHA256, &SystemRandom::new(), unsigned.as_bytes(), &mut signature).unwrap();
    format!("{unsigned}.{}", BASE64URL_NOPAD.encode(&signature))
}

#[tokio::test]
async fn an_assertion_is_signed_with_the_certificates_key_and_meant_for_this_place() {
    let cloud = Cloud::new().await;
    let (key, certificate_der) = certificate();
    let (other_key, other_der) = certificate();
    cloud.sim.client_certificate("tenant", "app", &certificate_der);
    let now = ASN1Time::now().timestamp();
    let claims = json!({
        "aud": format!("{}/tenant/oauth2/v2.0/token", cloud.origin()), "iss": "app", "sub": "app", "jti": "1",
        "nbf": now - 60, "exp": now + 300
    });
    let good = signed(&key, &certificate_der, &claims);
    cloud.takes(cloud.assert(&good).await).await;

    let changed = |claim: &str, value: Value| {
        let mut claims = claims.clone();
        claims[claim] = value;
        signed(&key, &certificate_der, &claims)
    };
    let without_thumbprint = token(&key, &json!({"alg": "PS256", "typ": "JWT"}), &claims);
    let (unsigned, _) = good.rsplit_once('.').unwrap();
    for (what, assertion) in [
        ("another's key", signed(&other_key, &certificate_der, &claims)),
        ("another's certificate", signed(&other_key, &other_der, &claims)),
        ("another's thumbprint", signed(&key, &other_der, &claims)),
        ("no thumbprint", without_thumbprint),
        ("no signature", format!("{unsigned}.")),
        ("another audience", changed("aud", json!("https://login.microsoftonline.com/tenant"))),
        ("another issuer", changed("iss", json!("other"))),
        ("another subject", changed("sub", json!("other"))),
        ("ended", changed("exp", json!(now - 3600))),
        ("not begun", changed("nbf", json!(now + 3600))),
        ("no end", changed("exp", Value::Null)),
        ("no assertion", "x".to_owned()),
    ] {
        assert_eq!(refusal(&cloud.assert(&assertion).await), "invalid_client", "{what}");
    }
    let form = [GRANT, APP, SCOPE, ("client_assertion", good.as_str())];
    assert_eq!(refusal(&cloud.login("tenant", &form).await), "invalid_client", "no type");
}

#[tokio::test]
async fn a_federated_token_is_taken_as_it_is() {
    let cloud = Cloud::new().await;
    cloud.sim.federated("tenant", "app", "their-token");
    cloud.takes(cloud.assert("their-token").await).await;
    assert_eq!(refusal(&cloud.assert("another-token").await), "invalid_client");
    // The issuer gives out another one after a while.
    cloud.sim.federated("tenant", "app", "another-token");
    cloud.takes(cloud.assert("another-token").await).await;
    assert_eq!(refusal(&cloud.assert("their-token").await), "invalid_client");
}

#[tokio::test]
async fn a_machine_has_the_identities_that_it_was_given() {
    const QUERY: &str = "api-version=2018-02-01&resource=https://management.azure.com/";
    let header = Some(("Metadata", "true"));
    let of = |client_id: &str| format!("{QUERY}&client_id={client_id}");
    for (given, query, is_taken) in [
        (None, QUERY.to_owned(), true),
        (None, of("app"), false),
        (Some("app"), of("app"), true),
        (Some("app"), of("other"), false),
        (Some("app"), QUERY.to_owned(), false),
    ] {
        let cloud = Cloud::new().await;
        assert_eq!(refusal(&cloud.metadata(&query, header).await), "invalid_request", "none given");
        cloud.sim.managed_identity(given);
        let reply = cloud.metadata(&query, header).await;
        if is_taken {
            assert_eq!(reply.body["expires_in"], json!("3600"), "the service writes numbers as text");
            cloud.takes(reply).await;
        } else {
            assert_eq!(refusal(&reply), "invalid_request", "{given:?} {query}");
        }
    }
    let cloud = Cloud::new().await;
    cloud.sim.managed_identity(None);
    cloud.sim.managed_identity(Some("app"));
    for query in [QUERY.to_owned(), of("app")] {
        cloud.takes(cloud.metadata(&query, header).await).await;
    }
}

#[tokio::test]
async fn the_metadata_service_wants_its_header_and_its_query() {
    let cloud = Cloud::new().await;
    cloud.sim.managed_identity(None);
    let good = "api-version=2018-02-01&resource=https://management.azure.com/";
    for (query, header) in [
        (good, None),
        (good, Some(("Metadata", "false"))),
        ("resource=https://management.azure.com/", Some(("Metadata", "true"))),
        ("api-version=2018-02-01", Some(("Metadata", "true"))),
        ("api-version=2017-09-01&resource=https://management.azure.com/", Some(("Metadata", "true"))),
    ] {
        assert_eq!(refusal(&cloud.metadata(query, header).await), "invalid_request", "{query} {header:?}");
    }
    cloud.takes(cloud.metadata(good, Some(("metadata", "True"))).await).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_good_until_it_ends_or_is_taken_back() {
    let cloud = Cloud::new().await;
    let token = async || {
        let login = cloud.login("tenant", &[GRANT, APP, SCOPE, SECRET]).await.good();
        (login["access_token"].as_str().unwrap().to_owned(), login["expires_in"].clone())
    };
    cloud.sim.token_lifetime(Duration::from_secs(120));
    let (ending, seconds) = token().await;
    assert_eq!(seconds, json!(120));
    cloud.sim.token_lifetime(Duration::from_secs(3600));
    let (later, _) = token().await;
    tokio::time::advance(Duration::from_secs(119)).await;
    assert_eq!(cloud.get_as(&ending, &cloud.nsg()).await.status, 200);
    tokio::time::advance(Duration::from_secs(1)).await;
    let ended = cloud.get_as(&ending, &cloud.nsg()).await;
    assert_eq!(ended.error(), (401, "ExpiredAuthenticationToken"));

    assert_eq!(cloud.get_as(&later, &cloud.nsg()).await.status, 200);
    cloud.sim.forget_tokens();
    let forgotten = cloud.get_as(&later, &cloud.nsg()).await;
    assert_eq!(forgotten.error(), (401, "InvalidAuthenticationToken"));
    assert_eq!(cloud.get_as(&token().await.0, &cloud.nsg()).await.status, 200);
}

#[tokio::test]
async fn nothing_is_done_without_a_token() {
    let cloud = Cloud::new().await;
    let send = |token| cloud.send_as(token, reqwest::Method::DELETE, "/x", None, None);
    assert_eq!(send(None).await.unwrap().error(), (401, "AuthenticationFailed"));
    assert_eq!(send(Some("guessed")).await.unwrap().error(), (401, "InvalidAuthenticationToken"));
    let nsg = cloud.nsg();
    let reply = cloud.send_as(None, reqwest::Method::DELETE, &nsg, None, None).await.unwrap();
    assert_eq!(reply.status, 401);
    assert!(cloud.sim.get(&nsg).is_some());
}
