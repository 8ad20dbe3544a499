//! Forgetting and holding, as people and their jobs do it.

use super::*;

/// A repository with so many snapshots, each of a changed source; oldest first.
fn place_with(count: usize) -> (Place, Vec<String>) {
    let place = Place::with_repository();
    let ids = (0..count).map(|night| next_night(&place, night)).collect();
    (place, ids)
}

fn next_night(place: &Place, night: usize) -> String {
    std::fs::write(place.path("source/letter.txt"), format!("night {night}")).unwrap();
    place.backup()
}

#[track_caller]
fn listed(place: &Place) -> Vec<String> {
    let list = place.run(&["snapshot", "list", "--json"]).expect(0).json();
    let ids = list["snapshots"].as_array().unwrap().iter();
    ids.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_no_rule_keeps_is_forgotten_and_the_rest_restores() {
    let (place, ids) = place_with(4);
    let before = place.objects("");
    let plan = place
        .run(&["snapshot", "forget", "--keep-last", "2", "--dry-run", "--json"])
        .expect(0)
        .json();
    assert_eq!(
        (&plan["type"], &plan["dry_run"], &plan["forgotten"]),
        (&"forget".into(), &true.into(), &Value::Null)
    );
    let group = &plan["groups"][0];
    assert_eq!((&group["keep"], &group["forget"]), (&2.into(), &2.into()));
    for (row, id) in group["snapshots"].as_array().unwrap().iter().zip(&ids) {
        assert_eq!(row["id"].as_str(), Some(id.as_str()));
        assert!(
            row["reasons"][0]["text"].is_string() && row["time"] == row["counted_as"],
            "{row}"
        );
    }
    assert_eq!(group["snapshots"][0]["reasons"][0]["code"], "no_rule");
    assert_eq!(group["snapshots"][3]["reasons"][0]["code"], "newest");
    assert_eq!(place.objects(""), before, "a dry run writes nothing");
    assert_eq!(listed(&place), ids);

    let ran = place.run(&["snapshot", "forget", "--keep-last", "2"]);
    let words = &ran.expect(0).stdout;
    for expected in [
        "no rule keeps it",
        "newest, last 1 of 2",
        "forgot 2 snapshots",
        "repo prune",
    ] {
        assert!(words.contains(expected), "{expected} is not in {words}");
    }
    assert_eq!(listed(&place), ids[2..]);
    place.run(&["snapshot", "show", &ids[0]]).expect(1);
    for (id, night) in ids[2..].iter().zip(2..) {
        let target = format!("out{night}");
        place.run(&["restore", id, "--target", &target, "--verify"]).expect(0);
        let below = place
            .path(&target)
            .join(place.path("source").strip_prefix("/").unwrap());
        assert_eq!(
            std::fs::read_to_string(below.join("letter.txt")).unwrap(),
            format!("night {night}")
        );
    }
    place.run(&["repo", "check", "--read-data"]).expect(0);
    // Again: nothing more.
    let again = place
        .run(&["snapshot", "forget", "--keep-last", "2", "--json"])
        .expect(0)
        .json();
    assert_eq!(again["forgotten"], serde_json::json!([]));
    // The next night builds on what is left.
    let next = place.run(&["backup", "source", "--json"]).expect(0).json();
    assert_eq!(next["parent"].as_str(), Some(ids[3].as_str()));
}

#[test]
fn a_policy_that_keeps_nothing_and_names_that_mean_nothing_are_1() {
    let (place, ids) = place_with(2);
    let before = place.objects("");
    for arguments in [
        &["--json"][..],
        &["--keep-daily", "0", "--keep-within", "0d"],
        &["--keep-daily", "2d"],
        &["--keep-within", "5m"],
        &["--keep-last", "1", "--month-day", "31"],
        &["--keep-last", "1", "--week-start", "someday"],
        &["--keep-last", "1", "--max-removal", "0"],
        &["--keep-last", "1", ids[0].as_str()],
        &["0123456789abcdef0123456789abcdef"],
        &[ids[0].as_str(), "nothing"],
        &["--keep-last", "1", "--yes-remove-last"],
    ] {
        let arguments = [&["snapshot", "forget"][..], arguments].concat();
        let ran = place.run(&arguments);
        ran.expect(1);
        assert!(!ran.stderr.is_empty(), "{arguments:?}");
        assert_eq!(place.objects(""), before, "{arguments:?}");
    }
    place.run(&["snapshot", "forget"]).expect(1).says("--keep-daily 30");
}

#[test]
fn groups_and_filters_say_what_is_looked_at() {
    let place = Place::with_repository();
    for (name, host, tag) in [
        ("db", "one", "hot"),
        ("db", "one", "cold"),
        ("db", "two", "hot"),
        ("web", "one", "hot"),
    ] {
        place
            .run(&["backup", "source", "--name", name, "--host", host, "--tag", tag])
            .expect(0);
    }
    let forget = |arguments: &[&str]| {
        let always = ["snapshot", "forget", "--keep-last", "1", "--dry-run", "--json"];
        let all = [&always[..], arguments].concat();
        let groups = place.run(&all).expect(0).json()["groups"].take();
        let figures: Vec<(String, u64, u64)> = groups
            .as_array()
            .unwrap()
            .iter()
            .map(|group| {
                let name = format!(
                    "{}/{}",
                    group["host"].as_str().unwrap(),
                    group["source"].as_str().unwrap()
                );
                (name, group["keep"].as_u64().unwrap(), group["forget"].as_u64().unwrap())
            })
            .collect();
        figures
    };
    let figures = |rows: &[(&str, u64, u64)]| -> Vec<(String, u64, u64)> {
        rows.iter()
            .map(|(name, keep, forget)| ((*name).to_owned(), *keep, *forget))
            .collect()
    };
    let by_source = figures(&[("one/db", 1, 1), ("one/web", 1, 0), ("two/db", 1, 0)]);
    assert_eq!(forget(&[]), by_source);
    assert_eq!(forget(&["--group-by", "source,host"]), by_source);
    // Whatever the groups are, each source keeps its newest.
    assert_eq!(
        forget(&["--group-by", "name"]),
        figures(&[("one/web", 1, 0), ("two/db", 2, 1)])
    );
    assert_eq!(forget(&["--group-by", "none"]), figures(&[("one/web", 3, 1)]));
    assert_eq!(forget(&["--source", "web"]), figures(&[("one/web", 1, 0)]));
    assert_eq!(forget(&["--host", "two"]), figures(&[("two/db", 1, 0)]));
    assert_eq!(
        forget(&["--tag", "hot"]),
        figures(&[("one/db", 1, 0), ("one/web", 1, 0), ("two/db", 1, 0)])
    );
    assert_eq!(
        forget(&["--keep-tag", "hot"]),
        figures(&[("one/db", 2, 0), ("one/web", 1, 0), ("two/db", 1, 0)])
    );
}

#[test]
fn held_snapshots_stay_until_they_are_released() {
    let (place, ids) = place_with(3);
    place.run(&["snapshot", "hold", &ids[0]]).expect(1);
    place.run(&["snapshot", "hold", &ids[0], "--reason", " "]).expect(1);
    place
        .run(&["snapshot", "hold", &ids[0], "--reason", "x", "--until", "2001-01-01"])
        .expect(1)
        .says("future");
    place
        .run(&["snapshot", "hold", &ids[0], "--reason", "before the migration"])
        .expect(0);
    place
        .run(&[
            "snapshot",
            "hold",
            &ids[1],
            "--reason",
            "audit",
            "--until",
            "2100-01-01",
            "--json",
        ])
        .expect(0);
    let list = place.run(&["snapshot", "list", "--json"]).expect(0).json();
    assert_eq!(
        list["snapshots"][0]["holds"],
        serde_json::json!([{"until": null, "reason": "before the migration"}])
    );
    assert!(list["snapshots"][1]["holds"][0]["until"].is_string());
    assert_eq!(list["snapshots"][2]["holds"], serde_json::json!([]));
    let words = place.run(&["snapshot", "list"]).expect(0).stdout.clone();
    assert!(
        words.contains("(held)") && words.contains("(held until 2100-01-01"),
        "{words}"
    );
    let words = place.run(&["snapshot", "show", &ids[0]]).expect(0).stdout.clone();
    assert!(
        words.contains("held      until released: before the migration"),
        "{words}"
    );

    // Neither a policy, nor a name, nor a change of tags takes it away.
    let ran = place.run(&["snapshot", "forget", "--keep-last", "1"]);
    assert!(ran.expect(0).stdout.contains("held: before the migration"), "{ran:?}");
    place
        .run(&["snapshot", "forget", &ids[0]])
        .expect(9)
        .says("snapshot release");
    place
        .run(&["snapshot", "tag", &ids[0], "--add", "x"])
        .expect(9)
        .says("held");
    assert_eq!(listed(&place), ids);

    // One goes at once, the other in a while.
    let released = place.run(&["snapshot", "release", &ids[1], "--json"]).expect(0).json();
    assert_eq!((&released["holds"], &released["until"]), (&1.into(), &Value::Null));
    let released = place.run(&["snapshot", "release", &ids[0], "--after", "1h", "--json"]);
    assert!(released.expect(0).json()["until"].is_string());
    let forget = ["snapshot", "forget", "--keep-last", "1"];
    place.run(&forget).expect(0);
    assert_eq!(listed(&place), [ids[0].clone(), ids[2].clone()]);
    place.run(&["snapshot", "release", &ids[0]]).expect(0);
    place.run(&forget).expect(0);
    assert_eq!(listed(&place), ids[2..]);
    let again = place.run(&["snapshot", "release", &ids[2], "--after", "7d"]);
    assert!(again.expect(0).stdout.contains("is not held"), "{again:?}");
    assert!(place.objects("hold").is_empty());
    place.run(&["repo", "check"]).expect(0);
}

#[test]
fn many_at_once_and_the_last_one_need_a_word_more() {
    let (place, ids) = place_with(9);
    place
        .run(&["snapshot", "forget", "--keep-last", "1"])
        .expect(9)
        .says("8 of the 9 snapshots")
        .says("--yes-remove-many");
    let plan = place
        .run(&["snapshot", "forget", "--keep-last", "1", "--dry-run", "--json"])
        .expect(0)
        .json();
    assert_eq!(plan["refused"].as_array().unwrap().len(), 1);
    place.run(&["snapshot", "forget", "--keep-last", "7"]).expect(0);
    assert_eq!(listed(&place), ids[2..]);
    place
        .run(&["snapshot", "forget", "--keep-last", "1", "--yes-remove-many"])
        .expect(0);
    assert_eq!(listed(&place), ids[8..]);
    place
        .run(&["snapshot", "forget", "latest"])
        .expect(9)
        .says("--yes-remove-last");
    let named = place
        .run(&["snapshot", "forget", "latest", "--yes-remove-last", "--json"])
        .expect(0)
        .json();
    assert_eq!(named["forgotten"], serde_json::json!([ids[8]]));
    assert_eq!(named["groups"][0]["snapshots"][0]["reasons"][0]["code"], "named");
    assert!(listed(&place).is_empty());
    next_night(&place, 99);
    place.run(&["repo", "check", "--read-data"]).expect(0);
}

#[test]
fn an_emptied_source_pushes_nothing_out_until_somebody_accepts_it() {
    let (place, ids) = place_with(2);
    for name in ["source/sub/numbers.bin", "source/letter.txt", "source/link"] {
        std::fs::remove_file(place.path(name)).unwrap();
    }
    std::fs::remove_dir(place.path("source/sub")).unwrap();
    let empty: Vec<String> = (0..3).map(|_| place.backup()).collect();
    let forget = ["snapshot", "forget", "--keep-last", "1"];
    let ran = place.run(&forget);
    assert!(
        ran.expect(0)
            .stdout
            .contains("suspect: less than half of what came before"),
        "{ran:?}"
    );
    // The good one stays, and what it was measured by.
    assert_eq!(listed(&place), [&ids[..], &empty[..]].concat());
    place
        .run(&["snapshot", "tag", &empty[2], "--add", "accepted"])
        .expect(0);
    place.run(&forget).expect(0);
    assert_eq!(listed(&place).len(), 1);
}

#[test]
fn nothing_is_forgotten_while_the_history_is_in_doubt() {
    let (place, ids) = place_with(4);
    let outcome = |id: &String| place.path("repo/snap").join(id);
    let kept = std::fs::read(outcome(&ids[1])).unwrap();
    std::fs::remove_file(outcome(&ids[1])).unwrap();
    let forget = ["snapshot", "forget", "--keep-last", "1"];
    place.run(&forget).expect(7);
    place.run(&["snapshot", "forget", &ids[0]]).expect(7);
    place
        .run(&["snapshot", "forget", "--keep-last", "1", "--dry-run"])
        .expect(7);
    assert!(place.objects("drop").is_empty());
    std::fs::write(outcome(&ids[1]), &kept).unwrap();
    // A mark that nobody with the right key has made.
    std::fs::create_dir_all(place.path("repo/hold").join(&ids[0])).unwrap();
    let forged = place.path("repo/hold").join(&ids[0]).join("forged");
    std::fs::write(&forged, "forged").unwrap();
    let ran = place.run(&forget);
    assert!(matches!(ran.code, 4 | 7), "{ran:?}");
    assert!(place.objects("drop").is_empty());
    std::fs::remove_file(forged).unwrap();
    place.run(&forget).expect(0);
    assert_eq!(listed(&place), ids[3..]);
}

#[test]
fn the_help_says_how_to_keep() {
    let place = Place::new();
    let help = place.run(&["snapshot", "forget", "--help"]).expect(0).stdout.clone();
    for words in [
        "What to keep:",
        "Safety:",
        "--keep-last-distinct",
        "accepted",
        "repo prune",
    ] {
        assert!(help.contains(words), "{words}");
    }
    assert!(place.run(&["--help"]).expect(0).stdout.contains("snapshot forget"));
    assert!(
        place
            .run(&["completions", "bash"])
            .expect(0)
            .stdout
            .contains("--keep-weekly")
    );
}
