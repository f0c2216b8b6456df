//! The merges, and applying them to one piece of text.
//!
//! A piece starts as a row of symbols. While any adjacent pair has a merge, the pair of the lowest
//! rank (the leftmost, on ties) becomes one symbol: Sennrich et al. 2016, arXiv:1508.07909.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::backtrack::Tried;
use super::merge_table::MergeTable;
pub use super::merge_table::{Merge, NO_MERGE};
use crate::error::{Error, Result};
use crate::interrupt;

/// One symbol of a piece: a token id and the bytes of text that it covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Symbol {
    pub id: u32,
    pub len: u32,
}

/// Up to this many symbols, looking through all the pairs at each step is faster than a heap. A place of one fits
/// a byte.
pub const SCANNED: usize = 48;

/// Steps of a long piece between two looks for Ctrl-C: a millisecond or two.
const STEPS_BETWEEN_CHECKS: usize = 1 << 14;

#[derive(Default)]
pub struct Merges {
    pairs: MergeTable,
}

/// Buffers that one call reuses from piece to piece.
#[derive(Default)]
pub struct Scratch {
    pub symbols: Vec<Symbol>,
    scanned: Scanned,
    links: Vec<Link>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    pub tried: Tried,
}

impl Scratch {
    /// Gives back the memory that a very long piece took.
    pub fn trim(&mut self) {
        const KEPT: usize = 1 << 16;
        if self.symbols.capacity() > KEPT {
            *self = Scratch::default();
        }
    }
}

/// The neighbours of a symbol in a long piece, as positions; `END` past either end.
#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

const END: u32 = u32::MAX;

/// What is known of the symbols of a short piece, by the place where each began; a place that a symbol to its left
/// took over stays empty, so that nothing moves.
struct Scanned {
    /// The rank of the merge with the next symbol.
    ranks: [u32; SCANNED],
    /// What that merge makes.
    made: [u32; SCANNED],
    previous: [u8; SCANNED],
    next: [u8; SCANNED],
}

impl Default for Scanned {
    fn default() -> Self {
        Scanned { ranks: [0; SCANNED], made: [0; SCANNED], previous: [0; SCANNED], next: [0; SCANNED] }
    }
}

impl Scanned {
    #[inline(always)]
    fn set(&mut self, place: usize, merge: Merge) {
        self.ranks[place] = merge.rank;
        self.made[place] = merge.id;
    }
}

impl Merges {
    /// Adds a merge, in place of an earlier one of the same pair.
    pub fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        self.pairs.insert(left, right, merge);
    }

    #[inline]
    pub fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.pairs.get(left, right)
    }

    pub fn iter(&self) -> impl Iterator<Item = ((u32, u32), Merge)> {
        self.pairs.iter()
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Merges `scratch.symbols` until no pair has a merge. Time is O(n log n) in the symbols.
    pub fn apply(&self, scratch: &mut Scratch) -> Result<()> {
        self.apply_observed(scratch, |_, _, _| {})
    }

    /// `apply`, telling `observe(left, right, merged)` of each pair with a merge as it comes to stand
    /// side by side.
    pub fn apply_observed(
        &self,
        scratch: &mut Scratch,
        mut observe: impl FnMut(Symbol, Symbol, u32),
    ) -> Result<()> {
        if scratch.symbols.len() > SCANNED {
            return self.queue(scratch, observe);
        }
        let mut known = [NO_MERGE; SCANNED];
        for (merge, pair) in known.iter_mut().zip(scratch.symbols.windows(2)) {
            if let Some(found) = self.get(pair[0].id, pair[1].id) {
                observe(pair[0], pair[1], found.id);
                *merge = found;
            }
        }
        self.scan(scratch, known.into_iter(), observe);
        Ok(())
    }

    /// `apply` to a short piece, the merges of whose symbols with the next are known.
    pub fn apply_known(&self, scratch: &mut Scratch, known: impl Iterator<Item = Merge>) {
        self.scan(scratch, known, |_, _, _| {});
    }

    /// Short pieces: find the best pair by looking at all of them.
    fn scan(
        &self,
        scratch: &mut Scratch,
        known: impl Iterator<Item = Merge>,
        mut observe: impl FnMut(Symbol, Symbol, u32),
    ) {
        let Scratch { symbols, scanned, .. } = scratch;
        let count = symbols.len().min(SCANNED);
        let Some(pairs) = count.checked_sub(1) else { return };
        for (place, merge) in known.take(pairs).enumerate() {
            scanned.set(place, merge);
        }
        for place in 0..count {
            // Before the first there is none, which is told by its place alone.
            scanned.previous[place] = place.wrapping_sub(1) as u8;
            scanned.next[place] = place as u8 + 1;
        }
        loop {
            let (mut place, mut rank) = (0, NO_MERGE.rank);
            for (other, &rank_of_other) in scanned.ranks[..pairs].iter().enumerate() {
                if rank_of_other < rank {
                    (place, rank) = (other, rank_of_other);
                }
            }
            if rank == NO_MERGE.rank {
                break;
            }
            let right = usize::from(scanned.next[place]);
            let after = usize::from(scanned.next[right]);
            symbols[place] = Symbol { id: scanned.made[place], len: symbols[place].len + symbols[right].len };
            symbols[right].len = 0;
            scanned.next[place] = after as u8;
            scanned.set(right, NO_MERGE);
            scanned.set(place, NO_MERGE);
            let mut meet = |scanned: &mut Scanned, left: usize, right: usize| {
                let merge = self.get(symbols[left].id, symbols[right].id);
                if let Some(merge) = merge {
                    observe(symbols[left], symbols[right], merge.id);
                }
                scanned.set(left, merge.unwrap_or(NO_MERGE));
            };
            if place > 0 {
                let before = usize::from(scanned.previous[place]);
                meet(scanned, before, place);
            }
            if after < count {
                scanned.previous[after] = place as u8;
                meet(scanned, place, after);
            }
        }
        symbols.retain(|symbol| symbol.len != 0);
    }

    /// Long pieces: a heap of `(rank, position)`. An entry whose pair has changed since is recognised
    /// by its rank and dropped.
    fn queue(&self, scratch: &mut Scratch, mut observe: impl FnMut(Symbol, Symbol, u32)) -> Result<()> {
        let Scratch { symbols, links, heap, .. } = scratch;
        let count = u32::try_from(symbols.len()).ok().filter(|&count| count < END).ok_or_else(|| {
            Error::argument("text", format!("a piece of {} symbols", symbols.len()), "fewer than 2³²")
        })?;
        links.clear();
        links.extend(
            (0..count).map(|i| Link {
                previous: i.wrapping_sub(1),
                next: if i + 1 == count { END } else { i + 1 },
            }),
        );
        heap.clear();
        for (i, pair) in symbols.windows(2).enumerate() {
            if i.is_multiple_of(STEPS_BETWEEN_CHECKS) {
                interrupt::check()?;
            }
            if let Some(merge) = self.get(pair[0].id, pair[1].id) {
                observe(pair[0], pair[1], merge.id);
                heap.push(Reverse((merge.rank, i as u32)));
            }
        }
        let mut steps = 0usize;
        while let Some(Reverse((rank, at))) = heap.pop() {
            steps += 1;
            if steps.is_multiple_of(STEPS_BETWEEN_CHECKS) {
                interrupt::check()?;
            }
            let Link { previous, next } = links[at as usize];
            // A symbol that its left neighbour swallowed has no length.
            if symbols[at as usize].len == 0 || next == END {
                continue;
            }
            let right = symbols[next as usize];
            let merge = match self.get(symbols[at as usize].id, right.id) {
                Some(merge) if merge.rank == rank => merge,
                _ => continue,
            };
            symbols[at as usize] = Symbol { id: merge.id, len: symbols[at as usize].len + right.len };
            symbols[next as usize].len = 0;
            let after = links[next as usize].next;
            links[at as usize].next = after;
            if after != END {
                links[after as usize].previous = at;
            }
            for (left, right) in [(previous, at), (at, after)] {
                if left == END || right == END {
                    continue;
                }
                let (a, b) = (symbols[left as usize], symbols[right as usize]);
                if let Some(merge) = self.get(a.id, b.id) {
                    observe(a, b, merge.id);
                    heap.push(Reverse((merge.rank, left)));
                }
            }
        }
        symbols.retain(|symbol| symbol.len != 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(text: &str) -> Vec<Symbol> {
        text.bytes().map(|byte| Symbol { id: byte as u32, len: 1 }).collect()
    }

    /// Merges over the bytes a, b, c whose products have ids from 256 on.
    fn merges() -> Merges {
        let mut merges = Merges::default();
        let (a, b, c) = (97, 98, 99);
        let pairs = [(a, a), (256, 256), (b, c), (a, b), (257, 256), (259, c), (257, 257), (c, c)];
        for (rank, (left, right)) in pairs.into_iter().enumerate() {
            merges.insert(left, right, Merge { rank: rank as u32, id: 256 + rank as u32 });
        }
        merges
    }

    #[test]
    fn the_heap_equals_the_scan() {
        let merges = merges();
        let mut state = 1u64;
        for length in 0..=SCANNED {
            let text: String = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ['a', 'a', 'b', 'c'][(state >> 62) as usize]
                })
                .collect();
            let mut scanned = Scratch { symbols: symbols(&text), ..Scratch::default() };
            let mut queued = Scratch { symbols: symbols(&text), ..Scratch::default() };
            merges.apply(&mut scanned).unwrap();
            merges.queue(&mut queued, |_, _, _| {}).unwrap();
            assert_eq!(scanned.symbols, queued.symbols, "{text}");
        }
    }

    #[test]
    fn a_million_equal_letters_take_no_quadratic_time() {
        let mut scratch = Scratch { symbols: symbols(&"a".repeat(1 << 20)), ..Scratch::default() };
        merges().apply(&mut scratch).unwrap();
        assert_eq!(scratch.symbols.len(), 1 << 17);
    }
}
