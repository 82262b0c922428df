//! Each rule of the protocol is needed: broken alone, it makes a property false. So the model can fail.

#![allow(clippy::print_stdout, clippy::panic, reason = "the way to each failure is worth reading")]

use postern_model::{Faults, Model, Rule, Setup, properties};
use stateright::{Checker as _, HasDiscoveries, Model as _};

/// Breaks a rule, and expects the property to fail.
fn breaks(setup: Setup, rule: Rule, property: &'static str) {
    fails(setup.without(rule), property);
}

/// Finds the shortest way to a state in which the property is false, and prints it.
fn fails(setup: Setup, property: &'static str) {
    let model = Model { setup };
    let only = HasDiscoveries::AnyOf([property].into());
    let checker = model.checker().threads(2).finish_when(only).spawn_bfs().join();
    let found = checker.discoveries();
    let path = found.get(property).unwrap_or_else(|| panic!("{property}: holds"));
    println!("{property}: fails after {} states", checker.state_count());
    for action in path.clone().into_actions() {
        println!("    {action:?}");
    }
}

fn with(faults: Faults) -> Setup {
    Setup { faults, ..Setup::PLAIN }
}

const KILL: Faults = Faults { kills: 1, ..Faults::NONE };
const STOP: Faults = Faults { stops: 1, ..Faults::NONE };
const CUT: Faults = Faults { cuts: 1, ..Faults::NONE };
const MOVE: Faults = Faults { moves: 1, ..Faults::NONE };

#[test]
fn i8_writes_name_the_lease() {
    breaks(with(MOVE), Rule::WritesNameTheLease, properties::LATE_WRITES);
}

#[test]
fn i6_reads_name_the_lease() {
    breaks(with(STOP), Rule::ReadsNameTheLease, properties::CLOSED_IS_CLOSED);
}

#[test]
fn i2_a_taker_looks_first() {
    breaks(with(KILL), Rule::TakerLooksFirst, properties::CLOUD_ENDS);
}

#[test]
fn i2_a_taker_looks_again() {
    breaks(with(KILL), Rule::TakerLooksAgain, properties::CLOUD_ENDS);
}

#[test]
fn i6_absence_waits_for_the_second_look() {
    breaks(with(KILL), Rule::AbsenceWaitsForTheSecondLook, properties::CLOSED_IS_CLOSED);
}

#[test]
fn i2_the_second_look_is_late_enough() {
    breaks(with(MOVE), Rule::SecondLookIsLateEnough, properties::CLOUD_ENDS);
}

#[test]
fn i5_a_look_is_acted_on_by_a_later_read() {
    breaks(Setup { cold: true, ..Setup::PLAIN }, Rule::ReadsAfterLooking, properties::ACTIVE_IN_BOTH);
}

#[test]
fn i6_what_is_inherited_may_be_held() {
    breaks(with(KILL), Rule::InheritedMayBeHeld, properties::CLOSED_IS_CLOSED);
}

#[test]
fn i6_a_new_token_forgets() {
    breaks(
        with(Faults { moves: 1, kills: 1, ..Faults::NONE }),
        Rule::NewTokenForgets,
        properties::CLOSED_IS_CLOSED,
    );
}

#[test]
fn belief_is_true() {
    breaks(with(STOP), Rule::BeliefIsShorterThanLife, properties::BELIEF_IS_TRUE);
}

#[test]
fn i2_belief_is_shorter_than_life() {
    breaks(with(STOP), Rule::BeliefIsShorterThanLife, properties::CLOUD_ENDS);
}

#[test]
fn i2_calls_need_belief() {
    breaks(with(CUT), Rule::CallsNeedBelief, properties::CLOUD_ENDS);
}

#[test]
fn i2_a_beat_reports_lost_leases() {
    breaks(with(MOVE), Rule::BeatReportsLostLeases, properties::CLOUD_ENDS);
}

#[test]
fn i6_a_session_sends_what_is_new() {
    breaks(
        with(Faults { moves: 2, ..Faults::NONE }),
        Rule::SessionSendsWhatIsNew,
        properties::CLOSED_IS_CLOSED,
    );
}

#[test]
fn i8_sessions_need_a_membership() {
    breaks(with(CUT), Rule::SessionsNeedMembership, properties::COMES_TO_REST);
}

#[test]
fn i6_a_view_names_what_was_read() {
    breaks(Setup { far: true, ..Setup::PLAIN }, Rule::ViewsNameWhatWasRead, properties::CLOSED_IS_CLOSED);
}

#[test]
fn i2_what_a_stopped_sender_opens_is_found_by_the_sweep_alone() {
    fails(Setup { sends_late: true, ..with(STOP) }, properties::CLOUD_ENDS);
}

#[test]
fn i2_what_is_delivered_twice_is_found_by_the_sweep_alone() {
    fails(with(Faults { duplicates: 1, ..Faults::NONE }), properties::CLOUD_ENDS);
}
