//! The read after a write.

use std::time::Duration;

/// The answer of a read after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBack<T, N = ()> {
    /// The read shows the write.
    Shown(T),
    /// The read does not show it yet.
    NotYet(N),
}

/// Reads until the cloud shows a write, with these pauses between reads. A removal counts only once a read after it shows that the
/// resource is gone. Returns the last answer if no read shows the write.
///
/// # Errors
/// The error of the first read that fails.
pub async fn read_back<T, N, E, F>(
    pauses: impl IntoIterator<Item = Duration>,
    mut read: impl FnMut() -> F,
) -> Result<ReadBack<T, N>, E>
where
    F: Future<Output = Result<ReadBack<T, N>, E>>,
{
    let mut pauses = pauses.into_iter();
    loop {
        let answer = read().await?;
        let ReadBack::NotYet(_) = &answer else { return Ok(answer) };
        let Some(pause) = pauses.next() else { return Ok(answer) };
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn reads_go_on_until_one_shows_the_write_or_the_pauses_end() {
        for (shown_at, expected) in
            [(0, ReadBack::Shown(0)), (2, ReadBack::Shown(2)), (9, ReadBack::NotYet(3))]
        {
            let mut reads = 0;
            let answer = read_back([Duration::ZERO; 3], || {
                let number = reads;
                reads += 1;
                ready(Ok::<_, ()>(if number == shown_at {
                    ReadBack::Shown(number)
                } else {
                    ReadBack::NotYet(number)
                }))
            });
            assert_eq!(answer.await, Ok(expected));
        }
    }

    #[tokio::test]
    async fn a_read_that_fails_ends_it() {
        let failed = read_back([Duration::ZERO], || ready(Err::<ReadBack<()>, _>("cut"))).await;
        assert_eq!(failed, Err("cut"));
    }
}
