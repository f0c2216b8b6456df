//! Ids of pieces met before, and of the short words of the vocabulary.

use crate::memory::filled;
use crate::simd;

/// The longest piece that is kept, in bytes: with its length it fills a `u128`.
const LONGEST: usize = 15;
/// The most ids that a slot holds itself; where there are more, they lie in `Cache::many`.
const IDS: usize = 3;
/// The room that the ids of a piece need, of which each stands for a byte or more.
pub const MOST_IDS: usize = LONGEST + 1;
/// The most ids in `Cache::many`, 4 MB. When it is full, the cache starts anew.
const MOST_MANY: usize = 1 << 20;
/// Sets of two slots, at first and at most: 256 KB, and 16 MB. Merging a piece anew takes longer than
/// reading a slot that has left the second-level cache, so sets become twice as many when as many
/// pieces were displaced as are an eighth of them.
const FIRST_SETS_LOG2: u32 = 12;
const MOST_SETS_LOG2: u32 = 18;

/// The key of no piece.
pub const NO_KEY: u128 = 0;

#[derive(Clone, Copy, Default)]
struct Slot {
    /// The bytes of the piece, its length in the highest, or `NO_KEY`.
    key: u128,
    /// The ids, or, if there are more than fit, where they start in `Cache::many`; their number last.
    ids: [u32; IDS + 1],
}

/// The first slots for the pieces with one hash: a cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Set([Slot; 2]);

impl Set {
    /// The slot that has a key, if any has.
    #[inline(always)]
    fn slot(&self, key: u128) -> &Slot {
        // By index, for a branch would often be taken wrongly.
        &self.0[usize::from(self.0[0].key != key)]
    }
}

/// The pieces met last. One that comes when its set is full goes to the neighbour of the set; when that is full too,
/// it displaces the older of two. So the pieces met first, which are the most frequent ones, lie where they are
/// looked for first, and sets may be so full that they take few pages.
pub struct Cache {
    sets: Vec<Set>,
    sets_log2: u32,
    /// Pieces displaced since there are so many sets.
    displaced: usize,
    /// Ids of pieces that have many; `MOST_IDS` more behind the last, so that as many can be read from any of them.
    many: Vec<u32>,
}

impl Default for Cache {
    fn default() -> Self {
        Cache {
            sets: vec![Set::default(); 1 << FIRST_SETS_LOG2],
            sets_log2: FIRST_SETS_LOG2,
            displaced: 0,
            many: Vec::new(),
        }
    }
}

/// Of a piece of n bytes, what of 16 bytes belongs to it, and its length in the highest.
const SHAPES: [(u128, u128); LONGEST + 1] = {
    let mut shapes = [(0, 0); LONGEST + 1];
    let mut n = 1;
    while n <= LONGEST {
        shapes[n] = (shapes[n - 1].0 << 8 | 0xFF, (n as u128) << (8 * LONGEST));
        n += 1;
    }
    shapes
};

/// The key of `text[start..end]`, if it is short enough to have one.
#[inline(always)]
pub fn key(text: &[u8], start: usize, end: usize) -> Option<u128> {
    let length = end - start;
    if length == 0 || length > LONGEST {
        return None;
    }
    let bytes = match (text[start..].first_chunk(), text.last_chunk()) {
        // What follows the piece is masked away.
        (Some(&chunk), _) => u128::from_le_bytes(chunk),
        // Near the end of the text, the bytes before the piece are shifted out.
        (None, Some(&chunk)) => u128::from_le_bytes(chunk) >> (8 * (start + LONGEST + 1 - text.len())),
        (None, None) => {
            let mut bytes = [0; LONGEST + 1];
            bytes[..length].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(bytes)
        }
    };
    let (mask, length) = SHAPES[length];
    Some(bytes & mask | length)
}

/// The piece of a key, given the key's bytes from the lowest on.
#[inline]
pub fn piece(key: &[u8; LONGEST + 1]) -> &[u8] {
    &key[..usize::from(key[LONGEST]).min(LONGEST)]
}

/// The key of a part of a longer piece: what merges make of it, even if it is a token.
#[inline]
pub fn key_of_part(text: &[u8], start: usize, end: usize) -> Option<u128> {
    // The length leaves the highest bit free.
    key(text, start, end).map(|key| key | 1 << 127)
}

/// A hash whose high bits depend on every byte.
#[inline]
fn hash(key: u128) -> u64 {
    // Two odd constants spread the halves.
    let mixed = (key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ ((key >> 64) as u64);
    mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

impl Cache {
    #[inline(always)]
    fn set_of(&self, key: u128) -> usize {
        (hash(key) >> (64 - self.sets_log2)) as usize
    }

    /// How many sets there are. While that stays, so does the set of a key.
    pub fn size(&self) -> usize {
        self.sets.len()
    }

    /// The set where a key would be, whose slots are asked for.
    #[inline(always)]
    pub fn prefetch(&self, key: u128) -> u32 {
        let set = self.set_of(key);
        simd::prefetch(self.sets.as_ptr().wrapping_add(set));
        set as u32
    }

    /// Writes the ids of a piece in a set to the beginning of `ids`, and anything behind them; their number, if the
    /// piece is there and `ids` has room for `MOST_IDS`.
    #[inline(always)]
    pub fn write(&self, set: u32, key: u128, ids: &mut [u32]) -> Option<usize> {
        let slot = self.sets[set as usize].slot(key);
        let count = slot.ids[IDS] as usize;
        let ids: &mut [u32; MOST_IDS] = ids.first_chunk_mut()?;
        if slot.key != key || count == 0 {
            return None;
        }
        // As many are copied whatever their number, which is faster than a loop over few.
        match ids.first_chunk_mut() {
            Some(few) if count <= IDS => *few = slot.ids,
            _ if count <= MOST_IDS => *ids = *self.many.get(slot.ids[0] as usize..)?.first_chunk()?,
            _ => return None,
        }
        Some(count)
    }

    /// Whether a piece is in a set.
    #[inline(always)]
    pub fn is_in(&self, set: u32, key: u128) -> bool {
        self.sets[set as usize].slot(key).key == key
    }

    #[inline]
    pub fn get(&self, key: u128) -> Option<&[u32]> {
        let at = self.set_of(key);
        let mut slot = self.sets[at].slot(key);
        if slot.key != key {
            slot = self.sets[at ^ 1].slot(key);
        }
        let count = slot.ids[IDS] as usize;
        (slot.key == key).then(|| match slot.ids.get(..count) {
            Some(ids) if count <= IDS => ids,
            _ => &self.many[slot.ids[0] as usize..][..count],
        })
    }

    pub fn put(&mut self, key: u128, ids: impl ExactSizeIterator<Item = u32>) {
        let count = ids.len();
        let mut slot = Slot { key, ..Slot::default() };
        slot.ids[IDS] = count as u32;
        if count <= IDS {
            slot.ids.iter_mut().zip(ids).for_each(|(place, id)| *place = id);
        } else {
            if self.many.len() + count > MOST_MANY {
                self.many.clear();
                self.sets.fill(Set::default());
            }
            let end = self.many.len().saturating_sub(MOST_IDS);
            slot.ids[0] = end as u32;
            self.many.truncate(end);
            self.many.extend(ids);
            self.many.extend([0; MOST_IDS]);
        }
        self.insert(slot);
        if self.displaced > self.sets.len() / 8 && self.sets_log2 < MOST_SETS_LOG2 {
            self.grow();
        }
    }

    fn insert(&mut self, slot: Slot) {
        let at = self.set_of(slot.key);
        for near in [at, at ^ 1] {
            if let Some(empty) = self.sets[near].0.iter_mut().find(|slot| slot.key == NO_KEY) {
                *empty = slot;
                return;
            }
        }
        self.displaced += 1;
        let [newer, _] = self.sets[at].0;
        self.sets[at].0 = [slot, newer];
    }

    fn grow(&mut self) {
        self.sets_log2 += 1;
        self.displaced = 0;
        let twice = filled(Set::default(), 1 << self.sets_log2);
        for slot in std::mem::replace(&mut self.sets, twice).into_iter().flat_map(|set| set.0) {
            if slot.key != NO_KEY {
                self.insert(slot);
            }
        }
    }
}

/// The short pieces that are one token: a flat table with open addressing, at most half full.
#[derive(Default)]
pub struct Words {
    keys: Vec<u128>,
    ids: Vec<u32>,
}

impl Words {
    pub fn new(words: &[(u128, u32)]) -> Self {
        let slots = (2 * words.len()).next_power_of_two().max(2);
        let mut table = Words { keys: vec![0; slots], ids: vec![0; slots] };
        for &(key, id) in words {
            let at = table.place(key);
            (table.keys[at], table.ids[at]) = (key, id);
        }
        table
    }

    #[inline]
    pub fn get(&self, key: u128) -> Option<u32> {
        if self.keys.is_empty() {
            return None;
        }
        let at = self.place(key);
        (self.keys[at] == key).then(|| self.ids[at])
    }

    /// Asks for the slot where a key would be.
    #[inline]
    pub fn prefetch(&self, key: u128) {
        let slots_log2 = self.keys.len().trailing_zeros();
        let at = (hash(key) >> (64 - slots_log2)) as usize;
        simd::prefetch(self.keys.as_ptr().wrapping_add(at));
        simd::prefetch(self.ids.as_ptr().wrapping_add(at));
    }

    /// Where a key stands, or else the empty slot where it would.
    #[inline]
    fn place(&self, key: u128) -> usize {
        let slots_log2 = self.keys.len().trailing_zeros();
        let mut at = (hash(key) >> (64 - slots_log2)) as usize;
        while self.keys[at] != 0 && self.keys[at] != key {
            at = (at + 1) & (self.keys.len() - 1);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_pieces_apart() {
        let pieces: [&[u8]; 5] = [b"a", b"a\0", b"a\0\0", b"\0a", b"\0"];
        for (i, one) in pieces.iter().enumerate() {
            for (j, other) in pieces.iter().enumerate() {
                assert_eq!(key(one, 0, one.len()) == key(other, 0, other.len()), i == j);
            }
            assert_eq!(
                key(one, 0, one.len()).map(|key| piece(&key.to_le_bytes()).to_vec()),
                Some(one.to_vec())
            );
        }
        assert_eq!(key(b"", 0, 0), None);
        assert_eq!(key(&[b'a'; 16], 0, 16), None);
    }

    #[test]
    fn the_key_of_a_piece_is_the_same_wherever_it_stands() {
        let text = b"what stands around a piece";
        for start in 0..text.len() {
            for end in start..text.len().min(start + LONGEST) {
                assert_eq!(key(text, start, end), key(&text[start..end], 0, end - start));
            }
        }
    }

    #[test]
    fn tables_give_back_what_was_put_in() {
        let keys: Vec<u128> = (1..=1000u128).map(|i| i << 60 | i).collect();
        let pairs: Vec<(u128, u32)> = keys.iter().copied().zip(0..).collect();
        let words = Words::new(&pairs);
        let mut cache = Cache::default();
        for &(key, id) in &pairs {
            assert_eq!(words.get(key), Some(id));
            assert_eq!(words.get(key + 1), None);
            assert_eq!(cache.get(key), None);
            cache.put(key, [id, id + 1].into_iter());
            assert_eq!(cache.get(key), Some(&[id, id + 1][..]));
        }
        let mut ids = [0; MOST_IDS];
        for number in 1..MOST_IDS {
            let (key, expected) =
                (number as u128, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][..number]);
            cache.put(key, expected.iter().copied());
            let set = cache.prefetch(key);
            assert_eq!(cache.write(set, key, &mut ids), Some(number));
            assert_eq!(&ids[..number], expected);
            assert_eq!(cache.write(set, key, &mut ids[1..]), None);
        }
        assert_eq!(Words::default().get(1), None);
    }

    #[test]
    fn a_full_cache_starts_anew() {
        let mut cache = Cache::default();
        for key in 1..=(MOST_MANY as u128 / 4) {
            cache.put(key, [key as u32; 5].into_iter());
            assert_eq!(cache.get(key), Some(&[key as u32; 5][..]));
            assert!(cache.many.len() <= MOST_MANY);
        }
        assert_eq!(cache.get(1), None);
        for key in 1..=(4 << MOST_SETS_LOG2) {
            cache.put(key, std::iter::once(1));
        }
        assert_eq!(cache.sets.len(), 1 << MOST_SETS_LOG2);
    }
}
