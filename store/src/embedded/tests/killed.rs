//! A broker that is killed between commits loses no commit that it had answered (I4).
//!
//! The test starts its own binary once more as the broker to kill: there it finds [`DATABASE`] set, and commits until
//! it dies.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use postern_core::audit::AuditRecord;

use super::*;

/// The database to which the child commits.
const DATABASE: &str = "POSTERN_TEST_DATABASE";
/// The number of commits at once.
const CALLERS: u64 = 4;
const ROUNDS: u64 = 8;

#[test]
fn i4_kill_9_loses_nothing_that_was_answered() {
    if let Some(path) = std::env::var_os(DATABASE) {
        return runtime().block_on(commit_until_killed(Path::new(&path)));
    }
    let (_dir, path) = a_place();
    let mut answered = Vec::new();
    for _ in 0..ROUNDS {
        let before = answered.len();
        answered.extend(kill_at_a_random_moment(&path));
        assert!(answered.len() > before, "it was killed before it answered anything");
        runtime().block_on(check(&path, &answered));
    }
}

/// Starts a child, kills it once it is at work, and returns the audit records of all that it had answered.
fn kill_at_a_random_moment(path: &Path) -> Vec<u64> {
    let mut child = Killed::start(path);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut answers = std::iter::from_fn(|| lines.next())
        .filter_map(|line| line.strip_prefix("answered ").map(str::to_owned))
        .map(|seq| seq.parse().unwrap());
    let first = answers.next().expect("the child ended before it answered; what it said is above");
    std::thread::sleep(Duration::from_micros(rand::random_range(0..60_000)));
    child.0.kill().unwrap();
    // The rest of what it printed before it died.
    std::iter::once(first).chain(answers).collect()
}

/// The child process, which does not outlive the test.
struct Killed(Child);

impl Killed {
    fn start(path: &Path) -> Self {
        let module = module_path!().split_once("::").unwrap().1;
        let test = format!("{module}::i4_kill_9_loses_nothing_that_was_answered");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env(DATABASE, path)
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Commits grants from several callers, each with its request's key and its audit record, and says which were answered.
async fn commit_until_killed(path: &Path) {
    let store = Embedded::open(path, &test_sealing()).unwrap();
    let begun = store.audit_head().await.unwrap().seq;
    let callers = (0..CALLERS).map(async |caller| {
        for turn in 0.. {
            let number = (begun + 1 + turn) * CALLERS + caller;
            let seq = store.commit(the_change(number)).await.unwrap().seq;
            let mut out = std::io::stdout();
            writeln!(out, "answered {seq}").and_then(|()| out.flush()).unwrap();
        }
    });
    join_all(callers).await;
}

/// Makes the grant of this number: its audit record says the number, and its request's key is the number.
fn the_change(number: u64) -> Transaction {
    let grant = a_grant().asked_at(at(i64::try_from(number).unwrap())).build();
    let id = grant.id;
    Transaction::default()
        .put_grant(grant, Expect::Absent)
        .remember_request(&key("alice"), &number.to_string(), id)
        .audit(event().on_grant(id).with("number", number))
}

/// Checks that the log is sound and has every answered commit, and that each record's transaction is there as a whole.
async fn check(path: &Path, answered: &[u64]) {
    let store = Embedded::open(path, &test_sealing()).unwrap();
    let lines = store.audit_lines(0, usize::MAX).await.unwrap();
    let head = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
    assert!(lines.iter().map(|(seq, _)| *seq).eq(1..=head.seq));
    let newest = *answered.iter().max().unwrap();
    assert!(head.seq >= newest, "{newest} was answered, and {} is the last", head.seq);
    for (_, line) in &lines {
        let event = serde_json::from_str::<AuditRecord>(line).unwrap().event;
        let id = event.grant.unwrap();
        assert!(store.grant(id).await.unwrap().is_some(), "{id} is lost");
        assert_eq!(store.grant_of_request(&key("alice"), &event.details["number"]).await.unwrap(), Some(id));
    }
    assert_eq!(store.open_grants().await.unwrap().len(), lines.len(), "a grant without a record");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
