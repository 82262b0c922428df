//! A shared state for each target or resource.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A shared state for each key, made when a caller first asks for it. The states lock themselves.
#[derive(Debug)]
pub struct KeyedStates<K, S> {
    states: Mutex<HashMap<K, Arc<S>>>,
}

impl<K, S> Default for KeyedStates<K, S> {
    fn default() -> Self {
        Self { states: Mutex::default() }
    }
}

impl<K: Clone + Eq + Hash, S> KeyedStates<K, S> {
    /// Returns the state of a key, and makes an empty one if there is none.
    pub fn of(&self, key: &K) -> Arc<S>
    where
        S: Default,
    {
        self.of_or(key, S::default)
    }

    /// Returns the state of a key, and makes one if there is none.
    pub fn of_or(&self, key: &K, make: impl FnOnce() -> S) -> Arc<S> {
        let mut states = self.lock();
        if let Some(state) = states.get(key) {
            return Arc::clone(state);
        }
        let state = Arc::new(make());
        states.insert(key.clone(), Arc::clone(&state));
        state
    }

    /// Returns the state of a key, if there is one.
    pub fn get(&self, key: &K) -> Option<Arc<S>> {
        self.lock().get(key).cloned()
    }

    /// Returns a value of each state, by key.
    pub fn map<T>(&self, value: impl Fn(&S) -> T) -> HashMap<K, T> {
        self.lock().iter().map(|(key, state)| (key.clone(), value(state))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<S>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caller_gets_the_same_state_of_a_key() {
        let states: KeyedStates<u8, Mutex<u8>> = KeyedStates::default();
        assert!(states.get(&1).is_none());
        *states.of(&1).lock().unwrap() = 7;
        assert_eq!(*states.of(&1).lock().unwrap(), 7);
        assert_eq!(*states.of_or(&1, || Mutex::new(9)).lock().unwrap(), 7);
        assert_eq!(states.map(|state| *state.lock().unwrap()), [(1, 7)].into());
    }
}
