//! A table of pieces and how often each occurs.

use std::hash::BuildHasher;

use rustc_hash::FxBuildHasher;

use crate::bpe::cache;

/// Slots of the smallest table that holds something.
const FEWEST_SLOTS: usize = 1 << 10;

/// Pieces whose slots are looked up together, so that the memory answers them together.
pub const BATCH: usize = 32;

/// Marks the `high` of a long piece; a key of `cache::key` leaves that bit free.
const LONG: u64 = 1 << 63;

/// A piece that fits a key of `cache::key` is that key in two halves. Of a longer one, `low` is a hash and
/// `high` says where its bytes are. An empty slot is all zero, which is the key of no piece.
#[derive(Clone, Copy, Default)]
pub struct Slot {
    low: u64,
    high: u64,
    pub count: u64,
}

impl Slot {
    fn is_empty(self) -> bool {
        self.high == 0
    }

    fn short(key: u128, count: u64) -> Self {
        Slot { low: key as u64, high: (key >> 64) as u64, count }
    }
}

/// Open addressing, linear probing, at most three quarters full.
///
/// A table that takes in another meets its pieces in the order of their slots. Were that its own order, too,
/// the places in front would fill up and the searches there get long. So each table has a seed of its own.
#[derive(Default)]
pub struct Table {
    seed: u64,
    slots: Vec<Slot>,
    len: usize,
    /// The lengths, in four bytes, and the bytes of the long pieces.
    long: Vec<u8>,
}

impl Table {
    /// An empty table, the `number`th of several.
    pub fn new(number: u64) -> Self {
        Table { seed: number.wrapping_mul(0xA076_1D64_78BD_642F), ..Table::default() }
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All slots, empty ones among them.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The piece of a slot, which may be put into `bytes`; none if the slot is empty.
    #[inline]
    pub fn piece<'a>(&'a self, slot: Slot, bytes: &'a mut [u8; 16]) -> Option<&'a [u8]> {
        if slot.is_empty() {
            return None;
        }
        if slot.high & LONG != 0 {
            return Some(self.long_piece(slot));
        }
        *bytes = (u128::from(slot.high) << 64 | u128::from(slot.low)).to_le_bytes();
        Some(cache::piece(bytes))
    }

    fn long_piece(&self, slot: Slot) -> &[u8] {
        let (len, rest) =
            self.long[(slot.high & !LONG) as usize..].split_first_chunk().unwrap_or((&[0; 4], &[]));
        &rest[..u32::from_le_bytes(*len) as usize]
    }

    /// The memory that the table takes, after the next piece if that makes it grow.
    pub fn bytes(&self) -> usize {
        // While a vector grows, the old one is beside the new one.
        let slots =
            if self.len * 8 >= self.slots.len() * 5 { 3 * self.slots.len() } else { self.slots.len() };
        let (used, room) = (self.long.len(), self.long.capacity());
        let long = if used >= room / 8 * 7 { 3 * room } else { room };
        slots * size_of::<Slot>() + long
    }

    /// Counts pieces that have a key.
    #[inline]
    pub fn add_keys(&mut self, keys: &[u128]) {
        // Adding may make the table grow only before the places are taken.
        self.reserve(BATCH);
        let mut met = [(Slot::default(), 0); BATCH];
        for (met, &key) in met.iter_mut().zip(keys) {
            let place = self.first_place(key as u64, (key >> 64) as u64);
            *met = (self.slots[place], place);
        }
        for ((slot, place), &key) in met.into_iter().zip(keys) {
            if slot.low == key as u64 && slot.high == (key >> 64) as u64 {
                self.slots[place].count += 1;
            } else {
                self.insert(Slot::short(key, 1), place);
            }
        }
    }

    /// Counts a piece that has no key.
    pub fn add_long(&mut self, piece: &[u8], count: u64) {
        self.reserve(1);
        let hash = FxBuildHasher.hash_one(piece);
        let mut place = self.first_place(hash, LONG);
        loop {
            let slot = self.slots[place];
            if slot.is_empty() {
                break;
            }
            if slot.low == hash && slot.high & LONG != 0 && self.long_piece(slot) == piece {
                self.slots[place].count += count;
                return;
            }
            place = (place + 1) & (self.slots.len() - 1);
        }
        let high = LONG | self.long.len() as u64;
        self.long.extend((piece.len() as u32).to_le_bytes());
        self.long.extend(piece);
        self.slots[place] = Slot { low: hash, high, count };
        self.len += 1;
    }

    /// Adds the counts of some slots of another table.
    pub fn absorb(&mut self, other: &Table, slots: &[Slot]) {
        for &slot in slots {
            if slot.is_empty() {
                continue;
            }
            if slot.high & LONG != 0 {
                self.add_long(other.long_piece(slot), slot.count);
            } else {
                self.reserve(1);
                self.insert(slot, self.first_place(slot.low, slot.high));
            }
        }
    }

    /// The pieces in the order of their bytes.
    pub fn sort(mut self) -> Sorted {
        let mut slots = std::mem::take(&mut self.slots);
        slots.retain(|slot| !slot.is_empty());
        slots.sort_unstable_by(|&a, &b| {
            let (mut a_bytes, mut b_bytes) = ([0; 16], [0; 16]);
            self.piece(a, &mut a_bytes).cmp(&self.piece(b, &mut b_bytes))
        });
        self.slots = slots;
        Sorted(self)
    }

    /// Adds to the slot of a short piece, the search for which begins at `place`.
    #[inline]
    fn insert(&mut self, new: Slot, mut place: usize) {
        loop {
            let slot = &mut self.slots[place];
            if slot.is_empty() {
                *slot = new;
                self.len += 1;
                return;
            }
            if slot.low == new.low && slot.high == new.high {
                slot.count += new.count;
                return;
            }
            place = (place + 1) & (self.slots.len() - 1);
        }
    }

    /// Where the search for a piece begins. Long pieces are told apart by `low` alone.
    #[inline]
    fn first_place(&self, low: u64, high: u64) -> usize {
        let high = if high & LONG != 0 { LONG } else { high };
        // Two odd constants spread the halves; the highest bits depend on all.
        let mixed = (low ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ high;
        let hash = (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (hash >> 32) as usize & (self.slots.len() - 1)
    }

    /// Makes room for more pieces.
    fn reserve(&mut self, more: usize) {
        if (self.len + more) * 4 <= self.slots.len() * 3 {
            return;
        }
        let slots = (2 * self.slots.len()).max(FEWEST_SLOTS);
        for slot in std::mem::replace(&mut self.slots, vec![Slot::default(); slots]) {
            if !slot.is_empty() {
                let mut place = self.first_place(slot.low, slot.high);
                while !self.slots[place].is_empty() {
                    place = (place + 1) & (slots - 1);
                }
                self.slots[place] = slot;
            }
        }
    }
}

/// A table without empty slots, the others in the order of their pieces.
pub struct Sorted(Table);

impl Sorted {
    /// Calls `piece` with every piece and its count.
    pub fn each<E>(&self, mut piece: impl FnMut(&[u8], u64) -> Result<(), E>) -> Result<(), E> {
        let mut bytes = [0; 16];
        for &slot in &self.0.slots {
            if let Some(bytes) = self.0.piece(slot, &mut bytes) {
                piece(bytes, slot.count)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn add(table: &mut Table, piece: &[u8]) {
        match cache::key(piece, 0, piece.len()) {
            Some(key) => table.add_keys(&[key]),
            None => table.add_long(piece, 1),
        }
    }

    /// Pieces of 1 to 24 bytes, of which many are equal.
    fn pieces(seed: u64) -> impl Iterator<Item = Vec<u8>> {
        let mut state = seed;
        (0..60_000).map(move |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let random = (state >> 33) as usize;
            (0..1 + random % 24).map(|i| b'a' + (random >> (i % 13)) as u8 % 3).collect()
        })
    }

    #[test]
    fn pieces_of_another_table_do_not_crowd() {
        let mut tables = [Table::new(1), Table::new(2)];
        for (table, first) in tables.iter_mut().zip([0, 700_000u64]) {
            (first..first + 700_000).for_each(|i| table.add_keys(&[u128::from(i) | 8 << 120]));
        }
        let [one, other] = &mut tables;
        // As many as there is room for without growing.
        one.absorb(other, &other.slots()[..other.slots().len() / 10]);
        let longest = one.slots.split(|slot| slot.is_empty()).map(<[Slot]>::len).max();
        assert!(longest < Some(5_000), "{longest:?}");
    }

    #[test]
    fn counts_are_those_of_a_map() {
        let (mut one, mut other) = (Table::default(), Table::default());
        let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for (table, seed) in [(&mut one, 1), (&mut other, 2)] {
            for piece in pieces(seed) {
                add(table, &piece);
                *expected.entry(piece).or_default() += 1;
            }
        }
        one.absorb(&other, other.slots());
        assert_eq!(one.len(), expected.len());
        let mut sorted = Vec::new();
        let keep = |piece: &[u8], count| {
            sorted.push((piece.to_vec(), count));
            Ok::<(), ()>(())
        };
        one.sort().each(keep).unwrap();
        assert_eq!(sorted, expected.into_iter().collect::<Vec<_>>());
    }
}
