//! The settings of the export.

/// Where traces go.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The collector, by gRPC: `http://127.0.0.1:4317`.
    pub otlp: String,
    /// How many of the traces that begin here are exported, from 0 to 1. Whoever began one elsewhere decides for it.
    pub sample: f64,
}
