//! The expensive reads of services, and the size of an answer that lists things.

use postern_proto::status::plain;
use prost::Message;
use tonic::{Code, Status};

use crate::limits::{ExpensiveReads, Limit};

/// The places for expensive reads.
pub(super) type Reads = ExpensiveReads;

/// The bytes of an answer past which a page ends early. An answer that the caller does not take stays in memory.
const MAX_ANSWER: usize = 1024 * 1024;

/// Returns the status of a read that finds no place.
pub(super) fn refused(limit: Limit) -> Status {
    let message = format!(
        "too many reads of many records wait already; try again in a moment; see [limits] {} of the broker",
        limit.word()
    );
    plain(Code::ResourceExhausted, "TOO_MANY_READS", message)
}

/// Ends a page early if its items take too many bytes: the next page then begins after the last item that is left. One item is
/// always left.
pub(super) fn within_answer<T: Message>(
    mut items: Vec<T>,
    next: Option<String>,
    token: impl Fn(&T) -> String,
) -> (Vec<T>, String) {
    let mut size = 0;
    let fitting = items.iter().take_while(|item| {
        let is_first = size == 0;
        size += item.encoded_len();
        is_first || size <= MAX_ANSWER
    });
    let fitting = fitting.count();
    if fitting == items.len() {
        return (items, next.unwrap_or_default());
    }
    items.truncate(fitting);
    let next = items.last().map(token).unwrap_or_default();
    (items, next)
}

#[cfg(test)]
mod tests {
    use postern_proto::v1;

    use super::*;

    #[test]
    fn i10_a_page_ends_where_its_answer_is_full() {
        let policy = |name: &str, length: usize| v1::Policy {
            name: name.to_owned(),
            targets: vec!["x".repeat(length)],
            ..v1::Policy::default()
        };
        let within = |items: Vec<v1::Policy>| {
            let (items, next) = within_answer(items, Some("page".to_owned()), |policy| policy.name.clone());
            (items.len(), next)
        };
        assert_eq!(within(vec![policy("a", 10), policy("b", 10)]), (2, "page".to_owned()));
        let half = MAX_ANSWER / 2 - 100;
        assert_eq!(
            within(vec![policy("a", half), policy("b", half), policy("c", half)]),
            (2, "b".to_owned())
        );
        assert_eq!(within(vec![policy("a", 2 * MAX_ANSWER), policy("b", 1)]), (1, "a".to_owned()));
        assert_eq!(within(Vec::new()), (0, "page".to_owned()));
    }
}
