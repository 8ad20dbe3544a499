//! The last few values that were asked for, by key; the one that came first goes first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A small memory with a fixed number of places.
#[derive(Debug)]
pub struct Recent<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
    places: usize,
}

impl<K: Hash + Eq + Copy, V: Clone> Recent<K, V> {
    /// Makes an empty memory for so many values.
    pub fn new(places: usize) -> Recent<K, V> {
        Recent {
            values: HashMap::new(),
            order: VecDeque::new(),
            places,
        }
    }

    /// Returns a value.
    pub fn get(&self, key: &K) -> Option<V> {
        self.values.get(key).cloned()
    }

    /// Keeps a value, in the place of the oldest if there is no other.
    pub fn put(&mut self, key: K, value: V) {
        if self.values.insert(key, value).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.places
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
    }

    /// Forgets one.
    pub fn remove(&mut self, key: &K) {
        if self.values.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_holds_more_than_it_has_places_for() {
        let mut recent = Recent::new(3);
        for number in 0..100 {
            recent.put(number, number * 2);
            recent.put(number, number * 3);
        }
        assert_eq!(recent.values.len(), 3);
        assert_eq!(
            (recent.get(&96), recent.get(&97), recent.get(&99)),
            (None, Some(291), Some(297))
        );
        recent.remove(&99);
        assert_eq!((recent.get(&98), recent.get(&99)), (Some(294), None));
        for number in 200..202 {
            recent.put(number, 1);
        }
        assert_eq!((recent.values.len(), recent.order.len()), (3, 3));
    }
}
