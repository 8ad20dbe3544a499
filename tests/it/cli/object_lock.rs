//! `--object-lock`, `repo object-lock` and `--as-of` as scripts meet them.

use super::Place;

#[test]
fn a_directory_neither_locks_nor_has_been() {
    let place = Place::new();
    place
        .run(&[
            "repo",
            "init",
            "--object-lock",
            "governance:30",
            "--new-key-file",
            "key",
        ])
        .expect(5)
        .says("Object Lock is for buckets");
    assert!(!place.path("key").exists() && place.objects("config").is_empty());
    for wrong in [
        "weekly:3",
        "governance",
        "compliance:0",
        "governance:36501",
        "governance:x",
    ] {
        place
            .run(&["repo", "object-lock", wrong])
            .expect(1)
            .says("is not a lock");
    }
    place.run(&["repo", "init"]).expect(0);
    place.backup();
    place
        .run(&["repo", "object-lock", "governance:30"])
        .expect(9)
        .says("is a directory");
    place
        .run(&["repo", "object-lock", "off", "--extend-below", "3"])
        .expect(1)
        .says("--extend-below goes with a lock");
    place
        .run(&["repo", "object-lock", "governance:3", "--extend-below", "4"])
        .expect(1);
    let off = place.run(&["repo", "object-lock", "off", "--json"]).expect(0).json();
    assert!(off["config"].is_null() && off["object_lock"].is_null(), "{off}");
    let info = place.run(&["repo", "info", "--json"]).expect(0).json();
    assert!(info["object_lock"].is_null(), "{info}");
    place
        .run(&["--as-of", "2026-11-20", "snapshot", "list"])
        .expect(5)
        .says("a directory keeps no versions");
    place.run(&["--as-of", "yesterday", "snapshot", "list"]).expect(1);
    for writes in [
        &["backup", "source"][..],
        &["repo", "prune"],
        &["repo", "object-lock", "off"],
        &["snapshot", "forget", "x"],
        &["repo", "key", "list"],
    ] {
        let arguments = [&["--as-of", "2026-11-20"], writes].concat();
        place.run(&arguments).expect(1).says("only read");
    }
    place.run(&["repo", "check"]).expect(0);
}

#[cfg(feature = "s3")]
#[test]
fn a_bucket_locks_says_what_it_keeps_and_has_been() {
    use super::{Ran, ran};
    use crate::doctor::{Bucket, servers};
    use std::time::Duration;
    for endpoint in servers("a_bucket_locks_says_what_it_keeps_and_has_been") {
        let bucket = Bucket::make_with(&endpoint, true);
        let place = Place::new();
        let repo = format!("s3://{}/here", bucket.name);
        let run = |arguments: &[&str]| -> Ran {
            let mut command = place.command(arguments);
            for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"] {
                command.env(name, std::env::var_os(name).unwrap_or_default());
            }
            command.env("LARDER_REPO", &repo).env("AWS_ENDPOINT_URL_S3", &endpoint);
            ran(command.output().unwrap())
        };
        let made = run(&["repo", "init", "--object-lock", "governance:20", "--json"]);
        let lock = &made.expect(0).json()["object_lock"];
        assert_eq!(
            (&lock["mode"], &lock["retain_days"]),
            (&"governance".into(), &20.into())
        );
        assert_eq!(lock["extend_below_days"], 10);
        run(&["backup", "source"]).expect(0);
        std::fs::write(place.path("source/sub/numbers.bin"), super::noise(200_000)).unwrap();
        std::thread::sleep(Duration::from_millis(1_500));
        run(&["backup", "source"]).expect(0);
        std::thread::sleep(Duration::from_millis(1_500));
        let before = jiff::Timestamp::now().to_string();
        std::thread::sleep(Duration::from_millis(1_500));
        let forgotten = run(&["snapshot", "forget", "--keep-last", "1", "--yes-remove-many", "--json"]);
        forgotten.expect(0);
        let pruned = run(&["repo", "prune", "--json"]);
        let report = pruned.expect(0).json();
        assert!(report["locked"]["objects"].as_u64().unwrap() > 0, "{report}");
        assert!(report["locked"]["deletable_at"].is_string(), "{report}");
        assert_eq!(report["deleted"]["packs"], 0, "{report}");
        assert_eq!(report["locks"]["failed"], 0, "{report}");
        let said = run(&["repo", "prune"]);
        assert!(
            said.expect(0)
                .stdout
                .contains("locked and left: the first can be deleted on"),
            "{said:?}"
        );
        let list = run(&["snapshot", "list", "--json"]).expect(0).json();
        let was = run(&["--as-of", &before, "snapshot", "list", "--json"])
            .expect(0)
            .json();
        let count = |list: &serde_json::Value| list["snapshots"].as_array().map(Vec::len);
        assert_eq!((count(&list), count(&was)), (Some(1), Some(2)), "{list} {was}");
        let changed = run(&["repo", "object-lock", "governance:30", "--extend-below", "7", "--json"]);
        let changed = changed.expect(0).json();
        assert_eq!(changed["object_lock"]["extend_below_days"], 7, "{changed}");
        let doctor = run(&["repo", "doctor", "--json"]).json();
        let level = |subject: &str| {
            let mut findings = doctor["findings"].as_array().unwrap().iter();
            let found = findings.find(|finding| finding["subject"] == subject);
            found.unwrap_or_else(|| panic!("{subject}: {doctor}"))["level"].clone()
        };
        for subject in ["object_lock", "tampering", "locks"] {
            assert_eq!(level(subject), "ok", "{endpoint}: {subject} {doctor}");
        }
        run(&["--as-of", &before, "restore", "latest", "--target", "was"]).expect(0);
        run(&["--as-of", &before, "repo", "check", "--read-data"]).expect(0);
        let policy = run(&[
            "repo",
            "key",
            "add-writer",
            "web",
            "--duty",
            "put-only",
            "--new-key-file",
            "web.key",
        ]);
        assert!(policy.expect(0).stdout.contains("s3:PutObjectRetention"), "{policy:?}");
        run(&["repo", "object-lock", "off"]).expect(0);
    }
}
