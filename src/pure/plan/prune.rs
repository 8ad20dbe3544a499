//! Which packs are worth rewriting: a function of their sizes and of what is alive in them.

/// What one pack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackUse {
    /// Bytes of the pack.
    pub size: u64,
    /// Bytes that a pack with only what is alive in it would have.
    pub live: u64,
    /// It is sealed with secrets that were rotated away, and nothing shall be.
    pub is_outdated: bool,
}

/// How much rewriting is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RepackLimits {
    /// Only packs of which more than this is unused; 0 … 1.
    pub unused_share: f64,
    /// At most so many live bytes are copied.
    pub copied_bytes_max: u64,
}

/// Chooses the packs to rewrite, by their places in `packs`: those that are outdated, and those that free the most for what is copied,
/// come first, until the limit is reached. A pack that does not fit any more is passed over.
pub fn packs_to_rewrite(packs: &[PackUse], limits: &RepackLimits) -> Vec<usize> {
    let unused_share = |pack: &PackUse| pack.size.saturating_sub(pack.live) as f64 / pack.size.max(1) as f64;
    let mut chosen: Vec<(bool, f64, usize)> = packs
        .iter()
        .enumerate()
        .map(|(place, pack)| (!pack.is_outdated, unused_share(pack), place))
        .filter(|(is_current, share, _)| !is_current || *share > limits.unused_share)
        .collect();
    chosen.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
    let mut copied = 0u64;
    let fits = |place: &usize| {
        let sum = copied.saturating_add(packs[*place].live);
        if sum > limits.copied_bytes_max {
            return false;
        }
        copied = sum;
        true
    };
    chosen.into_iter().map(|(.., place)| place).filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs(of: &[(u64, u64)]) -> Vec<PackUse> {
        of.iter()
            .map(|(size, live)| PackUse {
                size: *size,
                live: *live,
                is_outdated: false,
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
    fn what_is_outdated_comes_before_what_is_wasteful() {
        let mut of = packs(&[(100, 10), (100, 100), (100, 90), (100, 50)]);
        of[1].is_outdated = true;
        of[2].is_outdated = true;
        let limits = |unused_share, copied_bytes_max| RepackLimits {
            unused_share,
            copied_bytes_max,
        };
        assert_eq!(packs_to_rewrite(&of, &limits(0.2, u64::MAX)), [2, 1, 0, 3]);
        assert_eq!(packs_to_rewrite(&of, &limits(1.0, u64::MAX)), [2, 1]);
        assert_eq!(packs_to_rewrite(&of, &limits(0.2, 110)), [2, 0]);
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
