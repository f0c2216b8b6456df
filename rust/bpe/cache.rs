//! Ids of pieces met before: a fixed number of slots, a newer piece displacing an older one.

use super::merges::Symbol;

/// The longest piece that is kept, in bytes: with its length it fills a `u128`.
const LONGEST: usize = 15;
/// The most ids that a slot holds.
const IDS: usize = 3;
const SLOTS_LOG2: u32 = 14;

#[derive(Clone, Copy)]
struct Slot {
    /// The bytes of the piece, its length in the highest; 0 is an empty slot.
    key: u128,
    ids: [u32; IDS],
    count: u32,
}

pub struct Cache {
    slots: Vec<Slot>,
}

impl Default for Cache {
    fn default() -> Self {
        let empty = Slot { key: 0, ids: [0; IDS], count: 0 };
        Cache { slots: vec![empty; 1 << SLOTS_LOG2] }
    }
}

/// The key of a piece, if it is short enough to have one.
#[inline]
pub fn key(piece: &[u8]) -> Option<u128> {
    if piece.is_empty() || piece.len() > LONGEST {
        return None;
    }
    let mut bytes = [0; LONGEST + 1];
    bytes[..piece.len()].copy_from_slice(piece);
    bytes[LONGEST] = piece.len() as u8;
    Some(u128::from_le_bytes(bytes))
}

#[inline]
fn slot(key: u128) -> usize {
    // Two odd constants spread the halves; the high bits of the product depend on every byte.
    let mixed = (key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ ((key >> 64) as u64);
    (mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> (64 - SLOTS_LOG2)) as usize
}

impl Cache {
    #[inline]
    pub fn get(&self, key: u128) -> Option<&[u32]> {
        let slot = &self.slots[slot(key)];
        (slot.key == key).then(|| &slot.ids[..slot.count as usize])
    }

    pub fn put(&mut self, key: u128, symbols: &[Symbol]) {
        if symbols.len() <= IDS {
            let mut ids = [0; IDS];
            ids.iter_mut().zip(symbols).for_each(|(id, symbol)| *id = symbol.id);
            self.slots[slot(key)] = Slot { key, ids, count: symbols.len() as u32 };
        }
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
                assert_eq!(key(one) == key(other), i == j);
            }
        }
        assert_eq!(key(b""), None);
        assert_eq!(key(&[b'a'; 16]), None);
    }
}
