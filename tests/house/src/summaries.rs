//! Doc summaries: a third-person verb or a noun phrase. One that opens with a question word or a bare pronoun leaves the reader to
//! find out who acts and on what.

use crate::tree::{Hit, Tree};

/// The first words that a summary does not have.
const OPENINGS: [&str; 20] = [
    "What", "Whether", "Whoever", "Whom", "Whose", "Who", "How", "Why", "Where", "When", "Which", "It",
    "Its", "One", "This", "That", "These", "Those", "They", "Them",
];

/// Finds the summaries that open so, and counts all.
pub(crate) fn find(tree: &Tree) -> (Vec<Hit>, usize) {
    let (mut hits, mut all) = (Vec::new(), 0);
    for file in tree.rust() {
        let mut before = None;
        for (index, line) in file.text.lines().enumerate() {
            let doc = doc(line);
            // The first line of a block with text is its summary's.
            if let Some(text) = doc.filter(|_| before.is_none()).map(str::trim) {
                all += 1;
                if opens_badly(text) {
                    hits.push(Hit { path: file.path.clone(), line: index + 1, what: text.to_owned() });
                }
            }
            before = doc;
        }
    }
    (hits, all)
}

/// The share in percent.
#[expect(clippy::cast_precision_loss, reason = "counts of lines of a tree are far below 2^52")]
pub(crate) fn percent(found: usize, all: usize) -> f64 {
    if all == 0 { 0.0 } else { found as f64 * 100.0 / all as f64 }
}

fn doc(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?;
    (!text.starts_with('/')).then_some(text)
}

fn opens_badly(summary: &str) -> bool {
    let first = summary.split(|letter: char| !letter.is_alphabetic()).next().unwrap_or_default();
    OPENINGS.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::File;

    #[test]
    fn only_the_first_line_of_a_block_is_a_summary() {
        let text =
            "//! The page.\n//! What follows.\n\n/// Whether it is.\n/// It is.\nfn a() {}\n//// What\n";
        let tree = Tree { files: vec![File { path: "a.rs".into(), text: text.into() }] };
        let (hits, all) = find(&tree);
        assert_eq!((hits.len(), hits[0].line, all), (1, 4, 2));
    }

    #[test]
    fn a_summary_is_judged_by_its_first_word() {
        for summary in ["What is open.", "It's open.", "Whether a port is open."] {
            assert!(opens_badly(summary), "{summary}");
        }
        for summary in ["Itself.", "Reports whether a port is open.", "The end.", "`One` of them."] {
            assert!(!opens_badly(summary), "{summary}");
        }
    }

    #[test]
    fn a_tree_without_summaries_passes() {
        assert!(percent(0, 0) < f64::EPSILON);
        assert!((percent(1, 4) - 25.0).abs() < f64::EPSILON);
    }
}
