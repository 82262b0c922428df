//! The exporter.

use std::time::Duration;

use anyhow::Context as _;
use http::HeaderMap;
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::settings::TraceSettings;

/// The service name of the broker's spans.
const SERVICE: &str = "postern-broker";
/// The crates whose spans are exported. Spans of libraries would trace the export itself.
const EXPORTED_TARGETS: [&str; 4] = ["postern_broker", "postern_provider", "postern_aws", "postern_azure"];
/// The most spans that wait for the collector; further ones are dropped.
const QUEUE_SIZE: usize = 4096;
/// The time for which spans are gathered before they are sent.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// The longest time for an export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time for the last export when the broker shuts down.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The running exporter. The broker calls `end` when it shuts down.
#[derive(Debug)]
pub(super) struct Exporting(SdkTracerProvider);

impl Exporting {
    pub(super) fn end(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_EXPORT_TIMEOUT) {
            tracing::info!(%error, "cannot export the last spans");
        }
    }
}

/// Starts the exporter. Call it within the runtime.
pub(super) fn start<S>(
    settings: &TraceSettings,
) -> anyhow::Result<(Box<dyn Layer<S> + Send + Sync>, Exporting)>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(&settings.otlp).with_timeout(EXPORT_TIMEOUT);
    let exporter = exporter.build().with_context(|| format!("cannot export traces to {}", settings.otlp))?;
    let batches =
        BatchConfigBuilder::default().with_max_queue_size(QUEUE_SIZE).with_scheduled_delay(BATCH_DELAY);
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches.build()).build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample))))
        .with_resource(Resource::builder().with_service_name(SERVICE).with_attribute(version).build())
        .build();
    let exported = Targets::new().with_targets(EXPORTED_TARGETS.map(|target| (target, Level::INFO)));
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE))
        .with_location(false)
        .with_threads(false)
        .with_filter(exported);
    Ok((layer.boxed(), Exporting(provider)))
}

/// See [`super::continues`].
pub(super) fn continues(span: &Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        // Without an exporter there is no trace to go on with.
        span.set_parent(TraceContextPropagator::new().extract(&Headers(headers))).ok();
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
