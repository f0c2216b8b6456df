//! The merges, and applying them to one piece of text.
//!
//! A piece starts as a row of symbols. While any adjacent pair has a merge, the pair of the lowest
//! rank (the leftmost, on ties) becomes one symbol: Sennrich et al. 2016, arXiv:1508.07909.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::backtrack::Tried;
use crate::error::{Error, Result};
use crate::interrupt;

/// What two adjacent symbols become, and how early.
#[derive(Clone, Copy)]
pub struct Merge {
    pub rank: u32,
    pub id: u32,
}

/// One symbol of a piece: a token id and the bytes of text that it covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Symbol {
    pub id: u32,
    pub len: u32,
}

/// Up to this many symbols, looking through all the pairs at each step is faster than a heap.
const SCANNED: usize = 48;

/// Stands for the merge of a pair that has none, and ranks last.
const NO_MERGE: Merge = Merge { rank: u32::MAX, id: 0 };

/// Steps of a long piece between two looks for Ctrl-C: a millisecond or two.
const STEPS_BETWEEN_CHECKS: usize = 1 << 14;

#[derive(Default)]
pub struct Merges {
    pairs: FxHashMap<(u32, u32), Merge>,
}

/// Buffers that one call reuses from piece to piece.
#[derive(Default)]
pub struct Scratch {
    pub symbols: Vec<Symbol>,
    /// The merge of each symbol with the next.
    pairs: Vec<Merge>,
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

impl Merges {
    /// Adds a merge, in place of an earlier one of the same pair.
    pub fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        self.pairs.insert((left, right), merge);
    }

    #[inline]
    pub fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.pairs.get(&(left, right)).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = ((u32, u32), Merge)> {
        self.pairs.iter().map(|(&pair, &merge)| (pair, merge))
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
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
        observe: impl FnMut(Symbol, Symbol, u32),
    ) -> Result<()> {
        if scratch.symbols.len() <= SCANNED {
            self.scan(scratch, observe);
            Ok(())
        } else {
            self.queue(scratch, observe)
        }
    }

    /// Short pieces: find the best pair by looking at all of them.
    fn scan(&self, scratch: &mut Scratch, mut observe: impl FnMut(Symbol, Symbol, u32)) {
        let Scratch { symbols, pairs, .. } = scratch;
        let mut merge_of = |left: Symbol, right: Symbol| match self.get(left.id, right.id) {
            Some(merge) => {
                observe(left, right, merge.id);
                merge
            }
            None => NO_MERGE,
        };
        pairs.clear();
        pairs.extend(symbols.windows(2).map(|pair| merge_of(pair[0], pair[1])));
        while let Some((best, &merge)) = pairs.iter().enumerate().min_by_key(|(_, merge)| merge.rank) {
            if merge.rank == NO_MERGE.rank {
                break;
            }
            symbols[best] = Symbol { id: merge.id, len: symbols[best].len + symbols[best + 1].len };
            symbols.remove(best + 1);
            pairs.remove(best);
            if best > 0 {
                pairs[best - 1] = merge_of(symbols[best - 1], symbols[best]);
            }
            if best < pairs.len() {
                pairs[best] = merge_of(symbols[best], symbols[best + 1]);
            }
        }
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
        for length in 0..200 {
            let text: String = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ['a', 'a', 'b', 'c'][(state >> 62) as usize]
                })
                .collect();
            let mut scanned = Scratch { symbols: symbols(&text), ..Scratch::default() };
            let mut queued = Scratch { symbols: symbols(&text), ..Scratch::default() };
            merges.scan(&mut scanned, |_, _, _| {});
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
