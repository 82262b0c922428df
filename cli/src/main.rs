//! `postern`: the command of requesters and operators.
//!
//! Results go to stdout, as a table for people or as JSON for programs; progress, notes and errors go to stderr.
//! `docs/cli.md` documents the parts that a script may rely on: the shape of the JSON and the exit codes of
//! [`exit_code`].

mod args;
mod commands;
mod connect;
mod error;
mod exit_code;
mod output;
mod policy_file;
mod remembered;
mod settings;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Args;
use crate::output::Console;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let mut console = Console::standard(args.output);
    let outcome = commands::run(args, &mut console).await;
    error::report(outcome, &mut console)
}
