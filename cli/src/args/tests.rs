use clap::CommandFactory as _;
use clap::error::ErrorKind;

use super::*;

fn parse(line: &[&str]) -> Result<Args, clap::Error> {
    Args::try_parse_from(std::iter::once(&"postern").chain(line))
}

fn request(line: &[&str]) -> RequestArgs {
    let args = parse(&[&["request", "host:web-1", "--reason", "fix disk"], line].concat()).unwrap();
    let Command::Request(request) = args.command else { panic!("another command") };
    request
}

fn complaint(line: &[&str]) -> String {
    let error = parse(line).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn the_command_tree_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn a_request_has_the_defaults_that_its_help_names() {
    let request = request(&["--port", "22"]);
    assert_eq!(
        request.ports.iter().map(|port| port.with(request.proto).to_string()).collect::<Vec<_>>(),
        ["tcp/22"]
    );
    assert_eq!((request.duration.as_secs(), request.timeout.as_secs()), (1800, 60));
    assert!(request.sources.is_empty() && !request.no_wait && request.idempotency_key.is_none());
}

#[test]
fn proto_is_for_bare_numbers_only() {
    let request = request(&["--port", "53", "--port", "tcp/22", "--port", "udp/161", "--proto", "udp"]);
    let ports: Vec<_> = request.ports.iter().map(|port| port.with(request.proto).to_string()).collect();
    assert_eq!(ports, ["udp/53", "tcp/22", "udp/161"]);
}

#[test]
fn a_port_may_be_a_service_name_which_implies_its_protocol() {
    let names = ["ssh", "rdp", "winrm", "winrm-https", "SSH"];
    let flags: Vec<_> = names.iter().flat_map(|name| ["--port", *name]).chain(["--proto", "udp"]).collect();
    let request = request(&flags);
    let ports: Vec<_> = request.ports.iter().map(|port| port.with(request.proto).to_string()).collect();
    assert_eq!(ports, ["tcp/22", "tcp/3389", "tcp/5985", "tcp/5986", "tcp/22"]);
    let Command::Assess(assess) = parse(&["assess", "--port", "ssh"]).unwrap().command else {
        panic!("another command");
    };
    assert_eq!(assess.ports[0].with(Protocol::Udp).to_string(), "tcp/22");
}

#[test]
fn durations_are_friendly() {
    for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h 30m", 5400), ("1h30m", 5400), ("2 hours", 7200)]
    {
        assert_eq!(request(&["--port", "22", "--for", text]).duration.as_secs(), seconds, "{text}");
    }
}

#[test]
fn a_malformed_duration_is_refused_by_the_name_of_its_flag() {
    let asks = ["request", "host:web-1", "--port", "22", "--reason", "x"];
    for flag in ["--for", "--timeout"] {
        for (text, problem) in [
            ("0s", "is zero"),
            ("-5m", "is negative"),
            ("30", "is not a duration"),
            ("soon", "is not a duration"),
        ] {
            let complaint = complaint(&[&asks[..], &[flag, text]].concat());
            assert!(complaint.contains(flag) && complaint.contains(problem), "{complaint}");
        }
    }
    assert!(complaint(&[&asks[..], &["--for", "1500ms"]].concat()).contains("whole seconds"));
}

#[test]
fn a_malformed_value_is_refused_by_the_name_of_its_flag_and_with_the_remedy() {
    let asks = ["request", "host:web-1"];
    for (flag, value, remedy) in [
        ("--port", "0", "use 1 to 65535"),
        ("--port", "icmp/1", "use tcp or udp"),
        ("--port", "telnet", "write a number such as 22"),
        ("--port", "telnet", "or one of ssh, rdp, winrm, winrm-https"),
        ("--port", "tcp/ssh", "write it like tcp/22"),
        ("--source", "10.1.2.3/8", "write 10.0.0.0/8"),
        ("--source", "::ffff:192.0.2.1", "write 192.0.2.1"),
        ("--proto", "icmp", "use tcp or udp"),
        ("--reason", "a\u{1b}[31m", "one line of printable text"),
    ] {
        let complaint = complaint(&[&asks[..], &[flag, value]].concat());
        assert!(complaint.contains(flag) && complaint.contains(remedy), "{complaint}");
    }
    assert!(complaint(&["request", "web-1", "--port", "22", "--reason", "x"]).contains("host:<name>"));
    assert!(complaint(&["show", "7"]).contains("26 characters"));
}

#[test]
fn what_a_request_needs_is_named_when_it_is_missing() {
    assert!(complaint(&["request", "host:web-1", "--port", "22"]).contains("--reason"));
    assert!(complaint(&["request", "host:web-1", "--reason", "x"]).contains("--port"));
    assert!(complaint(&["request", "--port", "22", "--reason", "x"]).contains("<TARGET>"));
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    for line in [["grants", "--mine", "--principal", "bob"], ["grants", "--watch", "--limit", "5"]] {
        assert_eq!(parse(&line).unwrap_err().kind(), ErrorKind::ArgumentConflict);
    }
}

#[test]
fn global_flags_stand_on_either_side_of_the_command() {
    for line in [["--output", "json", "grants"], ["grants", "--output", "json"], ["grants", "-o", "json"]] {
        assert_eq!(parse(&line).unwrap().output, Format::Json);
    }
}

#[test]
fn a_lockdown_accepts_nothing_that_was_not_said() {
    let lockdown = |line: &[&str]| {
        let args =
            parse(&[&["lockdown", "aws:123456789012/eu-central-1/i-0123456789abcdef0"], line].concat());
        let Command::Lockdown(lockdown) = args.unwrap().command else { panic!("another command") };
        lockdown
    };
    let usual = lockdown(&[]);
    assert!(usual.accept.is_empty() && !usual.dry_run);
    let asked = lockdown(&["--accept", "cut", "--dry-run", "--accept", "shared"]);
    assert_eq!((asked.accept, asked.dry_run), (vec![Accept::Cut, Accept::Shared], true));
    assert_eq!(lockdown(&["--accept", "cut,loss"]).accept, [Accept::Cut, Accept::Loss]);
    assert!(complaint(&["lockdown", "host:web-1", "--accept", "all"]).contains("shared, loss, cut"));
    for command in ["lockdown", "release"] {
        assert!(complaint(&[command]).contains("<TARGET>"));
    }
}

#[test]
fn states_are_typed_as_they_are_shown() {
    let Command::Grants(grants) =
        parse(&["grants", "--state", "pending_approval", "--state", "active"]).unwrap().command
    else {
        panic!("another command");
    };
    assert_eq!(grants.states, [StateArg::PendingApproval, StateArg::Active]);
}

#[test]
fn the_help_lists_every_exit_code() {
    let help = Args::command().render_long_help().to_string();
    assert!(help.contains(exit_code::HELP), "{help}");
}
