//! The gRPC server: every service behind the gate.

use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt as _;
use postern_proto::v1::access_service_server::AccessServiceServer;
use postern_proto::v1::agent_service_server::AgentServiceServer;
use postern_proto::v1::audit_service_server::AuditServiceServer;
use postern_proto::v1::policy_service_server::PolicyServiceServer;
use postern_proto::v1::status_service_server::StatusServiceServer;
use postern_proto::v1::target_service_server::TargetServiceServer;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::ServiceBuilder;

use super::access::Access;
use super::agent::Agents;
use super::audit::Audit;
use super::bounded::BoundedLayer;
use super::errands::errands;
use super::gate::GateLayer;
use super::operator::Operator;
use super::policy::Policies;
use super::target::Targets;
use super::traced::TracedLayer;
use crate::app::App;

use super::Listener;

/// Serves until `shutdown` is done.
///
/// # Errors
/// The server cannot be built or fails.
pub async fn serve(
    app: Arc<App>,
    listener: Listener,
    health: HealthServer<impl Health>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(postern_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let descriptors = [
        postern_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let (errands, doing) = errands();
    let routes = Routes::new(health)
        .add_service(reflection)
        .add_service(AccessServiceServer::new(Access { app: Arc::clone(&app) }))
        .add_service(PolicyServiceServer::new(Policies { app: Arc::clone(&app) }))
        .add_service(TargetServiceServer::new(Targets { app: Arc::clone(&app), errands }))
        .add_service(AgentServiceServer::new(Agents { app: Arc::clone(&app) }))
        .add_service(AuditServiceServer::new(Audit { app: Arc::clone(&app) }))
        .add_service(StatusServiceServer::new(Operator { app: Arc::clone(&app) }))
        .prepare();
    let service = ServiceBuilder::new()
        .layer(TracedLayer)
        .layer(BoundedLayer::new(Arc::clone(listener.admission()), &descriptors)?)
        .layer(GateLayer { app })
        .service(routes);
    let server = listener.serve(service, shutdown).map(Ok::<_, anyhow::Error>);
    tokio::try_join!(server, doing.map(Ok))?;
    Ok(())
}
