//! What a local store says is durable was synced (invariant I-4), as the kernel saw it: no test can take the power away, but strace
//! shows whether the file was synced before it got its name, and its directory afterwards.

use larder::edge::store::{Created, Store, StoreKey, local::LocalStore};
use std::path::Path;
use std::process::Command;

/// What the traced process does.
const PLACE: &str = "LARDER_TEST_DURABLE_PLACE";

#[test]
fn files_are_synced_before_their_name_and_directories_after_it() {
    if let Some(place) = std::env::var_os(PLACE) {
        let store = LocalStore::new(Path::new(&place).join("repo"), true);
        store.prepare().unwrap();
        let key = StoreKey::new("snap/00").unwrap();
        assert_eq!(store.create(&key, b"bytes".as_slice().into()).unwrap(), Created::New);
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let trace = place.path().join("trace");
    let traced = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=fdatasync,fsync,link,linkat", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .arg("files_are_synced_before_their_name_and_directories_after_it")
        .env(PLACE, place.path())
        .output();
    match traced {
        Ok(output) if output.status.success() => {}
        // Without strace, or where tracing is forbidden.
        other => return eprintln!("SKIPPED: strace does not run here: {other:?}"),
    }
    let trace = std::fs::read_to_string(trace).unwrap();
    let calls: Vec<&str> = trace.lines().filter(|line| line.contains("= 0")).collect();
    let named = calls
        .iter()
        .position(|call| call.contains("link") && call.contains("snap/00"))
        .unwrap_or_else(|| panic!("nothing got its name: {trace}"));
    let is_synced = |call: &&str| call.contains("fdatasync(") && call.contains("/tmp/");
    assert!(
        calls[..named].iter().any(is_synced),
        "the file was not synced before:\n{trace}"
    );
    let directory = "repo/snap>)";
    let is_directory = |call: &&str| call.contains("fsync(") && call.contains(directory);
    assert!(
        calls[named..].iter().any(is_directory),
        "its directory was not synced after:\n{trace}"
    );
}
