//! The server: TLS and HTTP/2 as the real one speaks them, the fault plan, and the services behind it.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_proto::v1::access_service_server::AccessServiceServer;
use postern_proto::v1::agent_service_server::AgentServiceServer;
use postern_proto::v1::audit_service_server::AuditServiceServer;
use postern_proto::v1::policy_service_server::PolicyServiceServer;
use postern_proto::v1::principal_service_server::PrincipalServiceServer;
use postern_proto::v1::status_service_server::StatusServiceServer;
use postern_proto::v1::target_service_server::TargetServiceServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::rpc::RpcCall;
use super::services::Services;
use super::shared::Shared;
use crate::connections::serve_each;

/// Serves every connection whose handshake succeeds.
pub(super) async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, shared: Arc<Shared>) {
    let tls = TlsAcceptor::from(tls);
    let services = Services(Arc::clone(&shared));
    let routes = Routes::new(AccessServiceServer::new(services.clone()))
        .add_service(PolicyServiceServer::new(services.clone()))
        .add_service(PrincipalServiceServer::new(services.clone()))
        .add_service(AuditServiceServer::new(services.clone()))
        .add_service(AgentServiceServer::new(services.clone()))
        .add_service(StatusServiceServer::new(services.clone()))
        .add_service(TargetServiceServer::new(services))
        .prepare();
    let serving =
        serve_each(listener, |stream| connection(stream, tls.clone(), routes.clone(), Arc::clone(&shared)));
    match serving.await {
        Err(error) => panic!("connections can be accepted: {error}"),
    }
}

/// Serves one connection until a side ends it, or until a fault cuts it.
async fn connection(stream: TcpStream, tls: TlsAcceptor, routes: Routes, shared: Arc<Shared>) {
    let Ok(stream) = tls.accept(stream).await else { return };
    let cut = Arc::new(Notify::new());
    let service = service_fn(|request: Request<Incoming>| {
        call(request, routes.clone(), Arc::clone(&shared), Arc::clone(&cut))
    });
    let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // The end of a connection is the client's doing or the test's.
        _ = serving => {}
        () = cut.notified() => {}
    }
}

async fn call(
    request: Request<Incoming>,
    routes: Routes,
    shared: Arc<Shared>,
    cut: Arc<Notify>,
) -> Result<Response<Body>, Infallible> {
    let handling = shared.faults.handle(&RpcCall::at(request.uri().path()));
    let answer = handling.answer(routes.oneshot(request), |status| Ok(status.clone().into_http())).await;
    shared.faults.hold(&handling).await;
    match answer {
        Some(answer) => answer,
        None => {
            cut.notify_one();
            pending().await
        }
    }
}
