//! Which index runs are worth uniting: a function of their levels and sizes (format-spec chapter 8.3).
//!
//! A machine that has no index asks every run, and everybody lists them all, so there should be few; but a large run should not be
//! written again for each small one. So runs are united with those of their level, when there are enough of them, into one of the next
//! level (the tiers of log-structured merge trees: O'Neil et al. 1996): each record is written once for each level, and there are
//! tens of runs, however many nights there were.

/// Runs of level 0 that are united …
pub const LEVEL_0_RUNS: usize = 32;
/// … or as soon as they have so many bytes.
pub const LEVEL_0_BYTES: u64 = 64 << 20;
/// Runs of a level above 0 that are united.
pub const LEVEL_RUNS: usize = 8;
/// All runs are united when more than this share of the packs that they describe is gone …
const GONE_SHARE: f64 = 0.25;
/// … or so many condemnations are kept only because runs still describe what they name.
const CONDEMNATIONS: usize = 64;
/// The format has no higher one.
const LEVEL_MAX: u8 = 9;

/// A run that counts and that none has absorbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunSize {
    pub level: u8,
    pub bytes: u64,
}

/// What the runs describe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Described {
    pub packs: u64,
    /// Those of them that were condemned and are not there any more.
    pub gone: u64,
    /// Condemnations of which nothing is there any more.
    pub condemnations: usize,
}

/// What to unite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Of the run that is made, 1 to 9.
    pub level: u8,
    /// Places in what was given, ascending.
    pub inputs: Vec<usize>,
}

/// Chooses the runs to unite, if any are worth it. `level_0_runs` is [`LEVEL_0_RUNS`] but in tests.
pub fn choose(runs: &[RunSize], described: &Described, level_0_runs: usize) -> Option<Compaction> {
    let highest = runs.iter().map(|run| run.level).max()?;
    let share = described.gone as f64 / described.packs.max(1) as f64;
    if described.gone > 0 && (share > GONE_SHARE || described.condemnations >= CONDEMNATIONS) {
        return Some(Compaction {
            level: highest.max(1),
            inputs: (0..runs.len()).collect(),
        });
    }
    let at = |level: u8| runs.iter().filter(move |run| run.level == level);
    let is_due = |level: u8, made: usize| match level {
        0 => {
            let bytes: u64 = at(0).map(|run| run.bytes).sum();
            let count = at(0).count();
            count >= level_0_runs || (count >= 2 && bytes >= LEVEL_0_BYTES)
        }
        _ => at(level).count() + made >= LEVEL_RUNS,
    };
    let first = (0..=highest).find(|level| is_due(*level, 0))?;
    // A run that makes a level full goes on to the next one at once.
    let mut last = first;
    while last < highest && is_due(last + 1, 1) {
        last += 1;
    }
    let inputs = runs.iter().enumerate();
    Some(Compaction {
        level: (last + 1).min(LEVEL_MAX),
        inputs: inputs
            .filter(|(_, run)| (first..=last).contains(&run.level))
            .map(|(place, _)| place)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: &[(u8, usize)]) -> Vec<RunSize> {
        let run = |(level, count): &(u8, usize)| {
            let run = RunSize {
                level: *level,
                bytes: 1_000,
            };
            std::iter::repeat_n(run, *count)
        };
        of.iter().flat_map(run).collect()
    }

    /// The levels of what is united, and that of what is made.
    fn chosen(of: &[(u8, usize)], described: Described) -> Option<(Vec<u8>, u8)> {
        let runs = runs(of);
        let chosen = choose(&runs, &described, LEVEL_0_RUNS)?;
        let mut levels: Vec<u8> = chosen.inputs.iter().map(|place| runs[*place].level).collect();
        levels.dedup();
        Some((levels, chosen.level))
    }

    #[test]
    fn few_runs_are_left_alone() {
        let nothing = Described::default();
        assert_eq!(chosen(&[], nothing), None);
        assert_eq!(chosen(&[(0, 31), (1, 7), (2, 7)], nothing), None);
        let large = [RunSize {
            level: 0,
            bytes: 1 << 30,
        }];
        assert_eq!(choose(&large, &nothing, LEVEL_0_RUNS), None, "one run is one already");
    }

    #[test]
    fn many_runs_of_a_level_become_one_of_the_next() {
        let nothing = Described::default();
        assert_eq!(chosen(&[(0, 32)], nothing), Some((vec![0], 1)));
        assert_eq!(chosen(&[(0, 40), (1, 6), (2, 1)], nothing), Some((vec![0], 1)));
        assert_eq!(chosen(&[(0, 3), (1, 8), (2, 1)], nothing), Some((vec![1], 2)));
        let large = vec![
            RunSize {
                level: 0,
                bytes: 40 << 20
            };
            2
        ];
        assert_eq!(choose(&large, &nothing, LEVEL_0_RUNS).unwrap().level, 1);
    }

    #[test]
    fn a_run_that_fills_the_next_level_goes_on_at_once() {
        let nothing = Described::default();
        assert_eq!(chosen(&[(0, 32), (1, 7)], nothing), Some((vec![0, 1], 2)));
        assert_eq!(
            chosen(&[(0, 32), (1, 7), (2, 7), (3, 2)], nothing),
            Some((vec![0, 1, 2], 3))
        );
        assert_eq!(chosen(&[(0, 2), (9, 8)], nothing), Some((vec![9], 9)));
    }

    #[test]
    fn everything_is_united_when_much_of_what_is_described_is_gone() {
        let gone = |packs, gone, condemnations| Described {
            packs,
            gone,
            condemnations,
        };
        let all = Some((vec![0, 2], 2));
        assert_eq!(chosen(&[(0, 1), (2, 1)], gone(100, 26, 1)), all);
        assert_eq!(chosen(&[(0, 1), (2, 1)], gone(100, 25, 1)), None);
        assert_eq!(chosen(&[(0, 1), (2, 1)], gone(10_000, 70, 64)), all);
        assert_eq!(
            chosen(&[(0, 1)], gone(4, 2, 1)),
            Some((vec![0], 1)),
            "even a single one is written anew"
        );
        assert_eq!(chosen(&[(0, 1), (2, 1)], gone(10_000, 0, 64)), None);
    }

    #[test]
    fn ten_years_of_nights_leave_few_runs_and_write_each_record_a_few_times() {
        let (mut levels, mut written, mut most) = (Vec::new(), 0u64, 0);
        let nights = 10 * 365 * 10;
        for _ in 0..nights {
            levels.push(RunSize { level: 0, bytes: 1_000 });
            while let Some(chosen) = choose(&levels, &Described::default(), LEVEL_0_RUNS) {
                let bytes = chosen.inputs.iter().map(|place| levels[*place].bytes).sum();
                written += bytes;
                for place in chosen.inputs.iter().rev() {
                    levels.remove(*place);
                }
                levels.push(RunSize {
                    level: chosen.level,
                    bytes,
                });
            }
            most = most.max(levels.len());
        }
        assert!(most <= 31 + 4 * 7, "{most} runs");
        assert!(written <= nights * 1_000 * 5, "{written} bytes");
    }
}
