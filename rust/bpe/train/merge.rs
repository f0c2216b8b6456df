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
//! comes up once, all its words are then known, and later its count can only fall. So the queue may
//! hold each pair once, with a count that is looked up again when the pair is drawn.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use rustc_hash::FxHashMap;

use super::count::{Counts, within_memory};
use crate::error::{Error, Result};
use crate::interrupt;

/// Symbols looked at between two looks for Ctrl-C.
const SYMBOLS_BETWEEN_CHECKS: usize = 1 << 16;

/// Merges between two looks at the memory.
const MERGES_BETWEEN_CHECKS: usize = 256;

/// Two adjacent symbols, the left one in the high half: pairs compare as numbers do.
type Pair = u64;

fn pair(left: u32, right: u32) -> Pair {
    u64::from(left) << 32 | u64::from(right)
}

fn left(pair: Pair) -> u32 {
    (pair >> 32) as u32
}

fn right(pair: Pair) -> u32 {
    pair as u32
}

/// The different pieces of the text, as symbols, one after the other.
#[derive(Default)]
struct Words {
    symbols: Vec<u32>,
    /// Where each word begins; words shrink and leave a gap before the next.
    starts: Vec<usize>,
    lens: Vec<u32>,
    counts: Vec<u64>,
}

impl Words {
    /// Words of one symbol hold no pair and are left out.
    fn new(counts: &Counts, symbol_of: &[u32; 256]) -> Result<Self> {
        let mut words = Words::default();
        counts.each(|piece, count| {
            if piece.len() < 2 {
                return Ok(());
            }
            let too_much = |_| Error::argument("text", "4 GiB in one piece", "a pattern that cuts it");
            words.lens.push(u32::try_from(piece.len()).map_err(too_much)?);
            words.starts.push(words.symbols.len());
            words.counts.push(count);
            words.symbols.extend(piece.iter().map(|&byte| symbol_of[usize::from(byte)]));
            Ok(())
        })?;
        match u32::try_from(words.starts.len()) {
            Ok(n) if n != u32::MAX => Ok(words),
            _ => Err(Error::argument("text", "2³² different pieces", "fewer")),
        }
    }

    fn range(&self, word: u32) -> Range<usize> {
        let word = word as usize;
        self.starts[word]..self.starts[word] + self.lens[word] as usize
    }
}

/// What is known of a pair.
struct Known {
    pair: Pair,
    /// Its occurrences in the text, until it is merged.
    count: i64,
    /// Of the rows that are being made: how many words its row has, then where the next one goes.
    fill: usize,
    /// One more than the last word that came into its row.
    last_word: u32,
}

/// A pair that may be merged, in the words of a row.
///
/// The greatest has the greatest count, then the smallest pair.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    pair: Reverse<Pair>,
    /// Where its row begins.
    row: Reverse<usize>,
    words: usize,
    /// Its place among the known pairs.
    known: u32,
}

/// A symbol beside the pair that is being merged, on one side of it.
struct Neighbour {
    symbol: u32,
    on_the_left: bool,
    /// How often, in the text.
    count: i64,
}

/// The state of the search. `run` finds the merges.
pub struct Merger {
    words: Words,
    known: Vec<Known>,
    /// Where in `known` a pair is.
    place_of: FxHashMap<Pair, u32>,
    queue: BinaryHeap<Candidate>,
    /// The words of all candidates, row by row.
    rows: Vec<u32>,
    /// Pairs that came up and the words they came up in, until `make_rows`.
    found: Vec<(u32, u32)>,
    neighbours: Vec<Neighbour>,
    /// Where in `neighbours` a symbol on the left, or on the right, is; `NONE` if it is not.
    neighbour_of: [Vec<u32>; 2],
}

const NONE: u32 = u32::MAX;

impl Merger {
    /// Starts with the pieces' bytes as symbols.
    pub fn new(counts: Counts, symbol_of: &[u32; 256]) -> Result<Self> {
        let words = Words::new(&counts, symbol_of)?;
        // The tables are not needed beside the pairs.
        drop(counts);
        let mut merger = Merger {
            words,
            known: Vec::new(),
            place_of: FxHashMap::default(),
            queue: BinaryHeap::new(),
            rows: Vec::new(),
            found: Vec::new(),
            neighbours: Vec::new(),
            neighbour_of: [Vec::new(), Vec::new()],
        };
        for word in 0..merger.words.starts.len() {
            if word % (SYMBOLS_BETWEEN_CHECKS / 8) == 0 {
                interrupt::check()?;
            }
            let count = merger.words.counts[word] as i64;
            let range = merger.words.range(word as u32);
            for i in range.start + 1..range.end {
                let pair = pair(merger.words.symbols[i - 1], merger.words.symbols[i]);
                let place = merger.place(pair);
                merger.known[place as usize].count += count;
                merger.found.push((place, word as u32));
            }
        }
        merger.make_rows();
        merger.found = Vec::new();
        Ok(merger)
    }

    /// The memory that the search takes.
    fn bytes(&self) -> usize {
        let Words { symbols, starts, lens, counts } = &self.words;
        size_of_val(symbols.as_slice())
            + size_of_val(starts.as_slice())
            + size_of_val(lens.as_slice())
            + size_of_val(counts.as_slice())
            + self.known.capacity() * size_of::<Known>()
            + self.place_of.capacity() * size_of::<(Pair, u32)>() * 8 / 7
            + self.queue.capacity() * size_of::<Candidate>()
            + self.rows.capacity() * size_of::<u32>()
            + self.found.capacity() * size_of::<(u32, u32)>()
    }

    /// Merges until `name`, which gives the symbol of two, or `None` to end. No pair that occurs less
    /// than `min_frequency` times is merged.
    pub fn run(
        &mut self,
        min_frequency: u64,
        max_memory: usize,
        mut name: impl FnMut(u32, u32) -> Result<Option<u32>>,
    ) -> Result<()> {
        let mut merges = 0usize;
        while let Some(mut top) = self.queue.pop() {
            let count = self.known[top.known as usize].count.max(0) as u64;
            if top.count != count {
                top.count = count;
                self.queue.push(top);
                continue;
            }
            if count < min_frequency.max(1) {
                break;
            }
            let pair = top.pair.0;
            let Some(symbol) = name(left(pair), right(pair))? else { break };
            self.merge(&top, symbol)?;
            if merges.is_multiple_of(MERGES_BETWEEN_CHECKS) {
                within_memory(self.bytes(), max_memory, || "the pairs of symbols".into())?;
            }
            merges += 1;
            interrupt::check()?;
        }
        Ok(())
    }

    /// Replaces a pair by a symbol in the words of its row.
    fn merge(&mut self, candidate: &Candidate, symbol: u32) -> Result<()> {
        let pair = candidate.pair.0;
        let row = candidate.row.0..candidate.row.0 + candidate.words;
        let mut looked_at = 0;
        for i in row {
            let word = self.rows[i];
            looked_at += self.words.lens[word as usize] as usize;
            if looked_at > SYMBOLS_BETWEEN_CHECKS {
                looked_at = 0;
                interrupt::check()?;
            }
            self.merge_in_word(word, pair, symbol);
        }
        self.count_neighbours(pair, symbol);
        self.make_rows();
        Ok(())
    }

    fn merge_in_word(&mut self, word: u32, pair: Pair, symbol: u32) {
        let range = self.words.range(word);
        let count = self.words.counts[word as usize] as i64;
        let (mut read, mut write) = (range.start, range.start);
        while read < range.end {
            let first = self.words.symbols[read];
            let is_pair =
                first == left(pair) && read + 1 < range.end && self.words.symbols[read + 1] == right(pair);
            if !is_pair {
                self.words.symbols[write] = first;
                read += 1;
            } else {
                if write > range.start {
                    self.meet(self.words.symbols[write - 1], true, word, count);
                }
                if read + 2 < range.end {
                    self.meet(self.words.symbols[read + 2], false, word, count);
                }
                self.words.symbols[write] = symbol;
                read += 2;
            }
            write += 1;
        }
        self.words.lens[word as usize] = (write - range.start) as u32;
    }

    /// Takes down that a symbol is beside an occurrence of the pair that is being merged.
    fn meet(&mut self, symbol: u32, on_the_left: bool, word: u32, count: i64) {
        let places = &mut self.neighbour_of[usize::from(on_the_left)];
        if symbol as usize >= places.len() {
            places.resize(symbol as usize + 1, NONE);
        }
        let place = &mut places[symbol as usize];
        if *place == NONE {
            *place = self.neighbours.len() as u32;
            self.neighbours.push(Neighbour { symbol, on_the_left, count: 0 });
        }
        self.neighbours[*place as usize].count += count;
        self.found.push((*place, word));
    }

    /// Moves the counts of the pairs with the neighbours from the parts of a pair to the whole.
    fn count_neighbours(&mut self, merged: Pair, symbol: u32) {
        let neighbours = std::mem::take(&mut self.neighbours);
        let mut places = Vec::with_capacity(neighbours.len());
        for Neighbour { symbol: other, on_the_left, count } in &neighbours {
            self.neighbour_of[usize::from(*on_the_left)][*other as usize] = NONE;
            let (old, new) = match on_the_left {
                true => (pair(*other, left(merged)), pair(*other, symbol)),
                false => (pair(right(merged), *other), pair(symbol, *other)),
            };
            let old = self.place(old) as usize;
            self.known[old].count -= count;
            let new = self.place(new);
            self.known[new as usize].count += count;
            places.push(new);
        }
        for (found, _) in &mut self.found {
            *found = places[*found as usize];
        }
        self.neighbours = neighbours;
        self.neighbours.clear();
    }

    /// Where a pair is in `known`.
    fn place(&mut self, pair: Pair) -> u32 {
        *self.place_of.entry(pair).or_insert_with(|| {
            self.known.push(Known { pair, count: 0, fill: 0, last_word: 0 });
            (self.known.len() - 1) as u32
        })
    }

    /// Makes candidates of the pairs found, a row for each, in which a word stands once.
    fn make_rows(&mut self) {
        // The words of `found` ascend, or are at least together, so that looking at the last one tells
        // whether a word is in the row already.
        let mut pairs = Vec::new();
        self.found.retain(|(place, word)| {
            let known = &mut self.known[*place as usize];
            if known.last_word == word + 1 {
                return false;
            }
            if known.fill == 0 {
                pairs.push(*place);
            }
            known.fill += 1;
            known.last_word = word + 1;
            true
        });
        let mut start = self.rows.len();
        self.rows.resize(start + self.found.len(), 0);
        for &place in &pairs {
            let known = &mut self.known[place as usize];
            let words = std::mem::replace(&mut known.fill, start);
            known.last_word = 0;
            if let Ok(count @ 1..) = u64::try_from(known.count) {
                let pair = Reverse(known.pair);
                self.queue.push(Candidate { count, pair, row: Reverse(start), words, known: place });
            }
            start += words;
        }
        for (place, word) in self.found.drain(..) {
            let known = &mut self.known[place as usize];
            self.rows[known.fill] = word;
            known.fill += 1;
        }
        for place in pairs {
            self.known[place as usize].fill = 0;
        }
    }
}
