//! Monitoring receives the truth about the broker: metrics, liveness, readiness, and the files that are made of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_broker::telemetry::{ALL, MetricKind};
use postern_core::Role;
use postern_tests::clock::wait_until;
use postern_tests::redis::Redis;
use postern_tests::{Broker, Cli, FakeTime, Host, HostWorld, Net, STEP_TIMEOUT, VM, ask_for, usual_policy};
use tempfile::TempDir;

/// The setting with which a broker serves metrics where every host reaches them.
const METRICS: &str = "metrics_listen = \"0.0.0.0:9464\"\n";

/// Gets an answer of the broker's metrics port.
fn get(broker: &Host, from: &Host, path: &str) -> (u16, String) {
    let url = format!("http://{}:9464{path}", broker.v4());
    from.netns().run(fetch(url))
}

/// Fetches an answer over plain HTTP. The client reads no certificates, which would be most of what the call costs.
pub(crate) async fn fetch(url: String) -> (u16, String) {
    let client =
        reqwest::Client::builder().tls_built_in_root_certs(false).build().expect("a client can be made");
    let answer = client.get(url).send().await.expect("the port answers");
    (answer.status().as_u16(), answer.text().await.expect("an answer is text"))
}

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file)
}

/// Returns every name of a metric in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("postern_")).map(str::to_owned).collect()
}

/// The metric of the table that a series belongs to.
fn metric_of(series: &str) -> Option<&'static str> {
    let is_metric = |name: &str| ALL.iter().find(|metric| metric.name == name);
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
        let metric = is_metric(series.strip_suffix(suffix)?)?;
        matches!(metric.kind, MetricKind::Histogram(_)).then_some(metric)
    });
    let plain = || is_metric(series).filter(|metric| !matches!(metric.kind, MetricKind::Histogram(_)));
    of_histogram.or_else(plain).map(|metric| metric.name)
}

#[test]
fn a_broker_at_work_shows_every_metric_of_the_table_and_what_it_did() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.broker.configure(METRICS);
    world.broker.restart();
    world.enroll_agent();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    let grant = world.alice.open(&ask_for(&world.net.alice));
    world.alice.revoke(&grant.id).unwrap();
    world.alice.request(&ask_for(&world.net.alice).port("tcp/9")).unwrap_err();

    let get = |path| get(&world.net.hub, &world.net.alice, path);
    assert_eq!(get("/livez"), (200, "alive\n".to_owned()));
    assert_eq!(get("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(get("/").0, 404);
    let (code, scrape) = get("/metrics");
    assert_eq!(code, 200);
    for metric in &ALL {
        assert!(scrape.contains(&format!("# TYPE {} ", metric.name)), "{} is not exported", metric.name);
    }
    for line in [
        "postern_ready 1",
        "postern_not_ready{part=\"store\"} 0",
        "postern_connected_agents 1",
        "postern_grant_transitions_total{event=\"requested\"} 1",
        "postern_grant_transitions_total{event=\"refused\"} 1",
        "postern_grant_transitions_total{event=\"activated\"} 1",
        "postern_grant_transitions_total{event=\"revoked\"} 1",
        "postern_grant_transitions_total{event=\"closed\"} 1",
        "postern_activation_seconds_count 1",
        "postern_open_seconds_count{layer=\"host\"} 1",
        "postern_close_seconds_count{layer=\"host\"} 1",
        "postern_expiry_lag_seconds_count{layer=\"host\"} 0",
        "postern_open_seconds_count{layer=\"cloud\"} 0",
    ] {
        assert!(scrape.lines().any(|found| found == line), "no {line:?} in\n{scrape}");
    }
}

#[test]
fn no_task_of_an_idle_broker_needs_attention() {
    let mut world = HostWorld::without_agent(usual_policy());
    let clock = FakeTime::passing(world.dir());
    world.broker.configure(METRICS);
    world.broker.live_by(&clock);
    world.broker.restart();
    let admin = Cli::new(&world.net.alice, world.broker.url(), world.admin.identity());
    // No task counts as overdue within half a minute: every task with a shorter period has to have gone round since.
    clock.pass(35, || false);
    let checked = admin.run(&["status", "--check"]);
    assert!(checked.succeeded() && checked.out.contains("nothing needs attention"), "{checked:?}");
    let status = admin.json(&["status"]).remove(0);
    let tasks = status["tasks"].as_array().unwrap();
    let mut named: Vec<&str> = tasks.iter().map(|task| task["task"].as_str().unwrap()).collect();
    let with_a_period = |task: &&serde_json::Value| !task["every"].is_null();
    let waiting = tasks.iter().filter(|task| !with_a_period(task)).map(|task| task["task"].as_str().unwrap());
    assert_eq!(
        waiting.collect::<Vec<_>>(),
        ["cloud layer", "audit outbox", "follower", "peer status", "health"]
    );
    for task in tasks.iter().filter(with_a_period) {
        // One that is due more seldom may not have gone round yet.
        let is_awaited = task["every"].as_f64().unwrap() > 30.0 && task["result"] == "";
        assert!(is_awaited || task["result"] == "ok", "{task}");
        assert_eq!(task["overdue"], false, "{task}");
    }
    let (_, scrape) = get(&world.net.hub, &world.net.alice, "/metrics");
    let series = "postern_task_round_age_seconds{task=\"";
    let mut shown: Vec<&str> =
        scrape.lines().filter_map(|line| line.strip_prefix(series)?.split('"').next()).collect();
    named.sort_unstable();
    shown.sort_unstable();
    assert_eq!(shown, named, "each task that is shown has its metric");
}

#[test]
fn a_broker_without_its_store_is_alive_and_not_ready_and_says_why() {
    let (net, dir) = (Net::new(), TempDir::with_prefix("postern-").unwrap());
    let mut redis = Redis::start(&net.hub);
    let more = format!("{METRICS}{}", redis.configuration());
    let mut broker = Broker::init_with(&net.hub, &dir.path().join("broker"), &more);
    broker.serve();
    let reader = broker.client(&net.alice, "rita", Role::Reader);
    let get = |path| get(&net.hub, &net.alice, path);
    let serving = || reader.run(|channel| async { serving(channel).await });
    wait_until("the broker to be ready", STEP_TIMEOUT, || get("/readyz").0 == 200);
    assert!(serving());

    redis.kill9();
    wait_until("the broker to notice", STEP_TIMEOUT, || get("/readyz").0 == 503);
    let (_, body) = get("/readyz");
    assert!(body.starts_with("store: ") && body.lines().count() == 1, "{body}");
    assert_eq!(get("/livez").0, 200, "it has windows to close");
    wait_until("gRPC health to say the same", STEP_TIMEOUT, || !serving());
    let (_, scrape) = get("/metrics");
    assert!(scrape.contains("postern_ready 0") && scrape.contains("postern_not_ready{part=\"store\"} 1"));
    let failed = "postern_store_failures_total{operation=\"read\"} ";
    let failed = scrape.lines().find_map(|line| line.strip_prefix(failed)).unwrap();
    assert_ne!(failed, "0");

    redis.resume();
    wait_until("the broker to be ready again", STEP_TIMEOUT, || get("/readyz").0 == 200);
    wait_until("gRPC health to say the same", STEP_TIMEOUT, serving);
}

/// Reports whether the broker's own health service says that it serves.
async fn serving(channel: tonic::transport::Channel) -> bool {
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let answer = tonic_health::pb::health_client::HealthClient::new(channel).check(request).await;
    let status = answer.expect("health answers").into_inner().status();
    status == tonic_health::pb::health_check_response::ServingStatus::Serving
}

#[test]
fn the_dashboard_shows_every_metric_and_names_no_other() {
    let text = fs::read_to_string(packaging("grafana/postern.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert!(variables.iter().any(|v| v["type"] == "datasource" && v["query"] == "prometheus"));
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "every panel has an id of its own");
    let mut shown = BTreeSet::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            for series in names(target["expr"].as_str().unwrap()) {
                shown.insert(metric_of(&series).unwrap_or_else(|| panic!("{series} is no metric")));
            }
        }
    }
    let all: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(shown, all);
}

#[test]
fn the_alert_rules_parse_and_name_only_metrics_that_there_are() {
    let file = packaging("prometheus/postern.rules.yml");
    // A description names a histogram as the documentation does, an expression its series.
    let is_known = |name: &str| metric_of(name).is_some() || ALL.iter().any(|metric| metric.name == name);
    for name in names(&fs::read_to_string(&file).unwrap()) {
        assert!(is_known(&name), "{name} is no metric");
    }
    // No crate here reads YAML; the environment of the EC2 double has what does.
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let output = Command::new(postern_tests::ec2::python()).args(["-c", script]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rules: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rules =
        rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let mut alerts = BTreeSet::new();
    for rule in rules {
        assert!(["page", "ticket"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{rule}");
        for part in ["summary", "description"] {
            assert!(rule["annotations"][part].is_string(), "{rule}");
        }
        let series = names(rule["expr"].as_str().unwrap());
        assert!(!series.is_empty() && series.iter().all(|series| metric_of(series).is_some()), "{rule}");
        assert!(alerts.insert(rule["alert"].as_str().unwrap().to_owned()), "{rule}");
    }
    assert!(alerts.len() >= 8, "{alerts:?}");
}
