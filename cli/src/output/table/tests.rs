use postern_proto::v1;

use super::super::json::tests::a_grant;
use super::*;

fn now() -> Timestamp {
    "2025-06-01T12:00:12Z".parse().unwrap()
}

#[test]
fn a_grant_shows_its_facts_and_each_window_in_each_layer() {
    let shown = grant(&a_grant().into(), now(), Ids::Short);
    let expected = "\
grant   01jx0000000000000000000000
state   active
who     requester/alice
why     fix disk
asked   2025-06-01 12:00:00Z (12s ago)
for     30m
opened  2025-06-01 12:00:00Z (11s ago)
end     2025-06-01 12:30:00Z (in 29m 48s)

TARGET      PORT    SOURCE          HOST  CLOUD    DETAIL
host:web-1  tcp/22  203.0.113.7/32  open  refused  cloud: quota";
    assert_eq!(shown, expected);
}

#[test]
fn a_source_that_the_broker_chose_is_shown() {
    let answer = |source_from_caller| RequestedJson {
        grant: a_grant().into(),
        source_from_caller,
        repeated_request: false,
    };
    let note = "no --source was given, so the broker used the address it sees: 203.0.113.7/32";
    assert!(requested(&answer(true), now(), Ids::Short).ends_with(note));
    assert!(!requested(&answer(false), now(), Ids::Short).contains("--source"));
}

#[test]
fn a_list_of_grants_is_one_line_each_and_says_where_it_was_cut() {
    let mut second = a_grant();
    second.windows.push(second.windows[0].clone());
    second.not_after = None;
    let list = GrantsJson { grants: vec![a_grant().into(), second.into()], more: true };
    let expected = "\
GRANT                       STATE   WHO              OPENS                                      END                                WHY
01jx0000000000000000000000  active  requester/alice  host:web-1 tcp/22 from 203.0.113.7/32      2025-06-01 12:30:00Z (in 29m 48s)  fix disk
01jx0000000000000000000000  active  requester/alice  host:web-1 tcp/22 from 203.0.113.7/32 (+1)  -                                  fix disk

more grants exist; raise --limit to list them";
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = grants(&list, now(), Ids::Short);
    assert_eq!(squeeze(&shown), squeeze(expected));
    assert_eq!(shown.lines().count(), 5);
}

#[test]
fn a_watched_grant_is_one_line() {
    let failed = v1::Grant {
        state: v1::GrantState::Failed.into(),
        reason: "host:web-1: its agent is away".into(),
        ..a_grant()
    };
    let line = grant_line(&failed.into(), now(), Ids::Short);
    assert_eq!(
        line,
        "01jx0000000000000000000000  failed            requester/alice  host:web-1 tcp/22 from 203.0.113.7/32  end in 29m 48s  (host:web-1: its agent is away)"
    );
}

#[test]
fn text_from_elsewhere_neither_steers_the_terminal_nor_breaks_the_table() {
    let mut hostile = a_grant();
    hostile.windows[0].layers[1].detail = "a\u{1b}[2J\nroot  open  open".to_owned();
    let shown = grant(&hostile.into(), now(), Ids::Short);
    assert!(!shown.contains('\u{1b}') && shown.lines().last().unwrap().starts_with("host:web-1"), "{shown}");
}

#[test]
fn an_empty_list_is_its_header() {
    assert_eq!(
        agents(&AgentsJson { agents: vec![] }, now(), Ids::Short),
        "TARGET  STATUS  VERSION  SEEN  ENROLLED  CERTIFICATE ENDS"
    );
}

#[test]
fn a_target_shows_both_layers_with_their_details() {
    let layer = |layer: v1::Layer, status: v1::LayerStatus, detail: &str| v1::TargetLayer {
        layer: layer.into(),
        status: status.into(),
        detail: detail.into(),
        last_seen: None,
    };
    let target = v1::Target {
        id: "host:web-1".into(),
        mode: v1::Mode::Enforce.into(),
        ports: vec![v1::ProtectedPort { protocol: v1::Protocol::Udp.into(), number: 161 }],
        policies: vec!["web".into(), "snmp".into()],
        open_windows: 2,
        layers: vec![
            layer(v1::Layer::Host, v1::LayerStatus::Unreachable, "its agent is not connected"),
            layer(v1::Layer::Cloud, v1::LayerStatus::NotRequired, ""),
        ],
    };
    let shown = self::target(&target.into(), now());
    let expected = "\
target    host:web-1
mode      enforce
ports     udp/161
policies  web snmp
windows   2 open or opening

LAYER  STATUS        SEEN  DETAIL
host   unreachable   -     its agent is not connected
cloud  not_required  -     -";
    assert_eq!(shown, expected);
}

#[test]
fn a_list_of_targets_has_details_if_a_layer_has_one() {
    let target = |detail: &str| TargetJson {
        id: "aws:1".into(),
        mode: None,
        ports: vec![],
        policies: vec![],
        open_windows: 0,
        layers: vec![super::super::json::TargetLayerJson {
            layer: "cloud",
            status: "failed",
            detail: detail.into(),
            last_seen: None,
        }],
    };
    let shown = |details: &[&str]| {
        targets(&TargetsJson { targets: details.iter().map(|d| target(d)).collect() }, now(), Ids::Short)
    };
    assert!(shown(&["", "the quota is used up"]).ends_with("cloud: the quota is used up"));
    assert!(!shown(&[""]).contains("DETAIL"));
}

#[test]
fn a_vm_on_azure_is_named_by_its_name_and_resource_group_unless_ids_are_asked_for_whole() {
    let id = "azure:/subscriptions/00000000-0000-0000-0000-00000000000a/resourcegroups/web/providers/microsoft.compute/virtualmachines/vm-1";
    let mut on_azure = a_grant();
    on_azure.windows[0].target = id.to_owned();
    let of = |ids| grant(&on_azure.clone().into(), now(), ids);
    assert!(of(Ids::Short).lines().last().unwrap().starts_with("vm-1 (web)  tcp/22"), "{}", of(Ids::Short));
    assert!(of(Ids::Whole).lines().last().unwrap().starts_with(id), "{}", of(Ids::Whole));
    let line = grant_line(&on_azure.into(), now(), Ids::Short);
    assert!(line.contains("vm-1 (web) tcp/22 from"), "{line}");
}

#[test]
fn a_token_comes_with_the_line_that_uses_it() {
    let token = TokenJson {
        target: "host:web-1".into(),
        token: "postern1.a.b".into(),
        expires_at: None,
        enroll_command: "postern-agent enroll --token-file -".into(),
    };
    assert!(self::token(&token, now()).ends_with("\npostern-agent enroll --token-file -"));
}
