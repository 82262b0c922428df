//! A shared state for each target or resource.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number of states above which the oldest are forgotten: far more than a broker has targets. Each new machine has a name of its own, so that keys of machines that are
/// gone would add up.
const MAX_STATES: usize = 32_768;

/// A shared state for each key, made when a caller first asks for it. The states lock themselves.
///
/// There are at most 32,768, and those besides that callers hold: of the others, those that were not asked for in the longest time
/// are forgotten. A state is a memory that can be made again.
#[derive(Debug)]
pub struct KeyedStates<K, S> {
    states: Mutex<States<K, S>>,
}

#[derive(Debug)]
struct States<K, S> {
    by_key: HashMap<K, Entry<S>>,
    /// The number of times that callers have asked for a state.
    asked: u64,
}

#[derive(Debug)]
struct Entry<S> {
    state: Arc<S>,
    /// The number of the last time that a caller asked for it.
    last: u64,
}

impl<K, S> Default for KeyedStates<K, S> {
    fn default() -> Self {
        Self { states: Mutex::new(States { by_key: HashMap::new(), asked: 0 }) }
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
        states.asked += 1;
        let last = states.asked;
        if let Some(entry) = states.by_key.get_mut(key) {
            entry.last = last;
            return Arc::clone(&entry.state);
        }
        if states.by_key.len() >= MAX_STATES {
            states.forget_oldest();
        }
        let state = Arc::new(make());
        states.by_key.insert(key.clone(), Entry { state: Arc::clone(&state), last });
        state
    }

    /// Returns the state of a key, if there is one.
    pub fn get(&self, key: &K) -> Option<Arc<S>> {
        self.lock().by_key.get(key).map(|entry| Arc::clone(&entry.state))
    }

    /// Returns a value of each state, by key.
    pub fn map<T>(&self, value: impl Fn(&S) -> T) -> HashMap<K, T> {
        self.lock().by_key.iter().map(|(key, entry)| (key.clone(), value(&entry.state))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, States<K, S>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, S> States<K, S> {
    /// Forgets the half of the states that callers have not asked for in the longest time; a state that a caller holds stays.
    fn forget_oldest(&mut self) {
        let is_idle = |entry: &Entry<S>| Arc::strong_count(&entry.state) == 1;
        let mut idle: Vec<u64> =
            self.by_key.values().filter(|entry| is_idle(entry)).map(|entry| entry.last).collect();
        if idle.is_empty() {
            return;
        }
        let middle = idle.len() / 2;
        let (_, oldest, _) = idle.select_nth_unstable(middle);
        let oldest = *oldest;
        self.by_key.retain(|_, entry| entry.last > oldest || !is_idle(entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i10_states_of_keys_that_are_gone_are_forgotten_and_none_that_is_held() {
        let states: KeyedStates<usize, Mutex<u8>> = KeyedStates::default();
        let held = states.of(&0);
        *held.lock().unwrap() = 7;
        for key in 1..3 * MAX_STATES {
            states.of(&key);
            states.of(&1);
        }
        assert!(states.map(|_| ()).len() <= MAX_STATES);
        assert_eq!(*states.of(&0).lock().unwrap(), 7, "its holder and others share one");
        assert!(states.get(&1).is_some() && states.get(&2).is_none(), "the one that is asked for stays");
    }

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
