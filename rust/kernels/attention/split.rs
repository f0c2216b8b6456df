//! The queries of a call as tiles, and these shared among threads.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::slice::from_raw_parts_mut;

use super::attend::part_len;
use super::tile::MOST;
use super::{Attend, Call, Element, Heads, Item, Join, Lines, Part, SCRATCH, Scratch, Tile};
use crate::kernels;
use crate::kernels::product::MAX_ROWS;
use crate::simd::dispatch;
use crate::threads::{self, SendPtr};

/// Chunks for each thread: the last ones to be done leave the others waiting for an eighth at most.
const CHUNKS: usize = 8;

/// What a thread does in one go.
struct Chunk {
    tile: usize,
    /// Some spans of the tile, and where their sums go, in floats; or all of it.
    part: Option<(Range<usize>, usize)>,
}

/// The tiles of a call, and the chunks that they fall into.
pub(super) struct Split<'a> {
    pub tiles: Vec<Tile<'a>>,
    /// An upper bound of the multiplications.
    pub work: usize,
    chunks: Vec<Chunk>,
    /// The tiles that fall into several chunks, and where the sums of each begin and end.
    parted: Vec<(usize, Range<usize>)>,
}

thread_local! {
    /// The sums of spans, for all threads of one call.
    static PARTS: RefCell<Lines> = const { RefCell::new(Lines::new()) };
}

impl<'a> Split<'a> {
    pub fn new(heads: &Heads, items: &'a [Item<'a>]) -> Self {
        let mut split = Split { tiles: Vec::new(), work: 0, chunks: Vec::new(), parted: Vec::new() };
        let wanted = CHUNKS * threads::size();
        let queries = |item: &Item<'_>| item.rows * (heads.heads / heads.kv_heads);
        let large: usize = items.iter().map(|item| queries(item).div_ceil(MOST) * heads.kv_heads).sum();
        let most = if large < wanted { MAX_ROWS } else { MOST };
        // The last rows see most: they begin, so that what ends last is short.
        for item in items.iter().rev() {
            let queries = queries(item);
            for start in (0..queries).step_by(most).rev() {
                for kv_head in 0..heads.kv_heads {
                    split.tiles.push(Tile { item, kv_head, queries: start..queries.min(start + most) });
                }
            }
            split.work += 2 * item.rows * item.kv_len * heads.heads * heads.head_dim;
        }
        let spans: usize = split.tiles.iter().map(|tile| tile.spans(heads).len()).sum();
        let share = if threads::size() == 1 { usize::MAX } else { spans.div_ceil(wanted) };
        let mut floats = 0;
        for (i, tile) in split.tiles.iter().enumerate() {
            let (spans, len) = (tile.spans(heads), part_len(heads, tile));
            if spans.len() <= share || tile.strips() > 1 {
                split.chunks.push(Chunk { tile: i, part: None });
                continue;
            }
            for first in spans.clone().step_by(share) {
                let start = floats + (first - spans.start) * len;
                let some = first..spans.end.min(first + share);
                split.chunks.push(Chunk { tile: i, part: Some((some, start)) });
            }
            split.parted.push((i, floats..floats + spans.len() * len));
            floats += spans.len() * len;
        }
        split
    }

    /// Gives `store` each tile, and the scratch with its output.
    pub fn attend<T: Element>(&self, call: &Call<'_>, store: impl Fn(&Tile<'_>, &mut Scratch) + Sync) {
        PARTS.with_borrow_mut(|parts| {
            let parts = parts.floats(self.parted.last().map_or(0, |(_, part)| part.end));
            let to = SendPtr(parts.as_mut_ptr());
            kernels::for_each(self.work, self.chunks.len(), |i| {
                let Chunk { tile, part } = &self.chunks[i];
                let tile = &self.tiles[*tile];
                SCRATCH.with_borrow_mut(|scratch| match part.clone() {
                    None => {
                        dispatch(Attend::<T> { call, tile, scratch, element: PhantomData });
                        store(tile, scratch);
                    }
                    Some((spans, start)) => {
                        let len = spans.len() * part_len(&call.heads, tile);
                        // SAFETY: each chunk has its own stretch of the parts.
                        let parts = unsafe { from_raw_parts_mut(to.get().add(start), len) };
                        dispatch(Part::<T> { call, tile, spans, scratch, parts, element: PhantomData });
                    }
                });
            });
            let parts = &*parts;
            kernels::for_each(parts.len(), self.parted.len(), |i| {
                let (tile, part) = self.parted[i].clone();
                let tile = &self.tiles[tile];
                SCRATCH.with_borrow_mut(|scratch| {
                    dispatch(Join { call, tile, scratch, parts: &parts[part] });
                    store(tile, scratch);
                });
            });
        });
    }
}
