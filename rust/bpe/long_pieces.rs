//! Ids of pieces met before that are too long for a key of the cache: words of many bytes, indentation,
//! lines of tables.

use std::hash::Hasher;

use rustc_hash::FxHasher;

/// The longest piece that is kept, in bytes.
const LONGEST: usize = 255;
/// Sets of two slots: 2 MB.
const SETS_LOG2: u32 = 16;
/// When the pieces kept have so many bytes or so many ids, 4 MB each, all are forgotten.
const MOST_BYTES: usize = 1 << 22;
const MOST_IDS: usize = 1 << 20;

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Where the piece and its ids start.
    bytes: u32,
    ids: u32,
    /// A part of the hash, so that few other pieces are compared.
    check: u32,
    /// Of the piece; 0 is an empty slot.
    len: u16,
    count: u16,
}

/// Pieces and their ids, one after the other; of those of a set, a newer one displaces the older of two.
#[derive(Default)]
pub struct LongPieces {
    sets: Vec<[Slot; 2]>,
    bytes: Vec<u8>,
    ids: Vec<u32>,
}

/// The set and the check of a piece.
#[inline]
fn place(piece: &[u8]) -> (usize, u32) {
    let mut hasher = FxHasher::default();
    hasher.write(piece);
    let hash = hasher.finish();
    ((hash >> (64 - SETS_LOG2)) as usize, hash as u32)
}

impl LongPieces {
    #[inline]
    pub fn get(&self, piece: &[u8]) -> Option<&[u32]> {
        if piece.len() > LONGEST {
            return None;
        }
        let (at, check) = place(piece);
        let is_it = |slot: &&Slot| {
            slot.check == check
                && slot.len as usize == piece.len()
                && self.bytes[slot.bytes as usize..][..piece.len()] == *piece
        };
        let slot = self.sets.get(at)?.iter().find(is_it)?;
        Some(&self.ids[slot.ids as usize..][..slot.count as usize])
    }

    /// Keeps a piece, unless it is empty or too long.
    pub fn put(&mut self, piece: &[u8], ids: &[u32]) {
        if piece.is_empty() || piece.len() > LONGEST || ids.len() > LONGEST {
            return;
        }
        let full = self.bytes.len() + piece.len() > MOST_BYTES || self.ids.len() + ids.len() > MOST_IDS;
        if full || self.sets.is_empty() {
            self.bytes.clear();
            self.ids.clear();
            self.sets.clear();
            self.sets.resize(1 << SETS_LOG2, Default::default());
        }
        let (at, check) = place(piece);
        let newer = Slot {
            bytes: self.bytes.len() as u32,
            ids: self.ids.len() as u32,
            check,
            len: piece.len() as u16,
            count: ids.len() as u16,
        };
        self.sets[at] = [newer, self.sets[at][0]];
        self.bytes.extend_from_slice(piece);
        self.ids.extend_from_slice(ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_piece_put_in_last_comes_back_and_no_memory_grows() {
        let mut pieces = LongPieces::default();
        assert_eq!(pieces.get(b"a piece that was not put in"), None);
        for i in 0..200_000u32 {
            let piece = format!("a piece with the number {i}");
            let ids = [i, 1, i];
            pieces.put(piece.as_bytes(), &ids);
            assert_eq!(pieces.get(piece.as_bytes()), Some(&ids[..]));
            assert_eq!(pieces.get(format!("{piece}0").as_bytes()), None);
            assert!(pieces.bytes.len() <= MOST_BYTES && pieces.ids.len() <= MOST_IDS);
        }
        pieces.put(&[b'x'; LONGEST + 1], &[1]);
        assert_eq!(pieces.get(&[b'x'; LONGEST + 1]), None);
    }
}
