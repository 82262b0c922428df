//! The broker's clock as this host knows it: the moment, on this host's own clock, at which the broker sent a message.
//!
//! **The problem.** A message gives the remaining time of each window, counted from its sending. The agent must find that moment on its
//! own clock, and may err only towards an earlier one (I2). The plain way is `heard + heard_ago` ([`anchor`]): not after the sending,
//! because the broker received the agent's message after the agent had stamped it. But a broker that was stopped for some seconds
//! receives the messages of that time late. By the plain way every window would end early by the stop, and open again with the next
//! message.
//!
//! **The rule.** Both clocks count time and never step, so their distance is fixed. Each message bounds it: the broker sent it after
//! `heard + heard_ago`, and before the agent received it. The best lower bound of the last [`MEMORY`] serves for every message of the
//! stream, so one message that was quick is enough. Never is the result later than the time of receipt.
//!
//! **On failure.** A virtual machine that is paused by its hypervisor loses time: none of its clocks counts. Then a message is received
//! earlier, by this host's clock, than an older bound allows. The older bounds are dropped. If they are off by more than
//! [`MAX_LOST`], every window in the kernel ends late by as much, and the session ends: the next one brings the true ends.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::clock::BootTime;
use crate::desired_state::anchor;

/// The time for which a bound is used. Within it two clocks drift apart by less than a tenth of a second.
const MEMORY: Duration = Duration::from_secs(30);
/// The time that this host may lose before it asks the broker for the true ends.
const MAX_LOST: Duration = Duration::from_secs(1);

/// The clock of the broker of one session.
#[derive(Debug, Default)]
pub struct BrokerClock {
    /// Lower bounds of this host's clock less the broker's, in nanoseconds, with the time of receipt.
    bounds: VecDeque<(BootTime, i128)>,
}

/// The times that a message of the broker carries.
#[derive(Debug, Clone, Copy)]
pub struct Stamps {
    /// The stamp of the agent's last message that the broker had received.
    pub heard: BootTime,
    /// The time since the broker had received it.
    pub heard_ago: Duration,
    /// The broker's own clock when it sent the message, in nanoseconds; 0 if the broker does not say.
    pub sent_at: u64,
}

/// The place of a message on this host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// A moment that is not after the sending.
    pub anchor: BootTime,
    /// The time that this host's clock has lost since earlier messages, if that is more than a second.
    pub lost: Option<Duration>,
}

impl BrokerClock {
    /// Places a message that this host has received at `now`.
    pub fn place(&mut self, stamps: Stamps, now: BootTime) -> Placed {
        let plain = anchor(stamps.heard, stamps.heard_ago, now);
        if stamps.sent_at == 0 {
            return Placed { anchor: plain, lost: None };
        }
        let broker = i128::from(stamps.sent_at);
        let upper = i128::from(now.0) - broker;
        self.bounds.retain(|(received, _)| now.since(*received) <= MEMORY);
        let best = self.bounds.iter().map(|(_, bound)| *bound).max();
        let excess = best.map_or(0, |best| (best - upper).max(0));
        if excess > 0 {
            self.bounds.clear();
        }
        let lost = Duration::from_nanos(u64::try_from(excess).unwrap_or(u64::MAX));
        self.bounds.push_back((now, i128::from(plain.0) - broker));
        let best = self.bounds.iter().map(|(_, bound)| *bound).max().unwrap_or(upper);
        let sent = BootTime(u64::try_from(broker + best).unwrap_or_default());
        Placed { anchor: sent.max(plain).min(now), lost: Some(lost).filter(|lost| *lost > MAX_LOST) }
    }
}

/// Returns the time by which this host's wall clock is ahead of the broker's, below zero if it is behind; zero if the two agree as far
/// as one message shows. The broker's wall clock showed `broker` at some time in the last `within`.
pub fn wall_ahead(now: Timestamp, broker: Timestamp, within: Duration) -> SignedDuration {
    let at_most = now.duration_since(broker);
    let at_least = at_most - SignedDuration::try_from(within).unwrap_or(SignedDuration::MAX);
    if at_least.is_positive() { at_least } else { at_most.min(SignedDuration::ZERO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> BootTime {
        BootTime(seconds * SECOND)
    }

    /// A message of a broker whose clock is 1,000 s ahead of this host's.
    fn message(heard: u64, heard_ago: u64, sent_at: u64) -> Stamps {
        let heard_ago = Duration::from_secs(heard_ago);
        Stamps { heard: at(heard), heard_ago, sent_at: (sent_at + 1_000) * SECOND }
    }

    #[test]
    fn a_broker_that_was_stopped_moves_no_end() {
        let mut clock = BrokerClock::default();
        assert_eq!(clock.place(message(100, 0, 100), at(100)).anchor, at(100));
        // Stopped from 101 to 112: it receives a heartbeat of 105 at 112.
        assert_eq!(clock.place(message(105, 0, 112), at(112)), Placed { anchor: at(112), lost: None });
        // A broker that does not tell its time is believed less.
        let silent = Stamps { sent_at: 0, ..message(105, 0, 112) };
        assert_eq!(clock.place(silent, at(112)).anchor, at(105));
    }

    #[test]
    fn i2_a_message_is_never_placed_after_its_sending() {
        let mut clock = BrokerClock::default();
        clock.place(message(100, 0, 101), at(102));
        // Delayed by 20 s on its way: sent at 106.
        assert!(clock.place(message(105, 0, 106), at(126)).anchor <= at(106));
        // Old bounds are forgotten.
        assert_eq!(clock.place(message(150, 0, 170), at(170)).anchor, at(150));
    }

    #[test]
    fn i2_time_that_this_host_has_lost_is_noticed() {
        let mut clock = BrokerClock::default();
        clock.place(message(100, 0, 100), at(100));
        // The hypervisor pauses this host for 10 s at 102: what is 115 for the broker is 105 here.
        let placed = clock.place(message(104, 0, 114), at(105));
        assert_eq!(placed, Placed { anchor: at(104), lost: Some(Duration::from_secs(9)) });
        // The bounds from before do not count again.
        assert_eq!(clock.place(message(106, 0, 116), at(107)).lost, None);
    }

    #[test]
    fn the_wall_clocks_differ_only_by_more_than_the_delay() {
        let wall = |second| Timestamp::from_second(second).unwrap();
        let ahead = |now, broker| wall_ahead(wall(now), wall(broker), Duration::from_secs(2)).as_secs();
        assert_eq!([ahead(100, 100), ahead(101, 100), ahead(102, 100)], [0, 0, 0]);
        assert_eq!([ahead(7_302, 100), ahead(100, 160)], [7_200, -60]);
    }
}
