//! The reads of many places of a cloud at once.

use futures_util::{StreamExt as _, stream};

use crate::{CloudError, Unread};

/// The most places that are read at once.
const MAX_CONCURRENT_PLACES: usize = 32;

/// Reads every place, each given by its name and its read. Returns the answers in the order of the places, and the places that
/// could not be read: one of them does not lose the others.
pub async fn read_places<T, F>(reads: impl IntoIterator<Item = (String, F)>) -> (Vec<T>, Vec<Unread>)
where
    F: Future<Output = Result<T, CloudError>>,
{
    let reads: Vec<_> = reads
        .into_iter()
        .map(|(place, read)| async { read.await.map_err(|error| Unread { place, error }) })
        .collect();
    let answers: Vec<Result<T, Unread>> = stream::iter(reads).buffered(MAX_CONCURRENT_PLACES).collect().await;
    let (mut read, mut unread) = (Vec::new(), Vec::new());
    for answer in answers {
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
        let (answers, unread) = read_places((0..100).map(|place| (place.to_string(), read(place)))).await;
        assert_eq!(answers, (0..100).filter(|place| *place != 7).collect::<Vec<_>>());
        assert_eq!(unread, [Unread { place: "7".into(), error: CloudError::unavailable("cut") }]);
        assert_eq!(most.load(Ordering::SeqCst), MAX_CONCURRENT_PLACES);
    }
}
