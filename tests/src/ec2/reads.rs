//! Reads that are not the newest: for a span after each change, a read may answer what was so before it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hyper::body::Bytes;

/// The last answer to each read.
#[derive(Debug, Default)]
pub(super) struct Reads {
    span: Option<Duration>,
    answers: HashMap<Vec<u8>, Answer>,
    last_change: Option<Instant>,
}

#[derive(Debug)]
struct Answer {
    body: Bytes,
    /// The time of the first change that the answer does not show.
    outdated: Option<Instant>,
}

impl Reads {
    /// Lets reads answer for so long after each change what they did before it.
    pub(super) fn lag(&mut self, span: Duration) {
        self.span = Some(span);
    }

    /// The old answer that a read is given, if it is given one. No answer lacks a change that is older than the span, however
    /// quickly others follow it.
    pub(super) fn old(&self, key: &[u8], now: Instant) -> Option<Bytes> {
        let answer = self.answers.get(key)?;
        let until = answer.outdated?.checked_add(self.span?)?;
        (now < until).then(|| answer.body.clone())
    }

    /// Keeps the answer to a read that began then.
    pub(super) fn answered(&mut self, key: Vec<u8>, body: Bytes, began: Instant) {
        let outdated = self.last_change.filter(|change| began <= *change);
        self.answers.insert(key, Answer { body, outdated });
    }

    /// Takes in a change.
    pub(super) fn changed(&mut self, now: Instant) {
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
        let mut reads = Reads::default();
        reads.lag(Duration::from_millis(700));
        reads.answered(b"rules".to_vec(), "none".into(), at(0));
        assert_eq!(reads.old(b"rules", at(100)), None, "nothing was changed yet");
        for ms in [200, 500, 800] {
            reads.changed(at(ms));
        }
        assert_eq!(reads.old(b"rules", at(899)), Some("none".into()));
        assert_eq!(reads.old(b"rules", at(900)), None);
        reads.answered(b"rules".to_vec(), "three".into(), at(900));
        assert_eq!(reads.old(b"rules", at(950)), None);
    }

    #[test]
    fn an_answer_that_a_change_overtook_counts_as_old_from_that_change_on() {
        let start = monotonic();
        let at = |ms| start + Duration::from_millis(ms);
        let mut reads = Reads::default();
        reads.lag(Duration::from_millis(700));
        reads.changed(at(50));
        reads.answered(b"rules".to_vec(), "none".into(), at(0));
        reads.changed(at(600));
        assert_eq!(reads.old(b"rules", at(749)), Some("none".into()));
        assert_eq!(reads.old(b"rules", at(750)), None);
    }
}
