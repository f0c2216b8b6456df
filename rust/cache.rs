//! The KV pool: keys and values in blocks of positions, counted by reference, copied on write.
//!
//! A sequence is a table of blocks. Forking one copies the table and raises the counts; the first
//! write into a shared block copies that block. Beams, samples of a prompt and shared prefixes are
//! therefore tables over one pool, and reordering them moves no floats.
//!
//! A block holds [`BLOCK`] positions of every layer, in float32, bfloat16 or bytes; [`KvLayout`] says how: keys
//! as panels and values as rows, the forms that both products of attention read.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::attention::{self, BLOCK, HeadRows, KvDtype, KvLayout, Stretch};
use crate::step::SeqId;
use crate::weights::Piece;

/// The heads of keys and values of one attention layer.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub heads: usize,
    pub head_dim: usize,
}

/// Bytes of the blocks that are allocated together. Only those that are used take memory.
const SLAB: usize = 64 << 20;

/// How many blocks are allocated together at most: enough where they are small.
const MOST_IN_SLAB: usize = 256;

struct Block {
    memory: Piece,
    references: u32,
}

#[derive(Clone, Default)]
struct Sequence {
    /// Positions that hold a token.
    len: usize,
    blocks: Vec<usize>,
}

/// The blocks and sequences of one model.
pub struct KvPool {
    dtype: KvDtype,
    layouts: Vec<KvLayout>,
    /// The byte at which each layer begins in a block; one more for the end.
    offsets: Vec<usize>,
    blocks: Vec<Block>,
    free: Vec<usize>,
    /// Memory of further blocks, the next one last.
    spare: Vec<Piece>,
    sequences: Vec<Option<Sequence>>,
}

impl KvPool {
    pub fn new(shapes: &[KvShape], dtype: KvDtype) -> Self {
        let layout = |shape: &KvShape| KvLayout { dtype, heads: shape.heads, head_dim: shape.head_dim };
        let layouts: Vec<KvLayout> = shapes.iter().map(layout).collect();
        let mut offsets = vec![0];
        for layout in &layouts {
            offsets.push(offsets[offsets.len() - 1] + layout.bytes());
        }
        KvPool {
            dtype,
            layouts,
            offsets,
            blocks: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            sequences: Vec::new(),
        }
    }

    /// Bytes that one position of a sequence takes in every layer together.
    pub fn bytes_per_position(&self) -> usize {
        self.block_bytes() / BLOCK
    }

    fn block_bytes(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    pub fn start(&mut self) -> SeqId {
        self.insert(Sequence::default())
    }

    fn insert(&mut self, sequence: Sequence) -> SeqId {
        let slot = self.sequences.iter().position(Option::is_none).unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() - 1
        });
        self.sequences[slot] = Some(sequence);
        SeqId(slot as u32)
    }

    fn sequence(&self, seq: SeqId) -> &Sequence {
        self.sequences[seq.0 as usize].as_ref().expect("a sequence that was started and not released")
    }

    fn sequence_mut(&mut self, seq: SeqId) -> &mut Sequence {
        self.sequences[seq.0 as usize].as_mut().expect("a sequence that was started and not released")
    }

    pub fn len(&self, seq: SeqId) -> usize {
        self.sequence(seq).len
    }

    pub fn fork(&mut self, seq: SeqId) -> SeqId {
        let copy = self.sequence(seq).clone();
        for &block in &copy.blocks {
            self.blocks[block].references += 1;
        }
        self.insert(copy)
    }

    pub fn truncate(&mut self, seq: SeqId, len: usize) {
        let sequence = self.sequence_mut(seq);
        sequence.len = sequence.len.min(len);
        let kept = sequence.len.div_ceil(BLOCK);
        let dropped = sequence.blocks.split_off(kept.min(sequence.blocks.len()));
        dropped.into_iter().for_each(|block| self.drop_reference(block));
    }

    pub fn release(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences[seq.0 as usize].take() {
            sequence.blocks.into_iter().for_each(|block| self.drop_reference(block));
        }
    }

    fn drop_reference(&mut self, block: usize) {
        self.blocks[block].references -= 1;
        if self.blocks[block].references == 0 {
            self.free.push(block);
        }
    }

    /// Makes positions `len .. len + rows` of the sequence writable: blocks for them exist and are its own.
    /// The length stays until [`KvPool::commit`]; to give up instead, [`KvPool::truncate`] to it, since a block
    /// beyond the length that a fork came to share would be written by both.
    pub fn reserve(&mut self, seq: SeqId, rows: usize) -> Result<()> {
        let Sequence { len, .. } = *self.sequence(seq);
        let tail = len / BLOCK;
        if rows > 0 && len % BLOCK > 0 {
            let shared = self.sequence(seq).blocks[tail];
            if self.blocks[shared].references > 1 {
                let copy = self.allocate()?;
                self.copy_positions(shared, copy, len % BLOCK);
                self.drop_reference(shared);
                self.sequence_mut(seq).blocks[tail] = copy;
            }
        }
        while self.sequence(seq).blocks.len() < (len + rows).div_ceil(BLOCK) {
            let block = self.allocate()?;
            self.sequence_mut(seq).blocks.push(block);
        }
        Ok(())
    }

    /// Counts `rows` more positions as written.
    pub fn commit(&mut self, seq: SeqId, rows: usize) {
        self.sequence_mut(seq).len += rows;
    }

    fn allocate(&mut self) -> Result<usize> {
        if let Some(block) = self.free.pop() {
            self.blocks[block].references = 1;
            return Ok(block);
        }
        let Some(memory) = self.spare.pop() else {
            let bytes = self.block_bytes();
            let count = (SLAB / bytes.max(1)).clamp(1, MOST_IN_SLAB);
            let floats = bytes / size_of::<f32>();
            self.spare = Piece::several(count, floats, "keys and values")?.rev().collect();
            return self.allocate();
        };
        self.blocks.push(Block { memory, references: 1 });
        Ok(self.blocks.len() - 1)
    }

    fn copy_positions(&mut self, from: usize, to: usize, positions: usize) {
        let [source, target] =
            self.blocks.get_disjoint_mut([from, to]).expect("a fresh block is not the one it copies");
        for (layout, range) in self.layouts.iter().zip(self.offsets.windows(2)) {
            let range = range[0]..range[1];
            let (source, target) =
                (&source.memory.bytes()[range.clone()], &mut target.memory.bytes_mut()[range]);
            layout.copy(positions, source, target);
        }
    }

    /// Writes keys and values of a layer: each of `rows` says a sequence, a position, and which rows are for the
    /// positions from there on. [`KvPool::reserve`] made these writable; no two are of one sequence.
    pub fn write(
        &mut self,
        layer: usize,
        rows: impl Iterator<Item = (SeqId, usize, Range<usize>)>,
        keys: HeadRows<'_>,
        values: HeadRows<'_>,
    ) {
        let mut places = Vec::new();
        for (seq, mut position, mut rows) in rows {
            while !rows.is_empty() {
                let slot = position % BLOCK;
                let count = rows.len().min(BLOCK - slot);
                let block = self.sequence(seq).blocks[position / BLOCK];
                places.push((block, slot, rows.start..rows.start + count));
                (position, rows.start) = (position + count, rows.start + count);
            }
        }
        // Blocks in order can be borrowed one after the other.
        places.sort_unstable_by_key(|(block, ..)| *block);
        let range = self.offsets[layer]..self.offsets[layer + 1];
        let (mut blocks, mut passed) = (self.blocks.iter_mut(), 0);
        let stretch = |(block, slot, rows): (usize, usize, Range<usize>)| {
            let memory = &mut blocks.nth(block - passed).expect("a block of the pool").memory;
            passed = block + 1;
            Stretch { block: &mut memory.bytes_mut()[range.clone()], slot, rows }
        };
        let mut stretches: Vec<Stretch<'_>> = places.into_iter().map(stretch).collect();
        attention::write(&self.layouts[layer], &mut stretches, keys, values);
    }

    /// What its keys and values are stored in.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// The blocks of a sequence for one layer, in order of position; see [`KvLayout`].
    pub fn layer(&self, seq: SeqId, layer: usize) -> impl Iterator<Item = &[u8]> {
        let range = self.offsets[layer]..self.offsets[layer + 1];
        self.sequence(seq).blocks.iter().map(move |&block| &self.blocks[block].memory.bytes()[range.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::attention::{Heads, Item, attend, attention_probs};

    const SHAPE: KvShape = KvShape { heads: 2, head_dim: 3 };

    const DTYPES: [KvDtype; 3] = [KvDtype::Float32, KvDtype::Bfloat16, KvDtype::Int8];

    /// A key of 1 and a value, which every type holds exactly if it has few bits.
    fn write(pool: &mut KvPool, seq: SeqId, value: f32) {
        pool.reserve(seq, 1).unwrap();
        let (keys, values) = ([1.0; 6], [value; 6]);
        let [keys, values] = [&keys, &values].map(|data| HeadRows { data, stride: 6, offset: 0 });
        pool.write(0, [(seq, pool.len(seq), 0..1)].into_iter(), keys, values);
        pool.commit(seq, 1);
    }

    /// What a query that sees one position gets: its value.
    fn read(pool: &KvPool, seq: SeqId) -> Vec<f32> {
        let blocks: Vec<&[u8]> = pool.layer(seq, 0).collect();
        let heads = Heads { heads: 2, kv_heads: 2, head_dim: 3, scale: 1.0 };
        let at = |position: usize| {
            let item = Item {
                row: 0,
                rows: 1,
                first_position: position,
                blocks: &blocks,
                kv_len: pool.len(seq),
                causal: true,
                window: Some(1),
                bias: None,
            };
            let (queries, mut out) = ([1.0; 6], [0.0; 6]);
            let queries = HeadRows { data: &queries, stride: 6, offset: 0 };
            attend(heads, pool.dtype(), &[item], queries, &mut out);
            let mut score = [0.0; 2 * 200];
            let scores = &mut score[..2 * item.kv_len];
            attention_probs(heads, pool.dtype(), &item, queries, Some(scores), None);
            assert!((scores[item.kv_len + position] - 3.0).abs() < 1e-6, "the key");
            assert!(out.iter().all(|x| *x == out[0]));
            out[5].round()
        };
        (0..pool.len(seq)).map(at).collect()
    }

    /// A pool of each type.
    fn pools() -> impl Iterator<Item = KvPool> {
        DTYPES.into_iter().map(|dtype| KvPool::new(&[SHAPE], dtype))
    }

    #[test]
    fn bytes_are_those_of_the_type() {
        let bytes: Vec<usize> = pools().map(|pool| pool.bytes_per_position()).collect();
        assert_eq!(bytes, [2 * 2 * 3 * 4, 2 * 2 * 3 * 2, 2 * 2 * (3 + 4)]);
    }

    #[test]
    fn a_fork_shares_until_one_writes() {
        for mut pool in pools() {
            let a = pool.start();
            (0..70).for_each(|i| write(&mut pool, a, i as f32));
            let b = pool.fork(a);
            assert_eq!(pool.blocks.len(), 2);
            write(&mut pool, b, -1.0);
            write(&mut pool, a, -2.0);
            assert_eq!(pool.blocks.len(), 3);
            let prefix: Vec<f32> = (0..70).map(|i| i as f32).collect();
            assert_eq!(read(&pool, a), [&prefix[..], &[-2.0]].concat());
            assert_eq!(read(&pool, b), [&prefix[..], &[-1.0]].concat());
        }
    }

    #[test]
    fn blocks_come_back() {
        for mut pool in pools() {
            let a = pool.start();
            (0..130).for_each(|i| write(&mut pool, a, i as f32));
            let b = pool.fork(a);
            pool.truncate(b, 64);
            pool.release(a);
            assert_eq!(pool.free.len(), 2);
            write(&mut pool, b, 7.0);
            assert_eq!((pool.blocks.len(), read(&pool, b)[64]), (3, 7.0));
            pool.release(b);
            assert_eq!(pool.free.len(), 3);
        }
    }

    #[test]
    fn what_was_reserved_in_vain_is_given_back() {
        for mut pool in pools() {
            let a = pool.start();
            (0..64).for_each(|i| write(&mut pool, a, i as f32));
            pool.reserve(a, 100).unwrap();
            pool.truncate(a, 64);
            let b = pool.fork(a);
            write(&mut pool, a, -1.0);
            write(&mut pool, b, -2.0);
            assert_eq!((read(&pool, a)[64], read(&pool, b)[64]), (-1.0, -2.0));
        }
    }
}
