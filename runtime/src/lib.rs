//! The things that Postern's programs and libraries need of their process, once each.
//!
//! **The problem.** The core is pure: time is an argument, and nothing in it runs, fails or touches a disk. The programs do all
//! of that, and each needs the same few things. A second copy of such a thing drifts from the first, and a fault that is mended
//! in one stays in the other.
//!
//! **The parts.**
//!
//! - [`clock`] reads the clocks. Other code gets the time as an argument.
//! - [`tasks`] owns the tasks that last as long as the process. The end of one ends the process.
//! - [`files`] replaces a file whole, with the mode that it should have from its first byte.
//! - [`private_file`] reads a secret, if no other user can read or change its file.
//! - [`private_place`] checks that no other user can change the directory of a secret.
//! - [`backoff`] counts growing pauses with jitter.
//! - [`error_chain`] writes an error and its causes on one line.
//! - [`findings`] are what a `doctor` found, with the remedies.
//! - [`log_format`] is the format of log lines that a configuration names.
//!
//! **The rule.** This crate knows no grant, no wire format, no store and no cloud. It imports no other crate of the workspace, and
//! may import only the core. A part moves here when a second crate needs it, not before.
//!
//! **On failure.** The parts return errors, and none of them logs or retries: the caller knows what a failure means.

pub mod backoff;
pub mod clock;
pub mod error_chain;
pub mod files;
pub mod findings;
pub mod log_format;
pub mod private_file;
pub mod private_place;
pub mod tasks;
