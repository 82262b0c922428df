//! Copies of the audit log, in one file or several: the segments that a broker sealed, and an export of the rest.
//!
//! The files may be named in any order, and may overlap: the lines come in the order of the chain, each record once. Two copies
//! of one record must be the same, byte for byte, and no record may be missing between them.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use postern_core::audit::{AuditRecord, Broken, Head};
use serde::Deserialize;

/// The lines of several copies, in the order of the chain.
pub(super) struct Copies {
    cursors: Vec<Cursor>,
    base: Head,
    /// The number of the next record.
    next: u64,
}

/// A file, and its next line.
struct Cursor {
    lines: BufReader<File>,
    path: PathBuf,
    line: Vec<u8>,
    /// The number of the record in the line; one more than the last if it cannot be read. None at the end of the file.
    seq: Option<u64>,
    last: u64,
}

/// A reason why the next line cannot be given.
#[derive(Debug)]
pub(super) enum Interrupted {
    /// A file cannot be read.
    File(PathBuf, io::Error),
    /// The files are not copies of one log without a gap.
    Broken(Broken),
}

/// The part of a record that tells its place.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

impl Copies {
    /// Opens the files. `from` is the number of the first record if those before it are verified elsewhere.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn open(files: &[PathBuf], from: Option<u64>) -> Result<Self, Interrupted> {
        let mut cursors = Vec::new();
        for path in files {
            let failed = |error| Interrupted::File(path.clone(), error);
            cursors.push(Cursor::open(path).map_err(failed)?);
        }
        let mut base = Head::EMPTY;
        if let Some(from) = from {
            let first = cursors.iter().find(|cursor| cursor.seq == Some(from));
            base = first.and_then(|cursor| base_of(&cursor.line)).unwrap_or(base);
        }
        Ok(Self { cursors, base, next: base.seq + 1 })
    }

    /// Returns the head after which the lines begin.
    pub(super) fn base(&self) -> Head {
        self.base
    }

    /// Returns the next line, without its end; none after the last one.
    ///
    /// # Errors
    /// A file cannot be read, records are missing, or two copies of a record differ.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Interrupted> {
        let Some(seq) = self.cursors.iter().filter_map(|cursor| cursor.seq).min() else { return Ok(None) };
        // One file alone is for the verifier to judge, line by line.
        if self.cursors.len() > 1 && seq > self.next {
            let missing = if seq - self.next == 1 {
                format!("record {} is", self.next)
            } else {
                format!("records {} to {} are", self.next, seq - 1)
            };
            let problem =
                format!("follows a gap: {missing} in no file; name the segment or the export as well");
            return Err(Interrupted::Broken(Broken { line: seq, problem }));
        }
        self.next = seq + 1;
        let mut found: Option<(Vec<u8>, PathBuf)> = None;
        for cursor in self.cursors.iter_mut().filter(|cursor| cursor.seq == Some(seq)) {
            let line = cursor.take().map_err(|error| Interrupted::File(cursor.path.clone(), error))?;
            match &found {
                Some((other, path)) if *other != line => {
                    let (one, other) = (path.display(), cursor.path.display());
                    let problem = format!("is not the same in {one} and in {other}");
                    return Err(Interrupted::Broken(Broken { line: seq, problem }));
                }
                Some(_) => {}
                None => found = Some((line, cursor.path.clone())),
            }
        }
        Ok(found.map(|(line, _)| line))
    }
}

/// Returns the head before the record in a line; none if the line is no record.
pub(super) fn base_of(line: &[u8]) -> Option<Head> {
    serde_json::from_slice::<AuditRecord>(line).ok().map(|record| record.before())
}

impl Cursor {
    fn open(path: &Path) -> io::Result<Self> {
        let lines = BufReader::new(File::open(path)?);
        let mut cursor = Self { lines, path: path.to_owned(), line: Vec::new(), seq: None, last: 0 };
        cursor.advance()?;
        Ok(cursor)
    }

    /// Returns the line, and reads the next one.
    fn take(&mut self) -> io::Result<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        self.advance()?;
        Ok(line)
    }

    /// Splits the file at `\n` alone: the broker writes no other line end.
    fn advance(&mut self) -> io::Result<()> {
        self.line.clear();
        if self.lines.read_until(b'\n', &mut self.line)? == 0 {
            self.seq = None;
            return Ok(());
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        }
        let numbered = serde_json::from_slice::<Numbered>(&self.line);
        // A line that goes back is out of place: the verifier is to see it where it stands.
        let seq = numbered.map_or(self.last + 1, |numbered| numbered.seq.max(self.last + 1));
        (self.seq, self.last) = (Some(seq), seq);
        Ok(())
    }
}
