//! Runs that do not come to their end: what they leave, how it is shown, and that they can be stopped whatever they
//! wait for.

use super::*;
use rustix::process::{Pid, Signal, kill_process};
use std::process::Child;
use std::time::{Duration, Instant};

/// Waits until something holds.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Stops a run by one signal, and returns what it came to and how long that took.
fn stop(child: Child, signal: Signal) -> (Ran, Duration) {
    let asked = Instant::now();
    kill_process(Pid::from_child(&child), signal).unwrap();
    let ran = ran(child.wait_with_output().unwrap());
    (ran, asked.elapsed())
}

/// After the first signal: 2 seconds for the threads, the rest for a slow machine.
const PROMPTLY: Duration = Duration::from_secs(15);

#[test]
fn one_signal_ends_a_run_that_waits_for_standard_input_for_ever() {
    for (signal, json) in [(Signal::TERM, false), (Signal::INT, true)] {
        let place = Place::with_repository();
        let arguments = ["backup", "--stdin", "--name", "never", "--json"];
        let mut command = place.command(&arguments[..if json { 5 } else { 4 }]);
        let mut child = start(command.stdin(Stdio::piped()));
        // Open until the run has ended.
        let stdin = child.stdin.take();
        until("a registration", || !place.objects("sess").is_empty());
        std::thread::sleep(Duration::from_millis(300));
        let (ran, took) = stop(child, signal);
        drop(stdin);
        ran.expect(130).says("interrupted").says("did not return");
        assert!(took < PROMPTLY, "{took:?}");
        if json {
            let error: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
            assert_eq!((&error["type"], &error["exit_code"]), (&"error".into(), &130.into()));
        }
        let list = place.run(&["snapshot", "list", "--json"]).expect(0).json();
        assert_eq!(list["snapshots"].as_array().unwrap().len(), 0);
        // Its session was ended properly: one registration, one outcome.
        assert_eq!((place.objects("sess").len(), place.objects("snap").len()), (1, 1));
        place.backup();
        place.run(&["repo", "check", "--read-data"]).expect(0);
    }
}

#[test]
fn one_signal_ends_a_run_and_the_command_that_never_writes() {
    let place = Place::with_repository();
    let script = "echo $$ >pid; exec sleep 1000";
    let child = start(&mut place.command(&["backup", "--exec", "--name", "never", "--", "sh", "-c", script]));
    until("the command", || {
        std::fs::read_to_string(place.path("pid")).is_ok_and(|text| text.ends_with('\n'))
    });
    until("a registration", || !place.objects("sess").is_empty());
    let (ran, took) = stop(child, Signal::TERM);
    ran.expect(130).says("interrupted");
    assert!(took < PROMPTLY, "{took:?}");
    let pid = std::fs::read_to_string(place.path("pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the command lives on");
    place.backup();
}

/// The part that is read first is large enough for the clock to be looked at meanwhile.
fn place_with_three_files() -> Place {
    let place = Place::with_repository();
    for name in ["a", "b", "c"] {
        std::fs::write(place.path("source").join(name), content(name)).unwrap();
    }
    place
}

fn content(name: &str) -> Vec<u8> {
    let key = name.as_bytes()[0];
    noise(40 << 20).into_iter().map(|byte| byte ^ key).collect()
}

fn backup_with_checkpoints(place: &Place) -> Command {
    place.command(&[
        "backup",
        "source",
        "--json",
        "--threads",
        "1",
        "--checkpoint-every",
        "0s",
    ])
}

#[test]
fn checkpoint_is_marked_and_only_its_id_means_it() {
    let place = place_with_three_files();
    let summary = ran(backup_with_checkpoints(&place).output().unwrap()).expect(0).json();
    let checkpoints = summary["checkpoints"].as_array().unwrap().clone();
    assert!(!checkpoints.is_empty(), "{summary}");
    let list = place.run(&["snapshot", "list", "--json"]).expect(0).json();
    let rows = list["snapshots"].as_array().unwrap();
    assert_eq!(rows.len(), checkpoints.len() + 1);
    let (last, before) = rows.split_last().unwrap();
    assert_eq!((&last["id"], &last["kind"]), (&summary["snapshot"], &"commit".into()));
    assert_eq!(last["flags"], serde_json::json!([]));
    for (row, id) in before.iter().zip(&checkpoints) {
        assert_eq!((&row["id"], &row["kind"]), (id, &"checkpoint".into()));
        assert_eq!(row["flags"], serde_json::json!(["checkpoint", "partial", "superseded"]));
    }
    let text = place.run(&["snapshot", "list"]).expect(0).stdout.clone();
    assert_eq!(
        text.matches("(checkpoint) (partial) (superseded)").count(),
        checkpoints.len()
    );

    let id = checkpoints[0].as_str().unwrap();
    let shown = place.run(&["snapshot", "show", id]);
    shown.expect(0).says("is a checkpoint");
    assert!(
        shown.stdout.contains("state     partial: only what was done"),
        "{shown:?}"
    );
    let restored = place.run(&["restore", id, "--target", "part", "--json"]);
    assert_eq!(restored.expect(0).json()["partial"], true);
    let source = place.path("source").canonicalize().unwrap();
    let below = source.strip_prefix("/").unwrap();
    let found = |name: &str| std::fs::read(place.path("part").join(below).join(name)).ok();
    assert!(found("a").is_some_and(|bytes| bytes == content("a")));
    assert!(found("c").is_none() && found("sub/numbers.bin").is_none());
    place.run(&["repo", "check", "--read-data"]).expect(0);
    // A tag does not make a whole of it.
    let tagged = place
        .run(&["snapshot", "tag", id, "--add", "x", "--json"])
        .expect(0)
        .json();
    let latest = place.run(&["snapshot", "show", "latest", "--json"]).expect(0).json();
    assert_eq!(latest["id"], summary["snapshot"]);
    let tagged = place.run(&["snapshot", "show", tagged["snapshot"].as_str().unwrap(), "--json"]);
    assert_eq!(tagged.expect(0).json()["kind"], "checkpoint");
}

#[test]
fn killed_run_leaves_a_checkpoint_that_restores_and_the_next_run_goes_on_from_it() {
    let place = place_with_three_files();
    let mut child = start(&mut backup_with_checkpoints(&place));
    until("a checkpoint", || !place.objects("snap").is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    place
        .run(&["restore", "latest", "--target", "all"])
        .expect(1)
        .says("no complete snapshot")
        .says("hint: ");
    place.run(&["restore", "@2099-01-01", "--target", "all"]).expect(1);
    assert!(!place.path("all").exists());
    let list = place.run(&["snapshot", "list", "--json"]).expect(0).json();
    let newest = list["snapshots"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(newest["flags"], serde_json::json!(["checkpoint", "partial"]));
    let id = newest["id"].as_str().unwrap();
    place
        .run(&["restore", id, "--target", "part", "--verify"])
        .expect(0)
        .says("is a checkpoint");

    let next = place.run(&["backup", "source", "--json"]).expect(0).json();
    assert_eq!(next["resumed"], serde_json::json!([id]));
    assert!(next["files_unmodified"].as_u64().unwrap() >= 1, "{next}");
    let bytes = |field: &str| next[field].as_u64().unwrap();
    assert!(bytes("bytes_read") <= bytes("bytes_processed") - (40 << 20), "{next}");
    place.run(&["restore", "latest", "--target", "all"]).expect(0);
    place.run(&["repo", "check", "--read-data"]).expect(0);
}

#[test]
fn checkpoints_can_be_turned_off() {
    let place = Place::with_repository();
    let ran = place.run(&["backup", "source", "--json", "--checkpoint-every", "never"]);
    assert_eq!(ran.expect(0).json()["checkpoints"], serde_json::json!([]));
    place
        .run(&["backup", "source", "--checkpoint-every", "often"])
        .expect(1)
        .says("duration");
}
