//! The words that prose, logs, errors and names of this tree do not use: each hides who acts, or is no word of today.

use std::path::Path;

use crate::tree::{Hit, Tree};

/// The words, each with what is written instead.
const WORDS: [(&str, &str); 12] = [
    ("nobody", "name the actor: no broker, no caller, no administrator"),
    ("somebody", "name the actor: another principal, another broker, an administrator"),
    ("whoever", "name the actor"),
    ("whom", "name the actor"),
    ("ours", "Postern's, the broker's, the agent's"),
    ("theirs", "the customer's, another principal's"),
    ("anew", "again, from the start"),
    ("in vain", "without success"),
    ("for want of", "no …, without …"),
    ("is not to", "must not"),
    ("laid to", "attributed to"),
    ("the wall", "the wall clock"),
];

/// The files that quote the words, are made by programs, or were written by others.
const EXEMPT: [&str; 5] = [
    "tests/house/src/words.rs",
    "tests/house/src/summaries.rs",
    "Cargo.lock",
    "LICENSE",
    "packaging/licences/MIT.txt",
];

/// Finds each line with one of the words.
pub(crate) fn find(tree: &Tree) -> Vec<Hit> {
    let files = tree.files.iter().filter(|file| !EXEMPT.iter().any(|exempt| file.path == Path::new(exempt)));
    let hits = files.flat_map(|file| {
        let lines = file.text.lines().enumerate();
        lines.filter_map(|(index, line)| {
            let (word, instead) = offence(line)?;
            Some(Hit { path: file.path.clone(), line: index + 1, what: format!("{word:?}: {instead}") })
        })
    });
    hits.collect()
}

/// The first of the words in a line, as a whole word or as a part of a name in snake case.
fn offence(line: &str) -> Option<(&'static str, &'static str)> {
    let line = line.to_lowercase();
    let is_there = |word: &str| {
        line.match_indices(word).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + word.len()..]);
            let is_whole = !before.ends_with(char::is_alphabetic) && !after.starts_with(char::is_alphabetic);
            is_whole && !(word == "the wall" && after.starts_with(" clock"))
        })
    };
    WORDS.into_iter().find(|(word, _)| is_there(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_counts_as_a_whole_and_as_a_part_of_a_name() {
        for line in
            ["/// Nobody waits.", "fn is_ours(&self)", "what is theirs", "it tries in vain", "by the wall,"]
        {
            assert!(offence(line).is_some(), "{line}");
        }
        for line in ["hours", "fn is_managed()", "yours", "by the wall clock", "renewed"] {
            assert!(offence(line).is_none(), "{line}");
        }
    }
}
