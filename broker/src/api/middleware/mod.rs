//! The layers that every call passes before its service.

pub(in crate::api) mod authorize;
pub(in crate::api) mod permissions;
pub(in crate::api) mod trace;
