//! The gRPC server: every service behind the layers that each call passes.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt as _;
use http::{Request, Response};
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::{Service, ServiceBuilder};

use super::Listener;
use super::authentication::Authenticators;
use super::bounded::BoundedLayer;
use super::middleware::authenticate::AuthenticateLayer;
use super::middleware::authorize::AuthorizeLayer;
use super::middleware::trace::TraceLayer;
use super::run_to_completion::{Runner, runner};
use super::services;
use crate::app::App;
use crate::limits::{Admission, ExpensiveReads};

/// Serves until `shutdown` is done, and then until the last call is answered and the last work has run to its end.
///
/// # Errors
/// The server cannot be built or fails.
pub async fn serve(
    app: Arc<App>,
    listener: Listener,
    health: HealthServer<impl Health>,
    authenticators: Authenticators,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (runner, running) = runner();
    let admission = Arc::clone(listener.admission());
    let service = service(app, admission, health, authenticators, runner)?;
    let server = listener.serve(service, shutdown).map(Ok::<_, anyhow::Error>);
    tokio::try_join!(server, running.map(Ok))?;
    Ok(())
}

/// Puts the layers before every service.
///
/// # Errors
/// A descriptor cannot be read.
fn service(
    app: Arc<App>,
    admission: Arc<Admission>,
    health: HealthServer<impl Health>,
    authenticators: Authenticators,
    runner: Runner,
) -> anyhow::Result<
    impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static,
> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(postern_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let descriptors = [
        postern_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let reads = ExpensiveReads::new(&admission.limits);
    let routes = Routes::new(health).add_service(reflection);
    let routes = services::add_to(routes, &app, runner, &reads).prepare();
    Ok(ServiceBuilder::new()
        .layer(TraceLayer)
        .layer(BoundedLayer::new(admission, &descriptors)?)
        .layer(AuthenticateLayer { authenticators: Arc::new(authenticators) })
        .layer(AuthorizeLayer { app })
        .service(routes))
}

#[cfg(test)]
mod tests;
