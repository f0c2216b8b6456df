//! The pieces of a batch, looked up in the cache together.
//!
//! Few slots lie in the nearest memory, so all are asked for before the first is read. The loops are compiled for
//! each instruction set: shifts and comparisons of 16 bytes take half as many instructions on the newer ones.

use super::boundaries::BATCH;
use super::cache::{self, Cache, NO_KEY};
use super::long_pieces::LongPieces;
use crate::simd::{Op, Simd, dispatch_integers};

/// What is known of the pieces of a batch. It is kept because clearing it takes as long as encoding a short text.
pub struct Batch {
    keys: [u128; BATCH],
    /// The set of each key in the cache.
    sets: [u32; BATCH],
}

impl Default for Batch {
    fn default() -> Self {
        Batch { keys: [NO_KEY; BATCH], sets: [0; BATCH] }
    }
}

impl Batch {
    /// Makes the keys of the pieces of `text` that end at `ends`, the first starting at `start`; those too long for
    /// a key get none. Then as `collect`, from the first piece on.
    #[inline]
    pub fn look_up(
        &mut self,
        text: &[u8],
        start: usize,
        ends: &[usize],
        cache: &Cache,
        long: &LongPieces,
        ids: &mut [u32],
    ) -> (usize, usize) {
        dispatch_integers(LookUp { batch: self, text, start, ends, cache, long, ids })
    }

    /// Writes the ids of the pieces `from..to` until one is not found; gives its number and that of the ids.
    /// A piece for which `ids` has no room of `MOST_IDS` left is not found.
    #[inline]
    pub fn collect(&self, from: usize, to: usize, cache: &Cache, ids: &mut [u32]) -> (usize, usize) {
        dispatch_integers(Collect { batch: self, from, to, cache, ids })
    }

    /// The key of a piece, if it is short enough to have one.
    #[inline]
    pub fn key(&self, piece: usize) -> Option<u128> {
        Some(self.keys[piece]).filter(|&key| key != NO_KEY)
    }

    /// The keys of those of the pieces `from..to` that are not where they are looked for first.
    pub fn missing(&self, from: usize, to: usize, cache: &Cache) -> impl Iterator<Item = u128> {
        let keys = self.keys[from..to].iter().zip(&self.sets[from..to]);
        keys.filter(|&(&key, &set)| key != NO_KEY && !cache.is_in(set, key)).map(|(&key, _)| key)
    }

    /// Finds the sets of `count` keys anew, once there are more.
    pub fn sets_moved(&mut self, count: usize, cache: &Cache) {
        let sets = self.keys[..count].iter().map(|&key| cache.prefetch(key));
        self.sets.iter_mut().zip(sets).for_each(|(set, moved)| *set = moved);
    }
}

struct LookUp<'a> {
    batch: &'a mut Batch,
    text: &'a [u8],
    start: usize,
    ends: &'a [usize],
    cache: &'a Cache,
    long: &'a LongPieces,
    ids: &'a mut [u32],
}

impl Op for LookUp<'_> {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (usize, usize) {
        let LookUp { batch, text, mut start, ends, cache, long, ids } = self;
        let Batch { keys, sets } = &mut *batch;
        for i in 0..ends.len().min(BATCH) {
            let end = ends[i];
            keys[i] = cache::key(text, start, end).unwrap_or(NO_KEY);
            match keys[i] {
                // The set is any that there is, and holds no piece of that key.
                NO_KEY => long.prefetch(&text[start..end]),
                key => sets[i] = cache.prefetch(key),
            }
            start = end;
        }
        Collect { batch, from: 0, to: ends.len(), cache, ids }.run(s)
    }
}

struct Collect<'a> {
    batch: &'a Batch,
    from: usize,
    to: usize,
    cache: &'a Cache,
    ids: &'a mut [u32],
}

impl Op for Collect<'_> {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize) {
        let Collect { batch, from, to, cache, ids } = self;
        let mut count = 0;
        for i in from..to.min(BATCH) {
            match cache.write(batch.sets[i], batch.keys[i], &mut ids[count..]) {
                Some(number) => count += number,
                None => return (i, count),
            }
        }
        (to, count)
    }
}
