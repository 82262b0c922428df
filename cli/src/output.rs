//! The two outputs of a command, results and notes. Only this module writes to stdout and stderr.

pub(crate) mod json;
pub(crate) mod table;
pub(crate) mod time;

use std::borrow::Cow;
use std::io::{self, Write};

use clap::ValueEnum;
use jiff::Timestamp;
use postern_core::text::free_text;
use postern_runtime::clock;
use serde::Serialize;

/// The format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    /// A table with whole ids.
    Wide,
    Json,
}

/// The way in which a table names targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// VMs on Azure by their name and resource group.
    Short,
    /// Every target by its id.
    Whole,
}

/// A result that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the result")]
pub(crate) struct OutputError(#[from] io::Error);

impl OutputError {
    /// Reports whether the reader of the results has closed its end, as `head` does.
    pub(crate) fn reader_is_gone(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// The two streams of a command: results on one, progress, notes and errors on the other.
pub(crate) struct Console {
    format: Format,
    results: Box<dyn Write>,
    notes: Box<dyn Write>,
}

impl Console {
    /// Writes results to stdout and notes to stderr.
    pub(crate) fn standard(format: Format) -> Self {
        Self { format, results: Box::new(io::stdout()), notes: Box::new(io::stderr()) }
    }

    /// Writes the one result of a command: a JSON document, or the text that `people` renders at this moment.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn show<T: Serialize>(
        &mut self,
        result: &T,
        people: impl FnOnce(&T, Timestamp) -> String,
    ) -> Result<(), OutputError> {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(result).map_err(io::Error::from)?,
            Format::Table | Format::Wide => people(result, clock::wall()),
        };
        self.text(text.trim_end())
    }

    /// Writes one of many results as one line, at once.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn item<T: Serialize>(
        &mut self,
        item: &T,
        people: impl FnOnce(&T, Timestamp) -> String,
    ) -> Result<(), OutputError> {
        let line = match self.format {
            Format::Json => serde_json::to_string(item).map_err(io::Error::from)?,
            Format::Table | Format::Wide => people(item, clock::wall()),
        };
        self.text(&line)
    }

    /// Writes text that is the result by itself, in either format.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), OutputError> {
        writeln!(self.results, "{text}")?;
        Ok(self.results.flush()?)
    }

    /// Returns the way in which tables name targets.
    pub(crate) fn ids(&self) -> Ids {
        if self.format == Format::Wide { Ids::Whole } else { Ids::Short }
    }

    /// Reports whether results are written for programs.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes a note for people to stderr. A closed stderr is no error.
    pub(crate) fn note(&mut self, note: &str) {
        let _ = writeln!(self.notes, "{note}");
    }
}

/// Writes a warning to stderr that is no part of a command's own notes. A closed stderr is no error.
pub(crate) fn warn(warning: &str) {
    let _ = writeln!(io::stderr(), "warning: {warning}");
}

/// Escapes the characters of foreign text that control a terminal. Line ends stay.
pub(crate) fn printable(text: &str) -> String {
    let line = |line| match free_text("text", line, usize::MAX) {
        Ok(()) => Cow::Borrowed(line),
        Err(_) => Cow::Owned(line.escape_debug().to_string()),
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(printable("plain, \"quoted\"\nand é"), "plain, \"quoted\"\nand é");
        assert_eq!(printable("a\u{1b}[31m\u{202e}b"), "a\\u{1b}[31m\\u{202e}b");
    }
}
