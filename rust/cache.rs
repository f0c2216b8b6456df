//! The KV pool: keys and values in blocks of positions, counted by reference, copied on write.
//!
//! A sequence is a table of blocks. Forking one copies the table and raises the counts; the first
//! write into a shared block copies that block. Beams, samples of a prompt and shared prefixes are
//! therefore tables over one pool, and reordering them moves no floats.
//!
//! A block holds [`BLOCK`] positions of every layer. Within it, each layer and each of its heads has
//! its keys as panels of 16 positions, `[BLOCK / 16][head_dim][16]`, then its values as rows,
//! `[BLOCK][head_dim]`: the forms that both products of attention read.

use crate::error::Result;
use crate::kernels::attention::{BLOCK, write_key, write_value};
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
    floats: Piece,
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
    shapes: Vec<KvShape>,
    /// Where each layer begins in a block; one more for the end.
    offsets: Vec<usize>,
    blocks: Vec<Block>,
    free: Vec<usize>,
    /// Memory of further blocks, the next one last.
    spare: Vec<Piece>,
    sequences: Vec<Option<Sequence>>,
}

impl KvPool {
    pub fn new(shapes: Vec<KvShape>) -> Self {
        let mut offsets = vec![0];
        for shape in &shapes {
            offsets.push(offsets[offsets.len() - 1] + shape.heads * 2 * BLOCK * shape.head_dim);
        }
        KvPool {
            shapes,
            offsets,
            blocks: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            sequences: Vec::new(),
        }
    }

    /// Bytes that one position of a sequence takes in every layer together.
    pub fn bytes_per_position(&self) -> usize {
        self.block_floats() / BLOCK * size_of::<f32>()
    }

    fn block_floats(&self) -> usize {
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
        let Some(floats) = self.spare.pop() else {
            let floats = self.block_floats();
            let count = (SLAB / size_of::<f32>() / floats.max(1)).clamp(1, MOST_IN_SLAB);
            self.spare = Piece::several(count, floats, "keys and values")?.rev().collect();
            return self.allocate();
        };
        self.blocks.push(Block { floats, references: 1 });
        Ok(self.blocks.len() - 1)
    }

    /// Copies the first `positions` of a block: the panels of keys that they touch, and their rows of values.
    fn copy_positions(&mut self, from: usize, to: usize, positions: usize) {
        let [source, target] =
            self.blocks.get_disjoint_mut([from, to]).expect("a fresh block is not the one it copies");
        for (shape, &layer) in self.shapes.iter().zip(&self.offsets) {
            let keys = positions.div_ceil(16) * 16 * shape.head_dim;
            let values = positions * shape.head_dim;
            let half = BLOCK * shape.head_dim;
            for head in (0..shape.heads).map(|head| layer + head * 2 * half) {
                target.floats[head..][..keys].copy_from_slice(&source.floats[head..][..keys]);
                target.floats[head + half..][..values]
                    .copy_from_slice(&source.floats[head + half..][..values]);
            }
        }
    }

    /// Writes the key and the value of a position, each `[heads · head_dim]`, which [`KvPool::reserve`] made
    /// writable.
    pub fn write(&mut self, seq: SeqId, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let KvShape { head_dim, .. } = self.shapes[layer];
        let range = self.offsets[layer]..self.offsets[layer + 1];
        let block = self.sequence(seq).blocks[position / BLOCK];
        let heads = self.blocks[block].floats[range].chunks_exact_mut(2 * BLOCK * head_dim);
        let rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (key, value)) in heads.zip(rows) {
            let (head_keys, head_values) = head.split_at_mut(BLOCK * head_dim);
            write_key(key, position % BLOCK, head_keys);
            write_value(value, position % BLOCK, head_values);
        }
    }

    /// The blocks of a sequence for one layer, in order of position; [`KvPool::heads`] reads one.
    pub fn layer(&self, seq: SeqId, layer: usize) -> impl Iterator<Item = &[f32]> {
        let range = self.offsets[layer]..self.offsets[layer + 1];
        self.sequence(seq).blocks.iter().map(move |&block| &self.blocks[block].floats[range.clone()])
    }

    /// Each head's keys, `[BLOCK / 16][head_dim][16]`, and values, `[BLOCK][head_dim]`, of a block of a layer.
    pub fn heads<'a>(
        &self,
        layer: usize,
        block: &'a [f32],
    ) -> impl Iterator<Item = (&'a [f32], &'a [f32])> + use<'a> {
        let half = BLOCK * self.shapes[layer].head_dim;
        block.chunks_exact(2 * half).map(move |head| head.split_at(half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { heads: 2, head_dim: 3 };

    fn write(pool: &mut KvPool, seq: SeqId, value: f32) {
        pool.reserve(seq, 1).unwrap();
        pool.write(seq, 0, pool.len(seq), &[value + 0.5; 6], &[value; 6]);
        pool.commit(seq, 1);
    }

    /// The last entry of every value; every key is checked against it.
    fn read(pool: &KvPool, seq: SeqId) -> Vec<f32> {
        let blocks: Vec<&[f32]> = pool.layer(seq, 0).collect();
        let at = |position: usize| {
            let (keys, values) = pool.heads(0, blocks[position / BLOCK]).last().unwrap();
            let slot = position % BLOCK;
            let value = values[slot * SHAPE.head_dim + 2];
            assert_eq!(keys[(slot / 16 * SHAPE.head_dim + 2) * 16 + slot % 16], value + 0.5);
            value
        };
        (0..pool.len(seq)).map(at).collect()
    }

    #[test]
    fn a_fork_shares_until_one_writes() {
        let mut pool = KvPool::new(vec![SHAPE]);
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

    #[test]
    fn blocks_come_back() {
        let mut pool = KvPool::new(vec![SHAPE]);
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

    #[test]
    fn what_was_reserved_in_vain_is_given_back() {
        let mut pool = KvPool::new(vec![SHAPE]);
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
