//! The services: one file for each. A method parses its message, calls one use case of [`crate::app`], and converts the
//! answer.

mod access;
mod agent;
mod audit;
mod checkpoint_feed;
mod grant_view;
pub(in crate::api) mod health;
mod policy;
mod principal;
mod reads;
mod session;
mod status;
mod target;
mod watch;

use std::sync::Arc;

use postern_proto::v1::access_service_server::AccessServiceServer;
use postern_proto::v1::agent_service_server::AgentServiceServer;
use postern_proto::v1::audit_service_server::AuditServiceServer;
use postern_proto::v1::policy_service_server::PolicyServiceServer;
use postern_proto::v1::principal_service_server::PrincipalServiceServer;
use postern_proto::v1::status_service_server::StatusServiceServer;
use postern_proto::v1::target_service_server::TargetServiceServer;
use tonic::service::Routes;

use self::access::AccessApi;
use self::agent::AgentApi;
use self::audit::AuditApi;
use self::policy::PolicyApi;
use self::principal::PrincipalApi;
use self::status::StatusApi;
use self::target::TargetApi;
use self::watch::GrantFeed;
use super::run_to_completion::Runner;
use crate::app::App;
use crate::limits::ExpensiveReads;

/// Adds every service of Postern to these routes.
pub(super) fn add_to(routes: Routes, app: &Arc<App>, runner: Runner, reads: &ExpensiveReads) -> Routes {
    let app = || Arc::clone(app);
    routes
        .add_service(AccessServiceServer::new(AccessApi {
            app: app(),
            feed: GrantFeed::default(),
            reads: reads.clone(),
        }))
        .add_service(PolicyServiceServer::new(PolicyApi { app: app() }))
        .add_service(TargetServiceServer::new(TargetApi {
            app: app(),
            runner: runner.clone(),
            reads: reads.clone(),
        }))
        .add_service(PrincipalServiceServer::new(PrincipalApi { app: app(), runner, reads: reads.clone() }))
        .add_service(AgentServiceServer::new(AgentApi { app: app(), reads: reads.clone() }))
        .add_service(AuditServiceServer::new(AuditApi { app: app(), reads: reads.clone() }))
        .add_service(StatusServiceServer::new(StatusApi { app: app() }))
}
