//! Postern's domain, pure: no transport, no runtime, no SDK, and no clock. Time is always an argument.
//!
//! A grant's way through this crate: a principal sends a [`request`], [`policy`] authorizes it into the windows of
//! a [`grant`], [`plan`] decides the next step of the grant and the windows that a layer must hold, and [`flatten`]
//! turns overlapping windows into the disjoint ranges that a kernel set accepts. Every decision becomes an entry of
//! the hash-chained [`audit`] log.

pub mod agent_keys;
pub mod audit;
pub mod caller;
pub mod checkpoint;
pub mod flatten;
pub mod grant;
pub mod id;
pub mod invalid;
pub mod net;
pub mod plan;
pub mod policy;
pub mod principal;
pub mod request;
pub mod serial;
pub mod target;
pub mod text;
pub mod window;

pub use agent_keys::{AgentKeys, KeyHash};
pub use caller::CallerKind;
pub use grant::{CloseReason, Event, Grant, GrantState};
pub use id::GrantId;
pub use invalid::Invalid;
pub use net::{Port, ProtectedPort, Protocol, SourcePrefix};
pub use policy::{Mode, Policy};
pub use principal::{DisplayName, Issuer, Principal, PrincipalKey, Role, Subject};
pub use request::AccessRequest;
pub use serial::CertificateSerial;
pub use target::TargetId;
pub use text::{Justification, Name};
pub use window::{Layers, Window};
