//! Traces by OTLP, if the configuration asks for them and the program was built with them (the feature `traces`).
//!
//! The broker exports its own spans: calls, steps of grants, calls of clouds. A collector that cannot be reached costs spans
//! and nothing else: they wait in a bounded queue for a thread of their own, and the exporter drops what does not fit.

#[cfg(feature = "traces")]
mod otlp;
mod settings;

use http::HeaderMap;
use tracing::{Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

pub use settings::TraceSettings;

/// The exporter of the spans, if they are exported.
#[derive(Debug, Default)]
pub struct Exporter {
    #[cfg(feature = "traces")]
    exporting: Option<otlp::Exporting>,
}

impl Exporter {
    /// Exports the spans that wait, for a second at most. Blocks.
    pub fn end(&self) {
        #[cfg(feature = "traces")]
        if let Some(exporting) = &self.exporting {
            exporting.end();
        }
    }
}

/// Set if this program was built with the export of traces.
pub const BUILT_IN: bool = cfg!(feature = "traces");

/// A layer for the log's subscriber.
pub type BoxedLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// Returns the layer that exports the spans, if they are exported, and the exporter. Call it within the runtime.
///
/// # Errors
/// The collector's address cannot be one.
pub fn start<S>(settings: Option<&TraceSettings>) -> anyhow::Result<(Option<BoxedLayer<S>>, Exporter)>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    match settings {
        #[cfg(feature = "traces")]
        Some(settings) => otlp::start(settings)
            .map(|(layer, exporting)| (Some(layer), Exporter { exporting: Some(exporting) })),
        // The configuration has refused it.
        #[cfg(not(feature = "traces"))]
        Some(_) => Ok((None, Exporter::default())),
        None => Ok((None, Exporter::default())),
    }
}

/// Makes the span continue the trace that a call's headers name (W3C trace context), if they name one.
pub fn continues(span: &Span, headers: &HeaderMap) {
    #[cfg(feature = "traces")]
    otlp::continues(span, headers);
    #[cfg(not(feature = "traces"))]
    let _ = (span, headers);
}
