//! The last known state of a resource.

/// The last known state of a resource: none before the first read, and none after a call that failed.
///
/// A change takes the state out before its call, and puts the changed state back once the cloud has answered. A call that fails or
/// is dropped has an unknown outcome; it leaves nothing known, so that the next call reads first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known<T>(Option<T>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Known<T> {
    /// Returns the state, if it is known.
    pub fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }

    /// Records the state, as a read or an answer shows it.
    pub fn learn(&mut self, state: impl Into<Option<T>>) {
        self.0 = state.into();
    }

    /// Takes the state out, for the time of a call that changes it.
    pub fn take(&mut self) -> Option<T> {
        self.0.take()
    }

    /// Forgets the state.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    /// Forgets the state unless it agrees with a newer read.
    pub fn forget_unless(&mut self, agrees: impl FnOnce(&T) -> bool) {
        self.0 = self.0.take().filter(agrees);
    }

    /// Makes a call that changes the resource. After an answer the state is the changed one, if it was known; else it is unknown.
    ///
    /// # Errors
    /// The error of the call.
    pub async fn change<R, E>(
        &mut self,
        call: impl Future<Output = Result<R, E>>,
        apply: impl FnOnce(&mut T),
    ) -> Result<R, E> {
        let state = self.take();
        let answer = call.await?;
        self.0 = state.map(|mut state| {
            apply(&mut state);
            state
        });
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_change_is_known_after_its_answer_alone() {
        let mut known = Known::<u32>::default();
        known.change(ready(Ok::<_, ()>(())), |count| *count += 1).await.unwrap();
        assert_eq!(known.get(), None, "nothing was read yet");
        known.learn(1_u32);
        known.change(ready(Ok::<_, ()>(())), |count| *count += 1).await.unwrap();
        assert_eq!(known.get(), Some(&2));
        known.change(ready(Err::<(), _>("cut")), |count| *count += 1).await.unwrap_err();
        assert_eq!(known.get(), None, "the call failed");
        known.learn(2_u32);
        let dropped = known.change(pending::<Result<(), ()>>(), |count| *count += 1).now_or_never();
        assert_eq!((dropped, known.get()), (None, None), "the call was dropped");
    }

    #[test]
    fn a_state_that_a_newer_read_contradicts_is_forgotten() {
        let mut known = Known::<u32>::default();
        known.learn(1_u32);
        known.forget_unless(|state| *state == 1);
        assert_eq!(known.get(), Some(&1));
        known.forget_unless(|state| *state == 2);
        assert_eq!(known.get(), None);
    }
}
