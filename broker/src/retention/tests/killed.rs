//! A broker that is killed while it seals leaves each record in a whole segment or in the store (I9).
//!
//! The test starts its own binary once more as the broker to kill: there it finds [`PLACE`] set, and seals until it dies.

use std::process::{Child, Command, Stdio};

use super::*;

/// The directory in which the child seals.
const PLACE: &str = "POSTERN_TEST_RETENTION";
/// The kills, each at a random moment of the life of the child.
const KILLS: u64 = 6;

/// The child process, which does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn i9_kill_9_while_records_are_sealed_loses_none_of_them() {
    if let Some(place) = std::env::var_os(PLACE) {
        return runtime().block_on(seal_until_killed(Path::new(&place)));
    }
    let dir = tempfile::tempdir().unwrap();
    let open = || Embedded::open(&dir.path().join("a.db"), &test_sealing()).unwrap();
    runtime().block_on(async {
        let store = open();
        log(&store, 1, 12_000).await;
        log(&store, 60, 5).await;
    });
    for _ in 0..KILLS {
        let mut child = Killed(start(dir.path()));
        // However slow the child is, it is killed somewhere: the check is the same everywhere.
        std::thread::sleep(Duration::from_millis(rand::random_range(50..900)));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        runtime().block_on(check(dir.path(), &open()));
    }
    runtime().block_on(async {
        let store = open();
        round_on(&store, 30, rule(dir.path())).await.unwrap();
        assert_eq!(whole(dir.path(), &store).await, store.audit_head().await.unwrap());
        assert!(store.audit_base().await.unwrap().seq >= 12_000);
    });
}

fn start(dir: &Path) -> Child {
    let module = module_path!().split_once("::").unwrap().1;
    let test = format!("{module}::i9_kill_9_while_records_are_sealed_loses_none_of_them");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture"]).env(PLACE, dir);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

async fn seal_until_killed(dir: &Path) {
    let store = Embedded::open(&dir.join("a.db"), &test_sealing()).unwrap();
    loop {
        round_on(&store, 30, rule(dir)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Checks that the segments and the store are one chain, of which at most one segment is in both.
async fn check(dir: &Path, store: &Store) {
    let mut verifier = Verifier::default();
    let mut last = Head::EMPTY;
    for name in segments(dir).iter().filter(|name| name.ends_with(".jsonl")) {
        let text = fs::read_to_string(dir.join("audit").join(name)).unwrap();
        last = verifier.head();
        text.lines().for_each(|line| drop(verifier.line(line).unwrap()));
    }
    let base = store.audit_base().await.unwrap();
    assert!(base == verifier.head() || base == last, "{base:?} is at the end of no segment");
    let mut live = Verifier::after(base);
    for (_, line) in store.audit_lines(0, 100_000).await.unwrap() {
        live.line(&line).unwrap();
    }
    assert_eq!(live.head(), store.audit_head().await.unwrap());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
