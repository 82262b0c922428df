//! Every property holds in every state that a model can come into, however its steps and faults interleave.
//!
//! Each test is one exhaustive check, of a few faults: together they would be too many states. What is ignored takes
//! minutes: `cargo nextest run -p postern-model --run-ignored all`.

#![allow(clippy::print_stdout, reason = "how many states there are is worth knowing")]

use postern_model::{Faults, Model, Setup, properties, representative};
use stateright::{Checker as _, Expectation, HasDiscoveries, Model as _, Path};

/// Visits every state. Nothing may be false, and what is named must be possible.
fn holds(setup: Setup, possible: &[&str]) {
    let checker = Model { setup }
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .symmetry_fn(representative)
        .spawn_dfs()
        .join();
    let found = checker.discoveries();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    for property in checker.model().properties() {
        let path = found.get(property.name);
        match property.expectation {
            Expectation::Always => {
                let actions = path.cloned().map(Path::into_actions);
                assert!(actions.is_none(), "{} is false after {actions:#?}", property.name);
            }
            Expectation::Sometimes => {
                assert!(path.is_some() || !possible.contains(&property.name), "not {}", property.name);
            }
            Expectation::Eventually => unreachable!("a path may go in circles of faults that end"),
        }
    }
}

/// The events that are possible in every model in which a lease changes hands.
const ALWAYS_POSSIBLE: [&str; 4] =
    [properties::LATE_CALL, properties::HEIR_CLOSES, properties::ACTIVE_AT_REST, properties::ALL_CLOSED];

fn with(faults: Faults) -> Setup {
    Setup { faults, ..Setup::PLAIN }
}

fn also(possible: &[&'static str]) -> Vec<&'static str> {
    ALWAYS_POSSIBLE.iter().chain(possible).copied().collect()
}

#[test]
fn i2_to_i8_hold_when_replicas_and_agent_start_together() {
    let possible = also(&[properties::MOVED, properties::LATE_WRITE_REFUSED, properties::SECOND_LOOK_HELPS]);
    holds(Setup { cold: true, ..Setup::PLAIN }, &possible);
}

#[test]
fn i2_to_i8_hold_when_one_of_three_is_killed_at_any_moment() {
    let faults = Faults { kills: 1, ..Faults::NONE };
    holds(
        Setup { replicas: 3, ..with(faults) },
        &also(&[properties::TAKEOVER, properties::SECOND_LOOK_HELPS]),
    );
}

#[test]
fn i2_to_i8_hold_when_two_of_three_are_killed() {
    let faults = Faults { kills: 2, ..Faults::NONE };
    holds(Setup { replicas: 3, ..with(faults) }, &also(&[properties::TAKEOVER]));
}

#[test]
fn i2_to_i8_hold_when_the_agent_moves_and_a_replica_is_killed() {
    let faults = Faults { kills: 1, moves: 1, ..Faults::NONE };
    holds(with(faults), &also(&[properties::TAKEOVER, properties::MOVED, properties::LATE_WRITE_REFUSED]));
}

#[test]
fn i2_to_i8_hold_when_the_agent_goes_to_and_fro() {
    let faults = Faults { moves: 2, ..Faults::NONE };
    holds(with(faults), &also(&[properties::MOVED, properties::LATE_WRITE_REFUSED]));
}

#[test]
fn i2_to_i8_hold_when_a_replica_is_stopped_between_reading_and_acting() {
    let faults = Faults { stops: 1, ..Faults::NONE };
    holds(with(faults), &also(&[properties::TAKEOVER, properties::MOVED, properties::LATE_WRITE_REFUSED]));
}

#[test]
fn i2_to_i8_hold_when_a_replica_is_cut_off_from_the_store() {
    let faults = Faults { cuts: 1, ..Faults::NONE };
    holds(with(faults), &also(&[properties::TAKEOVER, properties::MOVED, properties::LATE_WRITE_REFUSED]));
}

#[test]
fn i2_to_i8_hold_when_a_replica_ends_in_good_order() {
    let faults = Faults { quits: 1, moves: 1, ..Faults::NONE };
    holds(with(faults), &also(&[properties::TAKEOVER]));
}

#[test]
fn i2_to_i8_hold_when_an_answer_of_the_cloud_is_lost() {
    let faults = Faults { lost_answers: 1, kills: 1, ..Faults::NONE };
    holds(with(faults), &also(&[properties::TAKEOVER, properties::SECOND_LOOK_HELPS]));
}

#[test]
fn i2_to_i8_hold_for_two_grants() {
    let faults = Faults { kills: 1, ..Faults::NONE };
    holds(Setup { grants: 2, ..with(faults) }, &also(&[properties::TAKEOVER]));
}

#[test]
fn i2_to_i8_hold_in_the_end_when_a_stopped_replica_sends_its_call_at_any_time() {
    let faults = Faults { stops: 1, ..Faults::NONE };
    holds(Setup { sends_late: true, sweeps: true, ..with(faults) }, &also(&[properties::TAKEOVER]));
}

#[test]
fn i2_to_i8_hold_in_the_end_when_a_call_is_delivered_twice() {
    let faults = Faults { duplicates: 1, kills: 1, ..Faults::NONE };
    holds(Setup { sweeps: true, ..with(faults) }, &also(&[properties::TAKEOVER]));
}

#[test]
fn i2_to_i8_hold_when_another_target_s_holder_decides_by_what_is_published() {
    let faults = Faults { quits: 1, ..Faults::NONE };
    holds(Setup { far: true, ..with(faults) }, &also(&[properties::TAKEOVER]));
}

#[test]
#[ignore = "takes a minute"]
fn wider_the_agent_moves_and_a_replica_is_cut_off() {
    holds(with(Faults { moves: 1, cuts: 1, ..Faults::NONE }), &ALWAYS_POSSIBLE);
}

#[test]
#[ignore = "takes a minute"]
fn wider_the_agent_moves_and_a_replica_is_stopped() {
    holds(with(Faults { moves: 1, stops: 1, ..Faults::NONE }), &ALWAYS_POSSIBLE);
}

#[test]
#[ignore = "takes a minute"]
fn wider_the_agent_goes_to_and_fro_and_an_answer_is_lost() {
    holds(with(Faults { moves: 2, lost_answers: 1, ..Faults::NONE }), &ALWAYS_POSSIBLE);
}

#[test]
#[ignore = "takes a minute"]
fn wider_one_of_three_is_killed_and_another_stopped() {
    holds(Setup { replicas: 3, ..with(Faults { kills: 1, stops: 1, ..Faults::NONE }) }, &ALWAYS_POSSIBLE);
}

#[test]
#[ignore = "takes a minute"]
fn wider_two_grants_and_the_agent_moves() {
    holds(Setup { grants: 2, ..with(Faults { moves: 1, ..Faults::NONE }) }, &ALWAYS_POSSIBLE);
}

#[test]
#[ignore = "takes a minute"]
fn wider_an_end_far_behind_every_takeover() {
    holds(Setup { end: 6, ..with(Faults { stops: 1, kills: 1, ..Faults::NONE }) }, &ALWAYS_POSSIBLE);
}

#[test]
#[ignore = "takes minutes"]
fn wider_another_target_s_holder_decides_and_a_replica_is_cut_off() {
    holds(Setup { far: true, ..with(Faults { cuts: 1, ..Faults::NONE }) }, &ALWAYS_POSSIBLE);
}

#[test]
#[ignore = "takes a minute"]
fn wider_a_stopped_sender_and_a_killed_heir() {
    let faults = Faults { stops: 1, kills: 1, ..Faults::NONE };
    holds(Setup { sends_late: true, sweeps: true, ..with(faults) }, &ALWAYS_POSSIBLE);
}
