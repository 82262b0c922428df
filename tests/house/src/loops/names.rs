//! The names that a file imports, defines and offers.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ExprCall, Item, ItemMod, ItemUse, UseTree, Visibility};

/// A file of a crate.
#[derive(Debug, Default)]
pub(crate) struct Module {
    /// Every path into the crate that the file writes, as it writes it.
    pub(crate) imports: Vec<Vec<String>>,
    /// The names that the file offers of others: the name, and the path to the item.
    offers: BTreeMap<String, Vec<String>>,
    /// The modules of which it offers everything.
    offers_all: Vec<Vec<String>>,
    /// The children in files of their own.
    children: Vec<String>,
    /// The children that only tests have.
    pub(crate) tests: Vec<String>,
}

impl Module {
    /// Reads a file.
    pub(crate) fn read(file: &syn::File) -> Self {
        let mut reader =
            Reader { module: Self::default(), aliases: BTreeMap::new(), paths: Vec::new(), depth: 0 };
        for item in &file.items {
            if let Item::Mod(ItemMod { ident, content: None, attrs, .. }) = item {
                let children =
                    if is_test(attrs) { &mut reader.module.tests } else { &mut reader.module.children };
                children.push(ident.to_string());
            }
        }
        reader.visit_file(file);
        // A name that the file imports or offers leads on: to a child of the module that it names, or to the item that it offers.
        for path in std::mem::take(&mut reader.paths) {
            let known = path.split_first().and_then(|(first, rest)| Some((reader.aliases.get(first)?, rest)));
            if let Some((alias, rest)) = known {
                reader.module.imports.push([alias.as_slice(), rest].concat());
            }
        }
        reader.module
    }
}

/// The file that defines the item to which a path leads; none where it leads out of the crate.
pub(crate) fn resolve(
    modules: &BTreeMap<Vec<String>, Module>,
    from: &[String],
    path: &[String],
) -> Option<Vec<String>> {
    follow(modules, from, path, 0)
}

fn follow(
    modules: &BTreeMap<Vec<String>, Module>,
    from: &[String],
    path: &[String],
    hops: usize,
) -> Option<Vec<String>> {
    let (mut at, mut rest) = start(modules.get(from)?, from, path)?;
    loop {
        let module = modules.get(&at)?;
        let Some((next, after)) = rest.split_first() else { return Some(at) };
        let child = [at.as_slice(), std::slice::from_ref(next)].concat();
        if modules.contains_key(&child) {
            (at, rest) = (child, after);
            continue;
        }
        // Re-exports that lead in a circle do not compile; the bound is for files that do not.
        if hops > 16 {
            return None;
        }
        if let Some(offered) = module.offers.get(next) {
            return follow(modules, &at, offered, hops + 1).or(Some(at));
        }
        let within = |glob: &Vec<String>| {
            let to = follow(modules, &at, glob, hops + 1)?;
            let offered = modules.get(&to)?;
            offered.offers.contains_key(next).then_some(to)
        };
        return module.offers_all.iter().find_map(within).or(Some(at));
    }
}

/// The module where a path starts, and what is left of the path.
fn start<'p>(module: &Module, from: &[String], path: &'p [String]) -> Option<(Vec<String>, &'p [String])> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some((Vec::new(), rest)),
        "self" => Some((from.to_vec(), rest)),
        "super" => {
            let mut at = from.to_vec();
            at.pop()?;
            let mut rest = rest;
            while let Some((next, after)) = rest.split_first().filter(|(next, _)| *next == "super") {
                debug_assert_eq!(next, "super");
                at.pop()?;
                rest = after;
            }
            Some((at, rest))
        }
        child if module.children.iter().any(|known| known == child) => Some((from.to_vec(), path)),
        _ => None,
    }
}

struct Reader {
    module: Module,
    /// The names that `use` brings into the file, each with its path.
    aliases: BTreeMap<String, Vec<String>>,
    /// Every path that the file itself writes, outside of `use`.
    paths: Vec<Vec<String>>,
    /// The number of modules within the file around the item that is read.
    depth: usize,
}

impl Reader {
    /// A path inside modules within the file starts that much deeper.
    fn import(&mut self, path: Vec<String>) {
        let mut path = path;
        for _ in 0..self.depth {
            if path.first().is_some_and(|first| first == "super") {
                path.remove(0);
                if path.first().is_none_or(|first| first != "super") {
                    path.insert(0, "self".into());
                }
            }
        }
        self.module.imports.push(path);
    }

    fn spread(&mut self, tree: &UseTree, before: &[String], is_offered: bool) {
        match tree {
            UseTree::Path(path) => {
                let before = [before, &[path.ident.to_string()]].concat();
                self.spread(&path.tree, &before, is_offered);
            }
            UseTree::Name(name) => self.used(before, &name.ident.to_string(), None, is_offered),
            UseTree::Rename(name) => {
                self.used(before, &name.ident.to_string(), Some(name.rename.to_string()), is_offered);
            }
            UseTree::Glob(_) if is_offered => self.module.offers_all.push(before.to_vec()),
            UseTree::Glob(_) => self.import(before.to_vec()),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.spread(tree, before, is_offered));
            }
        }
    }

    fn used(&mut self, before: &[String], name: &str, rename: Option<String>, is_offered: bool) {
        let path = if name == "self" { before.to_vec() } else { [before, &[name.to_owned()]].concat() };
        let known = rename.or_else(|| path.last().cloned()).unwrap_or_default();
        let is_of_a_child = before.first().is_some_and(|first| self.module.children.contains(first))
            || before.first().is_some_and(|first| first == "self");
        if self.depth == 0 {
            self.aliases.insert(known.clone(), path.clone());
        }
        if is_offered {
            self.module.offers.insert(known, path.clone());
        }
        if !(is_offered && is_of_a_child) {
            self.import(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !attributes(item).is_some_and(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.depth += 1;
        visit::visit_item_mod(self, item);
        self.depth -= 1;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_offered = self.depth == 0 && !matches!(item.vis, Visibility::Inherited);
        self.spread(&item.tree, &[], is_offered);
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        if let Expr::Path(callee) = &*call.func
            && let Some(name) = callee.path.get_ident()
            && self.depth == 0
        {
            self.paths.push(vec![name.to_string()]);
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // A lone name in small letters is a variable, unless it is called.
        let is_variable = names.len() == 1 && names[0].starts_with(char::is_lowercase);
        if self.depth == 0 && !is_variable {
            self.paths.push(names.clone());
        }
        if names.len() > 1 {
            self.import(names);
        }
        visit::visit_path(self, path);
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the other items have no attributes that a test carries")]
fn attributes(item: &Item) -> Option<&[Attribute]> {
    match item {
        Item::Const(item) => Some(&item.attrs),
        Item::Enum(item) => Some(&item.attrs),
        Item::Fn(item) => Some(&item.attrs),
        Item::Impl(item) => Some(&item.attrs),
        Item::Macro(item) => Some(&item.attrs),
        Item::Mod(item) => Some(&item.attrs),
        Item::Static(item) => Some(&item.attrs),
        Item::Struct(item) => Some(&item.attrs),
        Item::Trait(item) => Some(&item.attrs),
        Item::Type(item) => Some(&item.attrs),
        Item::Use(item) => Some(&item.attrs),
        _ => None,
    }
}

/// Reports whether an item exists in tests alone: `#[cfg(test)]`, or `#[cfg(any(test, …))]`.
fn is_test(attributes: &[Attribute]) -> bool {
    let is_test = |attribute: &Attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let words = list.tokens.to_string();
        list.path.is_ident("cfg") && (words == "test" || words.replace(' ', "").starts_with("any(test"))
    };
    attributes.iter().any(is_test)
}
