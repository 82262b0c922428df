//! The table of metrics: each exists from the start, and each sample is counted under its labels.

use std::time::Duration;

use jiff::Timestamp;
use metrics::with_local_recorder;
use postern_core::plan::{Layer, Observed};
use postern_core::{CloseReason, Event, Grant, Window};

use super::*;
use crate::testing::builders::{a_grant, at};

/// Returns a scrape after this work.
fn scraped(work: impl FnOnce()) -> String {
    let recorder = recorder().unwrap();
    with_local_recorder(&recorder, || {
        begin();
        work();
    });
    recorder.handle().render()
}

fn has(scrape: &str, line: &str) {
    assert!(scrape.lines().any(|found| found == line), "no {line:?} in\n{scrape}");
}

#[test]
fn every_metric_is_there_from_the_start_with_its_help() {
    let scrape = scraped(|| {});
    for metric in &ALL {
        has(&scrape, &format!("# HELP {} {}", metric.name, metric.what));
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
        };
        has(&scrape, &format!("# TYPE {} {kind}", metric.name));
    }
    has(&scrape, "postern_cloud_failures_total 0");
    has(&scrape, "postern_lease_changes_total{why=\"taken_over\"} 0");
    has(&scrape, "postern_open_seconds_count{layer=\"cloud\"} 0");
    assert!(scrape.contains("postern_build_info{version=\""), "{scrape}");
}

#[test]
fn names_are_as_prometheus_wants_them() {
    for metric in &ALL {
        let is_total = metric.name.ends_with("_total");
        assert_eq!(is_total, matches!(metric.kind, MetricKind::Counter), "{}", metric.name);
        assert!(metric.name.starts_with("postern_"), "{}", metric.name);
        let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(metric.name.chars().all(is_plain), "{}", metric.name);
        if matches!(metric.kind, MetricKind::Histogram(_)) {
            assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
        }
    }
}

#[test]
fn the_documentation_names_every_metric() {
    let page = include_str!("../../../docs/operations.md");
    for metric in &ALL {
        assert!(page.contains(&format!("`{}`", metric.name)), "{} is not in docs/operations.md", metric.name);
    }
}

#[test]
fn i2_every_layer_is_measured_on_its_way_in_and_out() {
    let progress = GrantProgress::default();
    let opening = a_grant().build();
    let active = opening.after(Event::Confirmed, at(2)).unwrap();
    let closing = active.after(Event::Close(CloseReason::Expired), at(60)).unwrap();
    let look = |grant: &Grant, observed: Observed, now: Timestamp| {
        progress.look([grant], |_: &Grant, _: &Window, _: Layer| observed.clone(), now);
    };
    let scrape = scraped(|| {
        look(&opening, Observed::Unconfirmed, at(1));
        look(&opening, Observed::Open, at(2));
        look(&opening, Observed::Open, at(3));
        look(&closing, Observed::Open, at(61));
        look(&closing, Observed::Absent, at(64));
        look(&closing, Observed::Absent, at(65));
    });
    for line in [
        "postern_open_seconds_sum{layer=\"host\"} 2",
        "postern_open_seconds_count{layer=\"host\"} 1",
        "postern_open_seconds_count{layer=\"cloud\"} 0",
        "postern_close_seconds_sum{layer=\"host\"} 4",
        "postern_close_seconds_count{layer=\"host\"} 1",
        "postern_expiry_lag_seconds_sum{layer=\"host\"} 4",
        "postern_expiry_lag_seconds_bucket{layer=\"host\",le=\"2.5\"} 0",
        "postern_expiry_lag_seconds_bucket{layer=\"host\",le=\"5\"} 1",
    ] {
        has(&scrape, line);
    }
}

#[test]
fn a_layer_that_never_opened_is_no_quick_close() {
    let progress = GrantProgress::default();
    let failing = CloseReason::CannotOpen { reason: "no agent".into() };
    let closing = a_grant().build().after(Event::Close(failing), at(1)).unwrap();
    let gone = Observed::Unreachable { reason: "gone".into(), may_hold: false };
    let scrape = scraped(|| progress.look([&closing], |_, _, _| gone.clone(), at(1)));
    has(&scrape, "postern_close_seconds_count{layer=\"host\"} 0");
    assert_eq!(progress.oldest_close(&[closing], Layer::Host, at(9)), Duration::ZERO);
}

#[test]
fn sessions_are_counted_while_they_live_and_leases_as_they_change() {
    let scrape = scraped(|| {
        let one = AgentGauge::default();
        let _other = std::mem::ManuallyDrop::new(AgentGauge::default());
        drop(one);
        lease_changed(LeaseChange::Forced);
        lease_changed(LeaseChange::Forced);
        ready(&Reasons::from([(crate::signals::parts::STORE, "it failed".to_owned())]));
    });
    for line in [
        "postern_connected_agents 1",
        "postern_lease_changes_total{why=\"forced\"} 2",
        "postern_ready 0",
        "postern_not_ready{part=\"store\"} 1",
        "postern_not_ready{part=\"ending\"} 0",
    ] {
        has(&scrape, line);
    }
}
