//! What two tokens become, by their ids: a flat table with open addressing.
//!
//! Merging looks up two pairs for each merge it makes, and most of them have none. The table lies in far
//! memory, so a few bits a pair, which lie nearer, say first that most of those are not in it.

/// What two adjacent symbols become, and how early.
#[derive(Clone, Copy)]
pub struct Merge {
    pub rank: u32,
    pub id: u32,
}

/// Stands for the merge of a pair that has none, and ranks last.
pub const NO_MERGE: Merge = Merge { rank: u32::MAX, id: 0 };

/// A bit for each value of a hash: 128 KB. Vocabularies have 50,000 to 250,000 pairs.
const BITS_LOG2: u32 = 20;

#[derive(Clone, Copy)]
struct Entry {
    /// Both ids, the left one above.
    pair: u64,
    merge: Merge,
}

/// No pair: a token of this id would have to be merged with itself, and has no rank left.
const EMPTY: Entry = Entry { pair: u64::MAX, merge: NO_MERGE };

#[derive(Clone)]
pub struct MergeTable {
    /// A power of two of them, at most three quarters used.
    entries: Vec<Entry>,
    used: usize,
    bits: Vec<u64>,
}

impl Default for MergeTable {
    fn default() -> Self {
        MergeTable { entries: vec![EMPTY; 4], used: 0, bits: vec![0; 1 << (BITS_LOG2 - 6)] }
    }
}

#[inline(always)]
fn pair_of(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A hash whose high bits depend on all of both ids.
#[inline(always)]
fn hash(pair: u64) -> u64 {
    pair.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Where the bit of a hash is: a word, and a mask.
#[inline(always)]
fn bit(hash: u64) -> (usize, u64) {
    let at = hash >> (64 - BITS_LOG2);
    ((at / 64) as usize, 1 << (at % 64))
}

impl MergeTable {
    pub fn len(&self) -> usize {
        self.used
    }

    #[inline(always)]
    pub fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let pair = pair_of(left, right);
        let (word, mask) = bit(hash(pair));
        if self.bits[word] & mask == 0 {
            return None;
        }
        let entry = self.entries[self.place(pair)];
        (entry.pair == pair && pair != EMPTY.pair).then_some(entry.merge)
    }

    /// Adds a merge, in place of an earlier one of the same pair.
    pub fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let pair = pair_of(left, right);
        if pair == EMPTY.pair {
            return;
        }
        if 4 * (self.used + 1) > 3 * self.entries.len() {
            let twice = vec![EMPTY; 2 * self.entries.len()];
            let before = std::mem::replace(&mut self.entries, twice);
            for entry in before.into_iter().filter(|entry| entry.pair != EMPTY.pair) {
                let at = self.place(entry.pair);
                self.entries[at] = entry;
            }
        }
        let at = self.place(pair);
        self.used += usize::from(self.entries[at].pair == EMPTY.pair);
        self.entries[at] = Entry { pair, merge };
        let (word, mask) = bit(hash(pair));
        self.bits[word] |= mask;
    }

    pub fn iter(&self) -> impl Iterator<Item = ((u32, u32), Merge)> {
        let used = self.entries.iter().filter(|entry| entry.pair != EMPTY.pair);
        used.map(|entry| (((entry.pair >> 32) as u32, entry.pair as u32), entry.merge))
    }

    /// Where a pair stands, or else the empty place where it would.
    #[inline(always)]
    fn place(&self, pair: u64) -> usize {
        let mut at = (hash(pair) >> (64 - self.entries.len().trailing_zeros())) as usize;
        while self.entries[at].pair != pair && self.entries[at].pair != EMPTY.pair {
            at = (at + 1) & (self.entries.len() - 1);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_merge_of_a_pair_comes_back() {
        let mut table = MergeTable::default();
        let mut expected = std::collections::BTreeMap::new();
        let mut state = 1u64;
        for rank in 0..20_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (left, right) = ((state >> 33) as u32 % 150, (state >> 50) as u32 % 150);
            assert_eq!(table.get(left, right).map(|merge| merge.rank), expected.get(&(left, right)).copied());
            table.insert(left, right, Merge { rank, id: left });
            expected.insert((left, right), rank);
        }
        let mut all: Vec<_> = table.iter().map(|(pair, merge)| (pair, merge.rank)).collect();
        all.sort_unstable();
        assert_eq!(all, expected.into_iter().collect::<Vec<_>>());
        assert_eq!(table.len(), all.len());
    }

    #[test]
    fn the_highest_ids_have_no_merge() {
        let mut table = MergeTable::default();
        for (left, right) in [(u32::MAX, u32::MAX), (u32::MAX, 0), (0, u32::MAX)] {
            table.insert(left, right, Merge { rank: 1, id: 2 });
            assert_eq!(table.get(left, right).is_some(), left != right);
        }
    }
}
