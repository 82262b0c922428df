//! The man pages and the completion scripts of a program, made from its own command line, so that they say what the program does.
//!
//! Packages run `PROGRAM manual DIR` and take the files from there. The section of a program's pages is 1 for a command of people and 8 for
//! a daemon's, as hier(7) has it.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The section of the man pages of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Commands that every user runs.
    User,
    /// Daemons, and commands of the machine's administrator.
    Administrator,
}

impl Section {
    fn number(self) -> &'static str {
        match self {
            Self::User => "1",
            Self::Administrator => "8",
        }
    }
}

/// Writes the man pages of a program and of each of its commands into `dir/man`, and its completion scripts for bash, zsh and fish into
/// `dir/bash`, `dir/zsh` and `dir/fish`. `see_also` names further pages, such as `broker.toml(5)`.
///
/// # Errors
/// A directory or a file cannot be written.
pub fn write(program: Command, section: Section, see_also: &[&str], dir: &Path) -> io::Result<()> {
    let name = program.get_name().to_owned();
    for (shell, place) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let place = dir.join(place);
        fs::create_dir_all(&place)?;
        clap_complete::generate_to(shell, &mut program.clone(), &name, place)?;
    }
    let man = dir.join("man");
    fs::create_dir_all(&man)?;
    let mut program = program.disable_help_subcommand(true);
    // Commands get their whole names, such as `postern agents token`, here.
    program.build();
    let source = format!("{name} {}", program.get_version().unwrap_or_default());
    Pages { section: section.number(), source, dir: &man }.write(&program, see_also)
}

/// The pages of one program.
struct Pages<'a> {
    section: &'static str,
    /// The program with its version.
    source: String,
    dir: &'a Path,
}

impl Pages<'_> {
    /// Writes the pages of a command and of all below it.
    fn write(&self, command: &Command, see_also: &[&str]) -> io::Result<()> {
        let parent = format!("{}({})", display_name(command), self.section);
        for child in command.get_subcommands().filter(|child| !child.is_hide_set()) {
            self.write(child, &[&[parent.as_str()], see_also].concat())?;
        }
        let page =
            Man::new(command.clone()).section(self.section).source(self.source.as_str()).manual("Postern");
        let mut text = Vec::new();
        page.render(&mut text)?;
        text.extend_from_slice(references(see_also).as_bytes());
        fs::write(self.dir.join(page.get_filename()), text)
    }
}

fn display_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// Returns the section of a page that names others.
fn references(see_also: &[&str]) -> String {
    if see_also.is_empty() {
        return String::new();
    }
    let pages: Vec<_> = see_also.iter().map(|page| page.replace('-', "\\-")).collect();
    format!(".SH \"SEE ALSO\"\n{}\n", pages.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_that_names_its_parent_and_a_hidden_one_has_none() {
        let token = Command::new("token").about("Makes a token.");
        let program = Command::new("gate")
            .version("1.2.3")
            .about("Guards.")
            .subcommand(Command::new("agents").about("Manages agents.").subcommand(token))
            .subcommand(Command::new("manual").hide(true));
        let dir = tempfile::tempdir().unwrap();
        write(program, Section::Administrator, &["gate.toml(5)"], dir.path()).unwrap();
        let mut pages: Vec<_> = fs::read_dir(dir.path().join("man"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        pages.sort();
        assert_eq!(pages, ["gate-agents-token.8", "gate-agents.8", "gate.8"]);
        let page = |name: &str| fs::read_to_string(dir.path().join("man").join(name)).unwrap();
        assert!(page("gate.8").contains("gate 1.2.3") && page("gate.8").contains("gate.toml(5)"));
        let token = page("gate-agents-token.8");
        assert!(
            token.contains("gate\\-agents(8), gate(8), gate.toml(5)") && token.contains("\"gate 1.2.3\"")
        );
        for script in ["bash/gate.bash", "zsh/_gate", "fish/gate.fish"] {
            assert!(dir.path().join(script).is_file(), "{script}");
        }
    }
}
