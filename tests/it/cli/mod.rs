//! The program as scripts and people meet it: words, exit codes, JSON.

mod bad_input;
mod commands;
mod doctor;
mod forget;
mod interrupted;
mod limits;
mod object_lock;
mod owners;
mod paper;
mod parity;
mod replicate;

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A place with a home, a cache, a source and room for repositories.
pub struct Place {
    dir: TempDir,
    pub password: String,
}

/// What a run of the program came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    /// Makes a place with some files in `source`, and no repository.
    pub fn new() -> Place {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
            password: "correct horse".into(),
        };
        for name in ["home", "source/sub"] {
            std::fs::create_dir_all(place.path(name)).unwrap();
        }
        std::fs::write(place.path("source/letter.txt"), "dear all").unwrap();
        std::fs::write(place.path("source/sub/numbers.bin"), noise(300_000)).unwrap();
        std::os::unix::fs::symlink("letter.txt", place.path("source/link")).unwrap();
        place
    }

    /// Makes a place with a repository.
    pub fn with_repository() -> Place {
        let place = Place::new();
        place.run(&["repo", "init"]).expect(0);
        place
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Prepares a run in this place, with nothing of the tester's own environment.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("TZ", "UTC")
            .env("LARDER_REPO", self.path("repo"))
            .env("LARDER_CACHE_DIR", self.path("cache"))
            .env("LARDER_PASSWORD", &self.password)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }

    /// Backs the source up and returns the id of the snapshot.
    pub fn backup(&self) -> String {
        let ran = self.run(&["backup", "source", "--json"]);
        ran.expect(0);
        ran.json()["snapshot"].as_str().unwrap().to_owned()
    }

    /// The stored objects under a folder of the repository.
    pub fn objects(&self, under: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.path("repo").join(under)];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path())
                } else {
                    found.push(entry.path())
                }
            }
        }
        found.sort();
        found
    }
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Ran {
    /// Fails the test unless the exit code is this one, and no panic was seen.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Ran {
        assert_eq!(self.code, code, "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    /// Fails the test unless the errors contain these words.
    #[track_caller]
    pub fn says(&self, words: &str) -> &Ran {
        assert!(self.stderr.contains(words), "{words:?} is not in {self:?}");
        self
    }

    /// The last line of the output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.stdout.lines().last().unwrap_or_default())
            .unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Bytes that do not compress, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
