//! Fences around the house: what `docs/architecture.md` and `CONTRIBUTING.md` promise about the files of this repository.
//!
//! Every fence is a function from texts to a list of offenders, a test that runs it over the repository, and an offender
//! planted in `fences_catch_planted_offenders`, so that a fence which has gone blind is noticed. Only files are read: to
//! try a change here without building the crate, `rustc --test --edition 2024 tests/it/tidy.rs` is enough.
//!
//! A list of known offenders is a ratchet: it may only become shorter, and a test fails when it could be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Rings from the inside out. A file may use its own folder and every ring before its own.
const RINGS: &[&[&str]] = &[&["pure"], &["edge"], &["repo", "source", "target"], &["ops"], &["cli"]];

/// Layers inside `pure`, from the inside out. A module may use itself and every layer before its own.
const PURE_LAYERS: &[&[&str]] = &[
    &["base"],
    &["id"],
    &["chunk", "crypto", "compress"],
    &["format"],
    &["tree", "protocol", "plan"],
];

/// What `pure` may not name: the outside comes in as arguments.
const IMPURE: &[&[&str]] = &[
    &["std", "fs"],
    &["std", "io"],
    &["std", "os"],
    &["std", "net"],
    &["std", "env"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "time", "SystemTime"],
    &["std", "time", "Instant"],
    &["SystemTime"],
    &["Instant"],
    &["getrandom"],
    &["crossbeam_channel"],
    &["parking_lot"],
    &["tempfile"],
    &["rusqlite"],
    &["tokio"],
    &["rustix"],
    &["aws_config"],
    &["aws_sdk_s3"],
    &["aws_smithy_types"],
    &["aws_smithy_runtime_api"],
];

/// … except these, which are memory only.
const PURE_ALL_THE_SAME: &[&[&str]] = &[&["std", "io", "Cursor"]];

/// Files that may contain `unsafe`, each with its reason.
const UNSAFE_ALLOWED: &[(&str, &str)] = &[];

/// Files that may print: `cli/output.rs`, and `main.rs` for what goes wrong before there is an output.
const PRINTERS: &[&str] = &["src/cli/output.rs", "src/main.rs"];

/// Names that say nothing about what is in a file.
const BANNED_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "manager", "misc"];

/// Groups of modules (two levels deep) that use each other in a circle today.
const KNOWN_MODULE_CYCLES: &[&str] = &[];

/// Groups of files that use each other in a circle today.
const KNOWN_FILE_CYCLES: &[&str] = &[
    "edge::store::location, edge::store::s3",
    "ops::backup::plan, ops::backup::work",
    "pure::crypto::keys, pure::crypto::seal, pure::crypto::slot",
    "pure::format::entry, pure::format::list",
    "repo::index::catalog, repo::index::lookup, repo::index::memory",
    "source::files::ahead, source::files::walk",
];

// ---------------------------------------------------------------- the fences

#[test]
fn imports_point_inward() {
    none(
        wrong_imports(sources()),
        "imports point inward only (docs/architecture.md); move the wanted thing further in",
    );
}

#[test]
fn pure_layers_point_inward() {
    none(
        wrong_layers(sources()),
        "inside src/pure: base, id, then chunk | crypto | compress, format, tree | protocol | plan",
    );
}

#[test]
fn pure_names_nothing_outside() {
    none(
        impure_names(sources()),
        "src/pure takes time, randomness, files and threads as arguments from edge",
    );
}

#[test]
fn modules_form_no_cycle() {
    ratchet(
        cycles(&Crate::new(sources()).between_modules()),
        KNOWN_MODULE_CYCLES,
        "two modules that need each other are one module, or have a third one inside them",
    );
}

#[test]
fn files_form_no_cycle() {
    ratchet(
        cycles(&Crate::new(sources()).between_files()),
        KNOWN_FILE_CYCLES,
        "two files that need each other are one file, or have a third one inside them",
    );
}

#[test]
fn unsafe_is_on_the_list() {
    let sources = sources();
    none(
        unlisted_unsafe(sources),
        "write it without `unsafe`, or give file and reason in UNSAFE_ALLOWED",
    );
    let idle: Vec<_> = UNSAFE_ALLOWED
        .iter()
        .filter(|(path, _)| {
            !sources
                .iter()
                .any(|source| source.path == *path && source.has_word("unsafe"))
        })
        .collect();
    assert!(idle.is_empty(), "take these out of UNSAFE_ALLOWED: {idle:?}");
}

#[test]
fn only_the_output_prints() {
    none(
        prints(sources()),
        "return a value or report a problem; cli/output.rs says it to the user",
    );
}

#[test]
fn nothing_is_unfinished() {
    none(
        unfinished(sources()),
        "no todo!(), unimplemented!(), dbg!() or unwrap() outside tests; say expect(\"why it holds\")",
    );
}

#[test]
fn every_file_says_what_it_is() {
    none(
        silent_files(sources()),
        "the first line of a file is `//!` and says what the file does and why",
    );
}

#[test]
fn format_files_name_their_chapter() {
    none(
        chapterless(sources(), &chapters()),
        "the `//!` of a file in src/pure/format names its chapter: format-spec/NN-name.md or \"format-spec chapter on …\"",
    );
}

#[test]
fn names_say_something() {
    none(banned_names(sources()), "name the file for what is in it");
}

#[test]
fn documents_named_in_code_exist() {
    none(
        missing_documents(sources(), &tracked()),
        "name a document of this repository",
    );
}

#[test]
fn no_file_is_forgotten() {
    let mut sources = rust_files("src");
    sources.extend(rust_files("tests/it"));
    none(
        forgotten(&sources),
        "declare it with `mod` in the file above it, or delete it",
    );
}

#[test]
fn no_machine_is_named() {
    let files = tracked()
        .into_iter()
        .filter_map(|path| Some((path.clone(), std::fs::read(root().join(&path)).ok()?)));
    none(
        files.flat_map(|(path, bytes)| machine_paths(&path, &bytes)).collect(),
        "use a path that everybody has",
    );
}

#[test]
fn links_in_documents_lead_somewhere() {
    let texts: BTreeMap<String, String> = tracked()
        .into_iter()
        .filter(|path| path.ends_with(".md"))
        .filter_map(|path| Some((path.clone(), std::fs::read_to_string(root().join(path)).ok()?)))
        .collect();
    let exists = |path: &str| root().join(path).exists();
    none(
        broken_links(&texts, &exists),
        "relative links in .md files name files, folders and headings that exist",
    );
}

#[test]
fn vector_cases_can_be_read() {
    let folder = root().join("format-spec/vectors/cases");
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("format-spec/vectors/cases can be listed") {
        let path = entry.expect("format-spec/vectors/cases can be listed").path();
        let name = path
            .file_name()
            .expect("listed files have names")
            .to_string_lossy()
            .into_owned();
        match path.extension().is_some_and(|extension| extension == "vec") {
            true => match std::fs::read_to_string(&path) {
                Ok(text) => wrong.extend(bad_case(&name, &text)),
                Err(error) => wrong.push(format!("{name}: {error}")),
            },
            false => wrong.push(format!("{name}: not a .vec file")),
        }
        count += 1;
    }
    none(
        wrong,
        "keys are explained at the head of format-spec/vectors/cases.py, which writes these files",
    );
    assert!(count > 100, "only {count} cases found: were they moved?");
}

#[test]
fn fences_catch_planted_offenders() {
    let one = |path: &str, text: &str| vec![Source::new(path, text)];
    let caught = |found: Vec<String>| assert_eq!(found.len(), 1, "{found:?}");
    let free = |found: Vec<String>| assert!(found.is_empty(), "{found:?}");

    caught(wrong_imports(&one("src/pure/a.rs", "use crate::edge::host;")));
    caught(wrong_imports(&one(
        "src/edge/a.rs",
        "use crate::{pure::id::X, repo::Repo};",
    )));
    caught(wrong_imports(&one(
        "src/repo/a.rs",
        "fn f() { crate::source::files::walk() }",
    )));
    caught(wrong_imports(&one("src/source/mod.rs", "use super::target::files;")));
    caught(wrong_imports(&one("src/repo/a.rs", "use crate::testing::sim;")));
    free(wrong_imports(&one("src/testing/a.rs", "use crate::{ops, cli, edge};")));
    free(wrong_imports(&one(
        "src/pure/a.rs",
        "// crate::edge\nconst A: &str = r#\"crate::edge\"#;",
    )));
    free(wrong_imports(&one(
        "src/pure/a.rs",
        "#[cfg(test)]\nmod tests {\n use crate::edge::host; }",
    )));
    caught(wrong_imports(&one(
        "src/pure/a.rs",
        "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::edge::host;",
    )));

    caught(wrong_layers(&one(
        "src/pure/format/a.rs",
        "use crate::pure::{id::A, tree::walk};",
    )));
    caught(wrong_layers(&one("src/pure/chunk/mod.rs", "use super::crypto::kh;")));
    free(wrong_layers(&one(
        "src/pure/tree/a.rs",
        "use crate::pure::{id, format::node, tree::key};",
    )));

    caught(impure_names(&one("src/pure/a.rs", "use std::{fs, sync::Arc};")));
    caught(impure_names(&one(
        "src/pure/a.rs",
        "fn f() { let _ = std::time::Instant::now(); }",
    )));
    caught(impure_names(&one("src/pure/a.rs", "use std::fs as files;")));
    free(impure_names(&one("src/pure/a.rs", "use std::time::Duration;")));
    free(impure_names(&one("src/pure/a.rs", "use std::io::Cursor;")));
    caught(impure_names(&one("src/pure/a.rs", "use std::io::{Cursor, Read};")));
    free(impure_names(&one("src/edge/a.rs", "use std::fs;")));

    let two = |first: (&str, &str), second: (&str, &str)| {
        vec![
            Source::new(first.0, first.1),
            Source::new(second.0, second.1),
            Source::new("src/repo/mod.rs", ""),
        ]
    };
    let both = two(
        ("src/repo/a.rs", "use super::b::B;"),
        ("src/repo/b.rs", "fn f(a: crate::repo::a::A) {}"),
    );
    caught(cycles(&Crate::new(&both).between_modules()));
    caught(cycles(&Crate::new(&both).between_files()));
    let inner = two(
        ("src/repo/i/a.rs", "use super::b::B;"),
        ("src/repo/i/b.rs", "use super::a::A;"),
    );
    free(cycles(&Crate::new(&inner).between_modules()));
    caught(cycles(&Crate::new(&inner).between_files()));
    let mut renamed = two(
        ("src/repo/a.rs", "use crate::repo::B;"),
        ("src/repo/b.rs", "use crate::repo::A;"),
    );
    renamed[2] = Source::new("src/repo/mod.rs", "pub use a::A; pub use b::{B};");
    caught(cycles(&Crate::new(&renamed).between_modules()));
    free(cycles(
        &Crate::new(&two(("src/repo/a.rs", "use super::b::B;"), ("src/repo/b.rs", ""))).between_modules(),
    ));

    caught(unlisted_unsafe(&one("src/edge/a.rs", "fn f() { unsafe { g() } }")));
    caught(prints(&one("src/ops/a.rs", "fn f() { eprintln!(\"x\"); }")));
    free(prints(&one("src/cli/output.rs", "fn f() { println!(\"x\"); }")));
    caught(unfinished(&one("src/ops/a.rs", "fn f() { todo!() }")));
    caught(unfinished(&one("src/ops/a.rs", "fn f() { g().unwrap(); }")));
    free(unfinished(&one("src/ops/a.rs", "fn f() { slot.unwrap(key); }")));
    free(unfinished(&one(
        "src/ops/a.rs",
        "fn f() { g().unwrap_or(1); }\n#[cfg(test)] mod tests { fn f() { g().unwrap() } }",
    )));
    free(unfinished(&[
        Source::new("src/ops/mod.rs", "#[cfg(any(test, feature = \"testing\"))]\npub mod a;"),
        Source::new("src/ops/a.rs", "fn f() { g().unwrap(); }"),
    ]));
    caught(unfinished(&[
        Source::new("src/ops/mod.rs", "#[cfg(not(test))]\npub mod a;"),
        Source::new("src/ops/a.rs", "fn f() { g().unwrap(); }"),
    ]));
    caught(silent_files(&one("src/ops/a.rs", "use std::io;\n//! late")));

    let chapters = ["08-run.md".to_owned()];
    caught(chapterless(&one("src/pure/format/a.rs", "//! Runs."), &chapters));
    caught(chapterless(
        &one("src/pure/format/a.rs", "//! Runs (format-spec chapter 9.1)."),
        &chapters,
    ));
    caught(chapterless(
        &one("src/pure/format/a.rs", "//! Runs (format-spec/09-run.md)."),
        &chapters,
    ));
    free(chapterless(
        &one("src/pure/format/a.rs", "//! Runs (format-spec/08-run.md)."),
        &chapters,
    ));
    free(chapterless(
        &one("src/pure/format/a.rs", "//! Runs (format-spec chapter 8.2)."),
        &chapters,
    ));

    caught(banned_names(&one("src/ops/util.rs", "")));
    caught(missing_documents(
        &one("src/ops/a.rs", "//! See gone.md §7."),
        &["docs/here.md".into()],
    ));
    free(missing_documents(
        &one("src/ops/a.rs", "//! See `docs/here.md`, here.md."),
        &["docs/here.md".into()],
    ));
    caught(forgotten(&[
        Source::new("src/lib.rs", "pub mod ops;"),
        Source::new("src/ops.rs", ""),
        Source::new("src/b.rs", ""),
    ]));

    caught(machine_paths("a.md", concat!("see /wo", "rk/x").as_bytes()));
    free(machine_paths("a.md", concat!("see net/wo", "rk/x").as_bytes()));

    let link = |text: &str| {
        BTreeMap::from([
            ("docs/a.md".to_owned(), text.to_owned()),
            ("docs/b.md".to_owned(), "# Some words: here\n".to_owned()),
        ])
    };
    let exists = |path: &str| path == "docs/b.md";
    caught(broken_links(&link("[x](c.md)"), &exists));
    caught(broken_links(&link("[x](b.md#none)"), &exists));
    free(broken_links(
        &link("[x](b.md#some-words-here), [y](../docs/b.md), [z](https://example.org)\n```\n[x](c.md)\n```"),
        &exists,
    ));

    let fails = |found: &[&str], known: &'static [&str]| {
        let found = found.iter().map(|name| format!("{name}\n    where")).collect();
        std::panic::catch_unwind(|| ratchet(found, known, "")).is_err()
    };
    assert!(!fails(&["a, b"], &["a, b"]));
    assert!(fails(&["a, b", "c, d"], &["a, b"]), "a new offender passes");
    assert!(fails(&[], &["a, b"]), "an offender that is gone stays on the list");

    caught(bad_case("a.vec", "kind: pack\nexpect: ok\nbytes: 00\n"));
    caught(bad_case("a.vec", "kind: pack\nexpect: maybe\nwhy: x\nbytes: 00\n"));
    caught(bad_case("a.vec", "kind: pack\nexpect: ok\nwhy: x\nbytes: 0\n"));
    free(bad_case("a.vec", "kind: pack\nexpect: ok\nwhy: x\nbytes: 00ff\n"));
}

fn none(found: Vec<String>, advice: &str) {
    assert!(found.is_empty(), "{advice}:\n{}", found.join("\n"));
}

/// Fails for offenders that are not known, and for known ones that are gone. Each offender begins with its name.
fn ratchet(found: Vec<String>, known: &[&str], advice: &str) {
    let is_named = |text: &String, name: &str| text.lines().next() == Some(name);
    let new: Vec<_> = found
        .iter()
        .filter(|text| !known.iter().any(|name| is_named(text, name)))
        .cloned()
        .collect();
    none(new, advice);
    let gone: Vec<_> = known
        .iter()
        .filter(|name| !found.iter().any(|text| is_named(text, name)))
        .collect();
    assert!(
        gone.is_empty(),
        "well done: now take these out of the list of known ones: {gone:?}"
    );
}

fn wrong_imports(sources: &[Source]) -> Vec<String> {
    let ring_of = |folder: &str| RINGS.iter().position(|ring| ring.contains(&folder));
    let tests = test_only(sources);
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| !tests.contains(&source.path)) {
        let Some(folder) = source.module.first() else { continue };
        let Some(here) = ring_of(folder) else { continue };
        for path in source.crate_paths() {
            let Some(wanted) = path.names.first() else { continue };
            let is_fine = wanted == folder || ring_of(wanted).is_some_and(|there| there < here);
            // A name that is no folder is an item of the crate's root, which is nobody's business here.
            if !is_fine && (ring_of(wanted).is_some() || wanted == "testing") {
                wrong.push(format!("{}:{}: uses {}", source.path, path.line, path.names.join("::")));
            }
        }
    }
    wrong
}

fn wrong_layers(sources: &[Source]) -> Vec<String> {
    let layer_of = |module: &str| PURE_LAYERS.iter().position(|layer| layer.contains(&module));
    let mut wrong = Vec::new();
    for source in sources {
        let [ring, module, ..] = source.module.as_slice() else {
            continue;
        };
        if ring != "pure" {
            continue;
        }
        let Some(here) = layer_of(module) else {
            wrong.push(format!("{}: give pure::{module} a place in PURE_LAYERS", source.path));
            continue;
        };
        for path in source.crate_paths() {
            let [ring, wanted, ..] = path.names.as_slice() else {
                continue;
            };
            if ring == "pure" && wanted != module && layer_of(wanted).is_some_and(|there| there >= here) {
                wrong.push(format!("{}:{}: uses {}", source.path, path.line, path.names.join("::")));
            }
        }
    }
    wrong
}

fn impure_names(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("src/pure/")) {
        for path in &source.paths {
            let begins_with = |name: &&[&str]| {
                path.names.len() >= name.len() && path.names.iter().zip(name.iter()).all(|(a, b)| a == b)
            };
            if IMPURE.iter().any(begins_with) && !PURE_ALL_THE_SAME.iter().any(begins_with) {
                wrong.push(format!(
                    "{}:{}: names {}",
                    source.path,
                    path.line,
                    path.names.join("::")
                ));
            }
        }
    }
    wrong
}

fn unlisted_unsafe(sources: &[Source]) -> Vec<String> {
    let listed = |source: &&Source| UNSAFE_ALLOWED.iter().any(|(path, _)| *path == source.path);
    let found = sources.iter().filter(|source| !listed(source));
    found
        .filter(|source| source.has_word("unsafe"))
        .map(|source| source.path.clone())
        .collect()
}

fn prints(sources: &[Source]) -> Vec<String> {
    let allowed = test_only(sources);
    let mut wrong = Vec::new();
    for source in sources
        .iter()
        .filter(|source| !PRINTERS.contains(&&*source.path) && !allowed.contains(&source.path))
    {
        for call in [["println", "!"], ["eprintln", "!"], ["print", "!"], ["eprint", "!"]] {
            wrong.extend(
                source
                    .calls_of(&call)
                    .map(|line| format!("{}:{line}: {}", source.path, call.concat())),
            );
        }
    }
    wrong
}

fn unfinished(sources: &[Source]) -> Vec<String> {
    let allowed = test_only(sources);
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| !allowed.contains(&source.path)) {
        // `key.unwrap(repo)` of a wrapped key is another word.
        for call in [
            &["todo", "!"][..],
            &["unimplemented", "!"],
            &["dbg", "!"],
            &["unwrap", "(", ")"],
        ] {
            wrong.extend(
                source
                    .calls_of(call)
                    .map(|line| format!("{}:{line}: {}", source.path, call.concat())),
            );
        }
    }
    wrong
}

fn silent_files(sources: &[Source]) -> Vec<String> {
    let is_silent = |source: &&Source| !source.text.starts_with("//! ") || source.text.starts_with("//! (to be");
    sources
        .iter()
        .filter(is_silent)
        .map(|source| source.path.clone())
        .collect()
}

/// Files in `pure/format` that name no chapter, or one that does not exist. `chapters` are file names, `NN-name.md`.
fn chapterless(sources: &[Source], chapters: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources
        .iter()
        .filter(|source| source.path.starts_with("src/pure/format/"))
    {
        let head: Vec<&str> = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        let head = head.join(" ").replace("//! ", "");
        let mut mentions = head.split("format-spec").skip(1).peekable();
        if mentions.peek().is_none() {
            wrong.push(format!("{}: names no chapter", source.path));
        }
        for after in mentions {
            let is_known = if let Some(path) = after.strip_prefix('/') {
                path.is_empty() || path.starts_with('`') || chapters.iter().any(|chapter| path.starts_with(&**chapter))
            } else if let Some(number) = after
                .trim_start()
                .strip_prefix("chapter ")
                .or_else(|| after.trim_start().strip_prefix("chapters "))
            {
                let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
                digits.is_empty()
                    || chapters
                        .iter()
                        .any(|chapter| chapter.starts_with(&format!("{digits:0>2}-")))
            } else {
                true
            };
            if !is_known {
                wrong.push(format!(
                    "{}: there is no format-spec{}",
                    source.path,
                    after.get(..24).unwrap_or(after)
                ));
            }
        }
    }
    wrong
}

fn banned_names(sources: &[Source]) -> Vec<String> {
    let is_banned = |source: &&Source| source.module.iter().any(|name| BANNED_NAMES.contains(&&**name));
    sources
        .iter()
        .filter(is_banned)
        .map(|source| source.path.clone())
        .collect()
}

/// Mentions of `*.md` in source files that are no path, and no end of a path, of a tracked file.
fn missing_documents(sources: &[Source], tracked: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || "./_-*".contains(c)));
            for word in words
                .map(|word| word.trim_matches('.'))
                .filter(|word| word.ends_with(".md") && !word.contains('*'))
            {
                let is_there = |path: &String| path == word || path.ends_with(&format!("/{word}"));
                if !tracked.iter().any(is_there) {
                    wrong.push(format!("{}:{}: {word}", source.path, index + 1));
                }
            }
        }
    }
    wrong
}

/// Files that no `mod` line leads to. `lib.rs` and `main.rs` are where looking begins.
fn forgotten(sources: &[Source]) -> Vec<String> {
    let mut declared = BTreeSet::new();
    for source in sources {
        let folder = match source.is_folder_file() {
            true => source.path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned(),
            false => source.path.trim_end_matches(".rs").to_owned(),
        };
        for name in &source.modules {
            declared.insert(format!("{folder}/{}.rs", name.name));
            declared.insert(format!("{folder}/{}/mod.rs", name.name));
        }
    }
    let is_start = |path: &str| path.ends_with("/lib.rs") || path.ends_with("/main.rs");
    sources
        .iter()
        .map(|source| source.path.clone())
        .filter(|path| !is_start(path) && !declared.contains(path))
        .collect()
}

/// Paths that exist on one machine only.
fn machine_paths(path: &str, bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut wrong = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for needle in [concat!("/wo", "rk/"), concat!("/ro", "ot/")] {
            let stands_alone = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}/".contains(c));
            if line.match_indices(needle).any(|(at, _)| stands_alone(at)) {
                wrong.push(format!("{path}:{}: {needle}", index + 1));
            }
        }
    }
    wrong
}

/// Links of documents (path → text) whose file or heading does not exist.
fn broken_links(texts: &BTreeMap<String, String>, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in texts {
        let mut is_code = false;
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            }
            for (at, _) in line.match_indices("](").filter(|_| !is_code) {
                let target = line[at + 2..].split([')', ' ']).next().unwrap_or("");
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (file, heading) = target
                    .split_once('#')
                    .map_or((target, None), |(file, heading)| (file, Some(heading)));
                let file = if file.is_empty() {
                    Some(path.clone())
                } else {
                    joined(path, file)
                };
                let is_there = file.as_ref().is_some_and(|file| {
                    (texts.contains_key(file) || exists(file))
                        && heading.is_none_or(|heading| {
                            texts.get(file).is_none_or(|text| headings(text).any(|h| h == heading))
                        })
                });
                if !is_there {
                    wrong.push(format!("{path}:{}: {target}", index + 1));
                }
            }
        }
    }
    wrong
}

/// `to`, seen from the folder of `from`; `None` when it leads out of the repository.
fn joined(from: &str, to: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in to.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Headings of a document as links name them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        kept.chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    })
}

fn bad_case(name: &str, text: &str) -> Vec<String> {
    case_defect(text)
        .map(|defect| format!("{name}: {defect}"))
        .into_iter()
        .collect()
}

/// What is wrong with a case file, if anything.
fn case_defect(text: &str) -> Option<String> {
    let mut keys = BTreeMap::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            return Some(format!("a line without a key: {line:.60}"));
        };
        if keys.insert(key, value.trim()).is_some() {
            return Some(format!("{key} twice"));
        }
    }
    for key in ["kind", "expect", "why", "bytes"] {
        match keys.get(key) {
            None => return Some(format!("no {key}")),
            Some(&"") if key != "bytes" => return Some(format!("{key} is empty")),
            Some(_) => {}
        }
    }
    if !["ok", "fail"].contains(&keys["expect"]) {
        return Some(format!("expect is ok or fail, not {}", keys["expect"]));
    }
    let bytes = keys["bytes"];
    let is_hex = bytes.len() % 2 == 0 && bytes.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!is_hex).then(|| "bytes is not hex".to_owned())
}

// ---------------------------------------------------------------- who uses whom

/// The files of the crate and their uses of each other.
struct Crate<'a> {
    sources: Vec<&'a Source>,
    modules: BTreeSet<Vec<String>>,
    /// What a module offers under its own name but has from elsewhere: (module, name) → path.
    offered: BTreeMap<(Vec<String>, String), Vec<String>>,
}

/// user → used → where.
type Uses = BTreeMap<String, BTreeMap<String, String>>;

impl<'a> Crate<'a> {
    fn new(all: &'a [Source]) -> Crate<'a> {
        let tests = test_only(all);
        let is_code = |source: &&Source| !source.module.is_empty() && !tests.contains(&source.path);
        let sources: Vec<&Source> = all.iter().filter(is_code).collect();
        let mut modules: BTreeSet<Vec<String>> = sources.iter().map(|source| source.module.clone()).collect();
        for source in &sources {
            modules.extend((1..source.module.len()).map(|len| source.module[..len].to_vec()));
        }
        let mut offered = BTreeMap::new();
        for source in &sources {
            for path in source.paths.iter().filter(|path| path.is_offered) {
                if let Some(absolute) = source.absolute(path, &modules) {
                    offered.insert((source.module.clone(), path.known_as.clone()), absolute);
                }
            }
        }
        Crate {
            sources,
            modules,
            offered,
        }
    }

    /// Returns the module in which the thing at `path` is written.
    fn home(&self, path: &[String]) -> Option<Vec<String>> {
        let mut path = path.to_vec();
        // More steps than any chain of `pub use` has; a circle of them does not compile.
        for _ in 0..8 {
            let len = (1..=path.len())
                .rev()
                .find(|&len| self.modules.contains(&path[..len]))?;
            let module = path[..len].to_vec();
            let Some(name) = path.get(len) else { return Some(module) };
            match self.offered.get(&(module.clone(), name.clone())) {
                Some(real) => path = real.iter().chain(&path[len + 1..]).cloned().collect(),
                None => return Some(module),
            }
        }
        None
    }

    fn uses(&self, name: impl Fn(&[String]) -> String, is_counted: impl Fn(&[String], &[String]) -> bool) -> Uses {
        let mut uses = Uses::new();
        for source in &self.sources {
            for path in source.paths.iter().filter(|path| !path.is_offered) {
                let Some(home) = source.absolute(path, &self.modules).and_then(|path| self.home(&path)) else {
                    continue;
                };
                let (user, used) = (name(&source.module), name(&home));
                if user != used && is_counted(&source.module, &home) {
                    let place = format!("{}:{}: {}", source.path, path.line, path.names.join("::"));
                    uses.entry(user).or_default().entry(used).or_insert(place);
                }
            }
        }
        uses
    }

    /// Uses between modules of the second level, such as `pure::format` and `repo::index`.
    fn between_modules(&self) -> Uses {
        // A module may use words of the folder that it lies in.
        self.uses(
            |module| module[..module.len().min(2)].join("::"),
            |_, home| home.len() > 1,
        )
    }

    /// Uses between files. A file that uses words of the folder it lies in (`super::Word`) makes no circle.
    fn between_files(&self) -> Uses {
        self.uses(
            |module| module.join("::"),
            |user, home| !user.starts_with(home) && !home.starts_with(user),
        )
    }
}

/// Everything that `start` uses, also through others.
fn reach<'a>(uses: &'a Uses, start: &'a String) -> BTreeSet<&'a String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(next) = open.pop() {
        open.extend(
            uses.get(next)
                .into_iter()
                .flat_map(BTreeMap::keys)
                .filter(|used| seen.insert(*used)),
        );
    }
    seen
}

/// Groups that use each other in a circle: the first line names the group, the others say where.
fn cycles(uses: &Uses) -> Vec<String> {
    let reached: BTreeMap<&String, BTreeSet<&String>> = uses.keys().map(|start| (start, reach(uses, start))).collect();
    let mut groups = BTreeSet::new();
    for (start, ends) in &reached {
        let group: Vec<&String> = ends
            .iter()
            .filter(|end| reached.get(*end).is_some_and(|back| back.contains(start)))
            .copied()
            .collect();
        if group.len() > 1 {
            groups.insert(group);
        }
    }
    let mut found = Vec::new();
    for group in groups {
        let mut lines = vec![group.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")];
        for (user, used) in uses.iter().filter(|(user, _)| group.contains(user)) {
            lines.extend(
                used.iter()
                    .filter(|(used, _)| group.contains(used))
                    .map(|(used, place)| format!("    {user} → {used}  {place}")),
            );
        }
        found.push(lines.join("\n"));
    }
    found
}

/// Files that are compiled for tests only: declared under `cfg(test)` or the feature `testing`, with all below them.
fn test_only(sources: &[Source]) -> BTreeSet<String> {
    let mut roots: Vec<Vec<String>> = vec![vec!["testing".to_owned()]];
    for source in sources {
        for module in source.modules.iter().filter(|module| module.is_for_tests) {
            roots.push(source.module.iter().chain([&module.name]).cloned().collect());
        }
    }
    let is_below = |source: &&Source| roots.iter().any(|root| source.module.starts_with(root));
    sources
        .iter()
        .filter(is_below)
        .map(|source| source.path.clone())
        .collect()
}

// ---------------------------------------------------------------- reading source files

/// A Rust file: its words without comments, and without what is compiled for tests only.
struct Source {
    path: String,
    text: String,
    /// `src/a/b.rs` and `src/a/b/mod.rs` → `["a", "b"]`; `lib.rs` and `main.rs` → `[]`.
    module: Vec<String>,
    tokens: Vec<Token>,
    paths: Vec<NamePath>,
    modules: Vec<Declared>,
}

#[derive(Clone, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// A path of names as it is written, groups taken apart.
struct NamePath {
    names: Vec<String>,
    /// The last name, or the one after `as`.
    known_as: String,
    line: usize,
    /// Part of a `pub use`.
    is_offered: bool,
}

/// `mod name;`
struct Declared {
    name: String,
    is_for_tests: bool,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let mut module: Vec<String> = path
            .trim_end_matches(".rs")
            .split('/')
            .skip(1)
            .map(str::to_owned)
            .collect();
        module.pop_if(|last| ["mod", "lib", "main"].contains(&&**last));
        let (tokens, modules) = without_tests(&tokens(text));
        let paths = name_paths(&tokens);
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            module,
            tokens,
            paths,
            modules,
        }
    }

    fn is_folder_file(&self) -> bool {
        ["/mod.rs", "/lib.rs", "/main.rs"]
            .iter()
            .any(|name| self.path.ends_with(name))
    }

    fn has_word(&self, word: &str) -> bool {
        self.tokens.iter().any(|token| token.text == word)
    }

    fn calls_of(&self, call: &[&str]) -> impl Iterator<Item = usize> {
        let is_call = move |some: &&[Token]| some.iter().zip(call).all(|(token, text)| token.text == *text);
        self.tokens.windows(call.len()).filter(is_call).map(|some| some[0].line)
    }

    /// Returns a path from the crate's root, if it leads into the crate.
    fn absolute(&self, path: &NamePath, modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
        let (first, rest) = path.names.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some(self.module.iter().chain(rest).cloned().collect()),
            "super" => {
                let ups = path.names.iter().take_while(|name| *name == "super").count();
                let base = self.module.get(..self.module.len().checked_sub(ups)?)?;
                Some(base.iter().chain(&path.names[ups..]).cloned().collect())
            }
            _ => {
                let below: Vec<String> = self.module.iter().chain([first]).cloned().collect();
                (modules.contains(&below) && !rest.is_empty()).then(|| below.iter().chain(rest).cloned().collect())
            }
        }
    }

    /// Returns all paths that lead into the crate, from its root.
    fn crate_paths(&self) -> impl Iterator<Item = NamePath> {
        self.paths.iter().filter_map(|path| {
            let names = self.absolute(path, &BTreeSet::new())?;
            Some(NamePath {
                names,
                known_as: path.known_as.clone(),
                line: path.line,
                is_offered: path.is_offered,
            })
        })
    }
}

/// Splits Rust into names, `::`, texts (with their quotes) and single characters. Comments and blanks go.
fn tokens(text: &str) -> Vec<Token> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(len) = quoted(rest) {
            found.push(Token {
                text: rest[..len].to_owned(),
                line,
            });
            len
        } else if is_name(first) {
            let len = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            found.push(Token {
                text: rest[..len].to_owned(),
                line,
            });
            len
        } else if rest.starts_with("::") {
            found.push(Token {
                text: "::".to_owned(),
                line,
            });
            2
        } else {
            if !first.is_whitespace() {
                found.push(Token {
                    text: first.to_string(),
                    line,
                });
            }
            first.len_utf8()
        };
        line += rest[..len].matches('\n').count();
        rest = &rest[len..];
    }
    found
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let step = match () {
            () if rest.starts_with("/*") => {
                depth += 1;
                2
            }
            () if rest.starts_with("*/") => {
                depth -= 1;
                2
            }
            () => rest.chars().next().map_or(1, char::len_utf8),
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at.min(text.len())
}

/// Length of the string or character literal that the text begins with, or of a lifetime's quote and name.
fn quoted(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(['"', '\'']) || (prefix.ends_with('r') && rest.starts_with('#')))
    })?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        if !rest[hashes..].starts_with('"') {
            return None; // r#name
        }
        let end = format!("\"{}", "#".repeat(hashes));
        let found = rest[hashes + 1..].find(&end)?;
        return Some(prefix.len() + hashes + 1 + found + end.len());
    }
    let quote = rest.chars().next()?;
    let mut inner = rest.char_indices().skip(1);
    if quote == '\'' {
        let second = rest.chars().nth(1)?;
        let is_literal = second == '\\' || rest.chars().nth(2) == Some('\'');
        if !is_literal {
            return Some(
                1 + rest[1..]
                    .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .unwrap_or(rest.len() - 1),
            );
        }
    }
    while let Some((at, c)) = inner.next() {
        match c {
            '\\' => {
                inner.next();
            }
            c if c == quote => return Some(prefix.len() + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// Takes out what is compiled for tests only, and notes `mod name;` lines.
fn without_tests(all: &[Token]) -> (Vec<Token>, Vec<Declared>) {
    let is = |at: usize, text: &str| all.get(at).is_some_and(|token| token.text == text);
    let mut kept = Vec::new();
    let mut modules = Vec::new();
    let mut is_for_tests = false;
    let mut at = 0;
    while at < all.len() {
        if is(at, "#") && is(at + 1, "[") {
            let end = closing(all, at + 1);
            let words: Vec<&str> = all[at..end].iter().map(|token| token.text.as_str()).collect();
            let names_tests =
                words.contains(&"test") || words.windows(3).any(|three| three == ["feature", "=", "\"testing\""]);
            is_for_tests |= words.get(2) == Some(&"cfg") && names_tests && !words.contains(&"not");
            at = end;
            continue;
        }
        let start = at;
        while is(at, "pub") || is(at, "(") && at > start {
            at = if is(at, "(") { closing(all, at) } else { at + 1 };
        }
        if is(at, "mod") && is(at + 2, ";") {
            modules.push(Declared {
                name: all[at + 1].text.clone(),
                is_for_tests,
            });
        }
        if is_for_tests {
            at = after_item(all, at);
            is_for_tests = false;
        } else {
            at = at.max(start + 1);
            kept.extend_from_slice(&all[start..at]);
        }
    }
    (kept, modules)
}

/// Where the bracket at `open` is closed, plus one.
fn closing(all: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in all.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    all.len()
}

/// Where the item, field or statement at `at` ends.
fn after_item(all: &[Token], mut at: usize) -> usize {
    const ITEMS: &[&str] = &[
        "fn",
        "mod",
        "use",
        "impl",
        "struct",
        "enum",
        "const",
        "static",
        "type",
        "trait",
        "unsafe",
        "extern",
        "async",
        "macro_rules",
    ];
    let is_item = all.get(at).is_some_and(|token| ITEMS.contains(&token.text.as_str()));
    while let Some(token) = all.get(at) {
        match token.text.as_str() {
            ";" => return at + 1,
            "," if !is_item => return at + 1,
            ")" | "]" | "}" => return at,
            // `use a::{b};` goes on after its braces, and so does a constant.
            "{" if is_item
                && all
                    .get(at.wrapping_sub(1))
                    .is_none_or(|before| before.text != "::" && before.text != "=") =>
            {
                return closing(all, at);
            }
            "(" | "[" | "{" => at = closing(all, at),
            _ => at += 1,
        }
    }
    at
}

fn name_paths(all: &[Token]) -> Vec<NamePath> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut is_offered = false;
    while at < all.len() {
        let before = at.checked_sub(1).map_or("", |before| all[before].text.as_str());
        match all[at].text.as_str() {
            // `pub use`, also `pub(crate) use`.
            "use" => is_offered = before == "pub" || before == ")",
            ";" => is_offered = false,
            _ => {}
        }
        if is_word(&all[at].text) && before != "::" && before != "." {
            at = path_tree(all, at, &mut Vec::new(), is_offered, &mut found);
        } else {
            at += 1;
        }
    }
    found
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_') && !text.contains('"') && !text.contains('\'')
}

/// Reads `a::b`, `a::{b, c::d as e}` or `a::*` from `at`, and returns where it ends.
fn path_tree(all: &[Token], at: usize, prefix: &mut Vec<String>, is_offered: bool, found: &mut Vec<NamePath>) -> usize {
    let text = |at: usize| all.get(at).map_or("", |token| token.text.as_str());
    if text(at) == "{" {
        let end = closing(all, at);
        let mut inner = at + 1;
        while inner + 1 < end {
            match is_word(text(inner)) || text(inner) == "*" {
                true => inner = path_tree(all, inner, &mut prefix.clone(), is_offered, found),
                false => inner += 1,
            }
        }
        return end;
    }
    // `a::{self}` is `a`.
    if text(at) != "self" || prefix.is_empty() {
        prefix.push(text(at).to_owned());
    }
    if text(at + 1) == "::" && (is_word(text(at + 2)) || ["{", "*"].contains(&text(at + 2))) {
        return path_tree(all, at + 2, prefix, is_offered, found);
    }
    let is_renamed = text(at + 1) == "as" && is_word(text(at + 2));
    let known_as = if is_renamed {
        text(at + 2)
    } else {
        prefix.last().map_or("", String::as_str)
    };
    found.push(NamePath {
        known_as: known_as.to_owned(),
        names: prefix.clone(),
        line: all[at].line,
        is_offered,
    });
    if is_renamed { at + 3 } else { at + 1 }
}

// ---------------------------------------------------------------- the repository

fn root() -> PathBuf {
    // Without cargo (see above), from where it is called.
    option_env!("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

fn sources() -> &'static [Source] {
    static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| rust_files("src"));
    let found = &*SOURCES;
    assert!(
        found.len() > 50,
        "only {} source files found: were they moved?",
        found.len()
    );
    found
}

fn rust_files(folder: &str) -> Vec<Source> {
    let files = files_below(&root().join(folder));
    let rust = files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| {
        let name = path
            .strip_prefix(root())
            .expect("found below the root")
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&path).expect("source files can be read");
        Source::new(&name, &text)
    })
    .collect()
}

fn chapters() -> Vec<String> {
    let files = files_below(&root().join("format-spec"));
    files
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".md"))
        .collect()
}

/// Names of all files under version control; of all files, where there is no git.
fn tracked() -> Vec<String> {
    let listed = std::process::Command::new("git")
        .arg("-C")
        .arg(root())
        .args(["ls-files", "-z"])
        .output();
    match listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
        _ => files_below(&root())
            .iter()
            .map(|path| {
                path.strip_prefix(root())
                    .expect("found below the root")
                    .to_string_lossy()
                    .into_owned()
            })
            .collect(),
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        let entries = std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display()));
        for entry in entries {
            let path = entry.expect("folders can be listed").path();
            let name = path
                .file_name()
                .expect("listed files have names")
                .to_string_lossy()
                .into_owned();
            match path.is_dir() {
                true if name.starts_with('.') || name == "target" || name == "__pycache__" => {}
                true => open.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    found
}
