//! How a ceiling of memory is divided (`--memory`): what a backup, a restore or a check may hold at once follows from it.
//!
//! Everything that grows with a setting has its share: packs being filled, waiting and uploaded, what each worker holds,
//! spans being fetched, page caches, the index's filter. The rest is [`PROGRAM`], measured.

const MIB: u64 = 1 << 20;

/// What everything else takes: the program, connections, names of directories, open tree nodes. Measured: 15 MiB for a
/// small backup into a directory; TLS, a million names and nodes read ahead are the rest.
const PROGRAM: u64 = 40 * MIB;
/// Smallest ceiling: a backup with one thread and chunks of 4 MiB fits, and so does deriving a key from a password.
pub const CEILING_MIN: u64 = 144 * MIB;
/// Without a ceiling, what all packs of a backup into a directory take together where threads are few. Measured: a disk gains
/// nothing from packs larger than this gives …
const PACKS_IN_DIRECTORY: u64 = 40 * MIB;
/// … while a remote store is paid by the request.
const PACKS_REMOTE: u64 = 256 * MIB;
/// Packs below this cost so many requests that fewer threads are the better choice.
const PACK_BYTES_GOOD: u64 = 8 * MIB;
/// Largest filter that the index makes without a ceiling: a false answer in a hundred at 200 million chunks.
const FILTER_BYTES_MAX: u64 = 256 * MIB;
/// Page caches without a ceiling: index 20 MiB and three readers of 4 MiB, tree nodes 12 MiB. What is not in them is in the
/// system's cache, a few microseconds away.
const PAGE_CACHES: u64 = 44 * MIB;
/// A span to fetch that is worth a request.
const SPAN_BYTES_GOOD: u64 = 2 * MIB;

/// The ceiling is too low for what is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} of memory are too little for this; {} are needed", super::size::format_bytes(*ceiling), super::size::format_bytes(*needed))]
pub struct TooSmall {
    pub ceiling: u64,
    /// Smallest ceiling that would do, bytes.
    pub needed: u64,
}

/// A ceiling that is large enough for the smallest way of working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling(u64);

/// What the local index may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexShare {
    pub filter_bytes_max: u64,
    /// All page caches together, KiB.
    pub page_caches_kib: u32,
}

impl IndexShare {
    /// Without a ceiling.
    pub const DEFAULT: IndexShare = IndexShare {
        filter_bytes_max: FILTER_BYTES_MAX,
        page_caches_kib: (PAGE_CACHES >> 10) as u32,
    };

    /// With another bound for the filter.
    pub const fn with_filter(filter_bytes_max: u64) -> IndexShare {
        IndexShare {
            filter_bytes_max,
            ..IndexShare::DEFAULT
        }
    }
}

/// What a backup would like, and what it cannot change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupNeeds {
    pub threads: usize,
    pub uploads: usize,
    /// Size of a data pack in the configuration.
    pub pack_bytes: u64,
    /// Data packs that are filled at once.
    pub lanes: usize,
    pub chunk_bytes_max: u64,
    pub zstd_level: u32,
    /// Whether deltas are wanted.
    pub deltas: bool,
}

/// How a backup keeps within the ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupShare {
    pub threads: usize,
    pub uploads: usize,
    pub pack_bytes: u64,
    /// Data packs that are filled at once.
    pub lanes: usize,
    /// Whether there is room for deltas.
    pub deltas: bool,
}

impl BackupNeeds {
    /// Returns how a backup works without a ceiling: as it would like, with packs that are no larger and no more than they are
    /// worth.
    pub fn usual_share(self, is_directory: bool) -> BackupShare {
        let (for_packs, uploads, lanes) = if is_directory {
            // One thread that opens and writes packs keeps up with two or three that fill one.
            let few = (self.threads / 4).max(1);
            (PACKS_IN_DIRECTORY, self.uploads.min(few), self.lanes.min(few))
        } else {
            (PACKS_REMOTE, self.uploads, self.lanes)
        };
        let each = for_packs / packs_at_once(lanes, uploads);
        BackupShare {
            threads: self.threads,
            uploads,
            pack_bytes: each.max(PACK_BYTES_GOOD).max(self.chunk_bytes_max).min(self.pack_bytes),
            lanes,
            deltas: self.deltas,
        }
    }
}

/// How a restore keeps within the ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchShare {
    pub workers: usize,
    /// Neighbouring chunks are fetched together up to this length.
    pub span_bytes: u64,
}

impl Ceiling {
    /// Takes a ceiling in bytes.
    ///
    /// # Errors
    /// When nothing works within it.
    pub fn new(bytes: u64) -> Result<Ceiling, TooSmall> {
        if bytes < CEILING_MIN {
            return Err(TooSmall {
                ceiling: bytes,
                needed: CEILING_MIN,
            });
        }
        Ok(Ceiling(bytes))
    }

    /// Returns the share of the local index.
    pub fn index(self) -> IndexShare {
        let sixteenth = self.0 / 16;
        IndexShare {
            filter_bytes_max: sixteenth.min(FILTER_BYTES_MAX),
            page_caches_kib: (sixteenth.min(PAGE_CACHES) >> 10) as u32,
        }
    }

    /// Returns what is left for the work itself. An eighth stays free: allocators do not give everything back.
    fn left(self) -> u64 {
        let index = self.index();
        (self.0 / 8 * 7).saturating_sub(PROGRAM + index.filter_bytes_max + (u64::from(index.page_caches_kib) << 10))
    }

    /// Says which ceiling would have been enough for `bytes` of work. Three quarters of a ceiling are left after the index,
    /// less the program; with more than 1.4 GiB even more.
    fn too_small(self, bytes: u64) -> TooSmall {
        TooSmall {
            ceiling: self.0,
            needed: ((bytes + PROGRAM) * 4 / 3).next_multiple_of(16 * MIB).max(CEILING_MIN),
        }
    }

    /// Divides what is left for a backup: first packs become smaller, then uploads fewer, then threads; then there are no
    /// deltas.
    ///
    /// # Errors
    /// When not even one thread fits.
    pub fn backup(self, needs: BackupNeeds) -> Result<BackupShare, TooSmall> {
        let without = BackupNeeds { deltas: false, ..needs };
        match self.divided(needs) {
            Err(_) if needs.deltas => self.divided(without),
            done => done,
        }
    }

    fn divided(self, needs: BackupNeeds) -> Result<BackupShare, TooSmall> {
        // A pack holds at least one chunk, whatever size it should have.
        let buffer_min = needs.chunk_bytes_max;
        let good = PACK_BYTES_GOOD.min(needs.pack_bytes).max(buffer_min);
        let (threads, uploads) = (needs.threads.max(1), needs.uploads.max(1));
        let fewer_uploads = (1..=uploads).rev().map(|uploads| (threads, uploads, good));
        let fewer_threads = (1..threads).rev().map(|threads| (threads, 1, good));
        let last = std::iter::once((1, 1, buffer_min));
        for (threads, uploads, buffer_least) in fewer_uploads.chain(fewer_threads).chain(last) {
            let Some(for_packs) = self.left().checked_sub(outside_of_packs(needs, threads, uploads)) else {
                continue;
            };
            let buffer = for_packs / packs_at_once(needs.lanes, uploads);
            if buffer >= buffer_least {
                return Ok(BackupShare {
                    threads,
                    uploads,
                    pack_bytes: buffer.min(needs.pack_bytes),
                    lanes: needs.lanes,
                    deltas: needs.deltas,
                });
            }
        }
        let least = outside_of_packs(needs, 1, 1) + packs_at_once(needs.lanes, 1) * buffer_min;
        Err(self.too_small(least))
    }

    /// Divides what is left for a restore between workers: first spans become smaller, then workers fewer.
    ///
    /// # Errors
    /// When not even one worker fits.
    pub fn fetch(self, wanted: FetchShare, chunk_bytes_max: u64) -> Result<FetchShare, TooSmall> {
        // A span is fetched into one buffer and copied to another where a store needs it; a chunk is opened into a third.
        // One chunk may be longer than a span.
        let each = |span: u64| 2 * span.max(chunk_bytes_max + MIB) + chunk_bytes_max;
        for workers in (1..=wanted.workers.max(1)).rev() {
            let mut span = wanted.span_bytes;
            loop {
                if workers as u64 * each(span) <= self.left() {
                    return Ok(FetchShare {
                        workers,
                        span_bytes: span,
                    });
                }
                if span <= SPAN_BYTES_GOOD {
                    break;
                }
                span /= 2;
            }
        }
        Err(self.too_small(each(SPAN_BYTES_GOOD)))
    }

    /// Returns how many threads may hold `bytes_each`.
    ///
    /// # Errors
    /// When not even one may.
    pub fn threads(self, threads: usize, bytes_each: u64) -> Result<usize, TooSmall> {
        let fit = self.left() / bytes_each.max(1);
        if fit == 0 {
            return Err(self.too_small(bytes_each));
        }
        Ok(threads.max(1).min(usize::try_from(fit).unwrap_or(usize::MAX)))
    }
}

/// How many packs of data a backup holds at once: those that are filled, one in each upload, and one that is full and waits.
pub fn data_packs_at_once(lanes: usize, uploads: usize) -> usize {
    lanes + uploads + 1
}

/// The same for packs of metadata: one that is filled, and one in an upload.
pub const META_PACKS_AT_ONCE: usize = 2;

fn packs_at_once(lanes: usize, uploads: usize) -> u64 {
    (data_packs_at_once(lanes, uploads) + META_PACKS_AT_ONCE) as u64
}

/// What workers and uploads hold beside packs.
fn outside_of_packs(needs: BackupNeeds, threads: usize, uploads: usize) -> u64 {
    let chunk = needs.chunk_bytes_max;
    // A window of a chunk and a read, one compressed, one sealed; one on offer, one being stored and one being handed over.
    let mut worker = 6 * chunk + MIB + zstd_bytes(needs.zstd_level);
    if needs.deltas {
        // A base as stored and in plain, two deltas, a chunk to compare with, and a second compression context.
        worker += 5 * chunk + zstd_bytes(1);
    }
    // Each upload opens the chunks of its pack again, one after the other.
    threads as u64 * worker + uploads as u64 * chunk
}

/// About what a compression context takes for chunks of 4 MiB: zstd's tables for each level.
fn zstd_bytes(level: u32) -> u64 {
    match level {
        0..=6 => 8 * MIB,
        7..=9 => 24 * MIB,
        10..=12 => 56 * MIB,
        _ => 96 * MIB,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: BackupNeeds = BackupNeeds {
        threads: 4,
        uploads: 3,
        pack_bytes: 32 * MIB,
        lanes: 2,
        chunk_bytes_max: 4 * MIB,
        zstd_level: 3,
        deltas: false,
    };

    fn backup(ceiling_mib: u64, needs: BackupNeeds) -> Result<BackupShare, TooSmall> {
        Ceiling::new(ceiling_mib * MIB)?.backup(needs)
    }

    fn held(ceiling_mib: u64, share: BackupShare, needs: BackupNeeds) -> u64 {
        let index = Ceiling(ceiling_mib * MIB).index();
        PROGRAM
            + index.filter_bytes_max
            + u64::from(index.page_caches_kib) * 1024
            + outside_of_packs(needs, share.threads, share.uploads)
            + packs_at_once(needs.lanes, share.uploads) * share.pack_bytes
    }

    #[test]
    fn packs_in_a_directory_are_smaller_and_never_tiny() {
        let with = |threads, pack_bytes| BackupNeeds {
            threads,
            pack_bytes,
            ..NEEDS
        };
        for threads in [1, 2, 4, 64] {
            let (near, far) = (
                with(threads, 32 * MIB).usual_share(true),
                with(threads, 32 * MIB).usual_share(false),
            );
            assert!((8 * MIB..20 * MIB).contains(&near.pack_bytes), "{near:?}");
            assert!(
                near.pack_bytes <= far.pack_bytes && far.pack_bytes <= 32 * MIB,
                "{far:?}"
            );
            assert_eq!(
                (near.threads, far.uploads, far.lanes),
                (threads, NEEDS.uploads, NEEDS.lanes)
            );
            assert!(
                (1..=NEEDS.uploads).contains(&near.uploads) && (1..=NEEDS.lanes).contains(&near.lanes),
                "{near:?}"
            );
        }
        assert_eq!(
            with(2, MIB).usual_share(true).pack_bytes,
            MIB,
            "asked for by the configuration"
        );
    }

    #[test]
    fn what_a_backup_holds_stays_below_every_ceiling() {
        for ceiling in (CEILING_MIN / MIB..2000).step_by(7) {
            for threads in [1, 2, 8, 64] {
                for (zstd_level, deltas) in [(3, false), (9, false), (3, true)] {
                    let needs = BackupNeeds {
                        threads,
                        zstd_level,
                        deltas,
                        ..NEEDS
                    };
                    let Ok(share) = backup(ceiling, needs) else {
                        assert!(zstd_level > 6, "the usual level works with every ceiling: {ceiling}");
                        continue;
                    };
                    let needs = BackupNeeds {
                        deltas: share.deltas,
                        ..needs
                    };
                    assert!(
                        held(ceiling, share, needs) <= ceiling * MIB / 8 * 7,
                        "{ceiling} {share:?}"
                    );
                    assert!((1..=threads).contains(&share.threads) && (1..=3).contains(&share.uploads));
                    assert!((4 * MIB..=32 * MIB).contains(&share.pack_bytes), "{ceiling} {share:?}");
                }
            }
        }
    }

    #[test]
    fn packs_shrink_before_uploads_and_these_before_threads() {
        let wanted = BackupShare {
            threads: 4,
            uploads: 3,
            pack_bytes: 32 * MIB,
            lanes: NEEDS.lanes,
            deltas: false,
        };
        assert_eq!(backup(1024, NEEDS), Ok(wanted), "a large ceiling changes nothing");
        let smaller = backup(512, NEEDS).unwrap();
        assert_eq!((smaller.threads, smaller.uploads), (4, 3));
        assert!(smaller.pack_bytes < 32 * MIB);
        let fewer = backup(310, NEEDS).unwrap();
        assert_eq!(fewer.threads, 4);
        assert!(fewer.uploads < 3, "{fewer:?}");
        let least = backup(CEILING_MIN / MIB, NEEDS).unwrap();
        assert_eq!((least.threads, least.uploads), (1, 1));
    }

    #[test]
    fn a_configuration_with_small_packs_keeps_them() {
        let needs = BackupNeeds {
            pack_bytes: MIB,
            ..NEEDS
        };
        assert_eq!(backup(300, needs).unwrap().pack_bytes, MIB);
    }

    #[test]
    fn what_is_said_to_be_needed_is_enough() {
        assert_eq!(
            Ceiling::new(CEILING_MIN - 1),
            Err(TooSmall {
                ceiling: CEILING_MIN - 1,
                needed: CEILING_MIN
            })
        );
        for zstd_level in [3, 9, 12, 19] {
            for chunk_bytes_max in [MIB, 4 * MIB, 16 * MIB] {
                let needs = BackupNeeds {
                    zstd_level,
                    chunk_bytes_max,
                    ..NEEDS
                };
                if let Err(error) = backup(CEILING_MIN / MIB, needs) {
                    assert!(Ceiling(error.needed).backup(needs).is_ok(), "{error:?} {needs:?}");
                }
            }
        }
        for pack in [32 * MIB, 128 * MIB, 1024 * MIB] {
            if let Err(error) = Ceiling(CEILING_MIN).threads(4, 2 * pack) {
                assert_eq!(Ceiling(error.needed).threads(4, 2 * pack), Ok(1), "{error:?}");
            }
        }
    }

    #[test]
    fn a_restore_fetches_less_at_once() {
        let wanted = FetchShare {
            workers: 8,
            span_bytes: 16 * MIB,
        };
        assert_eq!(Ceiling(2048 * MIB).fetch(wanted, 4 * MIB), Ok(wanted));
        for ceiling in CEILING_MIN / MIB..1000 {
            let ceiling = Ceiling(ceiling * MIB);
            let share = ceiling.fetch(wanted, 4 * MIB).unwrap();
            let held = share.workers as u64 * (2 * share.span_bytes.max(5 * MIB) + 4 * MIB);
            assert!(held <= ceiling.left(), "{ceiling:?} {share:?}");
            assert!(share.span_bytes >= SPAN_BYTES_GOOD);
        }
        assert_eq!(Ceiling(512 * MIB).threads(64, 68 * MIB), Ok(5));
    }
}
