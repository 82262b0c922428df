//! The subscriptions of Azure in the configuration.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use postern_azure::{
    Application, AzureSettings, Credential, Environment, FirewallSettings, Flush, Priorities, Rates,
};
use postern_core::{Invalid, TargetId};
use postern_pki::TrustDomain;
use serde::Deserialize;

/// The section `[azure]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AzureSection {
    #[serde(default)]
    cloud: Option<String>,
    #[serde(default)]
    resource_manager: Option<String>,
    #[serde(default)]
    authority: Option<String>,
    #[serde(default)]
    metadata: Option<String>,
    credential: CredentialFile,
    #[serde(default)]
    subscriptions: Vec<String>,
    #[serde(default)]
    priorities: Option<PrioritiesFile>,
    #[serde(default)]
    flush_connection: FlushFile,
    #[serde(default)]
    firewall: Option<FirewallFile>,
    #[serde(default)]
    authorize_callers: bool,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum CredentialFile {
    ManagedIdentity {
        #[serde(default)]
        client_id: Option<String>,
    },
    WorkloadIdentity {
        tenant: String,
        client_id: String,
        token_file: PathBuf,
    },
    ClientSecret {
        tenant: String,
        client_id: String,
        secret_file: PathBuf,
    },
    ClientCertificate {
        tenant: String,
        client_id: String,
        certificate: PathBuf,
        key: PathBuf,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrioritiesFile {
    windows: String,
    denies: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirewallFile {
    #[serde(default)]
    ports: Option<String>,
    #[serde(default)]
    priority: Option<u16>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FlushFile {
    #[default]
    Refuse,
    Warn,
}

impl AzureSection {
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self, trust_domain: &TrustDomain) -> Result<AzureSettings, Invalid> {
        let cloud = self.cloud.as_deref().unwrap_or("public");
        let mut environment = Environment::named(cloud).ok_or_else(|| {
            let problem = format!("{cloud:?} is no cloud of Azure");
            Invalid::new("azure.cloud", problem, "use public, government or china")
        })?;
        for (key, given, place) in [
            ("azure.resource_manager", self.resource_manager, &mut environment.resource_manager),
            ("azure.authority", self.authority, &mut environment.authority),
            ("azure.metadata", self.metadata, &mut environment.metadata),
        ] {
            if let Some(url) = given {
                *place = origin(key, &url)?;
            }
        }
        let mut subscriptions = BTreeSet::new();
        for (i, subscription) in self.subscriptions.iter().enumerate() {
            let field = format!("azure.subscriptions[{i}]");
            // The rules for targets decide which subscriptions are valid.
            TargetId::from_segments(&["azure", subscription, "g", "vm"]).map_err(|_| {
                Invalid::new(&field, format!("{subscription:?} is not a subscription"), "write its UUID")
            })?;
            if !subscriptions.insert(subscription.to_ascii_lowercase()) {
                return Err(Invalid::new(&field, format!("{subscription} is there twice"), "take one out"));
            }
        }
        if subscriptions.is_empty() {
            let remedy = "name a subscription, or take [azure] out";
            return Err(Invalid::new("azure.subscriptions", "is empty", remedy));
        }
        Ok(AzureSettings {
            deployment: trust_domain.to_string(),
            environment,
            credential: self.credential.checked()?,
            subscriptions,
            priorities: self.priorities.map_or_else(|| Ok(Priorities::default()), PrioritiesFile::checked)?,
            flush_connection: match self.flush_connection {
                FlushFile::Refuse => Flush::Refuse,
                FlushFile::Warn => Flush::Warn,
            },
            firewall: self.firewall.map_or_else(|| Ok(FirewallSettings::default()), FirewallFile::checked)?,
            authorize_callers: self.authorize_callers,
            rates: Rates::default(),
        })
    }
}

/// Checks a URL without a path. A token goes to its host, so it must be https unless the host is this machine.
fn origin(key: &str, url: &str) -> Result<String, Invalid> {
    let url = url.trim_end_matches('/');
    let rest = url.strip_prefix("https://").or_else(|| {
        let rest = url.strip_prefix("http://")?;
        let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
        let is_local = matches!(host, "127.0.0.1" | "localhost" | "[::1]" | "169.254.169.254");
        is_local.then_some(rest)
    });
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains(['/', '?', '#', '@', ' ']) => Ok(url.to_owned()),
        _ => {
            let problem = format!("{url:?} is not the URL of a host");
            Err(Invalid::new(key, problem, "write it like https://management.azure.com, without a path"))
        }
    }
}

impl CredentialFile {
    fn checked(self) -> Result<Credential, Invalid> {
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        };
        let id = |field: &str, text: String| {
            if plain(&text) {
                return Ok(text);
            }
            let problem = format!("{text:?} is neither a UUID nor a domain");
            Err(Invalid::new(
                format!("azure.credential.{field}"),
                problem,
                "write it as Microsoft Entra shows it",
            ))
        };
        let application = |tenant: String, client_id: String| {
            Ok::<_, Invalid>(Application {
                tenant: id("tenant", tenant)?,
                client_id: id("client_id", client_id)?,
            })
        };
        let file = |field: &str, path: PathBuf| {
            if path.is_absolute() {
                return Ok(path);
            }
            let problem = format!("{} is not an absolute path", path.display());
            Err(Invalid::new(format!("azure.credential.{field}"), problem, "write the whole path"))
        };
        Ok(match self {
            Self::ManagedIdentity { client_id } => Credential::ManagedIdentity {
                client_id: client_id.map(|client_id| id("client_id", client_id)).transpose()?,
            },
            Self::WorkloadIdentity { tenant, client_id, token_file } => Credential::WorkloadIdentity {
                application: application(tenant, client_id)?,
                token_file: file("token_file", token_file)?,
            },
            Self::ClientSecret { tenant, client_id, secret_file } => Credential::ClientSecret {
                application: application(tenant, client_id)?,
                secret_file: file("secret_file", secret_file)?,
            },
            Self::ClientCertificate { tenant, client_id, certificate, key } => {
                Credential::ClientCertificate {
                    application: application(tenant, client_id)?,
                    certificate: file("certificate", certificate)?,
                    key: file("key", key)?,
                }
            }
        })
    }
}

impl PrioritiesFile {
    fn checked(self) -> Result<Priorities, Invalid> {
        let windows = range("azure.priorities.windows", &self.windows, 100..=4096)?;
        let denies = range("azure.priorities.denies", &self.denies, 100..=4096)?;
        if windows.end() >= denies.start() {
            let problem = format!("{} is not behind {}", self.denies, self.windows);
            return Err(Invalid::new("azure.priorities.denies", problem, "let it begin after the windows'"));
        }
        Ok(Priorities { windows, denies })
    }
}

impl FirewallFile {
    fn checked(self) -> Result<FirewallSettings, Invalid> {
        let usual = FirewallSettings::default();
        let ports = self.ports.map(|ports| range("azure.firewall.ports", &ports, 1..=64_000)).transpose()?;
        let priority = self.priority.unwrap_or(usual.priority);
        if !(100..=65_000).contains(&priority) {
            let problem = format!("{priority} is out of range");
            return Err(Invalid::new("azure.firewall.priority", problem, "use 100 to 65000"));
        }
        Ok(FirewallSettings { ports: ports.unwrap_or(usual.ports), priority })
    }
}

fn range(key: &str, text: &str, within: RangeInclusive<u16>) -> Result<RangeInclusive<u16>, Invalid> {
    let parsed = text
        .split_once('-')
        .and_then(|(from, to)| Some((from.trim().parse().ok()?, to.trim().parse().ok()?)));
    match parsed {
        Some((from, to)) if from <= to && within.contains(&from) && within.contains(&to) => Ok(from..=to),
        _ => {
            let problem = format!("{text:?} is not a range from {} to {}", within.start(), within.end());
            Err(Invalid::new(key, problem, "write it like 100-399"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cloud = "government"
        subscriptions = ["00000000-0000-0000-0000-00000000000A"]
        flush_connection = "warn"
        authorize_callers = true
        [credential]
        kind = "client_secret"
        tenant = "example.onmicrosoft.us"
        client_id = "00000000-0000-0000-0000-000000000001"
        secret_file = "/etc/postern/azure.secret"
        [priorities]
        windows = "100-199"
        denies = "200-299"
        [firewall]
        ports = "40000-40999"
        priority = 300
    "#;

    fn parse(text: &str) -> Result<AzureSettings, String> {
        let file: AzureSection = toml::from_str(text).map_err(|error| error.to_string())?;
        file.checked(&TrustDomain::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_section_becomes_settings() {
        let settings = parse(GOOD).unwrap();
        assert_eq!(settings.environment, Environment::named("government").unwrap());
        assert_eq!((settings.priorities.denies, settings.firewall.ports), (200..=299, 40_000..=40_999));
        assert_eq!(settings.subscriptions, ["00000000-0000-0000-0000-00000000000a".to_owned()].into());
        assert!(settings.flush_connection == Flush::Warn && settings.authorize_callers);
    }

    #[test]
    fn every_kind_of_credential_is_read() {
        let with = |credential: &str| {
            parse(&format!(
                "subscriptions = [\"00000000-0000-0000-0000-00000000000a\"]\n[credential]\n{credential}"
            ))
        };
        let application = "tenant = \"t\"\nclient_id = \"c\"\n";
        assert!(with("kind = \"managed_identity\"").is_ok());
        assert!(with(&format!("kind = \"workload_identity\"\n{application}token_file = \"/t\"")).is_ok());
        assert!(
            with(&format!("kind = \"client_certificate\"\n{application}certificate = \"/c\"\nkey = \"/k\""))
                .is_ok()
        );
        assert!(with("kind = \"password\"").is_err());
    }

    #[test]
    fn a_bad_section_names_the_key() {
        for (from, to, key) in [
            ("\"government\"", "\"moon\"", "azure.cloud"),
            ("cloud =", "resource_manager = \"http://example.org\"\ncloud =", "azure.resource_manager"),
            ("cloud =", "authority = \"https://example.org/tenant\"\ncloud =", "azure.authority"),
            ("[\"00000000-0000-0000-0000-00000000000A\"]", "[]", "azure.subscriptions"),
            ("-00000000000A\"", "-0A\"", "azure.subscriptions[0]"),
            ("00A\"]", "00A\", \"00000000-0000-0000-0000-00000000000a\"]", "azure.subscriptions[1]"),
            ("\"warn\"", "\"maybe\"", "flush_connection"),
            ("\"example.onmicrosoft.us\"", "\"a/b\"", "azure.credential.tenant"),
            ("\"/etc/postern/azure.secret\"", "\"azure.secret\"", "azure.credential.secret_file"),
            ("\"100-199\"", "\"99-199\"", "azure.priorities.windows"),
            ("\"200-299\"", "\"150-299\"", "azure.priorities.denies"),
            ("\"40000-40999\"", "\"40000\"", "azure.firewall.ports"),
            ("priority = 300", "priority = 99", "azure.firewall.priority"),
            ("flush_connection", "flush", "flush"),
        ] {
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
