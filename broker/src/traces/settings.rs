//! The settings of the export.

/// The settings of the export.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// The collector, by gRPC: `http://127.0.0.1:4317`.
    pub otlp: String,
    /// The share of the traces that begin here to export, from 0 to 1. The beginner of any other trace decides for it.
    pub sample: f64,
}
