//! The reads of many places of a cloud at once.

use futures_util::{StreamExt as _, stream};

use crate::{CloudError, Hidden, Unread};

/// A place of a cloud, such as an account in a Region.
#[derive(Debug, Clone)]
pub struct Place {
    /// The name that reports use.
    pub name: String,
    /// The targets that a report may lack if the place cannot be read.
    pub hides: Hidden,
}

impl From<String> for Place {
    /// A place that may hide any target of its cloud.
    fn from(name: String) -> Self {
        Self { name, hides: Hidden::Everything }
    }
}

/// Reads every place, each given by its name and its read, at most `at_once` at a time. Returns the answers in the order of the
/// places, and the places that could not be read: one that fails or is slow does not hold the others up.
pub async fn read_places<T, P, F>(
    at_once: usize,
    reads: impl IntoIterator<Item = (P, F)>,
) -> (Vec<T>, Vec<Unread>)
where
    P: Into<Place>,
    F: Future<Output = Result<T, CloudError>>,
{
    let reads: Vec<_> = reads
        .into_iter()
        .enumerate()
        .map(|(number, (place, read))| async move {
            let Place { name, hides } = place.into();
            (number, read.await.map_err(|error| Unread { place: name, error, hides }))
        })
        .collect();
    let mut answers: Vec<(usize, Result<T, Unread>)> =
        stream::iter(reads).buffer_unordered(at_once).collect().await;
    answers.sort_by_key(|(number, _)| *number);
    let (mut read, mut unread) = (Vec::new(), Vec::new());
    for (_, answer) in answers {
        match answer {
            Ok(answer) => read.push(answer),
            Err(place) => unread.push(place),
        }
    }
    (read, unread)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn places_are_read_at_once_within_a_bound_and_one_that_fails_loses_no_other() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let read = async |place: usize| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::SeqCst);
            if place == 7 { Err(CloudError::unavailable("cut")) } else { Ok(place) }
        };
        let (answers, unread) = read_places(32, (0..100).map(|place| (place.to_string(), read(place)))).await;
        assert_eq!(answers, (0..100).filter(|place| *place != 7).collect::<Vec<_>>());
        let (error, hides) = (CloudError::unavailable("cut"), Hidden::Everything);
        assert_eq!(unread, [Unread { place: "7".into(), error, hides }]);
        assert_eq!(most.load(Ordering::SeqCst), 32);
    }

    #[tokio::test]
    async fn a_slow_place_holds_no_other_up() {
        let last_is_read = tokio::sync::Notify::new();
        let read = async |place: usize| {
            match place {
                0 => last_is_read.notified().await,
                9 => last_is_read.notify_one(),
                _ => {}
            }
            Ok(place)
        };
        let (answers, _) = read_places(2, (0..10).map(|place| (place.to_string(), read(place)))).await;
        assert_eq!(answers, (0..10).collect::<Vec<_>>());
    }
}
