//! Finding merges: again and again, the most frequent pair of adjacent symbols becomes a symbol.
//!
//! The order is that of `BpeTrainer` of Hugging Face's `tokenizers`: the greater count, then the smaller
//! pair of ids. Occurrences that overlap count: `aaa` holds the pair `aa` twice, and is merged once.
//!
//! # No string is made of two pairs
//! Where a string begins and ends with a symbol, in whatever word, it falls into the same symbols:
//! borders only ever vanish, so it had its own from the start, no merge went across them, and those
//! inside went from the left to the right in every word alike. Once it is one symbol it is so
//! everywhere. Hence a merge makes a new symbol, and new pairs are those with the new symbol: a pair
//! comes up once, all its places are then known, and later its count can only fall. So the queue may
//! hold each pair once, with a count that is looked up again when the pair is drawn.
//!
//! # Rare pairs are not known
//! Most pairs are never merged. One that has less than `threshold` occurrences when it comes up will never
//! have more, and as long as another has at least so many it is not its turn: nothing is kept of it. When
//! no known pair reaches the threshold, that is lowered, and the words are searched for pairs that have
//! become worth knowing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;

use super::count::Pieces;
use super::words::{Layout, NONE, Occurrences, Pair, Symbol, Words, left, pair, right};
use crate::error::{Error, Result};
use crate::{interrupt, threads};

/// Merges between two looks at the memory.
const MERGES_BETWEEN_CHECKS: usize = 256;

/// From so many places on, a merge is worth waking the other threads.
const PLACES_FOR_THREADS: usize = 1 << 11;

/// More shares of the words than this are not worth their own tables.
const MOST_SHARES: usize = 16;

/// The threshold is at first such that pairs of so many times the wanted number would reach it if all were
/// equally frequent. Counts of merges fall about as the inverse of their number, so this is well below the last.
const PAIRS_PER_TOKEN: u64 = 64;

/// What the threshold is divided by when it is lowered.
const STEP: u64 = 4;

/// A pair that may be merged. The greatest has the greatest count, then the smallest pair.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    pair: Reverse<Pair>,
    /// Its place among the known pairs.
    known: u32,
}

/// The state of the search. `run` finds the merges.
pub struct Merger<S> {
    words: Vec<Words<S>>,
    /// How many bytes each symbol has.
    lens: Vec<u32>,
    known: Vec<Pair>,
    /// The occurrences in the text of the known pairs, until they are merged.
    counts: Vec<u64>,
    /// Where in `known` a pair is.
    place_of: FxHashMap<Pair, u32>,
    queue: BinaryHeap<Candidate>,
    threshold: u64,
    /// The neighbours of all shares: what is on the left or not, and how often.
    neighbours: Vec<(u32, bool, u64)>,
    /// Where in `neighbours` a symbol on the right, or on the left, is; `NONE` if it is not.
    neighbour_of: [Vec<u32>; 2],
    max_memory: usize,
}

impl<S: Symbol> Merger<S> {
    /// Starts with the pieces' bytes as symbols.
    pub fn new(pieces: Pieces, symbol_of: &[u32; 256], max_memory: usize) -> Result<Self> {
        let shares = threads::size().min(MOST_SHARES);
        let layouts = in_parallel(&mut vec![(); shares], |share, ()| Layout::new(&pieces, share, shares))?;
        let bytes = layouts.iter().map(Layout::bytes::<S>).sum();
        within_memory(bytes, max_memory, "the different pieces")?;
        let mut layouts: Vec<Option<Layout>> = layouts.into_iter().map(Some).collect();
        let words = in_parallel(&mut layouts, |share, layout| {
            layout.take().map(|layout| Words::new(layout, &pieces, (share, shares), symbol_of)).transpose()
        })?;
        // The tables are not needed beside the pairs.
        drop(pieces);
        // Special tokens have ids below those of the bytes.
        let symbols = symbol_of.iter().max().map_or(0, |&last| last as usize + 1);
        Ok(Merger {
            words: words.into_iter().flatten().collect(),
            lens: vec![1; symbols],
            known: Vec::new(),
            counts: Vec::new(),
            place_of: FxHashMap::default(),
            queue: BinaryHeap::new(),
            threshold: u64::MAX,
            neighbours: Vec::new(),
            neighbour_of: [Vec::new(), Vec::new()],
            max_memory,
        })
    }

    /// Looks for pairs that reach a threshold, which may depend on the pairs that are not known.
    fn find(&mut self, threshold: impl FnOnce(&FxHashMap<Pair, Occurrences>) -> u64) -> Result<()> {
        let (lens, place_of) = (&self.lens, &self.place_of);
        let found = in_parallel(&mut self.words, |_, words| words.find(lens, place_of))?;
        let mut all: FxHashMap<Pair, Occurrences> = FxHashMap::default();
        for (&pair, occurrences) in found.iter().flatten() {
            all.entry(pair).or_default().count += occurrences.count;
        }
        self.threshold = threshold(&all);
        let before = self.known.len();
        for (pair, Occurrences { count, .. }) in all {
            if count >= self.threshold {
                self.know(pair, count);
            }
        }
        let (lens, place_of) = (&self.lens, &self.place_of);
        let new = &self.known[before..];
        let places = found
            .into_iter()
            .map(|found| new.iter().map(|pair| found.get(pair).map_or(0, |found| found.places)).collect());
        let mut words: Vec<(&mut Words<S>, Vec<usize>)> = self.words.iter_mut().zip(places).collect();
        in_parallel(&mut words, |_, (words, places)| words.find_rows(lens, place_of, places, before))?;
        Ok(())
    }

    /// A pair becomes known. Its place among the known pairs.
    fn know(&mut self, pair: Pair, count: u64) -> u32 {
        let known = self.known.len() as u32;
        self.place_of.insert(pair, known);
        self.known.push(pair);
        self.counts.push(count);
        self.queue.push(Candidate { count, pair: Reverse(pair), known });
        known
    }

    /// The memory that the search takes.
    fn bytes(&self) -> usize {
        self.words.iter().map(Words::bytes).sum::<usize>()
            + self.known.capacity() * size_of::<(Pair, u64)>()
            + self.place_of.capacity() * size_of::<(Pair, u32)>() * 8 / 7
            + self.queue.capacity() * size_of::<Candidate>()
    }

    /// Merges until `name`, which gives the symbol of two, or `None` to end. No pair that occurs less
    /// than `min_frequency` times is merged. There will be `vocab_size` symbols at most.
    pub fn run(
        &mut self,
        vocab_size: usize,
        min_frequency: u64,
        mut name: impl FnMut(u32, u32) -> Result<Option<u32>>,
    ) -> Result<()> {
        let least = min_frequency.max(1);
        self.find(|pairs| {
            let all: u64 = pairs.values().map(|occurrences| occurrences.count).sum();
            (all / PAIRS_PER_TOKEN / vocab_size as u64).max(least)
        })?;
        let mut merges = 0usize;
        loop {
            let Some(top) = self.queue.pop() else {
                if self.lower_threshold(least)? { continue } else { break }
            };
            let count = self.counts[top.known as usize];
            if top.count != count {
                self.queue.push(Candidate { count, ..top });
                continue;
            }
            if count < self.threshold && self.threshold > least {
                self.queue.push(top);
                self.lower_threshold(least)?;
                continue;
            }
            if count < least {
                break;
            }
            let merged = top.pair.0;
            let Some(symbol) = name(left(merged), right(merged))? else { break };
            self.merge(top.known, merged, symbol)?;
            if merges.is_multiple_of(MERGES_BETWEEN_CHECKS) {
                within_memory(self.bytes(), self.max_memory, "the different pieces and pairs")?;
            }
            merges += 1;
            interrupt::check()?;
        }
        Ok(())
    }

    /// Whether the threshold was above the least.
    fn lower_threshold(&mut self, least: u64) -> Result<bool> {
        if self.threshold <= least {
            return Ok(false);
        }
        let threshold = (self.threshold / STEP).max(least);
        self.find(|_| threshold)?;
        Ok(true)
    }

    /// Replaces a pair by a symbol.
    fn merge(&mut self, known: u32, merged: Pair, symbol: u32) -> Result<()> {
        let symbols = self.lens.len().max(symbol as usize + 1);
        self.lens.resize(symbols, 0);
        self.neighbour_of.iter_mut().for_each(|side| side.resize(symbols, NONE));
        self.lens[symbol as usize] = self.lens[left(merged) as usize] + self.lens[right(merged) as usize];
        self.place_of.remove(&merged);
        let lens = &self.lens;
        let places: usize = self.words.iter().map(|words| words.row(known).len()).sum();
        let alone = places < PLACES_FOR_THREADS;
        if alone {
            self.words.iter_mut().try_for_each(|words| words.merge(known, merged, symbol, lens))?;
        } else {
            in_parallel(&mut self.words, |_, words| words.merge(known, merged, symbol, lens))?;
        }
        self.gather_neighbours();
        let places = self.count_neighbours(merged, symbol);
        let (known, lens) = (&self.known, &self.lens);
        if alone {
            self.words.iter_mut().try_for_each(|words| words.make_rows(&places, known, lens))
        } else {
            in_parallel(&mut self.words, |_, words| words.make_rows(&places, known, lens)).map(drop)
        }
    }

    /// Adds up the neighbours of all shares.
    fn gather_neighbours(&mut self) {
        self.neighbours.clear();
        for neighbour in self.words.iter_mut().flat_map(Words::neighbours) {
            let side = &mut self.neighbour_of[usize::from(neighbour.on_the_left)];
            let index = &mut side[neighbour.symbol as usize];
            if *index == NONE {
                *index = self.neighbours.len() as u32;
                self.neighbours.push((neighbour.symbol, neighbour.on_the_left, 0));
            }
            neighbour.index = *index;
            self.neighbours[*index as usize].2 += neighbour.count;
        }
        for &(symbol, on_the_left, _) in &self.neighbours {
            self.neighbour_of[usize::from(on_the_left)][symbol as usize] = NONE;
        }
    }

    /// Moves the counts of the pairs with the neighbours from the parts of a pair to the whole. The places of
    /// the new pairs among the known ones; `NONE` for those that are rare.
    fn count_neighbours(&mut self, merged: Pair, symbol: u32) -> Vec<u32> {
        // Where an occurrence follows another, its right part was beside the new symbol for a moment.
        let before_itself = self.neighbours.iter().find(|&&(other, left, _)| left && other == symbol);
        let moment = before_itself.map_or(0, |&(_, _, count)| count);
        let mut places = Vec::with_capacity(self.neighbours.len());
        let neighbours = std::mem::take(&mut self.neighbours);
        for &(other, on_the_left, count) in &neighbours {
            let (old, new) = match on_the_left {
                true => (pair(other, left(merged)), pair(other, symbol)),
                false => (pair(right(merged), other), pair(symbol, other)),
            };
            if other != symbol
                && let Some(&old) = self.place_of.get(&old)
            {
                self.counts[old as usize] -= count;
            }
            let count = if !on_the_left && other == left(merged) { count - moment } else { count };
            places.push(if count < self.threshold { NONE } else { self.know(new, count) });
        }
        self.neighbours = neighbours;
        places
    }
}

/// An error if merging takes more than `max_memory`.
fn within_memory(bytes: usize, max_memory: usize, what: &str) -> Result<()> {
    if bytes <= max_memory {
        return Ok(());
    }
    let expected = format!("at least the {bytes} that merging {what} takes, or a larger min_piece_count");
    Err(Error::argument("max_memory", format!("{max_memory} bytes"), expected))
}

/// Runs a job for each item, on the threads, and gives the results in order.
fn in_parallel<T: Send, R: Send>(
    items: &mut [T],
    job: impl Fn(usize, &mut T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let results: Vec<Mutex<Option<Result<R>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    threads::for_each_mut(items, 1, |i, item| {
        let done = job(i, &mut item[0]);
        *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
    });
    results
        .into_iter()
        .filter_map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bpe::train::table::Table;

    /// The same by counting all pairs anew for each merge.
    fn merges_by_counting(pieces: &[(Vec<u8>, u64)], least: u64, most: usize) -> Vec<(u32, u32)> {
        let mut words: Vec<(Vec<u32>, u64)> = pieces
            .iter()
            .map(|(piece, count)| (piece.iter().map(|&byte| byte.into()).collect(), *count))
            .collect();
        let mut merges = Vec::new();
        while merges.len() < most {
            let mut counts: BTreeMap<Pair, u64> = BTreeMap::new();
            for (word, count) in &words {
                word.windows(2).for_each(|two| *counts.entry(pair(two[0], two[1])).or_default() += count);
            }
            let best = counts.iter().max_by_key(|&(&pair, &count)| (count, Reverse(pair)));
            let Some((&best, _)) = best.filter(|&(_, &count)| count >= least) else { break };
            let symbol = 256 + merges.len() as u32;
            for (word, _) in &mut words {
                let mut i = 0;
                while i + 1 < word.len() {
                    if pair(word[i], word[i + 1]) == best {
                        word.splice(i..i + 2, [symbol]);
                    }
                    i += 1;
                }
            }
            merges.push((left(best), right(best)));
        }
        merges
    }

    fn merges<S: Symbol>(pieces: &[(Vec<u8>, u64)], least: u64, most: usize) -> Vec<(u32, u32)> {
        let mut table = Table::default();
        pieces.iter().for_each(|(piece, count)| table.add_long(piece, *count));
        let symbol_of = std::array::from_fn(|byte| byte as u32);
        let mut merger = Merger::<S>::new(Pieces::of(table), &symbol_of, usize::MAX).unwrap();
        let mut merges = Vec::new();
        let name = |left, right| {
            let symbol = 256 + merges.len() as u32;
            let more = merges.len() < most;
            if more {
                merges.push((left, right));
            }
            Ok(more.then_some(symbol))
        };
        merger.run(256 + most, least, name).unwrap();
        merges
    }

    /// Some pieces are so frequent that most pairs are rare, and are looked for later, more than once.
    #[test]
    fn merges_are_those_of_counting() {
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for round in 0..60 {
            let letters = 1 + random(4);
            let most = 1 + random(150) as usize;
            let mut pieces = BTreeMap::new();
            for _ in 0..random(120) {
                let piece: Vec<u8> = (0..1 + random(14)).map(|_| b'a' + random(letters) as u8).collect();
                pieces.insert(piece, 1 + random(5) * 10u64.pow(2 * random(4) as u32));
            }
            if round % 10 == 0 {
                // Long enough for the threads, and, merged to the end, for rows to be cleared.
                let piece = (0..6000).map(|_| b'a' + random(letters) as u8).collect();
                pieces.insert(piece, 3);
            }
            let pieces: Vec<(Vec<u8>, u64)> = pieces.into_iter().collect();
            let least = random(3);
            let expected = merges_by_counting(&pieces, least.max(1), most);
            assert_eq!(merges::<u16>(&pieces, least, most), expected, "{pieces:?}");
            assert_eq!(merges::<u32>(&pieces, least, most), expected);
        }
    }
}
