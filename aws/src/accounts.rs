//! Access to the accounts: credentials, clients, and the proof that credentials belong to the configured
//! account.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use postern_provider::kit::Place;
use postern_provider::{CloudError, Hidden};
use postern_runtime::error_chain::error_chain;
use tokio::sync::{Mutex, OnceCell};

use crate::api::SdkEc2;
use crate::ec2::Ec2;
use crate::lockdown::RecentWrites;
use crate::rates;
use crate::settings::{AwsAccount, AwsSettings};

/// The timeout of a change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of one attempt of a read, and of all its attempts: a page of a sweep is long.
const READ_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
const READ_TIMEOUT: Duration = Duration::from_secs(90);
/// The number of attempts of a read.
const READ_ATTEMPTS: u32 = 3;
/// The longest pause between two attempts: the caller of the provider has a timeout of its own.
const MAX_READ_BACKOFF: Duration = Duration::from_secs(2);

/// An account in one Region.
pub(crate) struct AccountRegion {
    pub(crate) account: String,
    pub(crate) region: String,
    ec2: Box<dyn Ec2>,
    /// Lockdowns and releases happen one at a time: they may share groups.
    pub(crate) lockdowns: Mutex<()>,
    /// The holders and parked groups that this broker wrote a moment ago.
    pub(crate) recent: std::sync::Mutex<RecentWrites>,
    identity: Arc<AccountIdentity>,
}

/// The credentials of an account, and the proof that they are that account's.
struct AccountIdentity {
    account: String,
    sts: aws_sdk_sts::Client,
    proven: OnceCell<()>,
}

/// Prepares the clients of every account and Region. Makes no call.
pub(crate) async fn connect(settings: &AwsSettings) -> BTreeMap<(String, String), Arc<AccountRegion>> {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let mut places = BTreeMap::new();
    for account in &settings.accounts {
        let Some(home) = account.regions.first() else { continue };
        let mut base = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http.clone())
            .region(Region::new(home.clone()))
            .timeout_config(TimeoutConfig::builder().operation_timeout(READ_ATTEMPT_TIMEOUT).build());
        if let Some(endpoint) = &settings.endpoint {
            base = base.endpoint_url(endpoint);
        }
        let config = credentials(account, base.load().await).await;
        let identity = Arc::new(AccountIdentity {
            account: account.id.clone(),
            sts: aws_sdk_sts::Client::new(&config),
            proven: OnceCell::new(),
        });
        for region in &account.regions {
            let client = |retry: RetryConfig, attempt, call| {
                let timeouts = TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(5))
                    .operation_attempt_timeout(attempt)
                    .operation_timeout(call);
                let config = aws_sdk_ec2::config::Builder::from(&config).region(Region::new(region.clone()));
                let config = config.retry_config(retry).timeout_config(timeouts.build());
                aws_sdk_ec2::Client::from_conf(config.build())
            };
            let reads =
                RetryConfig::standard().with_max_attempts(READ_ATTEMPTS).with_max_backoff(MAX_READ_BACKOFF);
            let ec2 = SdkEc2 {
                reads: client(reads, READ_ATTEMPT_TIMEOUT, READ_TIMEOUT),
                writes: client(RetryConfig::disabled(), CHANGE_TIMEOUT, CHANGE_TIMEOUT),
                buckets: rates::buckets(),
            };
            let place = AccountRegion {
                account: account.id.clone(),
                region: region.clone(),
                ec2: Box::new(ec2),
                lockdowns: Mutex::new(()),
                recent: std::sync::Mutex::default(),
                identity: Arc::clone(&identity),
            };
            places.insert((account.id.clone(), region.clone()), Arc::new(place));
        }
    }
    places
}

/// The broker's own credentials, or those of the account's role.
async fn credentials(account: &AwsAccount, own: SdkConfig) -> SdkConfig {
    let Some(role) = &account.role_arn else { return own };
    let mut provider = AssumeRoleProvider::builder(role).session_name("postern").configure(&own);
    if let Some(id) = &account.external_id {
        provider = provider.external_id(id);
    }
    let provider = SharedCredentialsProvider::new(provider.build().await);
    own.into_builder().credentials_provider(provider).build()
}

impl AccountRegion {
    /// An account and Region whose credentials are proven, over a double of EC2.
    #[cfg(test)]
    pub(crate) fn over(ec2: Box<dyn Ec2>, account: &str, region: &str) -> Self {
        let config = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build();
        let identity = AccountIdentity {
            account: account.to_owned(),
            sts: aws_sdk_sts::Client::new(&config),
            proven: OnceCell::new_with(Some(())),
        };
        Self {
            account: account.to_owned(),
            region: region.to_owned(),
            ec2,
            lockdowns: Mutex::new(()),
            recent: std::sync::Mutex::default(),
            identity: Arc::new(identity),
        }
    }

    /// The name that reports and errors use.
    pub(crate) fn name(&self) -> String {
        format!("account {} in {}", self.account, self.region)
    }

    /// The place in reports: it hides its own targets if it cannot be read.
    pub(crate) fn place(&self) -> Place {
        let hides = Hidden::Region { account: self.account.clone(), region: self.region.clone() };
        Place { name: self.name(), hides }
    }

    /// Returns the client, once STS has confirmed that it reaches the right account: Postern would take
    /// another account's "not found" for the end of an instance.
    ///
    /// # Errors
    /// The credentials are missing, or belong to another account.
    pub(crate) async fn ec2(&self) -> Result<&dyn Ec2, CloudError> {
        self.identity.proven.get_or_try_init(|| self.identity.prove()).await?;
        Ok(self.ec2.as_ref())
    }
}

impl AccountIdentity {
    async fn prove(&self) -> Result<(), CloudError> {
        let answer = self.sts.get_caller_identity().send().await.map_err(|error| {
            CloudError::unavailable(format!(
                "no credentials for the account {}: {}",
                self.account,
                error_chain(&error)
            ))
        })?;
        match answer.account() {
            Some(account) if account == self.account => Ok(()),
            other => Err(CloudError::refused(format!(
                "the credentials for the account {} are those of {}; correct id or role_arn of aws.accounts in the configuration",
                self.account,
                other.unwrap_or("no account")
            ))),
        }
    }
}
