//! Traces by OTLP: a call's spans reach a collector, in the caller's own trace, and a collector that is gone costs nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_tests::clock::wait_until;
use postern_tests::stranger::Stranger;
use postern_tests::{Host, HostWorld, Running, STEP_TIMEOUT, VM, ask_for, usual_policy};
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const PORT: u16 = 4317;

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let spans = resources.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn listen(&self, host: &Host) -> Running<()> {
        let (collector, address) = (self.clone(), SocketAddr::new([0, 0, 0, 0].into(), PORT));
        host.netns().start(async move {
            let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector));
            server.serve(address).await.expect("the port is free");
        })
    }

    fn spans(&self, name: &str) -> Vec<Span> {
        self.0.lock().unwrap().iter().filter(|span| span.name == name).cloned().collect()
    }
}

/// Returns the value of a span under a key, as text; empty where it has none.
fn says(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    found.map(|attribute| format!("{:?}", attribute.value)).unwrap_or_default()
}

#[test]
fn a_calls_spans_reach_the_collector_in_the_callers_trace_and_without_one_nothing_fails() {
    let mut world = HostWorld::without_agent(usual_policy());
    let collector = Collector::default();
    let listening = collector.listen(&world.net.alice);
    world.broker.configure(&format!("traces.otlp = \"http://{}:{PORT}\"\n", world.net.alice.v4()));
    world.broker.restart();
    world.enroll_agent();
    world.agent.run();
    world.admin.wait_in_sync(VM);

    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut asked = Request::new(ask_for(&world.net.alice).waiting(STEP_TIMEOUT).wire());
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    asked.metadata_mut().insert("traceparent", parent.parse().unwrap());
    let answer = world.alice.run(|channel| async move {
        AccessServiceClient::new(channel).request_access(asked).await.map(Response::into_inner)
    });
    let grant = answer.unwrap().grant.unwrap();

    let of_call = |span: &Span| says(span, "rpc").contains("RequestAccess");
    wait_until("the call's span", STEP_TIMEOUT, || collector.spans("rpc").iter().any(of_call));
    let call = collector.spans("rpc").into_iter().find(of_call).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(
        (hex(&call.trace_id), hex(&call.parent_span_id)),
        (trace.to_owned(), "b7ad6b7169203331".to_owned())
    );
    assert!(says(&call, "code").contains("Ok"), "{call:?}");
    assert!(says(&call, "caller").contains("requester/alice"), "{call:?}");
    let of_grant = |span: &Span| says(span, "grant").contains(&grant.id);
    wait_until("the grant's steps", STEP_TIMEOUT, || collector.spans("step").iter().any(of_grant));

    listening.stop();
    for _ in 0..3 {
        world.alice.open(&ask_for(&world.net.alice));
    }
    assert!(world.broker.process().terminate().success());
}

/// A request with the context of a trace whose sender wants it sent.
fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
}

#[test]
fn i10_a_stranger_decides_of_no_call_whether_its_trace_is_sent() {
    let mut world = HostWorld::without_agent(usual_policy());
    let collector = Collector::default();
    let _listening = collector.listen(&world.net.alice);
    let address = world.net.alice.v4();
    world.broker.configure(&format!("traces.otlp = \"http://{address}:{PORT}\"\ntraces.sample = 0.0\n"));
    world.broker.restart();
    let stranger = Stranger::new(&world.broker, &world.net.mallory, &world.net.hub);
    world.net.mallory.netns().run(async move {
        HealthClient::new(stranger.channel()).check(traced(HealthCheckRequest::default())).await.unwrap();
    });
    let asked = traced(ask_for(&world.net.alice).wire());
    let answer = world.alice.run(|channel| async move {
        AccessServiceClient::new(channel).request_access(asked).await.map(Response::into_inner)
    });
    assert!(answer.unwrap().grant.is_some());
    let of = |span: &Span, rpc: &str| says(span, "rpc").contains(rpc);
    let was_sent = |rpc: &str| collector.spans("rpc").iter().any(|span| of(span, rpc));
    wait_until("the span of alice's call", STEP_TIMEOUT, || was_sent("RequestAccess"));
    assert!(!was_sent("Health"));
}
