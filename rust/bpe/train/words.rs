//! A share of the different pieces, as symbols, and where in it the pairs of symbols are.
//!
//! Every byte of a piece has a place, and stays there. A symbol stands at the first and at the last place of
//! its bytes, so that the one after a symbol is found by its length, and the one before it, too. Between
//! two pieces is a border.
//!
//! # A place tells whether a pair is still there
//! A row of places is made when its pair comes up. Later some of its symbols are gone into longer ones. Where
//! a symbol `a` stood, its first place then holds `GONE` or a symbol that is longer than `a`, hence not
//! `a`; where it still stands, the place after it is that of the next symbol.

use std::ops::Range;

use rustc_hash::FxHashMap;

use super::count::Pieces;
use crate::error::{Error, Result};
use crate::interrupt;

/// Places looked at between two looks for Ctrl-C.
const PLACES_BETWEEN_CHECKS: usize = 1 << 16;

/// Places that are looked up together, so that the memory answers them together.
const BATCH: usize = 16;

/// Places for which it is written down which stretch they are in.
const BLOCK: usize = 1 << 8;

/// Rows may take so many times the places of the pieces, until those that have gone are dropped. All pairs
/// that there are take as many as there are symbols.
const ROOM: (usize, usize) = (3, 2);

/// No neighbour, no row.
pub const NONE: u32 = u32::MAX;

/// The id of a token, in as few bytes as the vocabulary allows.
pub trait Symbol: Copy + Eq + Send + Sync {
    /// Between two pieces.
    const BORDER: Self;
    /// Where no symbol begins any more.
    const GONE: Self;
    /// As many ids as there may be.
    const MOST: usize;

    fn new(id: u32) -> Self;
    fn id(self) -> u32;
}

impl Symbol for u16 {
    const BORDER: u16 = u16::MAX;
    const GONE: u16 = u16::MAX - 1;
    const MOST: usize = u16::MAX as usize - 1;

    fn new(id: u32) -> Self {
        id as u16
    }

    fn id(self) -> u32 {
        u32::from(self)
    }
}

impl Symbol for u32 {
    const BORDER: u32 = u32::MAX;
    const GONE: u32 = u32::MAX - 1;
    const MOST: usize = u32::MAX as usize - 1;

    fn new(id: u32) -> Self {
        id
    }

    fn id(self) -> u32 {
        self
    }
}

/// Two adjacent symbols, the left one in the high half: pairs compare as numbers do.
pub type Pair = u64;

pub fn pair(left: u32, right: u32) -> Pair {
    u64::from(left) << 32 | u64::from(right)
}

pub fn left(pair: Pair) -> u32 {
    (pair >> 32) as u32
}

pub fn right(pair: Pair) -> u32 {
    pair as u32
}

/// How often a pair occurs.
#[derive(Clone, Copy, Default)]
pub struct Occurrences {
    /// In the text.
    pub count: u64,
    /// In the different pieces.
    pub places: usize,
}

/// A symbol beside the pair that is being merged, on one side of it.
pub struct Neighbour {
    pub symbol: u32,
    pub on_the_left: bool,
    pub count: u64,
    /// Which it is among the neighbours of all shares.
    pub index: u32,
    places: usize,
    /// Where the next of its places goes.
    next: usize,
}

/// Pieces that occur equally often lie together.
struct Stretch {
    end: usize,
    count: u64,
}

/// How many places the pieces of a share take, by how often they occur; the most frequent first.
pub struct Layout {
    places: Vec<(u64, usize)>,
}

impl Layout {
    /// Pieces of one byte hold no pair and are left out.
    pub fn new(pieces: &Pieces, share: usize, shares: usize) -> Result<Self> {
        let mut places: FxHashMap<u64, usize> = FxHashMap::default();
        pieces.each(share, shares, |piece, count| {
            if piece.len() > 1 {
                *places.entry(count).or_default() += piece.len() + 1;
            }
            Ok(())
        })?;
        let mut places: Vec<(u64, usize)> = places.into_iter().collect();
        places.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Layout { places })
    }

    /// How many there are, the first border among them.
    fn len(&self) -> usize {
        1 + self.places.iter().map(|(_, places)| places).sum::<usize>()
    }

    /// The memory that the words and their rows will take.
    pub fn bytes<S>(&self) -> usize {
        self.len() * size_of::<S>() + room(self.len()) * size_of::<u32>()
    }
}

/// The room for rows in pieces of so many places.
fn room(places: usize) -> usize {
    places * ROOM.0 / ROOM.1
}

pub struct Words<S> {
    symbols: Vec<S>,
    stretches: Vec<Stretch>,
    /// In which stretch each block of places begins.
    stretch_of: Vec<u32>,
    /// The places of all rows, ascending in each.
    rows: Vec<u32>,
    /// Which of them are those of a pair, by its place among the known ones.
    row_of: Vec<(usize, u32)>,
    /// Neighbours met and the places of the pairs with them, until `make_rows`.
    found: Vec<(u32, u32)>,
    neighbours: Vec<Neighbour>,
    /// Where in `neighbours` a symbol on the right, or on the left, is; `NONE` if it is not.
    neighbour_of: [Vec<u32>; 2],
}

impl<S: Symbol> Words<S> {
    /// The pieces that `layout` is of.
    pub fn new(
        layout: Layout,
        pieces: &Pieces,
        (share, shares): (usize, usize),
        symbol_of: &[u32; 256],
    ) -> Result<Self> {
        let places = layout.len();
        if u32::try_from(places).is_err() {
            let most = format!("fewer than 2³² for each of {shares} threads");
            return Err(Error::argument("text", format!("{places} bytes in different pieces"), most));
        }
        let mut words = Words {
            symbols: Vec::new(),
            stretches: Vec::new(),
            stretch_of: Vec::new(),
            rows: Vec::new(),
            row_of: Vec::new(),
            found: Vec::new(),
            neighbours: Vec::new(),
            neighbour_of: [Vec::new(), Vec::new()],
        };
        let bytes = places * size_of::<S>();
        let no_room = |_| Error::Memory { what: "the different pieces".into(), bytes };
        words.symbols.try_reserve_exact(places).map_err(no_room)?;
        words.symbols.resize(places, S::BORDER);
        // Where the next piece that occurs so often goes.
        let mut next_of: FxHashMap<u64, usize> = FxHashMap::default();
        let mut end = 1;
        for (count, places) in layout.places {
            next_of.insert(count, end);
            end += places;
            words.stretches.push(Stretch { end, count });
        }
        pieces.each(share, shares, |piece, count| {
            if piece.len() > 1
                && let Some(next) = next_of.get_mut(&count)
            {
                for (symbol, byte) in words.symbols[*next..].iter_mut().zip(piece) {
                    *symbol = S::new(symbol_of[usize::from(*byte)]);
                }
                *next += piece.len() + 1;
            }
            Ok(())
        })?;
        let mut stretch = 0;
        for place in (0..places).step_by(BLOCK) {
            while words.stretches.get(stretch).is_some_and(|stretch| stretch.end <= place) {
                stretch += 1;
            }
            words.stretch_of.push(stretch as u32);
        }
        Ok(words)
    }

    /// The memory that this takes.
    pub fn bytes(&self) -> usize {
        self.symbols.capacity() * size_of::<S>()
            + self.rows.capacity() * size_of::<u32>()
            + self.row_of.capacity() * size_of::<(usize, u32)>()
            + self.found.capacity() * size_of::<(u32, u32)>()
    }

    /// The places of a known pair, which may have gone from there.
    pub fn row(&self, known: u32) -> Range<usize> {
        match self.row_of.get(known as usize) {
            Some(&(start, len)) => start..start + len as usize,
            None => 0..0,
        }
    }

    /// Calls `met` with every pair, its place, and how often its piece occurs.
    fn each_pair(&self, lens: &[u32], mut met: impl FnMut(Pair, usize, u64)) -> Result<()> {
        let mut start = 1;
        let mut checked = 0;
        for stretch in &self.stretches {
            let mut place = start;
            while place < stretch.end {
                if place - checked > PLACES_BETWEEN_CHECKS {
                    checked = place;
                    interrupt::check()?;
                }
                // No piece is empty, so a symbol stands here.
                let mut symbol = self.symbols[place];
                loop {
                    let after = place + lens[symbol.id() as usize] as usize;
                    let next = self.symbols[after];
                    if next == S::BORDER {
                        place = after + 1;
                        break;
                    }
                    met(pair(symbol.id(), next.id()), place, stretch.count);
                    (symbol, place) = (next, after);
                }
            }
            start = stretch.end;
        }
        Ok(())
    }

    /// All pairs but the known ones.
    pub fn find(&self, lens: &[u32], known: &FxHashMap<Pair, u32>) -> Result<FxHashMap<Pair, Occurrences>> {
        let mut pairs: FxHashMap<Pair, Occurrences> = FxHashMap::default();
        self.each_pair(lens, |pair, _, count| {
            if known.is_empty() || !known.contains_key(&pair) {
                let found = pairs.entry(pair).or_default();
                found.count += count;
                found.places += 1;
            }
        })?;
        Ok(pairs)
    }

    /// Makes rows of the pairs that are known since there were `before`, which occur as `occurrences` says.
    pub fn find_rows(
        &mut self,
        lens: &[u32],
        known: &FxHashMap<Pair, u32>,
        occurrences: &[usize],
        before: usize,
    ) -> Result<()> {
        let mut start = self.rows.len();
        self.row_of.resize(before, (0, 0));
        for &places in occurrences {
            self.row_of.push((start, places as u32));
            start += places;
        }
        let mut next: Vec<usize> = self.row_of[before..].iter().map(|&(start, _)| start).collect();
        let mut rows = std::mem::take(&mut self.rows);
        if start > rows.capacity() {
            rows.reserve_exact(start.max(room(self.symbols.len())) - rows.len());
        }
        rows.resize(start, 0);
        let done = self.each_pair(lens, |pair, place, _| {
            if let Some(index) = known.get(&pair).and_then(|&index| (index as usize).checked_sub(before)) {
                rows[next[index]] = place as u32;
                next[index] += 1;
            }
        });
        self.rows = rows;
        done
    }

    /// Replaces a known pair by a symbol, and takes down the neighbours.
    pub fn merge(&mut self, known: u32, merged: Pair, symbol: u32, lens: &[u32]) -> Result<()> {
        let (first, second) = (S::new(left(merged)), S::new(right(merged)));
        let (first_len, second_len) = (lens[left(merged) as usize], lens[right(merged) as usize]);
        let (first_len, second_len) = (first_len as usize, second_len as usize);
        self.neighbour_of.iter_mut().for_each(|side| side.resize(lens.len(), NONE));
        let symbol = S::new(symbol);
        let mut stretch = 0;
        let row = self.row(known);
        let mut there = [S::GONE; BATCH];
        for (i, start) in row.clone().step_by(BATCH).enumerate() {
            if i % (PLACES_BETWEEN_CHECKS / BATCH) == PLACES_BETWEEN_CHECKS / BATCH - 1 {
                interrupt::check()?;
            }
            let batch = start..row.end.min(start + BATCH);
            for (there, &place) in there.iter_mut().zip(&self.rows[batch.clone()]) {
                *there = self.symbols[place as usize];
            }
            for (there, i) in there.into_iter().zip(batch) {
                let place = self.rows[i] as usize;
                let after = place + first_len;
                // An occurrence in this batch may have taken it meanwhile.
                if there != first || self.symbols[place] != first || self.symbols[after] != second {
                    continue;
                }
                let end = after + second_len;
                let (before, next) = (self.symbols[place - 1], self.symbols[end]);
                self.symbols[after] = S::GONE;
                self.symbols[place] = symbol;
                self.symbols[end - 1] = symbol;
                stretch = stretch.max(self.stretch_of[place / BLOCK] as usize);
                while self.stretches[stretch].end <= place {
                    stretch += 1;
                }
                let count = self.stretches[stretch].count;
                if before != S::BORDER {
                    let start = place - lens[before.id() as usize] as usize;
                    self.meet(before.id(), true, start, count);
                }
                if next != S::BORDER {
                    self.meet(next.id(), false, place, count);
                }
            }
        }
        if let Some(row) = self.row_of.get_mut(known as usize) {
            *row = (0, 0);
        }
        Ok(())
    }

    /// Takes down that a symbol is beside an occurrence of the pair that is being merged, and where the pair
    /// of the two begins.
    #[inline]
    fn meet(&mut self, symbol: u32, on_the_left: bool, place: usize, count: u64) {
        let index = &mut self.neighbour_of[usize::from(on_the_left)][symbol as usize];
        if *index == NONE {
            *index = self.neighbours.len() as u32;
            self.neighbours.push(Neighbour {
                symbol,
                on_the_left,
                count: 0,
                index: NONE,
                places: 0,
                next: 0,
            });
        }
        let neighbour = &mut self.neighbours[*index as usize];
        neighbour.count += count;
        neighbour.places += 1;
        self.found.push((*index, place as u32));
    }

    /// The neighbours that the last merge met.
    pub fn neighbours(&mut self) -> &mut [Neighbour] {
        &mut self.neighbours
    }

    /// Makes rows of the pairs with the neighbours: of each neighbour of all shares, `places` has the place of
    /// the pair among the known ones, or `NONE`. Forgets the neighbours.
    pub fn make_rows(&mut self, places: &[u32], known: &[Pair], lens: &[u32]) -> Result<()> {
        let place_of = |neighbour: &Neighbour| places[neighbour.index as usize];
        let kept = self.neighbours.iter().filter(|neighbour| place_of(neighbour) != NONE);
        let more: usize = kept.map(|neighbour| neighbour.places).sum();
        if self.rows.len() + more > self.rows.capacity() {
            self.drop_what_has_gone(known, lens)?;
            self.rows.reserve(more);
        }
        self.row_of.resize(known.len(), (0, 0));
        let mut start = self.rows.len();
        for neighbour in &mut self.neighbours {
            self.neighbour_of[usize::from(neighbour.on_the_left)][neighbour.symbol as usize] = NONE;
            let place = place_of(neighbour);
            if place == NONE {
                neighbour.next = usize::MAX;
            } else {
                self.row_of[place as usize] = (start, neighbour.places as u32);
                neighbour.next = start;
                start += neighbour.places;
            }
        }
        self.rows.resize(start, 0);
        for (index, place) in self.found.drain(..) {
            let next = &mut self.neighbours[index as usize].next;
            if *next != usize::MAX {
                self.rows[*next] = place;
                *next += 1;
            }
        }
        self.neighbours.clear();
        Ok(())
    }

    /// Drops the places of rows at which the pair is no more.
    fn drop_what_has_gone(&mut self, known: &[Pair], lens: &[u32]) -> Result<()> {
        let mut order: Vec<usize> = (0..self.row_of.len()).filter(|&i| self.row_of[i].1 > 0).collect();
        order.sort_unstable_by_key(|&i| self.row_of[i].0);
        let (mut end, mut checked) = (0, 0);
        for i in order {
            if end - checked > PLACES_BETWEEN_CHECKS {
                checked = end;
                interrupt::check()?;
            }
            let (first, second) = (S::new(left(known[i])), S::new(right(known[i])));
            let first_len = lens[left(known[i]) as usize] as usize;
            let start = end;
            for at in self.row(i as u32) {
                let place = self.rows[at] as usize;
                if self.symbols[place] == first && self.symbols[place + first_len] == second {
                    self.rows[end] = place as u32;
                    end += 1;
                }
            }
            self.row_of[i] = (start, (end - start) as u32);
        }
        self.rows.truncate(end);
        Ok(())
    }
}
