//! A principal's client: typed calls over mutual TLS, from inside a host's namespace.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_pki::credentials::Credentials;
use postern_pki::tls::client_config;
use postern_proto::client::channel;
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::audit_service_client::AuditServiceClient;
use postern_proto::v1::policy_service_client::PolicyServiceClient;
use postern_proto::v1::target_service_client::TargetServiceClient;
use tokio_stream::StreamExt as _;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::builders::RequestBuilder;
use crate::cli::Cli;
use crate::clock::{STEP_TIMEOUT, wait_until};
use crate::net::Host;
use crate::netns::{Netns, Running};

/// A client. Its connection is made on first use, and again after a failure.
#[derive(Debug, Clone)]
pub struct Client {
    netns: Netns,
    channel: Channel,
    url: String,
    identity: PathBuf,
}

impl Client {
    /// A client on `host` with the identity in a directory.
    ///
    /// # Panics
    /// The identity cannot be used.
    pub fn new(host: &Host, url: &str, identity: &Path) -> Self {
        let credentials = Credentials::load(identity).expect("the identity can be loaded");
        let tls = client_config(&credentials).expect("the identity can be used");
        let (netns, address) = (host.netns().clone(), url.to_owned());
        // The channel's own task belongs to the runtime, and so to the namespace, in which it is made.
        let channel = netns.run(async move { channel(&address, tls) }).expect("the address is one");
        Self { netns, channel, url: url.to_owned(), identity: identity.to_owned() }
    }

    /// The URL of the client's broker.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory of the client's identity.
    pub fn identity(&self) -> &Path {
        &self.identity
    }

    /// Returns the `postern` command as this client would run it on its host.
    pub fn cli(&self) -> Cli {
        Cli::over(self.netns.clone(), &self.url, &self.identity)
    }

    /// Makes calls over its connection.
    pub fn run<T: Send + 'static, F>(&self, calls: impl FnOnce(Channel) -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.start(calls).join()
    }

    /// Starts calls over its connection.
    pub fn start<T: Send + 'static, F>(&self, calls: impl FnOnce(Channel) -> F) -> Running<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.netns.start(calls(self.channel.clone()))
    }

    /// Asks for access.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn request(&self, ask: &RequestBuilder) -> Result<v1::RequestAccessResponse, Status> {
        self.start_request(ask).join()
    }

    /// Starts to ask for access.
    pub fn start_request(&self, ask: &RequestBuilder) -> Running<Result<v1::RequestAccessResponse, Status>> {
        let wire = ask.wire();
        self.start(|channel| async move {
            AccessServiceClient::new(channel).request_access(wire).await.map(tonic::Response::into_inner)
        })
    }

    /// Asks for access and waits until it is there.
    ///
    /// # Panics
    /// It does not become active.
    pub fn open(&self, ask: &RequestBuilder) -> v1::Grant {
        let answer = self.request(&ask.clone().waiting(STEP_TIMEOUT)).expect("the request is authorized");
        let grant = answer.grant.expect("an answer has a grant");
        assert_eq!(grant.state(), v1::GrantState::Active, "{grant:?}");
        grant
    }

    /// Revokes a grant and waits until it is closed.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn revoke(&self, grant_id: &str) -> Result<v1::Grant, Status> {
        let request = v1::RevokeAccessRequest {
            grant_id: grant_id.to_owned(),
            wait: Some(seconds(STEP_TIMEOUT)),
            ..v1::RevokeAccessRequest::default()
        };
        let answer = self
            .run(|channel| async move { AccessServiceClient::new(channel).revoke_access(request).await })?;
        Ok(answer.into_inner().grant.expect("an answer has a grant"))
    }

    /// Returns the present state of a grant.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn grant(&self, grant_id: &str) -> Result<v1::Grant, Status> {
        let request = v1::GetGrantRequest { grant_id: grant_id.to_owned() };
        let answer =
            self.run(|channel| async move { AccessServiceClient::new(channel).get_grant(request).await })?;
        Ok(answer.into_inner().grant.expect("an answer has a grant"))
    }

    /// Waits until a grant is in a state.
    ///
    /// # Panics
    /// It does not come to that.
    pub fn wait_for_state(&self, grant_id: &str, state: v1::GrantState) -> v1::Grant {
        let what = format!("grant {grant_id} to be {}", state.as_str_name());
        wait_until(&what, STEP_TIMEOUT, || self.grant(grant_id).is_ok_and(|grant| grant.state() == state));
        self.grant(grant_id).expect("it was there a moment ago")
    }

    /// Returns every grant that the client may see, the newest first.
    ///
    /// # Panics
    /// A page cannot be had.
    pub fn grants(&self) -> Vec<v1::Grant> {
        let mut grants = Vec::new();
        let mut token = String::new();
        loop {
            let page = Some(v1::PageRequest { size: 50, token });
            let request = v1::ListGrantsRequest { filter: None, page };
            let page = self
                .run(|channel| async move { AccessServiceClient::new(channel).list_grants(request).await });
            let page = page.expect("grants can be listed").into_inner();
            grants.extend(page.grants);
            token = page.next_page_token;
            if token.is_empty() {
                return grants;
            }
        }
    }

    /// Keeps a policy.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn put_policy(&self, policy: v1::Policy) -> Result<v1::Policy, Status> {
        let request = v1::PutPolicyRequest { policy: Some(policy) };
        let answer =
            self.run(|channel| async move { PolicyServiceClient::new(channel).put_policy(request).await })?;
        Ok(answer.into_inner().policy.expect("an answer has a policy"))
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn join_token(&self, target: &str, valid_for: Option<Duration>) -> Result<String, Status> {
        let request =
            v1::CreateJoinTokenRequest { target: target.to_owned(), valid_for: valid_for.map(seconds) };
        let answer =
            self.run(
                |channel| async move { AgentServiceClient::new(channel).create_join_token(request).await },
            )?;
        Ok(answer.into_inner().token)
    }

    /// Bans a target's agent.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn ban(&self, target: &str) -> Result<v1::Agent, Status> {
        let request = v1::BanAgentRequest { target: target.to_owned(), reason: "a test".to_owned() };
        let answer =
            self.run(|channel| async move { AgentServiceClient::new(channel).ban_agent(request).await })?;
        Ok(answer.into_inner().agent.expect("an answer has an agent"))
    }

    /// The agents.
    ///
    /// # Panics
    /// They cannot be listed.
    pub fn agents(&self) -> Vec<v1::Agent> {
        let request = v1::ListAgentsRequest { page: None };
        let answer =
            self.run(|channel| async move { AgentServiceClient::new(channel).list_agents(request).await });
        answer.expect("agents can be listed").into_inner().agents
    }

    /// Returns the status of a target's host layer; `None` where the broker cannot say.
    pub fn host_layer(&self, target: &str) -> Option<v1::LayerStatus> {
        self.layer(target, v1::Layer::Host).map(|layer| layer.status())
    }

    /// Returns the status of a target's layer; `None` where the broker cannot say.
    pub fn layer(&self, target: &str, layer: v1::Layer) -> Option<v1::TargetLayer> {
        let request = v1::GetTargetRequest { id: target.to_owned() };
        let answer =
            self.run(|channel| async move { TargetServiceClient::new(channel).get_target(request).await });
        answer.ok()?.into_inner().target?.layers.into_iter().find(|found| found.layer() == layer)
    }

    /// Waits until the agent of a target holds what it should.
    ///
    /// # Panics
    /// It does not come to that.
    pub fn wait_in_sync(&self, target: &str) {
        let in_sync = || self.host_layer(target) == Some(v1::LayerStatus::InSync);
        wait_until(&format!("the agent of {target} to be in sync"), STEP_TIMEOUT, in_sync);
    }

    /// The audit log, a line each.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn audit(&self) -> Vec<String> {
        let request = v1::TailAuditRequest { after: 0, follow: false };
        self.run(|channel| async move {
            let stream =
                AuditServiceClient::new(channel).tail_audit(request).await.expect("the log can be read");
            let lines = stream.into_inner().map(|record| record.expect("a record can be read").line);
            lines.collect().await
        })
    }

    /// Returns the lines of the audit log without those that carry a checkpoint, which a broker writes by itself.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn audit_without_checkpoints(&self) -> Vec<String> {
        let mut lines = self.audit();
        lines.retain(|line| !line.contains("\"action\":\"audit.checkpoint\""));
        lines
    }

    /// Returns the lines of the audit log with this action.
    pub fn audited(&self, action: &str) -> Vec<String> {
        let lines = self.audit();
        lines.into_iter().filter(|line| line.contains(&format!("\"action\":\"{action}\""))).collect()
    }

    /// Verifies the audit log in the store.
    ///
    /// # Panics
    /// The broker does not answer.
    pub fn verify_audit(&self) -> v1::VerifyAuditResponse {
        let answer = self.run(|channel| async move {
            AuditServiceClient::new(channel).verify_audit(v1::VerifyAuditRequest::default()).await
        });
        answer.expect("the log can be verified").into_inner()
    }
}

/// A refusal: the code, the reason for machines, and the fields with what is wrong and what would mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub code: tonic::Code,
    /// The stable reason; empty where there is none.
    pub reason: String,
    /// The field that is wrong; empty where there is none.
    pub field: String,
    /// The fault and its remedy.
    pub description: String,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let violation = details.bad_request().and_then(|bad| bad.field_violations.first().cloned());
        let (field, description) = violation.map(|v| (v.field, v.description)).unwrap_or_default();
        let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
        Self { code: status.code(), reason, field, description }
    }
}

fn seconds(duration: Duration) -> prost_types::Duration {
    postern_proto::convert::duration_to_wire(duration)
}
