//! Paper keys: made on demand, printed once, and all that is needed to get the data back.

use super::{Place, Ran, ran};
use std::io::Write;
use std::process::Stdio;

/// The key in what was printed: `larder1` and all groups.
fn key_in(text: &str) -> String {
    let rows = text.lines().skip_while(|line| !line.starts_with("larder1"));
    rows.take(3).collect::<Vec<_>>().join(" ")
}

fn without_password(place: &Place, arguments: &[&str], password: Option<&str>, input: &str) -> Ran {
    let mut command = place.command(arguments);
    command
        .env_remove("LARDER_PASSWORD")
        .env("LARDER_CACHE_DIR", place.path("another-cache"));
    if let Some(password) = password {
        command.env("LARDER_PASSWORD", password);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who does not read the input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    ran(child.wait_with_output().unwrap())
}

#[test]
fn what_init_prints_on_demand_restores_everything() {
    let place = Place::new();
    let made = place.run(&["repo", "init", "--paper-key"]);
    let key = key_in(&made.expect(0).stdout);
    place.backup();
    // As it was printed, as a file that somebody typed, and as a password.
    for (number, typed) in [made.stdout.clone(), key.to_uppercase(), key.replace(' ', "")]
        .iter()
        .enumerate()
    {
        let sheet: String = typed
            .lines()
            .skip_while(|line| !line.starts_with('#') && !line.to_lowercase().starts_with("larder1"))
            .take_while(|line| !line.starts_with("Keep the"))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(place.path("sheet"), &sheet).unwrap();
        let target = place.text(&format!("out{number}"));
        without_password(
            &place,
            &[
                "--key-file",
                &place.text("sheet"),
                "restore",
                "latest",
                "--target",
                &target,
            ],
            None,
            "",
        )
        .expect(0);
        let letter = place.text(&format!("out{number}/")) + place.text("source/letter.txt").trim_start_matches('/');
        assert_eq!(std::fs::read_to_string(letter).unwrap(), "dear all");
    }
    without_password(&place, &["snapshot", "list"], Some(&key), "").expect(0);
}

#[test]
fn a_mistyped_paper_key_is_told_where() {
    let place = Place::new();
    let made = place.run(&["repo", "init", "--paper-key", "--json"]);
    let key = made.expect(0).json()["paper_key"].as_str().unwrap().to_owned();
    without_password(&place, &["snapshot", "list"], Some(&key), "").expect(0);
    let groups: Vec<&str> = key.split(' ').collect();
    let replaced = |group: &str| {
        let mut typed = groups.clone();
        typed[3] = group;
        typed.join(" ")
    };
    let first = if groups[3].starts_with('q') { "p" } else { "q" };
    let wrong = replaced(&format!("{first}{}", &groups[3][1..]));
    without_password(&place, &["snapshot", "list"], Some(&wrong), "")
        .expect(6)
        .says("the paper key is mistyped")
        .says("a character in group 3 is wrong");
    without_password(&place, &["snapshot", "list"], Some(&replaced("oooo")), "")
        .expect(6)
        .says("in group 3 is in no paper key");
    std::fs::write(place.path("sheet"), replaced("")).unwrap();
    without_password(
        &place,
        &["--key-file", &place.text("sheet"), "snapshot", "list"],
        None,
        "",
    )
    .expect(6)
    .says("54 characters");
}

#[test]
fn without_being_asked_nothing_secret_is_printed() {
    let place = Place::new();
    let made = place.run(&["repo", "init"]);
    assert!(!made.expect(0).stdout.contains("larder1"), "{made:?}");
    assert_eq!(place.objects("keys").len(), 1);
}

#[test]
fn an_exported_paper_key_can_be_imported_and_removed() {
    let place = Place::with_repository();
    let exported = place.run(&["repo", "key", "export-paper", "--hint", "in the safe"]);
    let key = key_in(&exported.expect(0).stdout);
    place.run(&["repo", "key", "list"]).expect(0);
    let listed = place.run(&["repo", "key", "list", "--json"]).json();
    assert_eq!(listed["keys"][1]["hint"], "in the safe");
    // The password is forgotten; typed in three rows, and an empty line.
    std::fs::write(place.path("second"), "battery staple\n").unwrap();
    let new = place.text("second");
    let rows = exported
        .stdout
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let rows = rows.collect::<Vec<_>>().join("\n") + "\n\nnot read";
    without_password(
        &place,
        &["repo", "key", "import-paper", "--new-password-file", &new],
        None,
        &rows,
    )
    .expect(0)
    .says("the paper key opens the repository");
    without_password(&place, &["snapshot", "list"], Some("battery staple"), "").expect(0);
    without_password(
        &place,
        &["repo", "key", "import-paper", "--new-password-file", &new],
        None,
        "hello\n\n",
    )
    .expect(6)
    .says("this is no paper key");
    place.run(&["repo", "key", "remove", "1"]).expect(0);
    without_password(&place, &["snapshot", "list"], Some(&key), "").expect(6);
}
