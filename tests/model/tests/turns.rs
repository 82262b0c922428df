//! Brokers that commit to one store take turns, and an answer that another one overtook is no loss.

#![allow(clippy::print_stdout, clippy::panic, reason = "the way to each failure is worth reading")]

use postern_model::turns::{NO_FALSE_ALARM, OVERTAKEN_ONCE, Turns};
use stateright::{Checker as _, HasDiscoveries, Model as _};

fn holds(model: Turns) {
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
}

fn breaks(model: Turns, property: &'static str) {
    let only = HasDiscoveries::AnyOf([property].into());
    let checker = model.checker().threads(2).finish_when(only).spawn_bfs().join();
    let found = checker.discoveries();
    let path = found.get(property).unwrap_or_else(|| panic!("{property}: holds"));
    for step in path.clone().into_actions() {
        println!("    {step:?}");
    }
}

#[test]
fn i8_two_brokers_whose_answers_overtake_each_other_raise_no_alarm_and_all_commit() {
    holds(Turns { looks: 2, ..Turns::PLAIN });
}

#[test]
fn i8_three_brokers_take_turns() {
    holds(Turns { brokers: 3, commits: 1, ..Turns::PLAIN });
}

#[test]
fn i8_a_turn_that_ends_unused_keeps_no_broker_from_committing() {
    holds(Turns { ends: 2, ..Turns::PLAIN });
}

#[test]
fn i1_a_store_that_lost_a_record_is_noticed() {
    holds(Turns { loses: true, looks: 2, ..Turns::PLAIN });
}

#[test]
fn a_head_that_is_checked_against_what_is_known_at_its_answer_raises_a_false_alarm() {
    breaks(Turns { checks_what_was_known_at_sending: false, ..Turns::PLAIN }, NO_FALSE_ALARM);
}

#[test]
fn without_turns_a_commit_is_overtaken_again_and_again() {
    breaks(Turns { keeps_turns: false, ..Turns::PLAIN }, OVERTAKEN_ONCE);
}
