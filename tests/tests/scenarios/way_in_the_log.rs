//! The way of a grant can be read off the logs: every line of it carries the grant's id.

use postern_proto::v1::{GrantState, Layers};
use postern_tests::azure::AzureWorld;
use serde_json::Value;

const JSON: &str = "log_format = \"json\"\n";

/// The lines of a log in JSON that are about a grant: the event, and the whole line.
fn way_of(log: &str, grant: &str) -> Vec<(String, Value)> {
    let mut way = Vec::new();
    for line in log.lines() {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let spans = parsed["spans"].as_array().cloned().unwrap_or_default();
        let of_spans = spans.iter().rev().map(|span| &span["grant"]);
        let id = std::iter::once(&parsed["fields"]["grant"]).chain(of_spans).find_map(Value::as_str);
        assert!(!line.contains(grant) || id == Some(grant), "the id is not where one looks for it: {line}");
        if id == Some(grant) {
            way.push((parsed["fields"]["event"].as_str().unwrap_or_default().to_owned(), parsed));
        }
    }
    way
}

/// A step: the event, and what else the line says.
type Step<'a> = (&'a str, &'a str);

/// The steps are there in this order, whatever is between them.
fn goes(way: &[(String, Value)], steps: &[Step<'_>]) {
    let mut lines = way.iter();
    for (event, more) in steps {
        let found = lines.any(|(found, line)| found == event && line.to_string().contains(more));
        let logged: Vec<String> = way.iter().map(|(_, line)| line.to_string()).collect();
        assert!(found, "no {event:?} with {more:?} in its place:\n{}", logged.join("\n"));
    }
}

#[test]
fn the_way_of_a_grant_is_in_the_logs_of_the_broker_and_of_the_agent() {
    let mut world = AzureWorld::new(Layers::Both);
    world.broker.configure(JSON);
    world.broker.restart();
    world.agent.configure(JSON);
    world.agent.restart();
    world.admin.wait_in_sync(&world.target());
    let grant = world.alice.open(&world.ask().seconds(3));
    world.alice.wait_for_state(&grant.id, GrantState::Closed);

    let way = way_of(&world.broker.log(), &grant.id);
    let begin = [("grant.requested", "requester/alice")];
    let active = [("grant.moved", "\"state\":\"active\"")];
    let closing = [("grant.moved", "\"state\":\"closing\"")];
    let end = [("grant.moved", "\"state\":\"closed\"")];
    goes(&way, &[&begin[..], &active, &closing, &end].concat());
    for (open, layer, close) in [
        ("host.open_pushed", "\"layer\":\"host\"", "host.close_pushed"),
        ("cloud.open_called", "\"layer\":\"cloud\"", "cloud.close_called"),
    ] {
        let opened = [(open, ""), ("layer.open", layer)];
        let closed = [(close, ""), ("layer.closed", layer)];
        // Each layer closes at the window's end by itself, which may be before the grant is moved.
        goes(&way, &[&begin[..], &opened, &active, &closed, &end].concat());
    }

    let way = way_of(&world.agent.log(), &grant.id);
    goes(&way, &[("window.opened", "\"generation\":")]);
    let ended = way.iter().any(|(event, _)| event == "window.ended" || event == "window.closed");
    assert!(ended, "{way:?}");
}
