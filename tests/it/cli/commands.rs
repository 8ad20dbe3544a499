//! What each command promises when all is well.

use super::*;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

#[test]
fn help_version_and_pages_are_printed() {
    let place = Place::new();
    assert!(place.run(&["--help"]).expect(0).stdout.contains("Get data back:"));
    assert!(place.run(&["--version"]).expect(0).stdout.starts_with("larder "));
    assert!(place.run(&["help", "backup"]).expect(0).stdout.contains("pg_dump"));
    assert!(
        place
            .run(&["man", "repo", "check"])
            .expect(0)
            .stdout
            .contains(".TH larder-repo-check")
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.run(&["completions", shell]).expect(0).stdout.contains("snapshot"));
    }
}

#[test]
fn a_night_and_the_next_and_everything_back() {
    let place = Place::with_repository();
    let first = place.run(&["backup", "source", "--json", "--tag", "when=first"]);
    let first = first.expect(0).json();
    assert_eq!(
        (first["type"].as_str(), first["version"].as_u64()),
        (Some("summary"), Some(1))
    );
    assert_eq!(first["files_new"], 2);
    assert!(first["parent"].is_null());
    let second = place.run(&["backup", "source", "--json"]).expect(0).json();
    assert_eq!(second["parent"], first["snapshot"]);
    assert_eq!(
        (&second["files_unmodified"], &second["packs_uploaded"]),
        (&2.into(), &0.into())
    );

    let list = place.run(&["snapshot", "list", "--json"]).expect(0).json();
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(list["snapshots"][0]["id"], first["snapshot"]);
    assert_eq!(list["snapshots"][0]["tags"], serde_json::json!(["when=first"]));
    assert_eq!(
        list["snapshots"][0]["source"].as_str(),
        place.path("source").canonicalize().unwrap().to_str()
    );
    let tagged = place
        .run(&["snapshot", "list", "--json", "--tag", "when=first"])
        .expect(0)
        .json();
    assert_eq!(tagged["snapshots"].as_array().unwrap().len(), 1);

    place
        .run(&["restore", "latest", "--target", "full", "--verify"])
        .expect(0);
    let full = place.path("full").join(place.path("source").strip_prefix("/").unwrap());
    assert_eq!(std::fs::read(full.join("sub/numbers.bin")).unwrap(), noise(300_000));
    assert_eq!(std::fs::read_link(full.join("link")).unwrap(), Path::new("letter.txt"));
    let below = format!("latest:{}/sub", place.text("source"));
    place.run(&["restore", &below, "--target", "part"]).expect(0);
    assert_eq!(std::fs::read(place.path("part/numbers.bin")).unwrap(), noise(300_000));

    let dumped = place.run(&["dump", "latest", &place.text("source/letter.txt")]);
    assert_eq!(dumped.expect(0).stdout, "dear all");
    assert!(
        place
            .run(&["ls", "-l", "-R", "latest"])
            .expect(0)
            .stdout
            .contains("link -> letter.txt")
    );
    assert!(
        place
            .run(&["find", "*.bin"])
            .expect(0)
            .stdout
            .contains("sub/numbers.bin")
    );
    assert!(
        place
            .run(&["find", "*.bin", "--newer", "2100-01-01"])
            .expect(0)
            .stdout
            .is_empty()
    );
    let check = place.run(&["repo", "check", "--read-data", "--json"]).expect(0).json();
    assert_eq!((&check["sound"], &check["snapshots"]), (&true.into(), &2.into()));
    let stats = place.run(&["repo", "stats", "--json"]).expect(0).json();
    assert_eq!(stats["sources"][0]["snapshots"], 2);
    assert_eq!(place.run(&["repo", "info", "--json"]).expect(0).json()["format"], 1);
}

#[test]
fn a_difference_names_what_came_went_and_changed() {
    let place = Place::with_repository();
    let old = place.backup();
    std::fs::write(place.path("source/letter.txt"), "dear all of you").unwrap();
    std::fs::write(place.path("source/new"), "x").unwrap();
    std::fs::remove_file(place.path("source/link")).unwrap();
    let new = place.backup();
    let diff = place.run(&["diff", &old, &new]);
    let lines: Vec<&str> = diff.expect(0).stdout.lines().collect();
    for (letter, name) in [("M", "letter.txt"), ("+", "new"), ("-", "link")] {
        let line = format!("{letter}    {}", place.text("source/") + name);
        assert!(lines.contains(&line.as_str()), "{line} in {lines:?}");
    }
    let here = place.run(&["diff", "--path", &place.text("source/new"), &old, &new]);
    assert_eq!(
        here.expect(0)
            .stdout
            .lines()
            .filter(|line| line.starts_with('+'))
            .count(),
        1
    );
    place.run(&["diff", "--path", "/nowhere", &old, &new]).expect(1);
    let json = place.run(&["diff", "--json", &old, &new]).expect(0).json();
    assert_eq!(
        (&json["added"], &json["removed"], &json["content"]),
        (&1.into(), &1.into(), &1.into())
    );
}

#[test]
fn a_stream_is_kept_only_if_its_command_succeeds() {
    let place = Place::with_repository();
    let mut command = place.command(&["backup", "--stdin", "--name", "db.sql"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"select 1;").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(
        place.run(&["dump", "latest:db.sql", "db.sql"]).expect(0).stdout,
        "select 1;"
    );
    place
        .run(&[
            "backup",
            "--exec",
            "--name",
            "db.sql",
            "--",
            "sh",
            "-c",
            "echo half; exit 9",
        ])
        .expect(3)
        .says("exit status: 9");
    place
        .run(&["backup", "--exec", "--name", "db.sql", "--", "true"])
        .expect(3)
        .says("wrote nothing");
    place
        .run(&["backup", "--exec", "--name", "db.sql", "--", "no-such-program"])
        .expect(3)
        .says("cannot start");
    assert_eq!(
        place.run(&["snapshot", "list", "--json"]).expect(0).json()["snapshots"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // The command does not learn the password.
    place.run(&["backup", "--exec", "--name", "env", "--", "env"]).expect(0);
    assert!(
        !place
            .run(&["dump", "latest:env", "env"])
            .expect(0)
            .stdout
            .contains("correct horse")
    );
}

#[test]
fn passwords_and_key_files_come_and_go_but_never_all() {
    let place = Place::with_repository();
    std::fs::write(place.path("second"), "another one\n").unwrap();
    place
        .run(&["repo", "key", "add", "--new-password-file", "second", "--hint", "safe"])
        .expect(0);
    place.run(&["repo", "key", "add", "--new-key-file", "key"]).expect(0);
    assert_eq!(
        std::fs::metadata(place.path("key")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    place
        .run(&["repo", "key", "add", "--new-key-file", "key"])
        .expect(1)
        .says("exists already");
    let keys = place
        .run(&["--key-file", "key", "repo", "key", "list", "--json"])
        .expect(0)
        .json();
    let in_use: Vec<bool> = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["in_use"].as_bool().unwrap())
        .collect();
    assert_eq!(in_use, [false, false, true]);
    assert_eq!(keys["keys"][1]["hint"], "safe");
    place.run(&["repo", "key", "remove", "0"]).expect(9).says("in use");
    place
        .run(&["--password-file", "second", "repo", "key", "remove", "0"])
        .expect(0);
    place.run(&["snapshot", "list"]).expect(6);
    place
        .run(&["--key-file", "key", "repo", "key", "remove", "1"])
        .expect(0);
    place
        .run(&["--key-file", "key", "repo", "key", "remove", "2", "--force"])
        .expect(9)
        .says("last");
    place.run(&["--key-file", "key", "snapshot", "list"]).expect(0);
    place
        .run(&["--key-file", "key", "repo", "key", "remove", "7"])
        .expect(1);
}

#[test]
fn a_command_that_prints_the_key_opens_the_repository() {
    let place = Place::new();
    let digits = "00112233445566778899aabbccddeeff".repeat(2);
    std::fs::write(place.path("digits"), format!("{digits}\n")).unwrap();
    std::fs::write(place.path("bytes"), [200; 32]).unwrap();
    std::fs::write(place.path("password"), "thirty-two characters that I chose").unwrap();
    let command = |name: &str| format!("cat '{}'", place.path(name).display());
    let (digits, bytes) = (command("digits"), command("bytes"));
    let made = place.run(&["repo", "init", "--key-command", &digits, "--json"]);
    assert_eq!(made.expect(0).json()["opens_with"], "key command");
    place.run(&["--key-command", &digits, "backup", "source"]).expect(0);
    let add = ["repo", "key", "add", "--new-key-command", &bytes];
    place.run(&[&["--key-command", &digits][..], &add].concat()).expect(0);
    let listed = place.run(&["--key-command", &bytes, "repo", "key", "list", "--json"]);
    let keys = listed.expect(0).json()["keys"].as_array().unwrap().clone();
    assert_eq!(
        keys.iter()
            .map(|key| (&key["kind"], &key["in_use"]))
            .collect::<Vec<_>>(),
        [
            (&Value::from("key command"), &Value::from(false)),
            (&Value::from("key command"), &Value::from(true))
        ]
    );
    for bad in ["password", "missing"] {
        place
            .run(&["--key-command", &command(bad), "snapshot", "list"])
            .expect(6)
            .says("key command");
    }
    place
        .run(&["--key-command", "head -c 31 /dev/zero", "snapshot", "list"])
        .expect(6)
        .says("64 hexadecimal digits");
    // The right length, and not the key.
    place
        .run(&["--key-command", "head -c 32 /dev/zero", "snapshot", "list"])
        .expect(6);
    place.run(&["snapshot", "list"]).expect(6);
}

#[test]
fn a_repository_can_be_made_with_a_key_file_alone() {
    let place = Place::new();
    place.run(&["repo", "init", "--new-key-file", "key"]).expect(0);
    place.run(&["--key-file", "key", "backup", "source"]).expect(0);
    place.run(&["snapshot", "list"]).expect(6).says("password");
    place
        .run(&["repo", "init", "--new-key-file", "key2"])
        .expect(1)
        .says("already holds");
    assert!(
        !place.path("key2").exists(),
        "a key that opens nothing is not left behind"
    );
}

#[test]
fn names_in_the_output_cannot_command_a_terminal() {
    let place = Place::with_repository();
    std::fs::write(place.path("source").join(OsStr::from_bytes(b"x\x1b[2J\xff")), "x").unwrap();
    place.backup();
    let listed = place.run(&["ls", "-R", "latest"]);
    assert!(listed.expect(0).stdout.contains("x\\x1b[2J\\xff"));
    assert!(!listed.stdout.contains('\x1b'));
    let rows = place.run(&["ls", "-R", "latest", "--json"]);
    let row = rows.stdout.lines().find(|row| row.contains("path_hex")).unwrap();
    assert!(
        serde_json::from_str::<Value>(row).unwrap()["path_hex"]
            .as_str()
            .unwrap()
            .ends_with("781b5b324aff")
    );
}

#[test]
fn dry_runs_write_nothing() {
    let place = Place::with_repository();
    let before = place.objects("");
    let report = place.run(&["backup", "source", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(
        (&report["snapshot"], &report["dry_run"], &report["bytes_read"]),
        (&Value::Null, &true.into(), &300_008.into())
    );
    assert_eq!(place.objects(""), before);
    place.backup();
    place
        .run(&["restore", "latest", "--target", "out", "--dry-run"])
        .expect(0);
    assert!(!place.path("out").exists());
}

#[test]
fn the_repository_and_the_cache_are_left_out() {
    let place = Place::with_repository();
    let ran = place.run(&["backup", ".", "--json"]);
    ran.expect(0);
    let listed = place.run(&["ls", "-R", "latest"]);
    assert!(
        !listed.stdout.contains("/repo") && !listed.stdout.contains("/cache"),
        "{listed:?}"
    );
    assert!(listed.stdout.contains("/source/letter.txt"));
    place.run(&["backup", "repo"]).expect(1).says("the repository itself");
}

#[test]
fn roots_are_taken_once_and_their_spelling_does_not_matter() {
    let place = Place::with_repository();
    let first = place.backup();
    let again = place
        .run(&["backup", "source/", "source/../source", "source/sub", "--json"])
        .expect(0)
        .json();
    assert_eq!(again["parent"].as_str(), Some(first.as_str()));
    assert_eq!(again["files_unmodified"], 2);
}

#[test]
fn a_profile_says_what_the_command_line_does_not() {
    let place = Place::with_repository();
    std::fs::write(place.path("pw"), "correct horse\n").unwrap();
    let text = format!(
        "[profile.default]\nrepository = '{}'\npassword-file = 'pw'\ntag = ['t']\nexclude = ['*.bin']\n",
        place.text("repo")
    );
    std::fs::write(place.path("config.toml"), text).unwrap();
    let config = place.path("config.toml");
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = place.command(&["--config", "config.toml", "backup", "source", "--json"]);
    let ran = ran(command
        .env_remove("LARDER_REPO")
        .env_remove("LARDER_PASSWORD")
        .output()
        .unwrap());
    assert_eq!(ran.expect(0).json()["files_new"], 1);
    assert_eq!(
        place.run(&["snapshot", "list", "--json"]).expect(0).json()["snapshots"][0]["tags"][0],
        "t"
    );
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o666)).unwrap();
    place
        .run(&["--config", "config.toml", "snapshot", "list"])
        .expect(1)
        .says("written by others");
}

#[test]
fn secrets_are_taken_from_commands_and_from_systemd() {
    let place = Place::with_repository();
    let without = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.env_remove("LARDER_PASSWORD");
        command
    };
    ran(
        without(&["--password-command", "echo 'correct horse'", "snapshot", "list"])
            .output()
            .unwrap(),
    )
    .expect(0);
    ran(without(&["--password-command", "exit 3", "snapshot", "list"])
        .output()
        .unwrap())
    .expect(6)
    .says("password command");
    std::fs::create_dir(place.path("credentials")).unwrap();
    std::fs::write(place.path("credentials/larder-password"), "correct horse").unwrap();
    let mut command = without(&["snapshot", "list"]);
    ran(command
        .env("CREDENTIALS_DIRECTORY", place.path("credentials"))
        .output()
        .unwrap())
    .expect(0);
    ran(without(&["snapshot", "list"]).output().unwrap())
        .expect(6)
        .says("no password");
}

#[test]
fn a_reader_that_goes_away_is_no_error_to_shout_about() {
    let place = Place::with_repository();
    for number in 0..3000 {
        std::fs::write(place.path(format!("source/a-file-with-a-long-name-{number}")), "x").unwrap();
    }
    place.backup();
    for arguments in [&["ls", "-R", "latest"][..], &["dump", "latest", "--archive", "tar"]] {
        let mut child = place
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ran = ran(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stderr.as_str()), (130, ""), "{arguments:?}");
    }
}

#[test]
fn an_archive_is_what_tar_reads() {
    let place = Place::with_repository();
    place.backup();
    let mut child = place
        .command(&["dump", "latest", "--archive", "tar"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::fs::create_dir(place.path("out")).unwrap();
    let status = Command::new("tar")
        .args(["-x", "-C"])
        .arg(place.path("out"))
        .stdin(child.stdout.take().unwrap())
        .status();
    assert!(status.unwrap().success() && child.wait().unwrap().success());
    let out = place.path("out").join(place.path("source").strip_prefix("/").unwrap());
    assert_eq!(std::fs::read(out.join("sub/numbers.bin")).unwrap(), noise(300_000));
}
