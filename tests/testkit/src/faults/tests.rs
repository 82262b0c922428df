//! The plan's orders, one call after another.

use std::pin::pin;

use super::*;
use crate::clock::within;

const A_WHILE: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Write(&'static str);

impl Call for Write {
    type Pattern = &'static str;
    type Refusal = u16;

    fn is_change(&self) -> bool {
        self.0 != "read"
    }

    fn matches(&self, pattern: &&'static str) -> bool {
        *pattern == "*" || *pattern == self.0
    }
}

fn plan() -> FaultPlan<Write> {
    FaultPlan::default()
}

#[test]
fn an_order_is_for_so_many_calls_and_the_earlier_one_counts() {
    let plan = plan();
    plan.fail("a", 2, Fault::Refused(1));
    plan.fail("*", 2, Fault::Dropped);
    let handled = ["b", "a", "a", "a", "a"].map(|name| plan.handle(&Write(name)));
    let refused = Handling::Refuse(1);
    assert_eq!(handled, [Handling::Cut, refused.clone(), refused, Handling::Cut, Handling::Serve]);
    plan.fail("a", 0, Fault::Dropped);
    assert_eq!(plan.handle(&Write("a")), Handling::Serve);
    plan.fail("a", 1, Fault::Dropped);
    plan.forgive();
    assert_eq!(plan.handle(&Write("a")), Handling::Serve);
}

#[test]
fn a_numbered_change_goes_wrong_and_reads_are_no_changes() {
    let plan = plan();
    plan.fail_change(2, Fault::Lost);
    let handled = ["a", "read", "b", "c"].map(|name| (plan.handle(&Write(name)), plan.has_failed()));
    let served = |failed| (Handling::Serve, failed);
    assert_eq!(handled, [served(false), served(false), (Handling::ServeThenCut, true), served(true)]);
}

#[test]
fn an_outage_cuts_everything_and_leaves_the_orders() {
    let plan = plan();
    plan.fail("a", 1, Fault::Hung);
    plan.outage(true);
    assert_eq!(plan.handle(&Write("a")), Handling::Cut);
    plan.outage(false);
    assert_eq!(plan.handle(&Write("a")), Handling::Hang);
}

#[tokio::test]
async fn each_side_of_a_change_is_a_crash_point_and_what_is_held_is_never_answered() {
    for (when, served) in [(When::Before, 0), (When::After, 1)] {
        let plan = plan();
        plan.halt_at(Some(CrashPoint { change: 2, when }));
        assert_eq!(plan.handle(&Write("a")), Handling::Serve);
        assert_eq!(plan.handle(&Write("read")), Handling::Serve);
        let mut count = 0;
        {
            let mut held = pin!(async {
                let handling = plan.handle(&Write("b"));
                let answer = handling.answer(async { count += 1 }, |_| ()).await;
                plan.hold(&handling).await;
                answer
            });
            assert!(tokio::time::timeout(A_WHILE, &mut held).await.is_err());
            assert!(plan.has_halted());
            assert_eq!(plan.handle(&Write("read")), Handling::Hold, "nothing is answered from there on");
            plan.halt_at(None);
            assert_eq!(within("the service to be resumed", held).await, None);
        }
        assert_eq!(count, served, "{when:?}");
        assert_eq!(plan.handle(&Write("b")), Handling::Serve);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_served_late_and_a_hung_one_never() {
    let answer = async |fault: Fault<u16>| {
        let handling = fault.handling();
        tokio::time::timeout(2 * A_WHILE, handling.answer(async { 200 }, |code| *code)).await.ok()
    };
    assert_eq!(answer(Fault::Slow(A_WHILE)).await, Some(Some(200)));
    assert_eq!(answer(Fault::Slow(3 * A_WHILE)).await, None);
    assert_eq!(answer(Fault::Hung).await, None);
    assert_eq!(answer(Fault::Refused(429)).await, Some(Some(429)));
}
