//! The store contract against real S3 servers, straight and through a network that misbehaves.
//!
//! `LARDER_TEST_S3_CEPH`, `LARDER_TEST_S3_MINISTACK` and `LARDER_TEST_S3_RCLONE` are endpoint addresses, credentials come
//! from `AWS_*`, the bucket from `LARDER_TEST_BUCKET`. `LARDER_TEST_PROXY` is an address behind which a fault proxy stands
//! before one of the full servers, `LARDER_TEST_PROXY_ADMIN` the address (`host:port`) of its controls.
#![cfg(feature = "s3")]

use bytes::Bytes;
use larder::edge::store::location::{Checksum, Location, StoreOptions, open};
use larder::edge::store::retry::RetryOptions;
use larder::edge::store::s3::S3Store;
use larder::edge::store::{Created, Failure, Part, Prefix, Store, StoreKey, contract};
use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

/// The value of a variable, or a loud remark that the test shows nothing.
fn setting(name: &str, test: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        eprintln!("SKIPPED: {test}: {name} is not set");
    }
    value
}

fn bucket() -> String {
    std::env::var("LARDER_TEST_BUCKET").unwrap_or_else(|_| "larder-test".to_string())
}

/// A prefix of its own for each test, so that they may run at once and again.
fn place(test: &str) -> String {
    let mut random = [0u8; 4];
    getrandom::fill(&mut random).expect("random bytes");
    format!("{test}-{:08x}", u32::from_le_bytes(random))
}

fn options(endpoint: &str) -> StoreOptions {
    StoreOptions {
        endpoint: Some(endpoint.to_string()),
        ..StoreOptions::default()
    }
}

fn open_at(test: &str, options: &StoreOptions) -> Arc<dyn Store> {
    open(
        &Location::S3 {
            bucket: bucket(),
            prefix: place(test),
        },
        options,
    )
    .expect("opening")
}

fn key(text: &str) -> StoreKey {
    StoreKey::new(text).expect("a key")
}

fn full_server(variable: &str, test: &str) {
    let Some(endpoint) = setting(variable, test) else {
        return;
    };
    let store = open_at(test, &options(&endpoint));
    store.prepare().expect("an empty place");
    let abilities = store.probe().expect("probing");
    assert!(
        abilities.conditional_create && abilities.strong_listing && abilities.verifies_checksums,
        "{abilities:?}"
    );
    contract::check(&*store, &contract::Options::default());
    assert!(store.requests() > 2500, "requests are counted");
    for checksum in [Checksum::Crc32c, Checksum::None] {
        let store = open_at(
            test,
            &StoreOptions {
                checksum,
                ..options(&endpoint)
            },
        );
        let fewer = contract::Options {
            listed_objects: 20,
            large_bytes: 1 << 20,
            race_rounds: 2,
        };
        contract::check(&*store, &fewer);
    }
}

#[test]
fn ceph_keeps_the_store_contract() {
    full_server("LARDER_TEST_S3_CEPH", "ceph");
}

#[test]
fn ministack_keeps_the_store_contract() {
    full_server("LARDER_TEST_S3_MINISTACK", "ministack");
}

#[test]
fn a_limited_store_keeps_the_contract_and_its_rate() {
    let Some(endpoint) = setting(
        "LARDER_TEST_S3_MINISTACK",
        "a_limited_store_keeps_the_contract_and_its_rate",
    ) else {
        return;
    };
    let limited = |rate| {
        let limits = StoreOptions {
            upload_rate: NonZeroU64::new(rate),
            download_rate: NonZeroU64::new(rate),
            ..options(&endpoint)
        };
        open_at("limited", &limits)
    };
    let fewer = contract::Options {
        listed_objects: 20,
        large_bytes: 4 << 20,
        race_rounds: 2,
    };
    contract::check(&*limited(1 << 30), &fewer);
    let store = limited(1 << 20);
    let body = contract::noise(9, 1 << 20);
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (store, body) = (&store, &body);
            scope.spawn(move || {
                let created = store.create(&key(&format!("hold/{number}")), body.clone());
                assert_eq!(created.expect("creating"), Created::New);
            });
        }
    });
    let up = started.elapsed().as_secs_f64();
    // A busy machine only makes it later.
    assert!(up > 2.9, "3 MiB at 1 MiB/s, three at once: {up} s");
    let started = std::time::Instant::now();
    for number in 0..3 {
        let read = store
            .read(&key(&format!("hold/{number}")), Part::Whole)
            .expect("reading");
        assert!(read == body);
    }
    let down = started.elapsed().as_secs_f64();
    assert!(down > 1.9, "3 MiB at 1 MiB/s, a second of it saved up: {down} s");
    eprintln!("3 MiB at 1 MiB/s: up in {up:.2} s, down in {down:.2} s");
    let keys: Vec<StoreKey> = (0..3).map(|number| key(&format!("hold/{number}"))).collect();
    store.remove(&keys).expect("removing");
}

#[test]
fn a_store_that_ignores_preconditions_is_found_out_and_still_usable() {
    let Some(endpoint) = setting("LARDER_TEST_S3_RCLONE", "rclone") else {
        return;
    };
    let store = open_at("rclone", &options(&endpoint));
    let abilities = store.probe().expect("probing");
    assert!(!abilities.conditional_create, "{abilities:?}");
    let store = open_at(
        "rclone",
        &StoreOptions {
            conditional: false,
            ..options(&endpoint)
        },
    );
    contract::check(
        &*store,
        &contract::Options {
            race_rounds: 0,
            listed_objects: 1200,
            ..contract::Options::default()
        },
    );
}

#[test]
fn a_missing_bucket_is_not_an_empty_repository() {
    let test = "a_missing_bucket_is_not_an_empty_repository";
    let Some(endpoint) = setting("LARDER_TEST_S3_CEPH", test) else {
        return;
    };
    let store = S3Store::open("no-such-bucket-here", "x", &options(&endpoint)).expect("opening");
    let snap = key("snap/00");
    let everything = Prefix::new("").expect("a prefix");
    let errors = [
        store.create(&snap, Bytes::from_static(b"x")).map(|_| ()),
        store.read(&snap, Part::Whole).map(|_| ()),
        store.stat(&snap).map(|_| ()),
        store.list(&everything, &mut |_| {}),
        store.prepare(),
    ];
    for (number, error) in errors.into_iter().enumerate() {
        let error = error.expect_err("no bucket");
        assert_eq!(error.class, Failure::Unreachable, "{number}: {error:?}");
        assert!(error.hint.expect("a hint").contains("bucket"));
    }
}

/// Runs one test of this program again, in a process with another environment.
fn run_as_child(test: &str, change: impl FnOnce(&mut std::process::Command)) {
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", test, "--nocapture"])
        .env("LARDER_TEST_CHILD", "1");
    change(&mut command);
    let output = command.output().expect("running");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn wrong_credentials_are_denied() {
    let Some(endpoint) = setting("LARDER_TEST_S3_CEPH", "wrong_credentials_are_denied") else {
        return;
    };
    if std::env::var_os("LARDER_TEST_CHILD").is_none() {
        for (name, value) in [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "NOBODY")] {
            run_as_child("contract::wrong_credentials_are_denied", |command| {
                command.env(name, value);
            });
        }
        return;
    }
    let store = S3Store::open(&bucket(), "x", &options(&endpoint)).expect("opening");
    let snap = key("snap/00");
    let errors = [
        store.create(&snap, Bytes::from_static(b"x")).map(|_| ()),
        store.read(&snap, Part::Whole).map(|_| ()),
        store.stat(&snap).map(|_| ()),
        store.list(&Prefix::new("").expect("a prefix"), &mut |_| {}),
        store.remove(&[snap.clone(), key("snap/01")]),
    ];
    for error in errors {
        let error = error.expect_err("wrong credentials");
        assert_eq!(error.class, Failure::Denied, "{error:?}");
        assert!(error.hint.expect("a hint").contains("credentials"));
    }
}

#[test]
fn missing_credentials_are_named() {
    if std::env::var_os("LARDER_TEST_CHILD").is_none() {
        run_as_child("contract::missing_credentials_are_named", |command| {
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with("AWS_") {
                    command.env_remove(name);
                }
            }
            // As on a machine outside of clouds, only sooner.
            command
                .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1/")
                .env("HOME", "/nonexistent");
        });
        return;
    }
    let error = S3Store::open("bucket", "", &options("http://127.0.0.1:9")).expect_err("no credentials");
    assert_eq!(error.class, Failure::Denied, "{error:?}");
    assert!(error.hint.as_ref().expect("a hint").contains("AWS_ACCESS_KEY_ID"));
    let said = error.source.expect("a reason").to_string();
    assert!(
        said.starts_with("no credentials were found") && said.len() < 200 && !said.contains('{'),
        "{said}"
    );
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_behind() {
    let place = tempfile::tempdir().expect("a directory");
    let mount = |arguments: &[&str]| {
        std::process::Command::new("mount")
            .args(arguments)
            .arg(place.path())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"]) {
        eprintln!("SKIPPED: a_full_disk_is_told_and_leaves_nothing_behind: cannot mount here");
        return;
    }
    let store = open(
        &Location::Directory(place.path().to_path_buf()),
        &StoreOptions::default(),
    )
    .expect("opening");
    // But for the room that is kept for pruning.
    let left_behind = || {
        let listed = std::fs::read_dir(place.path().join("tmp")).expect("listing");
        let names = listed.map(|entry| entry.expect("an entry").file_name());
        names.filter(|name| name != "reserve").count()
    };
    let check = || {
        store.prepare().expect("preparing");
        let big = store
            .create(&key("data/00/big"), contract::noise(1, 16 << 20))
            .expect_err("no room");
        assert_eq!(big.class, Failure::Full, "{big:?}");
        assert!(big.hint.expect("a hint").contains("16777216 bytes"));
        assert_eq!(left_behind(), 0);
        // Small ones are not reserved first.
        let full = (0..100).find_map(|number| {
            store
                .create(&key(&format!("data/00/{number:04}")), contract::noise(number, 900_000))
                .err()
        });
        assert_eq!(full.expect("no room").class, Failure::Full);
        assert_eq!(left_behind(), 0);
        let mut sizes = Vec::new();
        store
            .list(&Prefix::new("data/").expect("a prefix"), &mut |row| {
                sizes.push(row.size)
            })
            .expect("listing");
        assert!(
            sizes.len() > 5 && sizes.iter().all(|size| *size == 900_000),
            "nothing half written has a name"
        );
        assert!(mount(&["-o", "remount,ro"]));
        let error = store
            .create(&key("snap/00"), Bytes::from_static(b"x"))
            .expect_err("read-only");
        assert_eq!(error.class, Failure::ReadOnly);
        assert_eq!(
            store.remove(&[key("data/00/0000")]).expect_err("read-only").class,
            Failure::ReadOnly
        );
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    let _ = std::process::Command::new("umount").arg(place.path()).status();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_place_that_holds_something_else_is_not_prepared() {
    let test = "a_place_that_holds_something_else_is_not_prepared";
    let Some(endpoint) = setting("LARDER_TEST_S3_CEPH", test) else {
        return;
    };
    let prefix = place(test);
    let open = |prefix: &str| S3Store::open(&bucket(), prefix, &options(&endpoint)).expect("opening");
    let inner = open(&format!("{prefix}/photos"));
    let (photo, config) = (key("one.jpg"), key("config/00000000"));
    assert_eq!(
        inner.create(&photo, Bytes::from_static(b"x")).expect("creating"),
        Created::New
    );
    let store = open(&prefix);
    assert_eq!(store.prepare().expect_err("somebody's place").class, Failure::Permanent);
    assert_eq!(
        store.create(&config, Bytes::from_static(b"x")).expect("creating"),
        Created::New
    );
    store.prepare().expect("a repository");
    store.remove(&[config]).expect("removing");
    inner.remove(&[photo]).expect("removing");
}

#[test]
fn plain_http_to_another_machine_is_refused() {
    let error = S3Store::open("bucket", "", &options("http://192.0.2.1:9000")).expect_err("plain http");
    assert_eq!(error.class, Failure::Permanent);
    assert!(error.hint.expect("a hint").contains("https"));
}

#[test]
fn a_store_that_is_not_there_is_given_up_in_time() {
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    if std::env::var("AWS_ACCESS_KEY_ID").is_err() {
        eprintln!("SKIPPED: a_store_that_is_not_there_is_given_up_in_time: AWS_ACCESS_KEY_ID is not set");
        return;
    }
    let retry = RetryOptions {
        patience_at_first: Duration::from_millis(300),
        ..RetryOptions::default()
    };
    let store = open_at(
        "absent",
        &StoreOptions {
            retry,
            ..options(&format!("http://{address}"))
        },
    );
    let error = store.stat(&key("snap/00")).expect_err("nobody there");
    assert_eq!(error.class, Failure::Transient);
}

/// Answers every connection with the same bytes, then closes it; or says nothing at all.
fn impostor(answer: Option<&'static str>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            match answer {
                None => kept.push(stream),
                Some(answer) => {
                    let mut request = [0u8; 16384];
                    let _ = stream.read(&mut request);
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
        }
    });
    format!("http://{address}")
}

fn needs_credentials(test: &str) -> bool {
    setting("AWS_ACCESS_KEY_ID", test).is_some()
}

#[test]
fn a_log_in_page_is_not_taken_for_a_store() {
    if !needs_credentials("a_log_in_page_is_not_taken_for_a_store") {
        return;
    }
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 33\r\nConnection: close\r\n\r\n<html><body>Log in</body></html>\n";
    let endpoint = impostor(Some(page));
    let store = S3Store::open("bucket", "", &options(&endpoint)).expect("opening");
    let snap = key("snap/00");
    let errors = [
        store.create(&snap, Bytes::from_static(b"x")).map(|_| ()),
        store.read(&snap, Part::Whole).map(|_| ()),
        store.read(&snap, Part::Range(0..5)).map(|_| ()),
        store.stat(&snap).map(|_| ()),
        store.list(&Prefix::new("").expect("a prefix"), &mut |_| {}),
        store.prepare(),
    ];
    for (number, error) in errors.into_iter().enumerate() {
        let error = error.expect_err("not a store");
        assert_eq!(error.class, Failure::Protocol, "{number}: {error:?}");
    }
}

#[test]
fn an_empty_answer_is_not_an_empty_listing() {
    if !needs_credentials("an_empty_answer_is_not_an_empty_listing") {
        return;
    }
    for body in [
        "Content-Length: 0\r\n\r\n",
        "Content-Length: 57\r\n\r\n<ListBucketResult><Name>bucket</Name></ListBucketResult>\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nConnection: close\r\n{body}");
        let endpoint = impostor(Some(Box::leak(answer.into_boxed_str())));
        let store = S3Store::open("bucket", "", &options(&endpoint)).expect("opening");
        let error = store
            .list(&Prefix::new("").expect("a prefix"), &mut |_| {})
            .expect_err("no listing");
        assert!(
            matches!(error.class, Failure::Protocol | Failure::Transient),
            "{error:?}"
        );
    }
}

#[test]
fn redirects_are_not_followed() {
    if !needs_credentials("redirects_are_not_followed") {
        return;
    }
    let answer = "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://169.254.169.254/\r\nx-amz-bucket-region: eu-west-1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let store = S3Store::open("bucket", "", &options(&impostor(Some(answer)))).expect("opening");
    let error = store.read(&key("snap/00"), Part::Whole).expect_err("a redirect");
    assert_eq!(error.class, Failure::Permanent);
    assert!(error.hint.expect("a hint").contains("eu-west-1"));
    assert_eq!(store.requests(), 1);
}

#[test]
fn a_silent_store_is_noticed() {
    if !needs_credentials("a_silent_store_is_noticed") {
        return;
    }
    let short = StoreOptions {
        stall_timeout: Duration::from_millis(200),
        ..options(&impostor(None))
    };
    let store = S3Store::open("bucket", "", &short).expect("opening");
    // More than the sockets' buffers hold, so that the upload itself stands still.
    let body = contract::noise(1, 32 << 20);
    let errors = [
        store.create(&key("snap/00"), body).map(|_| ()),
        store.read(&key("snap/00"), Part::Whole).map(|_| ()),
    ];
    for error in errors {
        assert_eq!(error.expect_err("silence").class, Failure::Transient);
    }
}

/// A store that takes every object and says yes, keeps `kept` bytes of each, and answers a PUT with these headers as well.
fn forgetful(kept: usize, headers: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = [0u8; 16384];
            let length = stream.read(&mut request).unwrap_or(0);
            let (headers, length) = if request[..length].starts_with(b"PUT") {
                (headers, 0)
            } else {
                ("", kept)
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nx-amz-request-id: 1\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn a_store_that_says_nothing_of_the_checksum_is_asked_what_it_kept() {
    let test = "a_store_that_says_nothing_of_the_checksum_is_asked_what_it_kept";
    if std::env::var_os("LARDER_TEST_CHILD").is_none() {
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        return run_as_child(&format!("contract::{test}"), |command| {
            for key in keys {
                command.env(key, "key");
            }
        });
    }
    let create = |endpoint: &str| {
        let store = S3Store::open("bucket", "", &options(endpoint)).expect("opening");
        let created = store.create(&key("snap/00"), Bytes::from_static(b"123456789"));
        (created, store.requests())
    };
    // CRC-64/NVME of these nine bytes, from the catalogue of checksums: ae8b14860a799888.
    let right = "x-amz-checksum-crc64nvme: rosUhgp5mIg=\r\n";
    let (created, requests) = create(&forgetful(9, right));
    assert_eq!((created.expect("verified"), requests), (Created::New, 1));
    let (created, requests) = create(&forgetful(9, ""));
    assert_eq!((created.expect("the size is right"), requests), (Created::New, 2));
    for endpoint in [
        forgetful(5, ""),
        forgetful(9, "x-amz-checksum-crc64nvme: AAAAAAAAAAA=\r\n"),
    ] {
        let error = create(&endpoint).0.expect_err("something else was kept");
        assert_eq!(error.class, Failure::Permanent, "{error:?}");
        assert!(error.hint.expect("a hint").contains("cuts"));
    }
}

/// Sets the proxy's faults and returns what it says.
fn set_faults(admin: &str, faults: &str) -> String {
    let mut stream = std::net::TcpStream::connect(admin).expect("the proxy's controls");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: proxy\r\nContent-Length: {}\r\n\r\n{faults}",
        faults.len()
    );
    stream.write_all(request.as_bytes()).expect("setting faults");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the proxy's answer");
    answer
}

#[test]
fn a_bad_network_delays_but_changes_nothing() {
    let test = "a_bad_network_delays_but_changes_nothing";
    let (Some(endpoint), Some(admin)) = (
        setting("LARDER_TEST_PROXY", test),
        setting("LARDER_TEST_PROXY_ADMIN", test),
    ) else {
        return;
    };
    let retry = RetryOptions {
        wait_first: Duration::from_millis(5),
        wait_max: Duration::from_millis(100),
        patience: Duration::from_secs(60),
        ..RetryOptions::default()
    };
    // Chances count per connection, so connections are kept short.
    let faults = [
        r#"{"http503_pct": 40, "reset_down": 100000, "seed": 1}"#,
        r#"{"reset_pct": 40, "reset_down": 100000, "seed": 2}"#,
        r#"{"lost_reply_pct": 40, "reset_down": 100000, "seed": 3}"#,
        // Every connection ends after so many bytes from the server, or to it.
        r#"{"reset_down": 20000, "seed": 4}"#,
        r#"{"reset_up": 1300000, "seed": 5}"#,
        r#"{"hang_down": 700000, "seed": 6}"#,
        r#"{"http503_pct": 10, "reset_pct": 10, "lost_reply_pct": 10, "reset_down": 50000, "latency_ms": 2, "seed": 7}"#,
    ];
    for fault in faults {
        set_faults(&admin, "{}");
        let store = open_at(
            "proxy",
            &StoreOptions {
                retry,
                stall_timeout: Duration::from_secs(1),
                ..options(&endpoint)
            },
        );
        let started = std::time::Instant::now();
        set_faults(&admin, fault);
        let bodies: Vec<Bytes> = (0..24)
            .map(|number| contract::noise(number, if number % 6 == 0 { 1 << 20 } else { 3000 }))
            .collect();
        std::thread::scope(|scope| {
            for lane in 0..4 {
                let (store, bodies) = (&store, &bodies);
                scope.spawn(move || {
                    for number in (lane..bodies.len()).step_by(4) {
                        let key = key(&format!("data/00/{number:04}"));
                        let created = store.create(&key, bodies[number].clone()).expect("creating");
                        assert_eq!(created, Created::New, "nobody else is here: {fault}");
                        assert!(
                            store.read(&key, Part::Whole).expect("reading") == bodies[number],
                            "{fault}"
                        );
                    }
                });
            }
        });
        let mut rows = Vec::new();
        store
            .list(&Prefix::new("data/").expect("a prefix"), &mut |row| rows.push(row.size))
            .expect("listing");
        assert_eq!(rows, bodies.iter().map(|body| body.len() as u64).collect::<Vec<_>>());
        let requests = store.requests();
        let keys: Vec<StoreKey> = (0..bodies.len())
            .map(|number| key(&format!("data/00/{number:04}")))
            .collect();
        store.remove(&keys).expect("removing");
        let answer = set_faults(&admin, "{}");
        let stats = answer.rsplit("\"stats\":").next().unwrap_or_default();
        eprintln!(
            "{fault}: {requests} requests for 49 calls in {:.1} s; proxy so far: {stats}",
            started.elapsed().as_secs_f64()
        );
    }
}
