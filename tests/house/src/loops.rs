//! Modules that import each other in a loop, in each crate.
//!
//! A module is a file. Module A imports module B where a path in A leads to an item that B defines: in a `use`, a type, a call, a
//! pattern or a macro-free expression. A re-export is followed to the file that defines the item, and a module that only offers
//! its children's items does not import them. Code under `#[cfg(test)]` does not count: a test may look wherever it wants.

mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use crate::tree::{File, Tree};
use names::Module;

/// The loops of one crate: the modules of each.
type Rings = Vec<Vec<String>>;

/// Finds the loops of each crate of the checkout, by the crate's directory.
///
/// # Errors
/// A file does not parse.
pub(crate) fn find(tree: &Tree) -> Result<Vec<(String, Rings)>> {
    let mut crates: BTreeMap<PathBuf, Vec<&File>> = BTreeMap::new();
    for file in tree.rust() {
        let root = file.path.ancestors().find(|above| above.file_name().is_some_and(|name| name == "src"));
        if let Some(root) = root {
            crates.entry(root.to_owned()).or_default().push(file);
        }
    }
    crates.into_iter().map(|(root, files)| Ok((root.display().to_string(), rings(&root, &files)?))).collect()
}

fn rings(root: &Path, files: &[&File]) -> Result<Rings> {
    let mut modules: BTreeMap<Vec<String>, Module> = BTreeMap::new();
    for file in files {
        let parsed =
            syn::parse_file(&file.text).with_context(|| format!("parsing {}", file.path.display()))?;
        let inside = file.path.strip_prefix(root).context("a file outside of its crate")?;
        modules.insert(module_path(inside), Module::read(&parsed));
    }
    // What stands under `#[cfg(test)] mod x;` is a test, and so is everything below it.
    let tests: Vec<Vec<String>> = modules
        .iter()
        .flat_map(|(path, module)| {
            module.tests.iter().map(|name| [path.as_slice(), std::slice::from_ref(name)].concat())
        })
        .collect();
    modules.retain(|path, _| !tests.iter().any(|test| path.starts_with(test)));
    let paths: Vec<&Vec<String>> = modules.keys().collect();
    let number = |path: &[String]| paths.iter().position(|known| known.as_slice() == path);
    let mut graph = DiGraphMap::<usize, ()>::new();
    for (path, module) in &modules {
        for import in &module.imports {
            let to = names::resolve(&modules, path, import);
            if let (Some(from), Some(to)) = (number(path), to.and_then(|to| number(&to)))
                && from != to
            {
                graph.add_edge(from, to, ());
            }
        }
    }
    let rings = tarjan_scc(&graph).into_iter().filter(|ring| ring.len() > 1);
    let mut rings: Rings = rings
        .map(|ring| {
            let mut names: Vec<String> = ring.into_iter().map(|number| name(paths[number])).collect();
            names.sort();
            names
        })
        .collect();
    rings.sort();
    Ok(rings)
}

/// The module of a file: `a/b.rs` and `a/b/mod.rs` are `a::b`, and the crate's root is empty. A program in `bin` is a root too.
fn module_path(file: &Path) -> Vec<String> {
    let stem = file.with_extension("");
    let mut path: Vec<String> = stem.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.last().is_some_and(|last| last == "mod") || path == ["lib"] || path == ["main"] {
        path.pop();
    }
    path
}

fn name(path: &[String]) -> String {
    if path.is_empty() { "the crate's root".into() } else { path.join("::") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Rings {
        let files = files.iter().map(|(path, text)| File { path: path.into(), text: (*text).into() });
        let tree = Tree { files: files.collect() };
        find(&tree).unwrap().remove(0).1
    }

    #[test]
    fn two_files_that_import_each_other_are_a_loop() {
        let loops = found(&[
            ("a/src/lib.rs", "mod one; mod two;"),
            ("a/src/one.rs", "use crate::two::Two; pub struct One;"),
            ("a/src/two.rs", "pub struct Two; fn f(one: super::one::One) {}"),
        ]);
        assert_eq!(loops, [["one", "two"]]);
    }

    #[test]
    fn a_reexport_is_followed_and_offering_a_childs_item_is_no_import() {
        let loops = found(&[
            ("a/src/lib.rs", "pub mod shop; mod user;"),
            ("a/src/shop.rs", "mod shelf; pub use shelf::Box; pub struct Price;"),
            ("a/src/shop/shelf.rs", "use super::Price; pub struct Box;"),
            ("a/src/user.rs", "use crate::shop::Box;"),
        ]);
        assert_eq!(loops, Rings::new());
        let loops = found(&[
            ("a/src/lib.rs", "pub mod shop;"),
            ("a/src/shop.rs", "mod shelf; use shelf::Box; pub struct Price;"),
            ("a/src/shop/shelf.rs", "use super::Price; pub struct Box;"),
        ]);
        assert_eq!(loops, [["shop", "shop::shelf"]]);
    }

    #[test]
    fn a_parent_that_uses_what_it_offers_and_a_path_through_an_imported_module_are_imports() {
        let loops = found(&[
            ("a/src/lib.rs", "pub mod shop;"),
            ("a/src/shop.rs", "mod shelf; pub use shelf::Box; pub struct Price; fn f(all: Box) {}"),
            ("a/src/shop/shelf.rs", "use super::Price; pub struct Box;"),
        ]);
        assert_eq!(loops, [["shop", "shop::shelf"]]);
        for (body, is_loop) in [("let full = true; full", false), ("full()", true)] {
            let loops = found(&[
                ("a/src/lib.rs", "pub mod shop;"),
                (
                    "a/src/shop.rs",
                    &format!("mod shelf; pub use shelf::full; pub struct Price; fn f() -> bool {{ {body} }}"),
                ),
                ("a/src/shop/shelf.rs", "use super::Price; pub fn full() -> bool { true }"),
            ]);
            assert_eq!(!loops.is_empty(), is_loop, "{body}");
        }
        let loops = found(&[
            ("a/src/lib.rs", "mod shop; mod user;"),
            ("a/src/shop.rs", "pub mod shelf;"),
            ("a/src/shop/shelf.rs", "use crate::user::User; pub struct Box;"),
            ("a/src/user.rs", "use crate::shop; pub struct User; fn f() { shop::shelf::Box; }"),
        ]);
        assert_eq!(loops, [["shop::shelf", "user"]]);
    }

    #[test]
    fn tests_may_look_where_they_want() {
        let loops = found(&[
            ("a/src/lib.rs", "mod one; mod two;"),
            ("a/src/one.rs", "use crate::two::Two; #[cfg(test)] mod tests; pub struct One;"),
            ("a/src/one/tests.rs", "use crate::two::Two;"),
            ("a/src/two.rs", "pub struct Two; #[cfg(test)] mod tests { use crate::one::One; }"),
        ]);
        assert_eq!(loops, Rings::new());
    }
}
