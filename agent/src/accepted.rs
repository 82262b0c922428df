//! The state that this host has accepted from the broker, and the decision on each new one. Pure: time is an argument.
//!
//! I1 is kept here where the broker's store goes back: protection comes off only with policies of a higher generation than the host
//! has followed. Otherwise the host follows the windows alone, keeps its protection, and says so.
//!
//! I8 is kept here: within a session an older desired state never replaces a newer one, and a repeated state changes
//! nothing. A new session starts with no generation, so that the agent follows a broker that was restored from a backup.
//!
//! In the first session of an enrolment the first accepted state counts whatever the generation of its policies: an operator of this host
//! has it follow the store that it is enrolled in now. Until then nothing is forgotten.

use std::time::Duration;

use postern_core::Mode;

use crate::clock::BootTime;
use crate::desired_state::DesiredState;
use crate::firewall::policy::HeldWindow;

/// The difference between two messages about the end of one window below which the first end stays. Both ends are at or
/// before the true end, and differ by the time that the agent's own message took to reach the broker. To follow each of
/// them would rewrite every window in the kernel whenever one changes.
const DEADLINE_JITTER: Duration = Duration::from_millis(100);

/// The state accepted last, and the newest generation received in this session.
#[derive(Debug, Default)]
pub struct AcceptedState {
    accepted: Option<DesiredState>,
    newest_received: Option<u64>,
    /// Set in the first session of an enrolment until a state is accepted.
    is_first_of_enrolment: bool,
}

/// A desired state that is older than one received before in the same session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("generation {generation} is stale: this session already received {newest}")]
pub struct Stale {
    /// The refused generation.
    pub generation: u64,
    /// The newest generation received.
    pub newest: u64,
}

impl AcceptedState {
    /// Starts from the state in the ledger.
    pub fn restored(accepted: Option<DesiredState>) -> Self {
        Self { accepted, newest_received: None, is_first_of_enrolment: false }
    }

    /// Begins a session: its first desired state counts whatever its generation. If the session is the first of an enrolment, the
    /// generation of its policies does not matter either.
    pub fn begin_session(&mut self, is_first_of_enrolment: bool) {
        (self.newest_received, self.is_first_of_enrolment) = (None, is_first_of_enrolment);
    }

    /// Returns the state that this host should hold if it follows `desired` at `now`. Accepts nothing: see [`Self::accept`].
    ///
    /// # Errors
    /// The generation is older than one received in this session.
    pub fn consider(&mut self, mut desired: DesiredState, now: BootTime) -> Result<DesiredState, Stale> {
        if let Some(newest) = self.newest_received.filter(|newest| desired.generation < *newest) {
            return Err(Stale { generation: desired.generation, newest });
        }
        self.newest_received = Some(desired.generation);
        if let Some(accepted) = &self.accepted {
            desired.windows = with_steady_deadlines(&desired, accepted).collect();
            keep_protection(&mut desired, accepted, self.policies());
        }
        desired.drop_ended(now);
        Ok(desired)
    }

    /// Notes that the host holds this state now.
    pub fn accept(&mut self, held: DesiredState) {
        self.accepted = Some(held);
        self.is_first_of_enrolment = false;
    }

    /// Replaces the state accepted last by one that holds less.
    pub fn restrict(&mut self, restricted: DesiredState) {
        self.accepted = Some(restricted);
    }

    /// Returns the state accepted last; `None` before the first.
    pub fn accepted(&self) -> Option<&DesiredState> {
        self.accepted.as_ref()
    }

    /// Returns the generation accepted last; 0 if none.
    pub fn generation(&self) -> u64 {
        self.accepted.as_ref().map_or(0, |accepted| accepted.generation)
    }

    /// Returns the highest generation of policies that this host has followed; 0 if none, or in the first session of an enrolment.
    pub fn policies(&self) -> u64 {
        let accepted = self.accepted.as_ref().filter(|_| !self.is_first_of_enrolment);
        accepted.map_or(0, |accepted| accepted.policies)
    }

    /// Reports whether the session is the first of an enrolment, and no state of it is accepted yet.
    pub fn is_first_of_enrolment(&self) -> bool {
        self.is_first_of_enrolment
    }

    /// Drops the windows whose end has come, and returns them.
    pub fn drop_ended(&mut self, now: BootTime) -> Vec<HeldWindow> {
        let Some(accepted) = &mut self.accepted else { return Vec::new() };
        let ended: Vec<_> = accepted.windows.iter().filter(|w| w.deadline <= now).copied().collect();
        if !ended.is_empty() {
            accepted.drop_ended(now);
        }
        ended
    }

    /// Lets every window end earlier by a time.
    pub fn shorten(&mut self, by: Duration) {
        let Some(accepted) = &mut self.accepted else { return };
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let earlier = |window: HeldWindow| HeldWindow {
            deadline: BootTime(window.deadline.0.saturating_sub(by)),
            ..window
        };
        accepted.windows = std::mem::take(&mut accepted.windows).into_iter().map(earlier).collect();
    }

    /// Returns the state to hold when `wanted` cannot be accepted: everything that `wanted` closes is closed, and nothing opens
    /// that a restart would not know of. The generation stays the accepted one, because `wanted` was not accepted. `None` before
    /// the first accepted state: there is nothing from which one could be derived.
    #[must_use]
    pub fn restricted_to(&self, wanted: &DesiredState) -> Option<DesiredState> {
        let accepted = self.accepted.as_ref()?;
        let enforce = [accepted.mode, wanted.mode].contains(&Mode::Enforce);
        let in_both = wanted.windows.iter().filter_map(|window| {
            let known = accepted.same_opening_as(window)?;
            Some(HeldWindow { deadline: known.deadline.min(window.deadline), ..*window })
        });
        Some(DesiredState {
            generation: accepted.generation,
            mode: if enforce { Mode::Enforce } else { Mode::Monitor },
            ports: accepted.ports.union(&wanted.ports).copied().collect(),
            windows: in_both.collect(),
            policies: accepted.policies,
            keeps: accepted.keeps,
            is_bootstrap: false,
        })
    }
}

/// Keeps the accepted protection, unless the policies of `desired` are newer than those that this host has followed (`followed`). A
/// state without policies of its own says itself whether it keeps what the host kept.
fn keep_protection(desired: &mut DesiredState, accepted: &DesiredState, followed: u64) {
    // A host that has followed no policy has the protection of its own configuration.
    let is_newer = desired.policies > followed || followed == 0;
    if !is_newer && desired.takes_protection_off(accepted) {
        desired.keeps = true;
        desired.ports.extend(accepted.ports.iter().copied());
        if accepted.mode == Mode::Enforce {
            desired.mode = Mode::Enforce;
        }
    }
    desired.policies = desired.policies.max(followed);
}

/// Returns the windows of `desired`, each with its deadline in `accepted` where the two differ only by jitter.
fn with_steady_deadlines<'a>(
    desired: &'a DesiredState,
    accepted: &'a DesiredState,
) -> impl Iterator<Item = HeldWindow> + 'a {
    desired.windows.iter().map(|window| match accepted.same_opening_as(window) {
        Some(known) if apart(known.deadline, window.deadline) <= DEADLINE_JITTER => *known,
        _ => *window,
    })
}

fn apart(one: BootTime, other: BootTime) -> Duration {
    one.since(other).max(other.since(one))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn window(grant: u8, deadline: u64) -> HeldWindow {
        HeldWindow {
            grant: format!("01arz3ndektsv4rrffq69g5f{grant:02}").parse().unwrap(),
            port: "tcp/22".parse().unwrap(),
            source: "192.0.2.7".parse().unwrap(),
            deadline: BootTime(deadline),
        }
    }

    fn desired(generation: u64, windows: &[HeldWindow]) -> DesiredState {
        DesiredState {
            generation,
            mode: Mode::Enforce,
            ports: ["tcp/22".parse().unwrap()].into(),
            windows: windows.iter().copied().collect(),
            policies: 0,
            keeps: false,
            is_bootstrap: false,
        }
    }

    fn follow(state: &mut AcceptedState, desired: DesiredState, now: u64) -> Result<(), Stale> {
        let held = state.consider(desired, BootTime(now))?;
        state.accept(held);
        Ok(())
    }

    #[test]
    fn i8_an_older_generation_is_stale_within_a_session_and_not_in_the_next() {
        let mut state = AcceptedState::restored(Some(desired(9, &[])));
        follow(&mut state, desired(5, &[]), 0).unwrap();
        assert_eq!(follow(&mut state, desired(4, &[]), 0), Err(Stale { generation: 4, newest: 5 }));
        assert_eq!(state.generation(), 5);
        state.begin_session(false);
        follow(&mut state, desired(1, &[]), 0).unwrap();
        assert_eq!(state.generation(), 1);
    }

    #[test]
    fn i1_protection_comes_off_only_with_newer_policies_than_the_host_has_followed() {
        let of = |generation, policies, mode, ports: &[&str]| DesiredState {
            policies,
            mode,
            ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
            ..desired(generation, &[window(1, 60)])
        };
        let both = ["tcp/22", "tcp/3389"];
        let mut state = AcceptedState::default();
        follow(&mut state, of(1, 7, Mode::Enforce, &both), 0).unwrap();
        for (policies, mode, ports) in [
            (7, Mode::Enforce, &both[..1]),
            (6, Mode::Enforce, &[]),
            (0, Mode::Monitor, &both),
            (7, Mode::Monitor, &[]),
        ] {
            state.begin_session(false);
            follow(&mut state, of(2, policies, mode, ports), 0).unwrap();
            let held = state.accepted().unwrap();
            assert_eq!((held.mode, held.ports.len(), held.policies, held.keeps), (Mode::Enforce, 2, 7, true));
            assert_eq!(held.windows.len(), 1, "windows follow");
        }
        // More protection comes with any policies, and what keeps ends with it.
        follow(&mut state, of(3, 6, Mode::Enforce, &["tcp/22", "tcp/3389", "tcp/5985"]), 0).unwrap();
        assert_eq!((state.accepted().unwrap().ports.len(), state.accepted().unwrap().keeps), (3, false));
        follow(&mut state, of(4, 8, Mode::Monitor, &both[..1]), 0).unwrap();
        let held = state.accepted().unwrap();
        assert_eq!((held.mode, held.ports.len(), held.policies, held.keeps), (Mode::Monitor, 1, 8, false));
        // An enrolment starts from the beginning.
        follow(&mut state, of(5, 3, Mode::Monitor, &[]), 0).unwrap();
        assert!(state.accepted().unwrap().keeps && state.policies() == 8);
        state.begin_session(true);
        assert_eq!(state.policies(), 0);
        // Nothing was accepted in it, and the next session is of the identity before.
        state.begin_session(false);
        follow(&mut state, of(6, 3, Mode::Monitor, &[]), 0).unwrap();
        assert!(state.accepted().unwrap().keeps && state.policies() == 8);
        state.begin_session(true);
        follow(&mut state, of(7, 3, Mode::Monitor, &[]), 0).unwrap();
        let held = state.accepted().unwrap();
        assert_eq!((held.ports.len(), held.policies, held.keeps), (0, 3, false));
        // Only its first state: the host follows the new store from there.
        follow(&mut state, of(8, 3, Mode::Enforce, &both), 0).unwrap();
        follow(&mut state, of(9, 2, Mode::Monitor, &[]), 0).unwrap();
        assert!(state.accepted().unwrap().keeps);
    }

    #[test]
    fn a_window_keeps_its_deadline_while_messages_only_jitter() {
        let mut state = AcceptedState::default();
        follow(&mut state, desired(1, &[window(1, 60 * SECOND)]), 0).unwrap();
        follow(&mut state, desired(2, &[window(1, 60 * SECOND + 40_000), window(2, 70 * SECOND)]), 0)
            .unwrap();
        let held: Vec<_> = state.accepted().unwrap().windows.iter().map(|w| w.deadline).collect();
        assert_eq!(held, [BootTime(60 * SECOND), BootTime(70 * SECOND)]);
        follow(&mut state, desired(3, &[window(1, 50 * SECOND)]), 0).unwrap();
        assert_eq!(state.accepted().unwrap().windows.first().unwrap().deadline, BootTime(50 * SECOND));
    }

    #[test]
    fn ended_windows_are_dropped_on_receipt_and_as_time_passes() {
        let mut state = AcceptedState::default();
        follow(&mut state, desired(1, &[window(1, 5), window(2, 10), window(3, 20)]), 5).unwrap();
        assert_eq!(state.accepted().unwrap().windows.len(), 2);
        assert_eq!(state.drop_ended(BootTime(10)), [window(2, 10)]);
        assert!(state.drop_ended(BootTime(10)).is_empty());
    }

    #[test]
    fn a_state_that_cannot_be_written_closes_but_does_not_open() {
        let mut state = AcceptedState::default();
        let wanted = desired(8, &[window(1, 90)]);
        assert_eq!(state.restricted_to(&wanted), None, "nothing was accepted before");
        let mut before = desired(7, &[window(1, 50), window(2, 60)]);
        before.mode = Mode::Monitor;
        before.ports = ["tcp/3389".parse().unwrap()].into();
        state.accept(before);
        let tight = state.restricted_to(&desired(8, &[window(1, 90), window(3, 90)])).unwrap();
        assert_eq!((tight.generation, tight.mode, tight.ports.len()), (7, Mode::Enforce, 2));
        assert_eq!(tight.windows, [window(1, 50)].into(), "the second is closed, the third is not opened");
    }

    proptest! {
        #[test]
        fn i8_duplicates_and_reordering_converge_to_the_newest(
            order in prop::collection::vec(0usize..6, 0..30),
        ) {
            let states: Vec<_> = (0u8..6).map(|n| desired(u64::from(n) + 1, &[window(n, u64::from(n + 1) * 60 * SECOND)])).collect();
            let mut state = AcceptedState::default();
            for index in order.into_iter().chain([5]) {
                let newest = state.generation();
                let answer = follow(&mut state, states[index].clone(), 0);
                prop_assert_eq!(answer.is_err(), states[index].generation < newest);
            }
            prop_assert_eq!(state.accepted(), Some(&states[5]));
        }
    }
}
