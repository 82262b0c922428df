//! Reads that are not the newest: for a span after each change, a read may answer with the state before it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The last answer to each read of a service.
#[derive(Debug)]
pub struct StaleReads<A> {
    span: Option<Duration>,
    answers: HashMap<Vec<u8>, Answer<A>>,
    last_change: Option<Instant>,
}

#[derive(Debug)]
struct Answer<A> {
    body: A,
    /// The time of the first change that the answer does not show.
    outdated: Option<Instant>,
}

impl<A> Default for StaleReads<A> {
    fn default() -> Self {
        Self { span: None, answers: HashMap::new(), last_change: None }
    }
}

impl<A: Clone> StaleReads<A> {
    /// Makes each read answer, for this long after a change, as before the change.
    pub fn lag(&mut self, span: Duration) {
        self.span = Some(span);
    }

    /// Returns the old answer that the service gives to a read, if it gives one. No answer lacks a change that is older than the
    /// span, however quickly others follow it.
    pub fn old(&self, key: &[u8], now: Instant) -> Option<A> {
        let answer = self.answers.get(key)?;
        let until = answer.outdated?.checked_add(self.span?)?;
        (now < until).then(|| answer.body.clone())
    }

    /// Keeps the answer to a read that began then.
    pub fn answered(&mut self, key: Vec<u8>, body: A, began: Instant) {
        let outdated = self.last_change.filter(|change| began <= *change);
        self.answers.insert(key, Answer { body, outdated });
    }

    /// Records a change.
    pub fn changed(&mut self, now: Instant) {
        self.last_change = Some(now);
        if self.span.is_none() {
            self.answers.clear();
        }
        for answer in self.answers.values_mut() {
            answer.outdated.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;

    #[test]
    fn an_old_answer_is_given_for_the_span_and_no_longer_however_many_changes_follow() {
        let start = monotonic();
        let at = |ms| start + Duration::from_millis(ms);
        let mut reads = StaleReads::default();
        reads.lag(Duration::from_millis(700));
        reads.answered(b"rules".to_vec(), "none", at(0));
        assert_eq!(reads.old(b"rules", at(100)), None, "nothing was changed yet");
        for ms in [200, 500, 800] {
            reads.changed(at(ms));
        }
        assert_eq!(reads.old(b"rules", at(899)), Some("none"));
        assert_eq!(reads.old(b"rules", at(900)), None);
        reads.answered(b"rules".to_vec(), "three", at(900));
        assert_eq!(reads.old(b"rules", at(950)), None);
    }

    #[test]
    fn an_answer_that_a_change_overtook_counts_as_old_from_that_change_on() {
        let start = monotonic();
        let at = |ms| start + Duration::from_millis(ms);
        let mut reads = StaleReads::default();
        reads.lag(Duration::from_millis(700));
        reads.changed(at(50));
        reads.answered(b"rules".to_vec(), "none", at(0));
        reads.changed(at(600));
        assert_eq!(reads.old(b"rules", at(749)), Some("none"));
        assert_eq!(reads.old(b"rules", at(750)), None);
    }
}
