//! The gRPC server: every service behind the layers that each call passes.

use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::ServiceBuilder;

use super::Listener;
use super::bounded::BoundedLayer;
use super::middleware::authorize::AuthorizeLayer;
use super::middleware::trace::TraceLayer;
use super::run_to_completion::runner;
use super::services;
use crate::app::App;

/// Serves until `shutdown` is done, and then until the last call is answered and the last work has run to its end.
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
    let (runner, running) = runner();
    let routes = services::add_to(Routes::new(health).add_service(reflection), &app, runner).prepare();
    let service = ServiceBuilder::new()
        .layer(TraceLayer)
        .layer(BoundedLayer::new(Arc::clone(listener.admission()), &descriptors)?)
        .layer(AuthorizeLayer { app })
        .service(routes);
    let server = listener.serve(service, shutdown).map(Ok::<_, anyhow::Error>);
    tokio::try_join!(server, running.map(Ok))?;
    Ok(())
}
