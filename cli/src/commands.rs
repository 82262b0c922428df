//! The commands: a file for each command or family of commands.

mod agents;
mod assess;
mod audit;
mod grants;
mod lockdown;
mod pages;
mod policy;
mod principals;
mod request;
mod retry;
mod status;
mod targets;
mod wait;
mod watch;

use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::Shell;
use postern_manual::Section;

use crate::args::{Args, AuditCommand, Command};
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::Console;

/// Runs the command of the command line.
///
/// # Errors
/// The command failed, or did not finish in time.
pub(crate) async fn run(args: Args, console: &mut Console) -> Result<(), Failure> {
    let broker = || BrokerClient::of(&args.connection);
    match args.command {
        Command::Request(request) => request::request(&broker()?, console, request).await,
        Command::Grants(grants) => grants::grants(&broker()?, console, grants).await,
        Command::Show { grant } => grants::show(&broker()?, console, grant).await,
        Command::Revoke(revoke) => grants::revoke(&broker()?, console, revoke).await,
        Command::Policy(command) => policy::run(&args.connection, console, command).await,
        Command::Targets { target: Some(target) } => targets::one(&broker()?, console, &target).await,
        Command::Targets { target: None } => targets::all(&broker()?, console).await,
        Command::Assess(assess) => assess::assess(&broker()?, console, assess).await,
        Command::Lockdown(lockdown) => lockdown::lockdown(&broker()?, console, lockdown).await,
        Command::Release(release) => lockdown::release(&broker()?, console, release).await,
        Command::Agents(command) => agents::run(&broker()?, console, command).await,
        Command::Principals(command) => principals::run(&broker()?, console, command).await,
        Command::Audit(AuditCommand::Tail { after, follow }) => {
            audit::tail(&broker()?, console, after, follow).await
        }
        Command::Audit(AuditCommand::Verify(verify)) => {
            audit::verify(&args.connection, console, verify).await
        }
        Command::Status { check } => status::status(&broker()?, console, check).await,
        Command::Completions { shell } => completions(console, shell),
        Command::Manual { dir } => manual(dir),
    }
}

fn manual(dir: PathBuf) -> Result<(), Failure> {
    postern_manual::write(Args::command(), Section::User, &[], &dir)
        .map_err(|source| Failure::Manual { dir, source })
}

fn completions(console: &mut Console, shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "postern", &mut script);
    Ok(console.text(String::from_utf8_lossy(&script).trim_end())?)
}
