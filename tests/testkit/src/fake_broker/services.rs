//! The services of a fake broker; one module for each group of them says what they answer.

use std::sync::Arc;

use super::shared::Shared;

/// The services of a broker, over its state.
#[derive(Debug, Clone)]
pub(super) struct Services(pub(super) Arc<Shared>);
