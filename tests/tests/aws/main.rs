//! The cloud layer on AWS: the provider and the broker against a moto server, through the real SDK, behind a proxy that
//! adds what moto lacks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod broker;
mod drift;
mod edited;
mod faults;
mod lab;
mod lockdown;
mod permissions;
mod shared;
mod storm;
mod windows;
