//! The cuts of one extent, found while its bytes arrive.

use super::{Algorithm, Cutter, Profile};

/// Finds the cuts of an extent, whose bytes are shown again from the last cut on, more of them each time.
pub struct Cuts<'c> {
    cutter: &'c Cutter,
    /// [`Algorithm::FirstMatch`]: how much has to be there before a cut is looked for (again).
    enough: usize,
    /// [`Algorithm::LowestHash`]: the places behind the last cut whose hash fits, first to last …
    candidates: Vec<Candidate>,
    /// … and where to look for the next one.
    scanned: usize,
}

/// A place, counted from the last cut, and its hash.
#[derive(Clone, Copy)]
struct Candidate {
    at: usize,
    hash: u64,
}

impl<'c> Cuts<'c> {
    pub(super) fn new(cutter: &'c Cutter) -> Cuts<'c> {
        Cuts {
            cutter,
            enough: first_look(&cutter.profile),
            candidates: Vec::new(),
            scanned: 0,
        }
    }

    /// Begins another extent.
    pub fn reset(&mut self) {
        self.enough = first_look(&self.cutter.profile);
        self.candidates.clear();
        self.scanned = 0;
    }

    /// Returns the length of the chunk that `bytes` begins with if its end is certain: it was found, as much as the largest chunk is
    /// there, or the extent ends with `bytes` (`at_end`). The next call is to be shown what follows it, else the same bytes and more.
    pub fn next(&mut self, bytes: &[u8], at_end: bool) -> Option<usize> {
        if bytes.is_empty() {
            return None;
        }
        match self.cutter.profile.algorithm {
            Algorithm::FirstMatch => self.first_match(bytes, at_end),
            Algorithm::LowestHash => self.lowest_hash(bytes, at_end),
        }
    }

    fn first_match(&mut self, bytes: &[u8], at_end: bool) -> Option<usize> {
        if !at_end && bytes.len() < self.enough {
            return None;
        }
        let length = self.cutter.first_match(bytes);
        let max = self.cutter.profile.max as usize;
        if length == bytes.len() && length < max && !at_end {
            // The end of what is there is no cut. Few chunks are so long; looking twice is enough.
            self.enough = max;
            return None;
        }
        self.enough = first_look(&self.cutter.profile);
        Some(length)
    }

    fn lowest_hash(&mut self, bytes: &[u8], at_end: bool) -> Option<usize> {
        let Profile { min, center, max, .. } = self.cutter.profile;
        let (min, center, max) = (min as usize, center as usize, max as usize);
        if at_end && bytes.len() <= center {
            self.reset();
            return Some(bytes.len());
        }
        // Looked through as soon as they are there, while the processor has them.
        while let Some((ahead, hash)) = self.cutter.next_candidate(&bytes[self.scanned..]) {
            self.scanned += ahead;
            self.candidates.push(Candidate { at: self.scanned, hash });
        }
        if !at_end && bytes.len() < max {
            return None;
        }
        let end = max.min(bytes.len());
        let possible = self.candidates.iter().filter(|place| (min..=end).contains(&place.at));
        // The last one of equals: what repeats is cut into as few chunks as possible.
        let lowest = possible.min_by(|a, b| a.hash.cmp(&b.hash).then(b.at.cmp(&a.at)));
        let Some(&Candidate { at: length, .. }) = lowest else {
            self.reset();
            return Some(end);
        };
        self.candidates.retain_mut(|place| {
            let is_behind = place.at > length;
            place.at = place.at.saturating_sub(length);
            is_behind
        });
        self.scanned -= length;
        Some(length)
    }
}

/// Nearly all chunks are shorter than this, so that few are looked through twice, and few bytes have to be kept.
fn first_look(profile: &Profile) -> usize {
    profile.max.min(2 * profile.center) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::crypto::vectors::{keys, noise};

    /// One place in 64 may be a cut.
    fn small() -> Cutter {
        let profile = Profile::lowest(256, 2048, 4096, 0x3f << 57).unwrap();
        Cutter::new(profile, keys().gear().unwrap())
    }

    fn lengths(cutter: &Cutter, mut bytes: &[u8]) -> Vec<usize> {
        let mut cuts = cutter.cuts();
        std::iter::from_fn(|| {
            let length = cuts.next(bytes, true)?;
            bytes = &bytes[length..];
            Some(length)
        })
        .collect()
    }

    /// The definition of the format-spec, word by word, without the crate.
    fn defined(profile: &Profile, gear: &[u64; 256], x: &[u8]) -> Vec<usize> {
        let (min, center, max) = (profile.min as usize, profile.center as usize, profile.max as usize);
        let candidates_behind = |mut q: usize| {
            let mut places: Vec<(u64, usize)> = Vec::new();
            let (mut h, mut p) = (0u64, q + 64);
            while p < x.len() {
                h = (h << 1).wrapping_add(gear[usize::from(x[p])]);
                if h & profile.mask_s == 0 {
                    places.push((h & (u64::MAX >> 1), p));
                    (q, h) = (p, 0);
                    p = q + 63;
                }
                p += 1;
            }
            places
        };
        let (mut start, mut lengths) = (0, Vec::new());
        let mut places = candidates_behind(0);
        while x.len() - start > center {
            let end = x.len().min(start + max);
            let possible = places.iter().filter(|(_, q)| (start + min..=end).contains(q));
            let lowest = possible.min_by_key(|(h, q)| (*h, std::cmp::Reverse(*q)));
            let cut = lowest.map_or(end, |(_, q)| *q);
            if lowest.is_none() {
                places = candidates_behind(cut);
            }
            lengths.push(cut - start);
            start = cut;
        }
        lengths.extend((start < x.len()).then_some(x.len() - start));
        lengths
    }

    #[test]
    fn cuts_are_those_of_the_definition() {
        let cutter = small();
        let keys = keys();
        let gear = keys.gear().unwrap();
        let mut data = noise("lowest hash", 60_000);
        data[20_000..35_000].fill(0);
        for len in (0..data.len()).step_by(997).chain([1, 2048, 2049, 4096, 4097]) {
            let expected = defined(cutter.profile(), gear, &data[..len]);
            assert_eq!(lengths(&cutter, &data[..len]), expected, "{len}");
            assert_eq!(expected.iter().sum::<usize>(), len);
        }
    }

    #[test]
    fn cuts_do_not_depend_on_how_the_bytes_arrive() {
        let cutter = small();
        let mut data = noise("arriving", 40_000);
        data[9_000..20_000].fill(7);
        let expected = lengths(&cutter, &data);
        assert!(expected.len() > 10 && expected.iter().any(|length| *length > 4000));
        for step in [1, 63, 500, 5_000] {
            let (mut cuts, mut start, mut found) = (cutter.cuts(), 0, Vec::new());
            for there in (step..data.len()).step_by(step).chain([data.len()]) {
                while let Some(length) = cuts.next(&data[start..there], there == data.len()) {
                    start += length;
                    found.push(length);
                }
            }
            assert_eq!(found, expected, "{step}");
        }
    }

    #[test]
    fn sizes_are_within_their_limits_and_an_end_is_not_cut_off() {
        let cutter = small();
        let found = lengths(&cutter, &noise("limits", 200_000));
        let (last, others) = found.split_last().unwrap();
        assert!(others.iter().all(|length| (256..=4096).contains(length)) && *last <= 4096);
        assert_eq!(lengths(&cutter, &noise("short", 2048)), [2048]);
        // What only repeats becomes few chunks.
        assert_eq!(lengths(&cutter, &[0; 10_000]).len(), 3);
    }

    #[test]
    fn after_changes_more_of_the_old_cuts_are_found_again_than_by_the_first_match() {
        // As in a dump of which one row in forty was deleted, everywhere.
        let (row, rows) = (2_000, 80_000);
        let before = noise("before", 200 * rows);
        let after: Vec<u8> = before.chunks(rows).flat_map(|rows| &rows[row..]).copied().collect();
        // Percent of the cuts. An old one is known by the bytes in front of it.
        let found_again = |cutter: &Cutter| {
            let contexts = |bytes: &[u8]| -> std::collections::BTreeSet<Vec<u8>> {
                let mut at = 0;
                let lengths = lengths(cutter, bytes);
                let ends = lengths.iter().map(|length| {
                    at += length;
                    bytes[at - 32..at].to_vec()
                });
                ends.collect()
            };
            let (old, new) = (contexts(&before), contexts(&after));
            100 * old.intersection(&new).count() / new.len()
        };
        let [first_match, lowest_hash] = [
            Profile::new(32 << 10, 64 << 10, 256 << 10, 0x3ffff << 45, 0x3fff << 49),
            Profile::lowest(16 << 10, 64 << 10, 128 << 10, 0x3ff << 53),
        ]
        .map(|profile| found_again(&Cutter::new(profile.unwrap(), keys().gear().unwrap())));
        assert!(
            lowest_hash > 80 && lowest_hash > first_match,
            "{lowest_hash} and {first_match} %"
        );
    }
}
