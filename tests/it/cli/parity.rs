//! `repo parity`, and what repair says of it.

use super::*;

#[test]
fn parity_is_turned_on_puts_back_what_is_damaged_and_is_taken_away() {
    let place = Place::with_repository();
    place.backup();
    let dry = place.run(&["repo", "parity", "--dry-run", "--json"]).expect(0).json();
    assert_eq!((&dry["type"], &dry["turned_on"]), (&"parity".into(), &true.into()));
    assert!(place.objects("par").is_empty());
    let said = place.run(&["repo", "parity"]);
    assert!(said.expect(0).stdout.contains("parity is on"), "{said:?}");
    let info = place.run(&["repo", "info", "--json"]).expect(0).json();
    assert_eq!(info["parity"], true);
    place.backup();
    let check = place.run(&["repo", "check", "--json"]).expect(0).json();
    assert_eq!(check["objects_without_parity"], 0);

    // The large pack is hurt, the small one and an outcome are gone.
    let (data, meta, snap) = (place.objects("data"), place.objects("meta"), place.objects("snap"));
    let before: Vec<Vec<u8>> = [&data[0], &meta[0], &snap[0]]
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(before[0].len() > 300_000);
    let mut hurt = before[0].clone();
    hurt[100_000..110_000].fill(0);
    std::fs::write(&data[0], hurt).unwrap();
    std::fs::remove_file(&meta[0]).unwrap();
    std::fs::remove_file(&snap[0]).unwrap();
    let dry = place
        .run(&["repo", "repair", "snapshots", "--dry-run", "--json"])
        .json();
    assert_eq!(
        (&dry["type"], dry["healed"].as_array().unwrap().len()),
        (&"repair_snapshots".into(), 1)
    );
    assert!(!snap[0].exists());
    let said = place.run(&["repo", "repair", "snapshots"]);
    assert!(said.stdout.contains("put back 1 object as before"), "{said:?}");
    let said = place.run(&["repo", "repair", "packs", "--read-data", "--json"]);
    assert_eq!(said.expect(0).json()["healed"].as_array().unwrap().len(), 2);
    for (path, bytes) in [&data[0], &meta[0], &snap[0]].iter().zip(&before) {
        assert!(std::fs::read(path).unwrap() == *bytes, "{}", path.display());
    }
    place.run(&["repo", "check", "--read-data"]).expect(0);

    let removed = place.run(&["repo", "parity", "--remove", "--json"]).expect(0).json();
    assert_eq!(
        (&removed["type"], &removed["turned_off"]),
        (&"parity_removed".into(), &true.into())
    );
    assert!(place.objects("par").is_empty());
    place.run(&["repo", "check"]).expect(0);
}
