//! Lists that the broker returns in pages.

use std::future::Future;

use postern_proto::v1::PageRequest;

use crate::error::Failure;

/// The largest page that a broker returns.
const PAGE: usize = 1000;

/// Returns at most `limit` items, and whether more exist. `page` fetches one page and the token of the next.
///
/// # Errors
/// A page cannot be fetched.
pub(super) async fn collect<T, F>(
    limit: usize,
    mut page: impl FnMut(PageRequest) -> F,
) -> Result<(Vec<T>, bool), Failure>
where
    F: Future<Output = Result<(Vec<T>, String), Failure>>,
{
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let size = u32::try_from((limit - items.len()).min(PAGE)).unwrap_or_default();
        let (more, next) = page(PageRequest { size, token }).await?;
        items.extend(more);
        if next.is_empty() || items.len() >= limit {
            return Ok((items, !next.is_empty()));
        }
        token = next;
    }
}

/// Returns all items.
///
/// # Errors
/// A page cannot be fetched.
pub(super) async fn all<T, F>(page: impl FnMut(PageRequest) -> F) -> Result<Vec<T>, Failure>
where
    F: Future<Output = Result<(Vec<T>, String), Failure>>,
{
    Ok(collect(usize::MAX, page).await?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A broker with `total` items and pages of at most two.
    async fn listed(total: usize, limit: usize) -> (Vec<usize>, bool) {
        collect(limit, |PageRequest { size, token }| async move {
            let start: usize = token.parse().unwrap_or(0);
            let end = total.min(start + usize::try_from(size).unwrap().min(2));
            let next = if end < total { end.to_string() } else { String::new() };
            Ok(((start..end).collect(), next))
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn pages_are_followed_to_the_limit_or_the_end() {
        assert_eq!(listed(5, usize::MAX).await, (vec![0, 1, 2, 3, 4], false));
        assert_eq!(listed(5, 3).await, (vec![0, 1, 2], true));
        assert_eq!(listed(4, 4).await, (vec![0, 1, 2, 3], false));
        assert_eq!(listed(0, 4).await, (vec![], false));
    }
}
