//! `repo replicate` and `repo promote` as scripts meet them.

use super::Place;

fn replica_of(place: &Place) -> [String; 2] {
    ["--repo".into(), place.text("second")]
}

fn at(replica: &[String; 2], rest: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = replica.to_vec();
    all.extend(rest.iter().map(|word| (*word).to_owned()));
    all
}

#[test]
fn a_replica_is_made_used_and_promoted() {
    let place = Place::with_repository();
    place.backup();
    let second = place.text("second");
    let replica = replica_of(&place);
    let replicate = ["repo", "replicate", "--to", second.as_str(), "--json"];

    // No password is needed.
    let ran = super::ran(
        place
            .command(&replicate)
            .env_remove("LARDER_PASSWORD")
            .output()
            .unwrap(),
    );
    let report = ran.expect(0).json();
    assert_eq!(
        (&report["type"], &report["behind_after"]["lag_seconds"]),
        (&"replicate".into(), &0.0.into())
    );
    assert!(report["behind_before"]["lag_seconds"].as_f64().unwrap() >= 0.0);
    let again = place.run(&replicate).expect(0).json();
    assert_eq!(
        (again["objects_copied"].as_u64(), again["rounds"].as_u64()),
        (Some(0), Some(1))
    );

    // The other machine has nothing but the replica and the password.
    std::fs::rename(place.path("repo"), place.path("away")).unwrap();
    place
        .run(&at(
            &replica,
            &["restore", "latest", "--target", "back", "--cache-dir", "other-cache"],
        ))
        .expect(0);
    let restored = place.path("back").join(place.path("source").strip_prefix("/").unwrap());
    assert_eq!(std::fs::read(restored.join("letter.txt")).unwrap(), b"dear all");

    place
        .run(&at(&replica, &["backup", "source"]))
        .expect(9)
        .says("is a replica")
        .says("repo promote");
    place.run(&at(&replica, &["repo", "prune"])).expect(9);
    place.run(&at(&replica, &["snapshot", "forget", "latest"])).expect(9);
    place.run(&at(&replica, &["repo", "promote"])).expect(0);
    place.run(&at(&replica, &["repo", "promote"])).expect(1).says("already");
    place.run(&at(&replica, &["backup", "source"])).expect(0);
    place.run(&at(&replica, &["repo", "check", "--read-data"])).expect(0);

    // The old one comes back: it may not grow on, and follows.
    std::fs::rename(place.path("away"), place.path("repo")).unwrap();
    place.run(&["backup", "source"]).expect(7);
    place.run(&replicate).expect(7).says("was made the primary");
    let home = place.text("repo");
    place
        .run(&at(&replica, &["repo", "replicate", "--to", home.as_str()]))
        .expect(0);
    place.run(&["backup", "source"]).expect(9);
}

#[test]
fn deleting_in_a_replica_follows_a_prune() {
    let place = Place::with_repository();
    let first = place.backup();
    let second = place.text("second");
    place.run(&["repo", "replicate", "--to", second.as_str()]).expect(0);
    std::fs::write(
        place.path("source/sub/numbers.bin"),
        super::noise(200_000).iter().map(|byte| !byte).collect::<Vec<u8>>(),
    )
    .unwrap();
    place.backup();
    place.run(&["snapshot", "forget", first.as_str(), "--prune"]).expect(0);
    let count = |place: &Place| (place.objects("data").len(), place.objects("../second/data").len());
    let ran = place.run(&["repo", "replicate", "--to", second.as_str()]);
    assert!(ran.expect(0).stdout.contains("--delete"), "{ran:?}");
    let (ours, theirs) = count(&place);
    assert!(theirs > ours);
    let ran = place.run(&["repo", "replicate", "--to", second.as_str(), "--delete", "--json"]);
    let report = ran.expect(0).json();
    assert_eq!(report["deleted"]["packs_lost_at_source"], 0);
    assert!(report["deleted"]["packs"].as_u64().unwrap() >= (theirs - ours) as u64);
    let (ours, theirs) = count(&place);
    assert_eq!(ours, theirs);
    place
        .run(&at(&replica_of(&place), &["repo", "check", "--read-data"]))
        .expect(0);

    // The snapshots of the source are gone: that is said, and everything stays.
    for snapshot in place.objects("snap") {
        std::fs::remove_file(snapshot).unwrap();
    }
    let before = place.objects("../second");
    place
        .run(&["repo", "replicate", "--to", second.as_str(), "--delete"])
        .expect(7)
        .says("nothing was deleted");
    place
        .run(&["repo", "replicate", "--to", second.as_str()])
        .expect(7)
        .says("has lost");
    assert_eq!(place.objects("../second"), before);
}

#[test]
fn wrong_places_are_refused_with_a_next_step() {
    let place = Place::with_repository();
    place.run(&["repo", "replicate"]).expect(1).says("--to");
    place
        .run(&["repo", "replicate", "--to", "repo"])
        .expect(9)
        .says("is the primary");
    place.run(&["repo", "promote"]).expect(1).says("already");
    std::fs::create_dir(place.path("taken")).unwrap();
    std::fs::write(place.path("taken/file"), "somebody's").unwrap();
    let ran = place.run(&["repo", "replicate", "--to", "taken"]);
    assert!(ran.code != 0, "{ran:?}");
    let ran = super::ran(
        place
            .command(&["repo", "replicate", "--to", "s3://some-bucket/x"])
            .env("LARDER_TO_AWS_ACCESS_KEY_ID", "id")
            .output()
            .unwrap(),
    );
    ran.expect(1).says("LARDER_TO_AWS_SECRET_ACCESS_KEY");
}
