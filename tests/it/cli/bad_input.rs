//! Everything that people and machines get wrong: a clear error with the next step, its own exit code, and nothing lost.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

/// The user that tests become when they must not be root.
const NOBODY: u32 = 65_534;

#[test]
fn wrong_use_is_1_and_says_how() {
    let place = Place::new();
    for arguments in [
        &["frobnicate"][..],
        &["restore", "latest"],
        &["backup", "--stdin"],
        &["repo"],
        &[],
        &["ls", "x", "--nope"],
    ] {
        let ran = place.run(arguments);
        ran.expect(1);
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{ran:?}");
    }
    place.run(&["backup"]).expect(1).says("hint: ");
    ran(place
        .command(&["snapshot", "list"])
        .env_remove("LARDER_REPO")
        .output()
        .unwrap())
    .expect(1)
    .says("LARDER_REPO");
    place
        .run(&["-r", "sftp://host/x", "snapshot", "list"])
        .expect(1)
        .says("sftp");
    place
        .run(&["-r", "s3://user:secret@bucket", "snapshot", "list"])
        .expect(1);
}

#[test]
fn errors_are_one_json_object_when_json_is_asked_for() {
    let place = Place::new();
    for (arguments, kind, code) in [
        (&["--json", "frobnicate"][..], "usage", 1),
        (&["snapshot", "list", "--json"], "unavailable", 5),
    ] {
        let ran = place.run(arguments);
        ran.expect(code);
        assert_eq!((ran.stdout.as_str(), ran.stderr.lines().count()), ("", 1), "{ran:?}");
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(
            (error["type"].as_str(), error["kind"].as_str()),
            (Some("error"), Some(kind))
        );
        assert_eq!(error["exit_code"], code);
        assert!(
            error["message"].is_string() && error["causes"].is_array() && error["hint"].is_string(),
            "{error}"
        );
    }
}

#[test]
fn a_wrong_password_is_6() {
    let mut place = Place::with_repository();
    place.password = "wrong".into();
    place.run(&["snapshot", "list"]).expect(6).says("hint: ");
    std::fs::write(place.path("not-a-key"), "hello").unwrap();
    place
        .run(&["--key-file", "not-a-key", "snapshot", "list"])
        .expect(6)
        .says("64 hexadecimal digits");
    place
        .run(&["--key-file", "missing", "snapshot", "list"])
        .expect(6)
        .says("missing");
    std::fs::write(place.path("key"), format!("{}\n", "ab".repeat(32))).unwrap();
    place
        .run(&["--key-file", "key", "snapshot", "list"])
        .expect(6)
        .says("key file");
    std::fs::write(place.path("empty"), "\n").unwrap();
    place
        .run(&["--password-file", "empty", "snapshot", "list"])
        .expect(6)
        .says("empty");
}

#[test]
fn a_missing_repository_or_mount_is_5() {
    let place = Place::new();
    place.run(&["snapshot", "list"]).expect(5).says("mounted");
    std::fs::create_dir(place.path("repo")).unwrap();
    place.run(&["backup", "source"]).expect(5).says("hint: ");
    assert!(
        std::fs::read_dir(place.path("repo")).unwrap().next().is_none(),
        "nothing is written where no repository is"
    );
    place
        .run(&["-r", "no/such/place", "repo", "init"])
        .expect(5)
        .says("mounted");
}

#[test]
fn another_repository_in_its_place_is_7() {
    let place = Place::with_repository();
    place.backup();
    std::fs::rename(place.path("repo"), place.path("old")).unwrap();
    // Made through another address, as a swapped disk would be.
    place.run(&["-r", "other", "repo", "init"]).expect(0);
    std::fs::rename(place.path("other"), place.path("repo")).unwrap();
    place.run(&["backup", "source"]).expect(7).says("hint: ");
    assert!(place.objects("snap").is_empty(), "nothing was written to the stranger");
}

#[test]
fn an_older_copy_of_the_repository_is_7_and_the_backup_is_made() {
    let place = Place::with_repository();
    place.backup();
    let copy = Command::new("cp")
        .arg("-a")
        .arg(place.path("repo"))
        .arg(place.path("copy"))
        .status()
        .unwrap();
    assert!(copy.success());
    place.backup();
    std::fs::remove_dir_all(place.path("repo")).unwrap();
    std::fs::rename(place.path("copy"), place.path("repo")).unwrap();
    let ran = place.run(&["backup", "source"]);
    ran.expect(7).says("was saved, but the history");
    assert_eq!(place.objects("snap").len(), 2);
    place.run(&["snapshot", "list"]).expect(7);
}

#[test]
fn a_missing_root_is_3_and_the_others_are_saved() {
    let place = Place::with_repository();
    place
        .run(&["backup", "source", "not-mounted"])
        .expect(3)
        .says("not-mounted")
        .says("was saved");
    assert_eq!(place.objects("snap").len(), 1);
    assert!(
        place
            .run(&["ls", "-R", "latest"])
            .expect(0)
            .stdout
            .contains("source/letter.txt")
    );
    assert!(
        place
            .run(&["snapshot", "show", "latest"])
            .expect(0)
            .stdout
            .contains("not-mounted")
    );
}

#[test]
fn no_root_at_all_is_3_and_no_snapshot() {
    let place = Place::with_repository();
    place
        .run(&["backup", "not-mounted", "nor-this"])
        .expect(3)
        .says("not-mounted")
        .says("mounted");
    assert!(place.objects("snap").is_empty());
}

#[test]
fn a_dry_run_of_a_command_is_1_and_does_not_start_it() {
    let place = Place::with_repository();
    place
        .run(&["backup", "--exec", "--name", "x", "--dry-run", "--", "touch", "started"])
        .expect(1)
        .says("--dry-run");
    assert!(!place.path("started").exists());
}

#[test]
fn a_root_on_another_device_inside_a_root_is_kept_with_one_file_system() {
    let place = Place::with_repository();
    if !is_root() {
        eprintln!("SKIPPED a_root_on_another_device: mounting needs root");
        return;
    }
    let inner = place.path("source/inner");
    std::fs::create_dir(&inner).unwrap();
    // A mount namespace of its own: nothing is left mounted, whatever happens.
    let script = r#"mount -t tmpfs none "$1" && echo here >"$1/file" && shift && exec "$@""#;
    let larder = place.command(&["backup", "-x", "source", "source/inner"]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&inner);
    command.arg(larder.get_program()).args(larder.get_args());
    command.current_dir(larder.get_current_dir().unwrap());
    for (name, value) in larder.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    ran(command.output().unwrap()).expect(0);
    let listed = place.run(&["ls", "-R", "latest"]);
    assert!(listed.expect(0).stdout.contains("inner/file"), "{listed:?}");
}

#[test]
fn an_unreadable_file_is_3_and_the_rest_is_saved() {
    let place = Place::new();
    let secret = place.path("source/secret");
    std::fs::write(&secret, "x").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o000)).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        ran(command.output().unwrap())
    };
    if is_root() {
        let chown = Command::new("chown")
            .arg("-R")
            .arg(NOBODY.to_string())
            .arg(place.path(""))
            .status()
            .unwrap();
        assert!(chown.success());
        if !can_be_run_by_others() {
            eprintln!(
                "SKIPPED an_unreadable_file_is_3: nobody may not run {}",
                env!("CARGO_BIN_EXE_larder")
            );
            return;
        }
    }
    as_nobody(&["repo", "init"]).expect(0);
    let ran = as_nobody(&["backup", "source"]);
    ran.expect(3).says("secret").says("was saved");
    assert_eq!(
        as_nobody(&["dump", "latest", &place.text("source/letter.txt")])
            .expect(0)
            .stdout,
        "dear all"
    );
    let shown = as_nobody(&["snapshot", "show", "latest", "--json"]).expect(0).json();
    assert_eq!(
        (&shown["problems_total"], &shown["flags"][0]),
        (&1.into(), &"incomplete".into())
    );
}

/// Whether every directory above the binary lets others through.
fn can_be_run_by_others() -> bool {
    let binary = Path::new(env!("CARGO_BIN_EXE_larder"));
    binary.ancestors().all(|path| {
        path.as_os_str().is_empty()
            || std::fs::metadata(path).is_ok_and(|status| status.permissions().mode() & 0o001 != 0)
    })
}

#[test]
fn snapshots_that_are_unknown_or_ambiguous_are_1() {
    let place = Place::with_repository();
    place.run(&["ls", "latest"]).expect(1).says("snapshot list");
    let (first, second) = (place.backup(), place.backup());
    for name in [
        "ffffffffffff",
        "latest:nope",
        "latestnope",
        "@2001-01-01",
        "@yesterday",
        "LATEST",
        "",
    ] {
        place.run(&["ls", name]).expect(1).says("hint: ");
    }
    // All snapshots of one key begin with the same digits.
    assert_eq!(first[..8], second[..8]);
    place
        .run(&["ls", &first[..8]])
        .expect(1)
        .says(&first[8..16])
        .says(&second[8..16]);
    place.run(&["ls", &first[8..16]]).expect(0);
    place.run(&["dump", "latest", "/no/such"]).expect(1).says("in no root");
    place
        .run(&["dump", "latest", &place.text("source/nope")])
        .expect(1)
        .says("nope");
    place
        .run(&["dump", "latest", &place.text("source")])
        .expect(1)
        .says("--archive tar");
    place
        .run(&["restore", "latest", "-t", "out", "--include", "nothing-like-this"])
        .expect(1)
        .says("nothing");
}

#[test]
fn a_damaged_pack_is_4_and_the_files_are_named() {
    let place = Place::with_repository();
    place.backup();
    let pack = place
        .objects("data")
        .into_iter()
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let whole = std::fs::read(&pack).unwrap();
    std::fs::set_permissions(&pack, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for (what, bytes) in [
        ("a flipped bit", Some(damaged)),
        ("a truncated pack", Some(whole[..1000].to_vec())),
        ("a missing pack", None),
    ] {
        match bytes {
            Some(bytes) => std::fs::write(&pack, bytes).unwrap(),
            None => std::fs::remove_file(&pack).unwrap(),
        }
        let check = place.run(&["repo", "check", "--read-data", "--json"]);
        check.expect(4);
        let report = check.json();
        assert_eq!(report["sound"], false, "{what}");
        assert!(
            report["damaged_files"].to_string().contains("numbers.bin"),
            "{what}: {report}"
        );
        place
            .run(&["dump", "latest", &place.text("source/sub/numbers.bin")])
            .expect(4)
            .says("hint: ");
        let restored = place.run(&["restore", "latest", "--target", &format!("out {what}")]);
        restored.expect(4).says("numbers.bin");
    }
    std::fs::write(&pack, whole).unwrap();
    place.run(&["repo", "check", "--read-data"]).expect(0);
}

#[test]
fn damage_to_any_other_object_is_found_and_never_a_panic() {
    let place = Place::with_repository();
    place.backup();
    for under in ["config", "keys", "grants", "idx", "snap", "meta"] {
        for object in place.objects(under) {
            let whole = std::fs::read(&object).unwrap();
            std::fs::set_permissions(&object, std::fs::Permissions::from_mode(0o600)).unwrap();
            for bytes in [whole[..whole.len() / 2].to_vec(), flipped(&whole)] {
                std::fs::write(&object, bytes).unwrap();
                std::fs::remove_dir_all(place.path("cache")).unwrap();
                let check = place.run(&["repo", "check"]);
                assert!(matches!(check.code, 4..=7), "{}: {check:?}", object.display());
                assert!(!check.stderr.contains("internal error"), "{check:?}");
            }
            std::fs::write(&object, whole).unwrap();
        }
    }
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    place.run(&["repo", "check", "--read-data"]).expect(0);
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes
}

/// A small file system of its own, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(path: PathBuf, size: &str) -> Option<Mount> {
        std::fs::create_dir_all(&path).unwrap();
        let mounted = is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
                .arg(&path)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
        mounted.then_some(Mount(path))
    }

    fn make_read_only(&self) {
        assert!(
            Command::new("mount")
                .args(["-o", "remount,ro"])
                .arg(&self.0)
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A run with the repository on the mounted disk.
fn on_small_disk(place: &Place, arguments: &[&str]) -> Ran {
    ran(place
        .command(arguments)
        .env("LARDER_REPO", place.path("small/repo"))
        .output()
        .unwrap())
}

#[test]
fn a_full_repository_disk_is_5_and_older_snapshots_stay_whole() {
    let place = Place::new();
    let Some(_mount) = Mount::new(place.path("small"), "4m") else {
        eprintln!("SKIPPED a_full_repository_disk_is_5: mounting a tmpfs needs root");
        return;
    };
    let run = |arguments: &[&str]| on_small_disk(&place, arguments);
    run(&["repo", "init"]).expect(0);
    run(&["backup", "source"]).expect(0);
    std::fs::write(place.path("source/large"), noise(20_000_000)).unwrap();
    run(&["backup", "source"]).expect(5).says("hint: ");
    std::fs::remove_file(place.path("source/large")).unwrap();
    run(&["restore", "latest", "--target", "out", "--verify"]).expect(0);
    assert_eq!(
        run(&["snapshot", "list", "--json"]).expect(0).json()["snapshots"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// A disk without a free byte: forgetting and pruning make room, and the next backup goes through.
#[test]
fn a_full_repository_disk_can_be_pruned() {
    prune_a_full_disk("40m", 12_000_000);
}

/// Room is kept on a disk that is small from its first day, too.
#[test]
fn a_full_small_disk_can_be_pruned() {
    prune_a_full_disk("6m", 2_000_000);
}

fn prune_a_full_disk(size: &str, data: usize) {
    let place = Place::new();
    let Some(_mount) = Mount::new(place.path("small"), size) else {
        eprintln!("SKIPPED a disk of {size} can be pruned when it is full: mounting a tmpfs needs root");
        return;
    };
    let run = |arguments: &[&str]| on_small_disk(&place, arguments);
    run(&["repo", "init"]).expect(0);
    std::fs::write(place.path("source/large"), noise(data)).unwrap();
    run(&["backup", "source"]).expect(0);
    std::fs::remove_file(place.path("source/large")).unwrap();
    run(&["backup", "source"]).expect(0);
    // To the last byte.
    let mut fill = std::fs::File::create(place.path("small/fill")).unwrap();
    for piece in [1 << 20, 4096, 1] {
        let piece = vec![1u8; piece];
        while std::io::Write::write_all(&mut fill, &piece).is_ok() {}
    }
    run(&["backup", "source"]).expect(5);
    run(&["snapshot", "forget", "--keep-last", "1", "--prune"]).expect(0);
    run(&["backup", "source"]).expect(0);
    run(&["restore", "latest", "--target", "out", "--verify"]).expect(0);
    run(&["repo", "check", "--read-data"]).expect(0);
}

#[test]
fn a_read_only_repository_disk_is_5_to_write_and_fine_to_read() {
    let place = Place::new();
    let Some(mount) = Mount::new(place.path("small"), "8m") else {
        eprintln!("SKIPPED a_read_only_repository_disk_is_5: mounting a tmpfs needs root");
        return;
    };
    let run = |arguments: &[&str]| on_small_disk(&place, arguments);
    run(&["repo", "init"]).expect(0);
    run(&["backup", "source"]).expect(0);
    mount.make_read_only();
    run(&["backup", "source"]).expect(5);
    run(&["restore", "latest", "--target", "out"]).expect(0);
    run(&["repo", "check", "--read-data"]).expect(0);
}

#[test]
fn a_full_or_read_only_target_is_5() {
    let place = Place::with_repository();
    std::fs::write(place.path("source/large"), noise(6_000_000)).unwrap();
    place.backup();
    let Some(mount) = Mount::new(place.path("small"), "2m") else {
        eprintln!("SKIPPED a_full_or_read_only_target_is_5: mounting a tmpfs needs root");
        return;
    };
    place
        .run(&["restore", "latest", "--target", "small/out"])
        .expect(5)
        .says("space");
    mount.make_read_only();
    place.run(&["restore", "latest", "--target", "small/out2"]).expect(5);
}

/// Waits until a run has registered its session: there is one more object than before under `sess/`.
fn wait_for_session(place: &Place, before: usize) {
    let started = Instant::now();
    while place.objects("sess").len() <= before {
        assert!(started.elapsed() < Duration::from_secs(60), "no session was registered");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_signal_stops_with_130_and_publishes_nothing() {
    let place = Place::with_repository();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let sessions = place.objects("sess").len();
        let mut command = place.command(&[
            "backup",
            "--exec",
            "--name",
            "slow",
            "--",
            "sh",
            "-c",
            "exec 2>/dev/null; echo x; sleep 20",
        ]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let started = Instant::now();
        wait_for_session(&place, sessions);
        rustix::process::kill_process(pid, signal).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        // The source hangs, so the first only asks; the second does not wait.
        let _ = rustix::process::kill_process(pid, signal);
        let ran = ran(child.wait_with_output().unwrap());
        ran.expect(130);
        assert!(
            started.elapsed() < Duration::from_secs(15),
            "it did not wait for the hanging command"
        );
    }
    assert_eq!(
        place.run(&["snapshot", "list", "--json"]).expect(0).json()["snapshots"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    place.backup();
    place.run(&["repo", "check", "--read-data"]).expect(0);
}

#[test]
fn an_overlapping_run_of_the_same_source_is_2() {
    let place = Place::with_repository();
    let mut command = place.command(&[
        "backup",
        "--exec",
        "--name",
        "slow",
        "--",
        "sh",
        "-c",
        "sleep 3; echo x",
    ]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_session(&place, 0);
    place
        .run(&["backup", "--exec", "--name", "slow", "--", "echo", "y"])
        .expect(2)
        .says("hint: ");
    // Another source is not in the way.
    place.run(&["backup", "source"]).expect(0);
    assert!(child.wait().unwrap().success());
}

#[test]
fn broken_patterns_and_subsets_are_told_before_anything_is_done() {
    let place = Place::new();
    place
        .run(&["backup", "source", "--exclude", "{a,b"])
        .expect(1)
        .says("{a,b");
    place
        .run(&["backup", "source", "--exclude-file", "missing"])
        .expect(1)
        .says("missing");
    place
        .run(&["repo", "check", "--read-data-subset", "200%"])
        .expect(1)
        .says("5%");
    place
        .run(&["repo", "check", "--max-time", "soon"])
        .expect(1)
        .says("soon");
    place.run(&["--threads", "0", "backup", "source"]).expect(1);
}

#[test]
fn restoring_into_or_deleting_over_the_repository_is_9() {
    let place = Place::with_repository();
    place.backup();
    let before = place.objects("").len();
    for target in ["repo", "repo/snap/x", "cache/x"] {
        let target = place.text(target);
        place
            .run(&["restore", "latest", "--target", &target])
            .expect(9)
            .says("lies in");
    }
    let around = place.text("");
    let source = format!("latest:{}", place.text("source"));
    place
        .run(&["restore", &source, "--target", &around, "--delete"])
        .expect(9)
        .says("--delete");
    assert_eq!(place.objects("").len(), before);
    place.run(&["repo", "check"]).expect(0);
}

#[test]
fn a_target_that_is_no_directory_is_1() {
    let place = Place::with_repository();
    place.backup();
    place
        .run(&["restore", "latest", "--target", "s3://bucket/x"])
        .expect(1)
        .says("s3://");
    assert!(!place.path("s3:").exists());
}

#[test]
fn a_lost_index_loses_nothing() {
    let place = Place::with_repository();
    place.backup();
    for object in place.objects("idx") {
        std::fs::remove_file(object).unwrap();
    }
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    let target = place.text("out");
    place.run(&["restore", "latest", "--target", &target]).expect(0);
    let restored = place.path(format!("out{}", place.text("source/sub/numbers.bin")));
    assert!(std::fs::read(restored).unwrap() == noise(300_000));
    place.run(&["repo", "check"]).expect(4);
}

#[test]
fn what_a_lost_run_listed_is_stored_again() {
    let place = Place::with_repository();
    place.backup();
    let ran = place.run(&["backup", "source", "--json"]);
    assert_eq!(ran.expect(0).json()["files_changed"], 0);
    for object in place.objects("idx") {
        std::fs::remove_file(object).unwrap();
    }
    let ran = place.run(&["backup", "source", "--json"]);
    assert_eq!(ran.expect(0).json()["files_changed"], 1, "{ran:?}");
    assert!(ran.json()["bytes_stored"].as_u64().unwrap() > 300_000, "{ran:?}");
}
