//! Commands that need no broker.

use std::io::Write as _;
use std::path::PathBuf;

use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord, Head};

use super::run::postern;

fn a_log(length: usize) -> Vec<Vec<u8>> {
    let mut head = Head::EMPTY;
    let line = |n| {
        let event = AuditEvent::done(Timestamp::UNIX_EPOCH, "requester/alice", "grant.requested");
        let record = AuditRecord::following(&head, event.with("n", n).with("why", "\u{fffd}x"));
        head = record.head();
        record.to_line().into_bytes()
    };
    (0..length).map(line).collect()
}

fn head_of(line: &[u8]) -> String {
    serde_json::from_slice::<AuditRecord>(line).unwrap().hash.to_string()
}

struct Kept {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Kept {
    fn of(lines: &[Vec<u8>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log.jsonl");
        let mut out = std::fs::File::create(&file).unwrap();
        for line in lines {
            out.write_all(line).unwrap();
            out.write_all(b"\n").unwrap();
        }
        Self { _dir: dir, file }
    }

    fn path(&self) -> &str {
        self.file.to_str().unwrap()
    }
}

#[tokio::test]
async fn i9_a_sound_log_verifies_without_a_broker() {
    let log = a_log(5);
    let kept = Kept::of(&log);
    let ran = postern(&["audit", "verify", "--file", kept.path(), "--output", "json"]).await.exits(0);
    let head = head_of(&log[4]);
    let sound = serde_json::json!({
        "records": 5, "head": head, "sound": true, "broken_line": null, "problem": null,
        "trusted": null, "uncovered": null, "remembered": null, "read_from": null, "verified_at": null, "accepted_record": null,
    });
    assert_eq!(ran.json(), sound);
}

#[tokio::test]
async fn i9_a_flipped_byte_a_removed_line_and_swapped_lines_are_named_by_their_line() {
    let mut flipped = a_log(6);
    flipped[3][40] ^= 1;
    let mut removed = a_log(6);
    removed.remove(2);
    let mut swapped = a_log(6);
    swapped.swap(1, 4);
    for (log, line) in [(flipped, 4), (removed, 3), (swapped, 2)] {
        let kept = Kept::of(&log);
        let ran = postern(&["audit", "verify", "--file", kept.path(), "--output", "json"]).await.exits(1);
        assert_eq!((&ran.json()["broken_line"], &ran.json()["sound"]), (&line.into(), &false.into()));
        ran.tells(&format!("the audit log is broken: line {line}:"));
    }
}

#[tokio::test]
async fn i9_a_byte_that_is_no_text_is_not_taken_for_the_character_that_stands_for_it() {
    let mut log = a_log(3);
    let mark = log[1].windows(3).position(|bytes| bytes == "\u{fffd}".as_bytes()).unwrap();
    // Read leniently, F0 BF BD before an ASCII letter is U+FFFD again.
    log[1][mark] = 0xf0;
    let kept = Kept::of(&log);
    postern(&["audit", "verify", "--file", kept.path()]).await.exits(1).tells("line 2: is not text");
}

#[tokio::test]
async fn i9_a_line_end_that_the_broker_did_not_write_is_named() {
    let mut log = a_log(3);
    log[1].push(b'\r');
    let kept = Kept::of(&log);
    postern(&["audit", "verify", "--file", kept.path()]).await.exits(1).tells("line 2:");
}

#[tokio::test]
async fn i9_a_cut_end_shows_against_a_kept_head_and_a_grown_log_does_not() {
    let log = a_log(6);
    let expected = head_of(&log[3]);
    let (grown, cut) = (Kept::of(&log), Kept::of(&log[..3]));
    postern(&["audit", "verify", "--file", grown.path(), "--expect-head", &expected]).await.exits(0);
    let ran = postern(&["audit", "verify", "--file", cut.path(), "--expect-head", &expected]).await.exits(1);
    ran.tells(&expected).tells("cut off");
}

#[tokio::test]
async fn i9_segments_and_an_export_verify_as_one_log_in_any_order() {
    let log = a_log(9);
    let (one, two, live) = (Kept::of(&log[..3]), Kept::of(&log[3..6]), Kept::of(&log[4..]));
    let verify = async |more: &[&str], files: &[&Kept]| {
        let files = files.iter().flat_map(|kept| ["--file", kept.path()]);
        let words: Vec<&str> =
            ["audit", "verify"].into_iter().chain(more.iter().copied()).chain(files).collect();
        postern(&words).await
    };
    let ran = verify(&["--output", "json"], &[&live, &two, &one]).await.exits(0);
    assert_eq!((&ran.json()["records"], &ran.json()["head"]), (&9.into(), &head_of(&log[8]).into()));
    verify(&["--expect-head", &head_of(&log[1])], &[&one, &live, &two]).await.exits(0);
    verify(&["--expect-head", &head_of(&a_log(10)[9])], &[&one, &live, &two]).await.exits(1).tells("cut off");
    // A segment that is missing, at the beginning and in the middle.
    verify(&[], &[&one, &live]).await.exits(1).tells("record 4 is in no file");
    verify(&[], &[&two, &live]).await.exits(1).tells("records 1 to 3 are in no file");
    verify(&["--from", "4"], &[&two, &live]).await.exits(0);
    verify(&["--from", "5"], &[&live]).await.exits(0);
    verify(&[], &[&live]).await.exits(1).tells("is record 5 where record 1 belongs");
    verify(&["--from", "6"], &[&live]).await.exits(1);
    // Two copies that differ, one of them rewritten with correct hashes from there on.
    let mut changed = log[4..].to_vec();
    changed[1][40] ^= 1;
    let changed = Kept::of(&changed);
    verify(&[], &[&one, &two, &changed]).await.exits(1).tells("line 6: is not the same in");
    let mut flipped = log[3..6].to_vec();
    flipped[0][40] ^= 1;
    let flipped = Kept::of(&flipped);
    verify(&[], &[&one, &flipped, &live]).await.exits(1).tells("line 4");
    postern(&["audit", "verify", "--from", "3"]).await.exits(2);
}

#[tokio::test]
async fn a_log_that_is_not_there_is_named() {
    postern(&["audit", "verify", "--file", "/nonexistent/log"]).await.exits(1).tells("/nonexistent/log");
}

#[tokio::test]
async fn a_policy_file_is_checked_before_a_broker_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.toml");
    std::fs::write(&file, "[[policy]]\nname = \"web\"\ntargest = [\"*\"]\n").unwrap();
    let ran = postern(&["policy", "apply", "-f", file.to_str().unwrap()]).await.exits(5);
    ran.tells("targest").tells("web.toml").tells("line 3");
}

#[tokio::test]
async fn a_missing_setting_is_named_with_the_ways_to_set_it() {
    postern(&["grants"]).await.exits(2).tells("error: broker: is not set; give --broker, set POSTERN_BROKER");
}

#[tokio::test]
async fn a_bad_command_line_is_usage() {
    postern(&["request", "host:web-1", "--port", "22", "--reason", "x", "--for", "0s"])
        .await
        .exits(2)
        .tells("--for");
}

#[tokio::test]
async fn every_shell_has_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = postern(&["completions", shell]).await.exits(0);
        assert!(ran.out.contains("postern") && ran.out.contains("request"), "{shell}");
    }
}
