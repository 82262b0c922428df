use postern_proto::status::{invalid, plain};

use super::*;
use crate::exit_code::HELP;

fn broker(status: Status) -> Failure {
    Failure::Broker(Box::new(status))
}

#[test]
fn each_status_has_its_documented_exit_code() {
    for (code, exit) in [
        (Code::PermissionDenied, 3),
        (Code::Unauthenticated, 3),
        (Code::NotFound, 4),
        (Code::InvalidArgument, 5),
        (Code::DeadlineExceeded, 7),
        (Code::Unavailable, 8),
        (Code::FailedPrecondition, 1),
        (Code::Aborted, 1),
        (Code::Unimplemented, 1),
        (Code::Internal, 1),
    ] {
        assert_eq!(broker(plain(code, "REASON", "words")).exit() as u8, exit, "{code:?}");
    }
}

#[test]
fn each_exit_code_is_in_the_help_and_in_the_reference() {
    let reference = include_str!("../../../docs/cli.md");
    let codes = [
        Exit::Done,
        Exit::Other,
        Exit::Usage,
        Exit::Denied,
        Exit::NotFound,
        Exit::InvalidInput,
        Exit::Failed,
        Exit::TimedOut,
        Exit::Unreachable,
        Exit::Attention,
    ];
    for exit in codes {
        let code = exit as u8;
        assert!(HELP.contains(&format!("\n  {code}  ")), "{code}");
        assert!(reference.contains(&format!("| {code} | ")), "{code}");
    }
}

#[test]
fn an_error_of_the_broker_names_field_problem_and_remedy() {
    let status = invalid(&Invalid::new("sources[1]", "10.1.2.3/8 has host bits set", "write 10.0.0.0/8"));
    assert_eq!(broker(status).to_string(), "sources[1]: 10.1.2.3/8 has host bits set; write 10.0.0.0/8");
    assert_eq!(
        broker(plain(Code::NotFound, "NOT_FOUND", "policy web does not exist")).to_string(),
        "policy web does not exist"
    );
}

#[test]
fn an_error_of_the_broker_cannot_steer_the_terminal() {
    let words = broker(plain(Code::Internal, "REASON", "a\u{1b}[2Jb")).to_string();
    assert!(!words.contains('\u{1b}'), "{words:?}");
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let failure = |kind: io::ErrorKind| Failure::from(OutputError::from(io::Error::from(kind)));
    assert_eq!(failure(io::ErrorKind::BrokenPipe).exit(), Exit::Done);
    assert_eq!(failure(io::ErrorKind::StorageFull).exit(), Exit::Other);
}

#[test]
fn a_request_without_an_answer_keeps_the_exit_code_of_its_cause() {
    let source = Box::new(Failure::Lost { address: "https://b:1".into(), cause: "refused".into() });
    let failure = Failure::Unanswered { key: "k-1".into(), source };
    assert_eq!(failure.exit(), Exit::Unreachable);
    assert!(error_chain(&failure).contains("--idempotency-key k-1"));
}
