//! Checks the tree by rules that the compiler and clippy do not know. `make check` runs it.
//!
//!     postern-house                runs every check on the checkout that it is started in
//!     postern-house words          lists each line with a word that the tree does not use
//!     postern-house summaries      lists each doc summary that opens with a question word or a bare pronoun
//!     postern-house links          lists each link of the documentation that leads nowhere
//!     postern-house loops          lists the modules that import each other in a loop, crate by crate
//!
//! Each check compares its count with the limit in `tests/house/limits.toml`. A limit only falls: a change that needs a higher
//! one is written differently instead, and a change that comes out lower lowers it.

mod limits;
mod links;
mod loops;
mod summaries;
mod tree;
mod words;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::limits::Limits;
use crate::tree::Tree;

fn main() -> Result<ExitCode> {
    let wanted = std::env::args().nth(1);
    let root = Path::new(".");
    let limits = Limits::read(&root.join("tests/house/limits.toml"))?;
    let tree = Tree::read(root).context("reading the checkout")?;
    let passed = match wanted.as_deref() {
        None => {
            let passed = [
                words(&tree, &limits, false),
                summaries(&tree, &limits, false),
                links(&tree),
                loops(&tree, &limits)?,
            ];
            passed.into_iter().all(|passed| passed)
        }
        Some("words") => words(&tree, &limits, true),
        Some("summaries") => summaries(&tree, &limits, true),
        Some("links") => links(&tree),
        Some("loops") => loops(&tree, &limits)?,
        Some(other) => bail!("{other:?} is no check; there are words, summaries, links and loops"),
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn words(tree: &Tree, limits: &Limits, list: bool) -> bool {
    let found = words::find(tree);
    if list || found.len() > limits.words {
        found.iter().for_each(|hit| say(&format!("{hit}")));
    }
    let what = format!("{} lines with words that the tree does not use", found.len());
    verdict(&what, found.len() <= limits.words, &format!("at most {}", limits.words))
}

fn summaries(tree: &Tree, limits: &Limits, list: bool) -> bool {
    let (found, all) = summaries::find(tree);
    let percent = summaries::percent(found.len(), all);
    let passed = percent <= limits.summaries_percent;
    if list || !passed {
        found.iter().for_each(|hit| say(&format!("{hit}")));
    }
    let what = format!(
        "{} of {all} doc summaries ({percent:.2} %) open with a question word or a bare pronoun",
        found.len()
    );
    verdict(&what, passed, &format!("at most {} %", limits.summaries_percent))
}

fn links(tree: &Tree) -> bool {
    let found = links::find(tree);
    found.iter().for_each(|hit| say(&format!("{hit}")));
    verdict(&format!("{} links of the documentation lead nowhere", found.len()), found.is_empty(), "none")
}

fn loops(tree: &Tree, limits: &Limits) -> Result<bool> {
    let mut modules = 0;
    for (name, found) in loops::find(tree)? {
        for ring in found {
            modules += ring.len();
            say(&format!("{name}: {}", ring.join(", ")));
        }
    }
    let what = format!("{modules} modules import each other in a loop");
    Ok(verdict(&what, modules <= limits.loops, &format!("at most {}", limits.loops)))
}

fn verdict(what: &str, passed: bool, limit: &str) -> bool {
    say(&format!("{}: {what} ({limit})", if passed { "ok" } else { "FAILED" }));
    passed
}

#[expect(clippy::print_stdout, reason = "a command prints its findings")]
fn say(line: &str) {
    println!("{line}");
}
