//! The progress of each grant: the times at which each layer first confirmed that it is open, and that it is closed again.
//!
//! The broker decides nothing by this; it measures and logs it. A broker that restarts starts with nothing: a layer that
//! confirms again after that is measured a second time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_core::plan::{Layer, Observed};
use postern_core::{CloseReason, Grant, GrantId, GrantState, Window};

use super::{CLOSE, EXPIRY_LAG, OPEN};

/// The time after which a grant that is not among the open ones is forgotten: it may be younger than the list.
const FORGET_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// The progress of each grant that is opening or closing.
#[derive(Debug, Default)]
pub struct GrantProgress(Mutex<HashMap<GrantId, Progress>>);

#[derive(Debug)]
struct Progress {
    opened: BTreeSet<Layer>,
    closing_since: Option<Timestamp>,
    closed: BTreeSet<Layer>,
    seen: Timestamp,
}

impl GrantProgress {
    /// Notes what the layers are observed to hold of these grants.
    pub fn look<'a>(
        &self,
        grants: impl IntoIterator<Item = &'a Grant>,
        observe: impl Fn(&Grant, &Window, Layer) -> Observed,
        now: Timestamp,
    ) {
        for grant in grants {
            let (GrantState::Opening | GrantState::Closing(_)) = &grant.state else { continue };
            let done = self.at(grant, now, |way| way.done(grant).clone());
            for layer in Layer::ALL {
                let mut windows = grant.windows.iter().filter(|window| layer.required_by(window)).peekable();
                if done.contains(&layer) || windows.peek().is_none() {
                    continue;
                }
                if windows.all(|window| confirms(grant, &observe(grant, window, layer))) {
                    self.confirmed(grant, layer, now);
                }
            }
        }
    }

    fn confirmed(&self, grant: &Grant, layer: Layer, now: Timestamp) {
        let word = layer.word();
        let (since, was_open) = self.at(grant, now, |way| {
            let since = way.closing_since;
            let was_open = way.opened.contains(&layer);
            match since {
                None => way.opened.insert(layer),
                Some(_) => way.closed.insert(layer),
            };
            (since, was_open)
        });
        let Some(since) = since else {
            let took = span(grant.requested_at, now).as_secs_f64();
            metrics::histogram!(OPEN, "layer" => word).record(took);
            tracing::info!(event = "layer.open", grant = %grant.id, layer = word, took_s = took, "a layer is open");
            return;
        };
        // A layer that never opened has nothing to close, and would count as the quickest close of all.
        if matches!(grant.state, GrantState::Closing(CloseReason::CannotOpen { .. })) && !was_open {
            tracing::info!(grant = %grant.id, layer = word, "a layer holds nothing");
            return;
        }
        let took = span(since, now).as_secs_f64();
        metrics::histogram!(CLOSE, "layer" => word).record(took);
        if now >= grant.not_after {
            metrics::histogram!(EXPIRY_LAG, "layer" => word).record(span(grant.not_after, now).as_secs_f64());
        }
        tracing::info!(event = "layer.closed", grant = %grant.id, layer = word, took_s = took, "a layer is closed");
    }

    /// Returns the age of the oldest close of these grants that the layer has not confirmed.
    pub fn oldest_close(&self, grants: &[Grant], layer: Layer, now: Timestamp) -> Duration {
        let progress = self.lock();
        let waiting = grants.iter().filter(|grant| {
            let is_ending = matches!(grant.state, GrantState::Closing(_)) || now >= grant.not_after;
            let is_done = progress.get(&grant.id).is_some_and(|way| way.closed.contains(&layer));
            is_ending && !is_done && grant.windows.iter().any(|window| layer.required_by(window))
        });
        let since = |grant: &Grant| {
            let began = progress.get(&grant.id).and_then(|way| way.closing_since);
            began.unwrap_or(grant.not_after)
        };
        waiting.map(|grant| span(since(grant), now)).max().unwrap_or_default()
    }

    /// Forgets every grant that is not among `open`.
    pub fn keep(&self, open: &[Grant], now: Timestamp) {
        let open: HashSet<GrantId> = open.iter().map(|grant| grant.id).collect();
        self.lock().retain(|id, way| open.contains(id) || now.duration_since(way.seen) < FORGET_AFTER);
    }

    /// Works on a grant's progress, after bringing it up to the grant's state.
    fn at<T>(&self, grant: &Grant, now: Timestamp, work: impl FnOnce(&mut Progress) -> T) -> T {
        let mut progress = self.lock();
        let way = progress.entry(grant.id).or_insert_with(|| Progress {
            opened: BTreeSet::new(),
            closing_since: None,
            closed: BTreeSet::new(),
            seen: now,
        });
        way.seen = now;
        if matches!(grant.state, GrantState::Closing(_)) {
            way.closing_since.get_or_insert(now.min(grant.not_after));
        }
        work(way)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GrantId, Progress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Returns the layers that have confirmed what the grant's state waits for.
    fn done(&self, grant: &Grant) -> &BTreeSet<Layer> {
        if matches!(grant.state, GrantState::Closing(_)) { &self.closed } else { &self.opened }
    }
}

/// Reports whether the observation confirms what the grant waits for.
fn confirms(grant: &Grant, observed: &Observed) -> bool {
    let is_closing = matches!(grant.state, GrantState::Closing(_));
    match observed {
        Observed::Open => !is_closing,
        Observed::Absent | Observed::Unreachable { may_hold: false, .. } => is_closing,
        Observed::Unconfirmed | Observed::Unreachable { .. } | Observed::Refused { .. } => false,
    }
}

/// Returns the time from `since` to `until`; zero if `until` is earlier.
fn span(since: Timestamp, until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use postern_core::Event;
    use postern_core::Layers;

    use super::*;
    use crate::testing::builders::{a_grant, at};

    /// Observes this for every layer of every window.
    fn all(observed: Observed) -> impl Fn(&Grant, &Window, Layer) -> Observed {
        move |_, _, _| observed.clone()
    }

    fn revoked(grant: &Grant, now: Timestamp) -> Grant {
        let by = grant.principal.clone();
        grant.after(Event::Close(CloseReason::Revoked { by, reason: None }), now).unwrap()
    }

    #[test]
    fn a_close_is_old_from_its_beginning_until_the_layer_confirms_it() {
        let vm = "aws:123456789012/eu-central-1/i-0123456789abcdef0";
        let (progress, grant) = (GrantProgress::default(), a_grant().on(vm).layers(Layers::Both).build());
        let closing = [revoked(&grant, at(10))];
        assert_eq!(progress.oldest_close(std::slice::from_ref(&grant), Layer::Host, at(5)), Duration::ZERO);
        progress.look(&closing, all(Observed::Unconfirmed), at(10));
        assert_eq!(progress.oldest_close(&closing, Layer::Host, at(14)), Duration::from_secs(4));
        let host = |_: &Grant, _: &Window, layer| match layer {
            Layer::Host => Observed::Absent,
            Layer::Cloud => Observed::Unconfirmed,
        };
        progress.look(&closing, host, at(15));
        assert_eq!(progress.oldest_close(&closing, Layer::Host, at(20)), Duration::ZERO);
        assert_eq!(progress.oldest_close(&closing, Layer::Cloud, at(20)), Duration::from_secs(10));
    }

    #[test]
    fn an_end_that_was_not_looked_at_yet_counts_from_itself() {
        let (progress, grant) = (GrantProgress::default(), a_grant().build());
        let opened = [grant.after(Event::Confirmed, at(1)).unwrap()];
        assert_eq!(progress.oldest_close(&opened, Layer::Host, at(65)), Duration::from_secs(5));
        assert_eq!(
            progress.oldest_close(&opened, Layer::Cloud, at(65)),
            Duration::ZERO,
            "it has no such layer"
        );
    }

    #[test]
    fn what_is_over_is_forgotten_a_while_later() {
        let (progress, grant) = (GrantProgress::default(), a_grant().build());
        progress.look([&grant], all(Observed::Open), at(1));
        progress.keep(&[], at(2));
        assert_eq!(progress.lock().len(), 1, "it may be younger than the list");
        progress.keep(std::slice::from_ref(&grant), at(90));
        assert_eq!(progress.lock().len(), 1);
        progress.keep(&[], at(90));
        assert!(progress.lock().is_empty());
    }
}
