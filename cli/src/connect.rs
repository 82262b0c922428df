//! The broker as commands see it: clients over one mTLS channel, and one failure for each kind of error. An error
//! that the broker sent is its answer; an error of the connection means that the broker cannot be reached, or that
//! one side does not trust the other.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::PrincipalKey;
use postern_pki::credentials::Credentials;
use postern_pki::identity::SpiffeId;
use postern_pki::tls::{self, LearnedRoots};
use postern_proto::client::{channel, channel_to, resolve_families};
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::audit_service_client::AuditServiceClient;
use postern_proto::v1::policy_service_client::PolicyServiceClient;
use postern_proto::v1::principal_service_client::PrincipalServiceClient;
use postern_proto::v1::status_service_client::StatusServiceClient;
use postern_proto::v1::target_service_client::TargetServiceClient;
use postern_runtime::clock;
use postern_runtime::error_chain::{causes, error_chain};
use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use tonic::transport::Channel;
use tonic::{ConnectError, Response, Status};

use crate::args::ConnectionArgs;
use crate::error::Failure;
use crate::output;
use crate::remembered;
use crate::settings::{Settings, default_file};

/// The time within which a call must be answered. No call of this command asks the broker to wait.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The time within which a broker must say by one family at which address it sees this machine.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(2);
/// The time within which a call must be answered if the broker has to call a cloud many times for it. A dead
/// connection shows long before.
const CLOUD_TIMEOUT: Duration = Duration::from_secs(900);

/// A broker, and the identity that the command shows it.
pub(crate) struct BrokerClient {
    address: String,
    identity: PathBuf,
    credentials: Credentials,
    channel: Channel,
    learned: Arc<LearnedRoots>,
}

impl BrokerClient {
    /// Reads the settings and the identity. The first call makes the connection.
    ///
    /// # Errors
    /// The settings, the address or the identity cannot be used.
    pub(crate) fn of(connection: &ConnectionArgs) -> Result<Self, Failure> {
        let Settings { broker: address, identity } = Settings::resolve(connection, &default_file())?;
        let unusable = |source| Failure::Identity { dir: identity.clone(), source };
        let credentials = Credentials::load(&identity).map_err(unusable)?;
        let learned = Arc::default();
        let tls = tls::client_config_learning(&credentials, &learned).map_err(unusable)?;
        let channel = channel(&address, tls)?;
        Ok(Self { address, identity, credentials, channel, learned })
    }

    /// Returns the key of the principal that the certificate proves.
    ///
    /// # Errors
    /// The certificate is an agent's or a broker's, or has no identity.
    pub(crate) fn principal(&self) -> Result<PrincipalKey, Failure> {
        let not_a_principal = |source| Failure::NoPrincipal { dir: self.identity.clone(), source };
        let domain = self.credentials.trust_domain().map_err(|e| not_a_principal(Some(e)))?;
        match self.credentials.identity(&domain).map_err(|e| not_a_principal(Some(e)))? {
            SpiffeId::Principal { name, .. } => Ok(name.into()),
            SpiffeId::Broker | SpiffeId::Agent(_) => Err(not_a_principal(None)),
        }
    }

    /// Returns the roots that the identity trusts, DER.
    pub(crate) fn roots(&self) -> &[Vec<u8>] {
        self.credentials.roots()
    }

    /// Returns the trust domain that the certificate names, if it names one.
    pub(crate) fn trust_domain(&self) -> Option<String> {
        self.credentials.trust_domain().ok().map(|domain| domain.to_string())
    }

    /// Returns the addresses at which the broker sees this machine, if it sees one of each family: asked over a connection of each family
    /// to which the broker's address resolves. Empty if there is one family only, or if a family does not answer.
    pub(crate) async fn caller_addresses(&self) -> Vec<v1::CallerAddress> {
        let places = resolve_families(&self.address).await.unwrap_or_default();
        let [one, other] = places[..] else { return Vec::new() };
        let (one, other) = tokio::join!(self.caller_address(one), self.caller_address(other));
        one.zip(other).map(|(one, other)| vec![one, other]).unwrap_or_default()
    }

    async fn caller_address(&self, at: SocketAddr) -> Option<v1::CallerAddress> {
        let tls = tls::client_config(&self.credentials).ok()?;
        let mut access = AccessServiceClient::new(channel_to(&self.address, tls, at).ok()?);
        let asked = access.get_caller_address(v1::GetCallerAddressRequest {});
        let answer = tokio::time::timeout(ADDRESS_TIMEOUT, asked).await.ok()?.ok()?;
        answer.into_inner().address
    }

    pub(crate) fn access(&self) -> AccessServiceClient<Channel> {
        AccessServiceClient::new(self.channel.clone())
    }

    pub(crate) fn policies(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.channel.clone())
    }

    pub(crate) fn targets(&self) -> TargetServiceClient<Channel> {
        TargetServiceClient::new(self.channel.clone())
    }

    pub(crate) fn agents(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
    }

    pub(crate) fn principals(&self) -> PrincipalServiceClient<Channel> {
        PrincipalServiceClient::new(self.channel.clone())
    }

    pub(crate) fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel.clone())
    }

    pub(crate) fn status(&self) -> StatusServiceClient<Channel> {
        StatusServiceClient::new(self.channel.clone())
    }

    /// Awaits a call's answer, for a bounded time.
    ///
    /// # Errors
    /// The broker's own error, or a failure without an answer.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.answered(CALL_TIMEOUT, call).await
    }

    /// Awaits the answer of a call for which the broker calls a cloud, for a bounded time.
    ///
    /// # Errors
    /// The broker's own error, or a failure without an answer.
    pub(crate) async fn cloud_call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.answered(CLOUD_TIMEOUT, call).await
    }

    async fn answered<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let answer = tokio::time::timeout(limit, call).await;
        self.save_learned_roots();
        match answer {
            Ok(answer) => answer.map(Response::into_inner).map_err(|status| self.failure(status)),
            Err(_) => Err(self.unanswered(limit)),
        }
    }

    /// Writes the roots that the handshake brought into the identity's directory: the authority replaces its root, and the command must
    /// trust the next one before the old one ends.
    fn save_learned_roots(&self) {
        let Some(roots) = self.learned.take() else { return };
        if let Err(error) = Credentials::save_roots(&self.identity, &roots) {
            let file = self.identity.join("roots.pem").display().to_string();
            output::warn(&format!(
                "the broker's authority replaces its root, and the command cannot write the roots into {file} ({}); make it writable and \
                 run a command again, or copy roots.pem from another identity, before the old root is gone",
                error_chain(&error)
            ));
        }
        if let Err(error) = remembered::learn_roots(self.roots(), &roots) {
            output::warn(&format!(
                "the broker's authority replaces its root, and the command cannot write that beside the checkpoints that it remembers \
                 ({error}); run `postern audit verify` before the old root is gone"
            ));
        }
    }

    /// Classifies a status: the broker sent those without a source, this side made the others.
    pub(crate) fn failure(&self, status: Status) -> Failure {
        if status.source().is_none() {
            return Failure::Broker(Box::new(status));
        }
        let address = self.address.clone();
        match tls_error(&status) {
            Some(rustls::Error::AlertReceived(alert)) => {
                let cause = self.ended().unwrap_or_else(|| format!("TLS alert {alert:?}"));
                Failure::CertificateRefused { address, cause }
            }
            Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => {
                let cause = format!("it ended at {}", utc(*not_after));
                Failure::BrokerEnded { address, cause }
            }
            Some(error) => Failure::Untrusted { address, cause: error.to_string() },
            None if causes(&status).any(|error| error.is::<ConnectError>()) => {
                Failure::Unreachable { address, cause: root_cause(&status) }
            }
            // In TLS 1.3 a client's certificate is refused after its side of the handshake is done, and the alert
            // that says so may go down with the connection.
            None => match self.ended() {
                Some(cause) => Failure::CertificateRefused { address, cause },
                None => self.lost(root_cause(&status)),
            },
        }
    }

    /// Returns the failure for a connection that was lost, or on which no answer came.
    pub(crate) fn lost(&self, cause: String) -> Failure {
        Failure::Lost { address: self.address.clone(), cause }
    }

    /// Returns the failure for a call without an answer within the limit.
    pub(crate) fn unanswered(&self, limit: Duration) -> Failure {
        self.lost(format!("no answer within {}", output::time::span(limit)))
    }

    /// Describes the end of the command's own certificate, if that has passed.
    fn ended(&self) -> Option<String> {
        let end = self.credentials.not_after();
        (end <= clock::wall()).then(|| format!("it ended at {}", output::time::utc(end)))
    }
}

/// Formats a moment of the TLS library's clock.
fn utc(at: UnixTime) -> String {
    let at = i64::try_from(at.as_secs()).ok().and_then(|at| Timestamp::from_second(at).ok());
    at.map_or_else(output::time::dash, output::time::utc)
}

/// Returns the TLS error that caused the status, if one did. An I/O error hides its inner error from `source`.
fn tls_error(status: &Status) -> Option<&rustls::Error> {
    causes(status).find_map(|error| {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error.downcast_ref().or_else(|| wrapped.and_then(|error| error.downcast_ref()))
    })
}

fn root_cause(status: &Status) -> String {
    causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}
