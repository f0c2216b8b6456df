//! Ids of pieces met before that are too long for a key of the cache: words of many bytes, indentation,
//! lines of tables.

use std::hash::Hasher;

use rustc_hash::FxHasher;

use crate::memory::filled;
use crate::simd;

/// The longest piece that is kept, in bytes.
const LONGEST: usize = 255;
/// Sets of two slots: 1.5 MB.
const SETS_LOG2: u32 = 16;
/// When the records are so many bytes, all are forgotten.
const MOST_BYTES: usize = 1 << 23;

const ID_BYTES: usize = size_of::<u32>();

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Where the record starts: the ids, then the bytes of the piece, for a look at both to be one at memory.
    record: u32,
    /// A part of the hash, so that few other pieces are compared.
    check: u32,
    /// Of the piece; 0 is an empty slot.
    len: u16,
    /// Of the ids.
    count: u16,
}

/// Pieces and their ids; of the pieces of a set, a newer one displaces the older of two.
#[derive(Default)]
pub struct LongPieces {
    sets: Vec<[Slot; 2]>,
    records: Vec<u8>,
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
    /// Brings near what says where a piece would be.
    #[inline]
    pub fn prefetch(&self, piece: &[u8]) {
        if piece.len() <= LONGEST
            && let Some(set) = self.sets.get(place(piece).0)
        {
            simd::prefetch(set);
        }
    }

    #[inline]
    pub fn get(&self, piece: &[u8]) -> Option<impl Iterator<Item = u32>> {
        if piece.len() > LONGEST {
            return None;
        }
        let (at, check) = place(piece);
        self.sets.get(at)?.iter().find_map(|slot| {
            if slot.check != check || slot.len as usize != piece.len() {
                return None;
            }
            let record = &self.records[slot.record as usize..];
            let (ids, bytes) = record.split_at(slot.count as usize * ID_BYTES);
            (&bytes[..piece.len()] == piece)
                .then(|| ids.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)))
        })
    }

    /// Keeps a piece, unless it is empty or too long.
    pub fn put(&mut self, piece: &[u8], ids: &[u32]) {
        if piece.is_empty() || piece.len() > LONGEST || ids.len() > LONGEST {
            return;
        }
        let bytes = piece.len() + ids.len() * ID_BYTES;
        if self.records.len() + bytes > MOST_BYTES || self.sets.is_empty() {
            self.records.clear();
            self.sets = filled(Default::default(), 1 << SETS_LOG2);
        }
        let (at, check) = place(piece);
        let record = self.records.len() as u32;
        let newer = Slot { record, check, len: piece.len() as u16, count: ids.len() as u16 };
        self.sets[at] = [newer, self.sets[at][0]];
        ids.iter().for_each(|id| self.records.extend_from_slice(&id.to_le_bytes()));
        self.records.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(pieces: &LongPieces, piece: &[u8]) -> Option<Vec<u32>> {
        pieces.get(piece).map(Iterator::collect)
    }

    #[test]
    fn the_piece_put_in_last_comes_back_and_no_memory_grows() {
        let mut pieces = LongPieces::default();
        assert_eq!(get(&pieces, b"a piece that was not put in"), None);
        for i in 0..400_000u32 {
            let piece = format!("a piece with the number {i}");
            let ids = [i, 1, i];
            pieces.put(piece.as_bytes(), &ids);
            assert_eq!(get(&pieces, piece.as_bytes()), Some(ids.to_vec()));
            assert_eq!(get(&pieces, format!("{piece}0").as_bytes()), None);
            assert!(pieces.records.len() <= MOST_BYTES);
        }
        pieces.put(&[b'x'; LONGEST + 1], &[1]);
        assert_eq!(get(&pieces, &[b'x'; LONGEST + 1]), None);
    }
}
