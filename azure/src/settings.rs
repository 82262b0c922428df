//! The settings of the provider.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use postern_provider::kit::Rate;

/// The subscriptions that Postern drives, and the access to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureSettings {
    /// The name by which Postern recognizes its own rules; another Postern in the same subscription has another. 1 to 256
    /// characters.
    pub deployment: String,
    /// The cloud.
    pub environment: Environment,
    /// The identity of the broker.
    pub credential: Credential,
    /// The ids of the subscriptions, in lower case.
    pub subscriptions: BTreeSet<String>,
    /// The priorities of Postern's rules.
    pub priorities: Priorities,
    /// The handling of a network security group that flushes connections.
    pub flush_connection: Flush,
    /// The windows in an Azure Firewall.
    pub firewall: FirewallSettings,
    /// True if the broker asks Azure, with a caller's own token, whether the caller may request access.
    pub authorize_callers: bool,
    /// The rates of calls that Postern stays under.
    pub rates: Rates,
}

impl AzureSettings {
    /// Returns the files with secrets, each with its key in the broker's configuration.
    pub fn private_files(&self) -> Vec<(&'static str, PathBuf)> {
        match &self.credential {
            Credential::ClientSecret { secret_file, .. } => {
                vec![("azure.credential.secret_file", secret_file.clone())]
            }
            Credential::ClientCertificate { key, .. } => vec![("azure.credential.key", key.clone())],
            // Kubernetes writes the token, and gives it the mode that it needs.
            Credential::ManagedIdentity { .. } | Credential::WorkloadIdentity { .. } => Vec::new(),
        }
    }
}

/// The rates of calls that Azure meters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// The rate of reads.
    pub reads: Rate,
    /// The rate of writes.
    pub writes: Rate,
    /// The rate of writes of Microsoft.Network, which also count as writes.
    pub network_writes: Rate,
}

impl Default for Rates {
    /// Azure Resource Manager allows a principal 250 reads and 25 more each second, 200 writes and 10 more (Microsoft
    /// Learn, "Understand how Azure Resource Manager throttles requests"); Microsoft.Network allows 1,000 writes in any
    /// five minutes, those that come at once and those that follow. Consoles and scripts use the same limits: half of the
    /// reads is left to them. The end of a window must not wait for them: Postern uses all of the writes.
    fn default() -> Self {
        let rate = |at_once, per_second| Rate { at_once, per_second };
        Self { reads: rate(125, 12), writes: rate(200, 10), network_writes: rate(400, 2) }
    }
}

/// A cloud's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Azure Resource Manager: a URL without a path. The broker's token goes there and nowhere else.
    pub resource_manager: String,
    /// Microsoft Entra: a URL without a path.
    pub authority: String,
    /// The instance metadata service, which issues the tokens of a managed identity.
    pub metadata: String,
}

impl Environment {
    /// The address of the instance metadata service on every VM (Microsoft Learn, "Azure Instance Metadata Service").
    const METADATA: &'static str = "http://169.254.169.254";

    /// A cloud by its name: `public`, `government` or `china` (Microsoft Learn, "National clouds").
    pub fn named(name: &str) -> Option<Self> {
        let (resource_manager, authority) = match name {
            "public" => ("https://management.azure.com", "https://login.microsoftonline.com"),
            "government" => ("https://management.usgovcloudapi.net", "https://login.microsoftonline.us"),
            "china" => ("https://management.chinacloudapi.cn", "https://login.partner.microsoftonline.cn"),
            _ => return None,
        };
        let metadata = Self::METADATA.to_owned();
        Some(Self { resource_manager: resource_manager.into(), authority: authority.into(), metadata })
    }
}

/// The broker's identity for Microsoft Entra. Secrets are read from files whenever a token is needed: they may be rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// The identity of the VM that the broker runs on.
    ManagedIdentity {
        /// The client id, if the VM has several identities.
        client_id: Option<String>,
    },
    /// A token that Kubernetes or another issuer keeps in a file.
    WorkloadIdentity {
        /// The application.
        application: Application,
        /// The file.
        token_file: PathBuf,
    },
    /// A secret of an application.
    ClientSecret {
        /// The application.
        application: Application,
        /// The file that holds the secret.
        secret_file: PathBuf,
    },
    /// A certificate of an application.
    ClientCertificate {
        /// The application.
        application: Application,
        /// The certificate, in PEM.
        certificate: PathBuf,
        /// The RSA key of the certificate, in PEM.
        key: PathBuf,
    },
}

/// An application that is registered with Microsoft Entra.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// The id of its tenant, or a domain.
    pub tenant: String,
    /// The client id.
    pub client_id: String,
}

/// The priorities of Postern's rules in a network security group, 100 to 4096; a smaller number comes first. A priority that
/// another rule has is left to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priorities {
    /// The rules of windows.
    pub windows: RangeInclusive<u16>,
    /// The rules that deny; behind those of windows.
    pub denies: RangeInclusive<u16>,
}

impl Default for Priorities {
    /// 100 to 399, and 400 to 999.
    fn default() -> Self {
        Self { windows: 100..=399, denies: 400..=999 }
    }
}

/// The handling of a target whose network security group has `flushConnection` on: every change of its rules re-evaluates
/// established connections, and an expiry cuts them (I3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Refuses lockdowns and windows.
    Refuse,
    /// Asks the administrator at the lockdown, and shows it on the target.
    Warn,
}

/// The windows in an Azure Firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallSettings {
    /// The ports of the firewall that windows are mapped to.
    pub ports: RangeInclusive<u16>,
    /// The priority of the rule collection, 100 to 65000.
    pub priority: u16,
}

impl Default for FirewallSettings {
    /// 50000 to 59999, and 200.
    fn default() -> Self {
        Self { ports: 50000..=59999, priority: 200 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_minutes_of_calls_are_no_more_than_microsoft_network_takes() {
        let Rates { reads, network_writes, .. } = Rates::default();
        let most = |rate: Rate| rate.at_once + 300 * rate.per_second;
        assert!(most(network_writes) <= 1000 && most(reads) <= 10_000);
    }

    #[test]
    fn every_cloud_has_endpoints_of_its_own() {
        let clouds = ["public", "government", "china"].map(|name| Environment::named(name).unwrap());
        let suffixes = [
            ("azure.com", "microsoftonline.com"),
            ("usgovcloudapi.net", "microsoftonline.us"),
            ("chinacloudapi.cn", "partner.microsoftonline.cn"),
        ];
        for (cloud, (resource_manager, authority)) in clouds.iter().zip(suffixes) {
            assert!(cloud.resource_manager.ends_with(resource_manager), "{cloud:?}");
            assert!(cloud.authority.ends_with(authority), "{cloud:?}");
            assert_eq!(cloud.metadata, "http://169.254.169.254", "every VM's own");
        }
        assert_eq!(Environment::named("moon"), None);
    }
}
