//! Which packs are worth rewriting: a function of their sizes and of what is alive in them.

/// What one pack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackUse {
    /// Bytes of the pack.
    pub size: u64,
    /// Bytes that a pack with only what is alive in it would have.
    pub live: u64,
}

/// How much rewriting is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RepackLimits {
    /// Only packs of which more than this is unused; 0 … 1.
    pub unused_share: f64,
    /// At most so many live bytes are copied.
    pub copied_bytes_max: u64,
}

/// Chooses the packs to rewrite, by their places in `packs`: those that free the most for what is copied come first, until
/// the limit is reached. A pack that does not fit any more is passed over.
pub fn packs_to_rewrite(packs: &[PackUse], limits: &RepackLimits) -> Vec<usize> {
    let unused_share = |pack: &PackUse| pack.size.saturating_sub(pack.live) as f64 / pack.size.max(1) as f64;
    let mut wasteful: Vec<(f64, usize)> = packs
        .iter()
        .enumerate()
        .map(|(place, pack)| (unused_share(pack), place))
        .filter(|(share, _)| *share > limits.unused_share)
        .collect();
    wasteful.sort_by(|(a, first), (b, second)| b.total_cmp(a).then(first.cmp(second)));
    let mut copied = 0u64;
    let fits = |place: &usize| {
        let sum = copied.saturating_add(packs[*place].live);
        if sum > limits.copied_bytes_max {
            return false;
        }
        copied = sum;
        true
    };
    wasteful.into_iter().map(|(_, place)| place).filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs(of: &[(u64, u64)]) -> Vec<PackUse> {
        of.iter()
            .map(|(size, live)| PackUse {
                size: *size,
                live: *live,
            })
            .collect()
    }

    fn chosen(of: &[(u64, u64)], unused_share: f64, copied_bytes_max: u64) -> Vec<usize> {
        let limits = RepackLimits {
            unused_share,
            copied_bytes_max,
        };
        packs_to_rewrite(&packs(of), &limits)
    }

    #[test]
    fn the_most_wasteful_come_first_and_what_is_well_used_stays() {
        let of = [(100, 90), (100, 10), (100, 50), (100, 79), (100, 80)];
        assert_eq!(chosen(&of, 0.2, u64::MAX), [1, 2, 3]);
        assert!(chosen(&of, 0.95, u64::MAX).is_empty());
        assert_eq!(chosen(&of, 0.0, u64::MAX), [1, 2, 3, 4, 0]);
    }

    #[test]
    fn no_more_is_copied_than_allowed() {
        let of = [(1000, 300), (1000, 200), (100, 50), (100, 60)];
        assert!(chosen(&of, 0.2, 0).is_empty());
        assert_eq!(chosen(&of, 0.2, 200), [1]);
        assert_eq!(chosen(&of, 0.2, 260), [1, 2], "what does not fit is passed over");
        assert_eq!(chosen(&of, 0.2, 550), [1, 0, 2]);
    }
}
