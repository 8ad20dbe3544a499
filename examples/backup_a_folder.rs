//! Backs a folder up into a local repository through the library, making the repository when there is none.
//!
//! `cargo run --release --example backup_a_folder -- REPOSITORY FOLDER`

use larder::edge::store::{Store, local::LocalStore};
use larder::ops::{Progress, backup};
use larder::pure::base::memory::IndexShare;
use larder::pure::crypto::kdf::Cost;
use larder::repo::open::{self, Credential, LocalOptions};
use larder::source::files::{ExcludesBuilder, WalkOptions};
use std::path::PathBuf;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(place), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("give a place for the repository and a folder".into());
    };
    let password = std::env::var("LARDER_PASSWORD")?;
    let credential = Credential::Password(password.into_bytes().into());
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(&place, true));
    if !place.exists() {
        open::init(&*store, &credential, Cost::DEFAULT)?;
    }
    let local = LocalOptions {
        cache_dir: place.with_extension("cache"),
        index: IndexShare::with_filter(64 << 20),
        node_cache_bytes_max: 256 << 20,
    };
    let repo = open::connect(store, local)?.unlock(&credential)?;
    let input = backup::Input::Paths {
        roots: vec![std::path::absolute(&folder)?],
        walk: WalkOptions::default(),
        excludes: ExcludesBuilder::default(),
    };
    let options = backup::Options {
        host: larder::edge::host::host_name(),
        label: folder.to_string_lossy().into_owned(),
        tags: vec![],
        parent: backup::ParentChoice::Newest,
        threads: larder::edge::host::cpu_count(),
        uploads: 2,
        zstd_level: None,
        deltas: true,
        checkpoints: Some(backup::Interval::DEFAULT),
        dry_run: false,
    };
    let report = backup::run(&repo, input, &options, &Progress::default())?;
    println!("{report:#?}");
    Ok(())
}
