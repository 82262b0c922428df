//! The layers that every call passes before its service: [`trace`] opens its span, [`authenticate`] finds out who calls, and
//! [`authorize`] looks its RPC up in the table of [`permissions`].

pub(in crate::api) mod authenticate;
pub(in crate::api) mod authorize;
pub(in crate::api) mod permissions;
pub(in crate::api) mod trace;
