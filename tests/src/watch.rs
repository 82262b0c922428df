//! A watch of a port over time: new connections are tried without a pause, and each is kept with the moment it was tried.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;

use crate::clock::wall;
use crate::net::{Endpoint, Host};
use crate::netns::Running;
use crate::probe::{Reach, reach};

/// The pause between two probes.
const STEP: Duration = Duration::from_millis(20);
/// The time after its end for which a window may still be open (I2).
const LATE: SignedDuration = SignedDuration::from_secs(1);
/// The time before its end at which a window may be closed. The agent counts the rest from the latest moment at which the
/// broker can have said so, which errs to the early side by one trip through the network.
const EARLY: SignedDuration = SignedDuration::from_millis(150);

/// A watch that goes on.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    samples: Running<Vec<Sample>>,
}

/// A probe and its outcome.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// The time at which the probe was about to be sent.
    pub at: Timestamp,
    /// The latest time at which the probe was sent: a busy machine may stop a probe before it has left.
    pub sent_by: Timestamp,
    /// The outcome of the probe.
    pub reach: Reach,
}

/// The samples of a watch, in the order of sending.
#[derive(Debug)]
pub struct Timeline {
    samples: Vec<Sample>,
}

impl Host {
    /// Starts to watch a port.
    pub fn watch(&self, to: Endpoint) -> Watch {
        self.watch_with(None, to, STEP)
    }

    /// Starts to watch a port from one of this host's further addresses, with another pause between two probes.
    pub fn watch_from(&self, from: IpAddr, to: Endpoint, step: Duration) -> Watch {
        self.watch_with(Some(from), to, step)
    }

    fn watch_with(&self, from: Option<IpAddr>, to: Endpoint, step: Duration) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let samples = self.netns().start(async move {
            let mut probes = JoinSet::new();
            loop {
                // One more after the end of the watch was asked for, so that the watch covers it.
                let is_last = stopped.load(Ordering::Relaxed);
                probes.spawn(sample(from, to));
                if is_last {
                    break;
                }
                tokio::time::sleep(step).await;
            }
            let mut samples = probes.join_all().await;
            samples.sort_by_key(|sample| sample.at);
            samples
        });
        Watch { stop, samples }
    }
}

/// Tries one new connection.
async fn sample(from: Option<IpAddr>, to: Endpoint) -> Sample {
    let at = wall();
    let mut probe = pin!(reach(from, to));
    let first = poll_fn(|context| Poll::Ready(probe.as_mut().poll(context))).await;
    // The first poll sends TCP's SYN; of a datagram only its answer says that it has left.
    let syn_sent = wall();
    let reach = match first {
        Poll::Ready(reach) => reach,
        Poll::Pending => probe.await,
    };
    let sent_by = if matches!(to, Endpoint::Tcp(_)) { syn_sent } else { wall() };
    Sample { at, sent_by, reach }
}

impl Watch {
    /// Stops, and returns what was seen.
    pub fn stop(self) -> Timeline {
        self.stop.store(true, Ordering::Relaxed);
        Timeline { samples: self.samples.join() }
    }
}

impl Timeline {
    /// The probes.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Asserts that the port was open until `end`, not before it closed, and closed within a second after it. Returns
    /// how long after `end` the last new connection got in; negative where none did after it.
    ///
    /// # Panics
    /// It was otherwise.
    pub fn assert_closed_at(&self, end: Timestamp) -> SignedDuration {
        let after_end = |sample: &Sample| sample.at.duration_since(end);
        let last_open = self.samples.iter().filter(|sample| sample.reach == Reach::Open).map(after_end).max();
        let last_open = last_open.expect("the port was never open");
        // A machine that is busy may leave a hole between two probes; what was shut before the end is found below.
        assert!(last_open >= -LATE, "the last one got in {last_open:?} from the end\n{}", self.near(end));
        assert!(last_open < LATE, "still open {last_open:?} after the end\n{}", self.near(end));
        let closed = |sample: &&Sample| sample.reach != Reach::Open;
        let first_open =
            self.samples.iter().position(|sample| sample.reach == Reach::Open).unwrap_or_default();
        let sent = |sample: &Sample| sample.sent_by.duration_since(end);
        let gap = self.samples[first_open..].iter().filter(closed).map(sent).find(|after| *after < -EARLY);
        assert_eq!(gap, None, "the window had a gap before its end\n{}", self.near(end));
        let watched_on = self.samples.last().is_some_and(|sample| after_end(sample) > LATE);
        assert!(watched_on, "the watch ended before the proof could be seen");
        last_open
    }

    /// Asserts that every new connection between the two moments got in.
    ///
    /// # Panics
    /// One did not, or none was tried.
    pub fn assert_open_between(&self, from: Timestamp, until: Timestamp) {
        let between: Vec<_> =
            self.samples.iter().filter(|sample| sample.at >= from && sample.sent_by < until).collect();
        assert!(!between.is_empty(), "nothing was tried between {from} and {until}");
        let shut = between.iter().find(|sample| sample.reach != Reach::Open);
        assert!(shut.is_none(), "a gap at {}\n{}", shut.map(|s| s.at).unwrap_or_default(), self.near(until));
    }

    /// Asserts that no new connection after the moment got in.
    ///
    /// # Panics
    /// One did, or none was tried.
    pub fn assert_shut_after(&self, from: Timestamp) {
        let mut after = self.samples.iter().filter(|sample| sample.at >= from).peekable();
        assert!(after.peek().is_some(), "nothing was tried after {from}");
        let open = after.find(|sample| sample.reach == Reach::Open);
        assert!(open.is_none(), "open at {}\n{}", open.map(|s| s.at).unwrap_or_default(), self.near(from));
    }

    /// The probes around a moment, one a line.
    fn near(&self, moment: Timestamp) -> String {
        let near = self
            .samples
            .iter()
            .filter(|sample| sample.at.duration_since(moment).abs() < SignedDuration::from_secs(2));
        near.map(|sample| {
            format!("{:>6} ms {:?}\n", sample.at.duration_since(moment).as_millis(), sample.reach)
        })
        .collect()
    }
}
