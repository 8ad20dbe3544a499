//! `repo doctor` as scripts meet it.

use super::Place;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

fn level<'v>(report: &'v Value, subject: &str) -> &'v str {
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["subject"] == subject)
        .unwrap_or_else(|| panic!("nothing about {subject}: {report}"))["level"]
        .as_str()
        .unwrap()
}

#[test]
fn a_healthy_repository_has_no_problem_and_each_defect_is_one() {
    let place = Place::with_repository();
    place.backup();
    let doctor = ["repo", "doctor", "--json", "--max-age", "1d"];
    let ran = place.run(&doctor);
    let report = ran.json();
    // Where this runs may be a disk in memory, or full.
    let here = ["file_system", "disk_space", "cache_space"];
    let problems = |report: &Value| -> Vec<String> {
        let findings = report["findings"].as_array().unwrap().iter();
        let bad = findings.filter(|finding| finding["level"] == "problem");
        let subjects = bad.map(|finding| finding["subject"].as_str().unwrap().to_owned());
        subjects.filter(|subject| !here.contains(&subject.as_str())).collect()
    };
    assert_eq!(problems(&report), Vec::<String>::new());
    assert!(ran.code == 0 || report["problems"].as_u64().unwrap() > 0, "{ran:?}");
    for subject in [
        "conditional_writes",
        "snapshots",
        "repository_access",
        "cache_access",
        "leftovers",
        "sessions",
        "place",
    ] {
        assert_eq!(level(&report, subject), "ok", "{subject}");
    }
    assert_eq!(level(&report, "read_data"), "warning");
    place.run(&["repo", "check", "--read-data"]).expect(0);
    assert_eq!(level(&place.run(&doctor).json(), "read_data"), "ok");

    let ran = place.run(&["repo", "doctor", "--json", "--max-age", "0s"]);
    assert_eq!(problems(&ran.expect(1).json()), ["snapshots"]);

    let key = place.path("password");
    std::fs::write(&key, &place.password).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = place.text("password");
    let ran = place.run(&["repo", "doctor", "--json", "--password-file", file.as_str()]);
    assert_eq!(problems(&ran.expect(1).json()), ["key_file"]);

    std::fs::set_permissions(place.path("repo"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let ran = place.run(&["repo", "doctor"]);
    ran.expect(1).says("problem");
    assert!(
        ran.stdout.contains("can be changed by others") && ran.stdout.contains("chmod go-rwx"),
        "{ran:?}"
    );
}

#[test]
fn without_a_password_the_rest_is_looked_at() {
    let place = Place::with_repository();
    let ran = super::ran(
        place
            .command(&["repo", "doctor", "--json"])
            .env_remove("LARDER_PASSWORD")
            .output()
            .unwrap(),
    );
    let report = ran.json();
    assert_eq!(level(&report, "repository"), "could not look");
    assert_eq!(level(&report, "conditional_writes"), "ok");
    // A wrong one is more than that.
    let ran = super::ran(
        place
            .command(&["repo", "doctor", "--json"])
            .env("LARDER_PASSWORD", "wrong")
            .output()
            .unwrap(),
    );
    assert!([1, 3].contains(&ran.code), "{ran:?}");
    assert_eq!(level(&ran.json(), "repository"), "could not look");
}
