//! The links of the documentation: each leads to a file of the tree and, where it names a part, to a heading of that file.
//!
//! Links to other sites are not followed. Headings are named as GitHub and mdBook name them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::tree::{File, Hit, Tree};

/// The links of one page.
struct Link {
    line: usize,
    target: String,
}

/// Finds each link that leads nowhere.
pub(crate) fn find(tree: &Tree) -> Vec<Hit> {
    let pages: Vec<&File> = tree
        .files
        .iter()
        .filter(|file| file.path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    let headings: BTreeMap<&Path, BTreeSet<String>> =
        pages.iter().map(|page| (page.path.as_path(), headings(&page.text))).collect();
    let mut places: BTreeSet<&Path> = tree.files.iter().map(|file| file.path.as_path()).collect();
    places.extend(tree.files.iter().flat_map(|file| file.path.ancestors().skip(1)));
    let mut found = Vec::new();
    for page in pages {
        for Link { line, target } in links(&page.text) {
            if let Some(problem) = problem(&page.path, &target, &places, &headings) {
                found.push(Hit { path: page.path.clone(), line, what: format!("{target}: {problem}") });
            }
        }
    }
    found
}

fn problem(
    page: &Path,
    target: &str,
    places: &BTreeSet<&Path>,
    headings: &BTreeMap<&Path, BTreeSet<String>>,
) -> Option<&'static str> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, part) = target.split_once('#').map_or((target, None), |(file, part)| (file, Some(part)));
    let place = if file.is_empty() { page.to_owned() } else { resolved(page, file) };
    if !places.contains(place.as_path()) {
        return Some("there is no such file in the tree");
    }
    let part = part?;
    let is_there = headings.get(place.as_path()).is_some_and(|headings| headings.contains(part));
    (!is_there).then_some("the file has no such heading")
}

/// Returns the path, from the root of the tree, of a link in a page.
fn resolved(page: &Path, link: &str) -> PathBuf {
    let mut path = page.parent().map(Path::to_path_buf).unwrap_or_default();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path
}

fn events(text: &str) -> impl Iterator<Item = (Event<'_>, std::ops::Range<usize>)> {
    Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter()
}

fn links(text: &str) -> Vec<Link> {
    let line = |at: usize| text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    let link = |(event, range): (Event<'_>, std::ops::Range<usize>)| {
        let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event else {
            return None;
        };
        Some(Link { line: line(range.start), target: dest_url.into_string() })
    };
    events(text).filter_map(link).collect()
}

/// Returns the names by which links may name the headings of a page.
fn headings(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut heading: Option<String> = None;
    for (event, _) in events(text) {
        if let Event::Start(Tag::Heading { .. }) = event {
            heading = Some(String::new());
        } else if let Event::End(TagEnd::Heading(_)) = event {
            let name = slug(&heading.take().unwrap_or_default());
            let numbered = (1..).map(|number| format!("{name}-{number}"));
            let free = std::iter::once(name.clone()).chain(numbered).find(|name| !names.contains(name));
            names.extend(free);
        } else if let (Event::Text(text) | Event::Code(text), Some(heading)) = (event, &mut heading) {
            heading.push_str(&text);
        }
    }
    names
}

fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.to_owned() }
    }

    #[test]
    fn a_link_leads_to_a_file_and_a_heading() {
        let guide = "# One `two`, three\n\n# Twice\n\n# Twice\n\n[a](../README.md) [b](#twice-1) [c](guide.md#one-two-three)\n";
        let pages = |readme: &str| Tree {
            files: vec![file("README.md", readme), file("docs/guide.md", guide), file("src/main.rs", "")],
        };
        let good = "[g](docs/guide.md#twice) [d](docs) [s](src/main.rs) <https://example.org/x#y>\n";
        assert_eq!(find(&pages(good)), []);
        let bad = "a line\n\n[g](docs/guide.md#thrice) and\n[n](docs/none.md)\n\n    [no](link.md)\n";
        let found: Vec<_> = find(&pages(bad)).into_iter().map(|hit| (hit.line, hit.what)).collect();
        let expected = [
            (3, "docs/guide.md#thrice: the file has no such heading"),
            (4, "docs/none.md: there is no such file in the tree"),
        ];
        assert_eq!(found, expected.map(|(line, what)| (line, what.to_owned())));
    }
}
