//! The forged records that this process has met, for the broker's log, metrics, status and audit log.
//!
//! Who can write the database can make as many as fit into it, and each read meets them again. So each is remembered once, by kind and
//! key, and at most [`MAX_REMEMBERED`] of them; the rest are only counted.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::document::shown;

/// The most forged records that are remembered.
const MAX_REMEMBERED: usize = 256;

/// The forged records that were met.
#[derive(Debug, Default)]
pub struct Forgeries(Mutex<Met>);

#[derive(Debug, Default)]
struct Met {
    /// The names of those that are remembered.
    names: BTreeSet<String>,
    new: Vec<String>,
    /// The reads that met one, since the last look.
    reads: u64,
    omitted: bool,
    /// The trouble with the policies as a whole.
    policies: Option<String>,
}

/// The forged records that were met since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NewForgeries {
    /// The names of those that were met for the first time.
    pub names: Vec<String>,
    /// The number of times that a read met one.
    pub reads: u64,
}

impl Forgeries {
    /// Remembers a forged record.
    pub(crate) fn note(&self, name: &str) {
        // A forged record has the key that its maker gave it.
        let name = shown(name);
        let mut met = self.lock();
        met.reads = met.reads.saturating_add(1);
        if met.names.contains(&name) {
            return;
        }
        if met.names.len() == MAX_REMEMBERED {
            met.omitted = true;
            return;
        }
        met.names.insert(name.clone());
        met.new.push(name);
    }

    /// Returns what was met since the last call.
    pub fn take(&self) -> NewForgeries {
        let mut met = self.lock();
        NewForgeries { names: std::mem::take(&mut met.new), reads: std::mem::take(&mut met.reads) }
    }

    /// Gives back names that the caller could not record; the next [`Self::take`] returns them again.
    pub fn give_back(&self, names: Vec<String>) {
        self.lock().new.extend(names);
    }

    /// Sets the trouble with the policies as a whole; none if there is none. Returns whether it is another one.
    pub fn set_policies(&self, trouble: Option<String>) -> bool {
        let mut met = self.lock();
        let changed = met.policies != trouble;
        met.policies = trouble;
        changed
    }

    /// Returns a line about each thing that is wrong, for the status.
    pub fn warnings(&self) -> Vec<String> {
        let policies = self.lock().policies.clone();
        self.summary().into_iter().chain(policies).collect()
    }

    /// Returns one line about what this process has met; none if it has met no forged record.
    pub fn summary(&self) -> Option<String> {
        let met = self.lock();
        let (first, count) = (met.names.first()?, met.names.len());
        let more = match (count, met.omitted) {
            (1, false) => String::new(),
            (_, false) => format!(" and {} more", count - 1),
            (_, true) => format!(" and more than {} others", count - 1),
        };
        Some(format!(
            "{first}{more} in the store: no broker with this ca/records.key wrote it, and it counts for nothing; \
             find out who can write the store"
        ))
    }

    fn lock(&self) -> MutexGuard<'_, Met> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i10_each_forged_record_is_named_once_and_the_many_are_counted() {
        let met = Forgeries::default();
        assert_eq!((met.take(), met.summary()), (NewForgeries::default(), None));
        met.note("the grant 1");
        met.note("the grant 1");
        assert_eq!(met.take(), NewForgeries { names: vec!["the grant 1".to_owned()], reads: 2 });
        met.note("the grant 1");
        assert_eq!(met.take(), NewForgeries { names: Vec::new(), reads: 1 });
        for number in 0..2 * MAX_REMEMBERED {
            met.note(&format!("the policy {number} {}", "x".repeat(1000)));
        }
        let many = met.take();
        assert_eq!((many.names.len(), many.reads), (MAX_REMEMBERED - 1, 2 * MAX_REMEMBERED as u64));
        assert!(many.names.iter().all(|name| name.chars().count() <= 301 && name.ends_with('…')));
        assert!(met.summary().unwrap().contains("more than 255 others"));
    }
}
