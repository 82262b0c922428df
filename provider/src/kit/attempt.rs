//! Attempts that are repeated until the cloud shows something.

use std::time::Duration;

/// The outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt<T, N = ()> {
    /// The cloud shows what is waited for.
    Shown(T),
    /// The cloud does not show it yet. An attempt that writes had no effect.
    NotYet(N),
}

/// Repeats an attempt until the cloud shows what is waited for, with these pauses between attempts. An attempt is a read after a
/// write, or a write that the cloud refuses until it knows of an earlier one. A removal counts only once a read after it shows that
/// the resource is gone. Returns the last outcome if no attempt shows it.
///
/// # Errors
/// The error of the first attempt that fails.
pub async fn attempt_until<T, N, E, F>(
    pauses: impl IntoIterator<Item = Duration>,
    mut attempt: impl FnMut() -> F,
) -> Result<Attempt<T, N>, E>
where
    F: Future<Output = Result<Attempt<T, N>, E>>,
{
    let mut pauses = pauses.into_iter();
    loop {
        let answer = attempt().await?;
        let Attempt::NotYet(_) = &answer else { return Ok(answer) };
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
        for (shown_at, expected) in [(0, Attempt::Shown(0)), (2, Attempt::Shown(2)), (9, Attempt::NotYet(3))]
        {
            let mut reads = 0;
            let answer = attempt_until([Duration::ZERO; 3], || {
                let number = reads;
                reads += 1;
                ready(Ok::<_, ()>(if number == shown_at {
                    Attempt::Shown(number)
                } else {
                    Attempt::NotYet(number)
                }))
            });
            assert_eq!(answer.await, Ok(expected));
        }
    }

    #[tokio::test]
    async fn a_read_that_fails_ends_it() {
        let failed = attempt_until([Duration::ZERO], || ready(Err::<Attempt<()>, _>("cut"))).await;
        assert_eq!(failed, Err("cut"));
    }
}
