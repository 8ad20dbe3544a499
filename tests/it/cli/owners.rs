//! Names of users and groups: kept in the snapshot, shown, in archives, and used on demand.

use super::{Place, is_root};
use std::os::unix::fs::MetadataExt;

/// The first two accounts of this machine other than root: name and number.
fn accounts(file: &str) -> Vec<(String, u32)> {
    let text = std::fs::read_to_string(file).unwrap();
    let rows = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    });
    rows.filter(|(_, id)| *id != 0).take(2).collect()
}

#[test]
fn names_are_kept_and_shown_also_of_what_did_not_change() {
    if !is_root() {
        eprintln!("SKIPPED: names_are_kept_and_shown_also_of_what_did_not_change: not root, so owners cannot be set");
        return;
    }
    let (user, group) = (&accounts("/etc/passwd")[0], &accounts("/etc/group")[0]);
    let nobodys = 3_999_999_999;
    let place = Place::with_repository();
    let letter = place.path("source/letter.txt");
    std::os::unix::fs::chown(&letter, Some(user.1), Some(group.1)).unwrap();
    std::os::unix::fs::chown(place.path("source/sub/numbers.bin"), Some(nobodys), Some(nobodys)).unwrap();
    place.backup();
    // The second finds everything unchanged, and knows the names all the same.
    place.backup();
    let listed = place.run(&["ls", "latest", "-R", "-l"]);
    let row = |name: &str| {
        let line = listed.stdout.lines().find(|line| line.ends_with(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("letter.txt")[1..3], [user.0.clone(), group.0.clone()]);
    assert_eq!(row("numbers.bin")[1..3], [nobodys.to_string(), nobodys.to_string()]);
    let json = place.run(&["ls", "latest", "-R", "--json"]);
    let json = json
        .stdout
        .lines()
        .find(|line| line.contains("letter.txt"))
        .unwrap()
        .to_owned();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (json["user"].as_str(), json["uid"].as_u64()),
        (Some(user.0.as_str()), Some(user.1.into()))
    );
    // tar itself reads the names.
    let archive = place.path("archive.tar");
    let out = std::fs::File::create(&archive).unwrap();
    let mut dump = place.command(&["dump", "latest", "--archive", "tar"]);
    assert!(dump.stdout(out).status().unwrap().success());
    let shown = std::process::Command::new("tar")
        .arg("-tvf")
        .arg(&archive)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = shown.lines().find(|line| line.ends_with("letter.txt")).unwrap();
    assert!(line.contains(&format!("{}/{}", user.0, group.0)), "{line}");
    let line = shown.lines().find(|line| line.ends_with("numbers.bin")).unwrap();
    assert!(line.contains(&format!("{nobodys}/{nobodys}")), "{line}");
}

#[test]
fn a_restore_is_by_number_unless_names_are_asked_for() {
    if !is_root() {
        eprintln!("SKIPPED: a_restore_is_by_number_unless_names_are_asked_for: not root, so owners cannot be set");
        return;
    }
    // Another machine is played by a name service of our own: the same names with other numbers.
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let (user, _) = (&accounts("/etc/passwd")[0], ());
    let place = Place::with_repository();
    std::os::unix::fs::chown(place.path("source/letter.txt"), Some(user.1), Some(0)).unwrap();
    place.backup();
    let moved = passwd.replacen(&format!("{}:x:{}:", user.0, user.1), &format!("{}:x:54321:", user.0), 1);
    assert_ne!(moved, passwd);
    std::fs::write(place.path("passwd"), moved).unwrap();
    let restore = |target: &str, by_name: &str| {
        let script = format!(
            "mount --bind {} /etc/passwd && exec {} restore latest --target {} {by_name}",
            place.text("passwd"),
            env!("CARGO_BIN_EXE_larder"),
            place.text(target)
        );
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", place.path("home"))
            .env("LARDER_REPO", place.path("repo"))
            .env("LARDER_CACHE_DIR", place.path("cache"))
            .env("LARDER_PASSWORD", &place.password);
        super::ran(command.output().unwrap())
    };
    let owner = |target: &str| {
        let letter = place
            .path(target)
            .join(place.text("source/letter.txt").trim_start_matches('/'));
        letter.metadata().unwrap().uid()
    };
    let first = restore("by-number", "");
    if first.stderr.contains("unshare") || first.stderr.contains("mount") {
        eprintln!(
            "SKIPPED: a_restore_is_by_number_unless_names_are_asked_for: no mount namespaces: {}",
            first.stderr
        );
        return;
    }
    first.expect(0);
    assert_eq!(owner("by-number"), user.1);
    restore("by-name", "--owner-by-name").expect(0);
    assert_eq!(owner("by-name"), 54321);
}
