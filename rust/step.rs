//! What a search sees of a model: sequences that can be extended, forked and cut, and logits.

use crate::error::Result;

/// A sequence that the model keeps keys and values for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u32);

/// Rows of one piece of work whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    None,
    Last,
    All,
}

/// Tokens to append to one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    pub seq: SeqId,
    pub tokens: &'a [u32],
    pub wanted: Wanted,
}

/// A model as a search sees it. A row's logits are the same bits whatever the rest of the work,
/// the split into calls, and the number of threads.
pub trait Step {
    fn vocab_size(&self) -> usize;

    /// The longest sequence that the model can hold.
    fn max_positions(&self) -> usize;

    /// A new, empty sequence.
    fn start(&mut self) -> SeqId;

    /// How many tokens the sequence holds.
    fn len(&self, seq: SeqId) -> usize;

    /// A second sequence with the same content; shares storage and moves no floats.
    fn fork(&mut self, seq: SeqId) -> SeqId;

    /// Forgets all but the first `len` tokens.
    fn truncate(&mut self, seq: SeqId, len: usize);

    /// Ends a sequence and gives its storage back.
    fn release(&mut self, seq: SeqId);

    /// Appends the tokens of every piece of work (each sequence at most once) in one pass, and
    /// replaces `logits` by the wanted rows, `[rows, vocab_size]`, in the order of `work`.
    /// On an error no sequence has changed.
    fn forward(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()>;
}

/// Lets new sequences take the place of old ones: the i-th new one continues `old[parents[i]]`.
/// An old sequence goes to the first that continues it and is forked for the others; one that
/// nobody continues is released.
pub(crate) fn regrow(step: &mut dyn Step, old: &[SeqId], parents: &[usize]) -> Vec<SeqId> {
    let mut taken = vec![false; old.len()];
    let new =
        parents
            .iter()
            .map(|&parent| {
                if std::mem::replace(&mut taken[parent], true) { step.fork(old[parent]) } else { old[parent] }
            })
            .collect();
    for (&seq, _) in old.iter().zip(&taken).filter(|(_, taken)| !**taken) {
        step.release(seq);
    }
    new
}
