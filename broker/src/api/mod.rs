//! The gRPC edge: parses calls into core types, calls a use case of [`crate::app`], and converts its answer.
//!
//! The edge decides one thing: whether a role may call an RPC at all. Every other decision is made in [`crate::app`], which
//! knows no wire type. A call passes these parts in this order; each may end it.
//!
//! 1. `listener` accepts the TCP connection and does the TLS handshake within the limits ([`crate::limits`]). It reads the
//!    peer's certificate once for the connection. A certificate of another authority, or past its end
//!    and its grace, ends the handshake, and the broker logs it.
//! 2. `connection` serves HTTP/2 on it, with bounds for the class of the peer, and puts the `Peer` into each request.
//! 3. `middleware::trace` opens a span, so that every log line of the call names the RPC and its caller.
//! 4. `bounded` bounds the size of the headers and of each message, the time of the call and the calls of a principal. A call past
//!    them ends with RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED, before its message is in memory. `answer` names a message that
//!    cannot be read: INVALID_ARGUMENT.
//! 5. `middleware::authenticate` asks each [`Authenticator`] in turn who calls: today the one for certificates. A proof that is
//!    refused ends the call with UNAUTHENTICATED.
//! 6. `middleware::authorize` checks that the caller's proof has not ended and is not revoked ([`crate::principals`]), looks the RPC
//!    up in `middleware::permissions` and puts the [`crate::app::Caller`] into the request (I7). A call that no row admits ends with UNAUTHENTICATED or
//!    PERMISSION_DENIED.
//! 7. `services` has a file for each service. A method parses its message (`convert`, `request`); malformed input ends
//!    with INVALID_ARGUMENT, which names the field and the remedy. Then it calls one use case.
//! 8. `error` converts a use case's error into a status. A stream ends when its caller's proof ends or is revoked (`proof_end`).
//!
//! hyper drops a call's future when its caller hangs up. A use case is written so that this leaves nothing half done: its
//! one transaction is committed or not. A lockdown has several steps, so `run_to_completion` runs it to its end.
//!
//! `server` composes these parts. On shutdown the listener accepts no more connections, and the calls in progress are
//! answered.

mod answer;
mod authentication;
mod bounded;
mod connection;
mod convert;
mod error;
mod listener;
mod middleware;
mod peer;
mod proof_end;
mod request;
mod run_to_completion;
mod sent_frames;
mod server;
mod services;

pub use authentication::{
    Authenticated, Authenticator, Authenticators, CertificateAuthenticator, ClientCertificate,
    PresentedProof, Refusal,
};
pub use listener::Listener;
pub use server::serve;
pub use services::health::report_health;
