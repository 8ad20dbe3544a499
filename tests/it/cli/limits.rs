//! Rates and memory: what is asked for is kept, and what cannot work is refused.

use super::{Place, noise};
use std::time::Instant;

#[test]
fn an_upload_keeps_to_its_rate() {
    let place = Place::with_repository();
    let started = Instant::now();
    // Noise of 300 kB, and a few kB of everything else.
    place.run(&["--limit-upload", "200K", "backup", "source"]).expect(0);
    let seconds = started.elapsed().as_secs_f64();
    assert!(seconds >= 300_000.0 / 204_800.0, "{seconds} s");
}

#[test]
fn a_download_keeps_to_its_rate() {
    let place = Place::with_repository();
    place.backup();
    let started = Instant::now();
    let target = place.text("out");
    place
        .run(&["--limit-download", "200K", "restore", "latest", "--target", &target])
        .expect(0);
    let seconds = started.elapsed().as_secs_f64();
    assert!(seconds >= 300_000.0 / 204_800.0, "{seconds} s");
    let restored = place
        .path("out")
        .join(place.text("source/sub/numbers.bin").trim_start_matches('/'));
    assert!(std::fs::read(restored).unwrap() == noise(300_000));
}

#[test]
fn a_signal_ends_a_slow_upload_at_once() {
    let place = Place::with_repository();
    // 300 kB would take five minutes.
    let mut child = place
        .command(&["--limit-upload", "1K", "backup", "source"])
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    let started = Instant::now();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    place.run(&["repo", "check"]).expect(0);
}

#[test]
fn rates_that_make_no_sense_are_wrong_use() {
    let place = Place::new();
    for rate in ["0", "fast", "12", "-5"] {
        place.run(&["--limit-upload", rate, "snapshot", "list"]).expect(1);
    }
}

#[test]
fn a_ceiling_of_memory_that_is_too_low_is_refused_with_the_least() {
    let place = Place::with_repository();
    for command in [&["backup", "source"][..], &["snapshot", "list"], &["repo", "check"]] {
        let arguments: Vec<&str> = ["--memory", "20M"].iter().chain(command).copied().collect();
        place
            .run(&arguments)
            .expect(1)
            .says("144 MiB are needed")
            .says("--memory 144M");
    }
    assert!(place.objects("snap").is_empty(), "nothing was saved");
    // Compression that needs more than one thread's share.
    place
        .run(&["--memory", "144M", "backup", "source", "--compression-level", "19"])
        .expect(1)
        .says("are needed");
}

#[test]
fn within_the_least_memory_everything_works() {
    let place = Place::with_repository();
    std::fs::write(place.path("source/large.bin"), noise(12 << 20)).unwrap();
    let least = |arguments: &[&str]| {
        let all: Vec<&str> = ["--memory", "144M", "--threads", "8"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        place.run(&all).expect(0);
    };
    least(&["backup", "source"]);
    let target = place.text("out");
    least(&["restore", "latest", "--target", &target]);
    let restored = place
        .path("out")
        .join(place.text("source/large.bin").trim_start_matches('/'));
    assert!(std::fs::read(restored).unwrap() == noise(12 << 20));
    least(&["repo", "check", "--read-data"]);
    // The packs are small, because that is what there was room for.
    let largest = place
        .objects("data")
        .iter()
        .map(|pack| pack.metadata().unwrap().len())
        .max();
    assert!(largest.unwrap() < 6 << 20, "{largest:?}");
}
