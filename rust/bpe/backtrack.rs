//! The tokens of a long piece in time linear in its length, whatever it holds.
//!
//! Merges are applied in the order of their ranks if no token is merged before its parts are; then what
//! stands left and right of a place knows nothing of the other side until a merge reaches across it. Take
//! tokens that merges make of their own bytes, side by side: they are the tokens of the whole if no merge
//! ever reaches from one into the next, and that depends on no more than the two, so on whether they are the
//! tokens of the bytes of both. Since a text has one encoding, the tokens that fit together so, from
//! its start to its end, are its tokens; and its beginning up to the end of one of them has no other
//! encoding either. (The theorem and the algorithm are those of the crate `bpe` of GitHub's rust-gems.)
//!
//! So the longest token is taken that fits the last one. Where none does, the last is taken back, a shorter
//! one tried, and that place is never tried again: nothing else could lead to it. Each place is left
//! for good once at most, which makes the time linear.

use super::merges::{Merges, Scratch, Symbol};
use super::trie::{NONE, Trie};
use crate::error::Result;
use crate::interrupt;

/// Tokens between two looks for Ctrl-C: a millisecond or less.
const STEPS_BETWEEN_CHECKS: usize = 1 << 13;

/// Pairs of tokens whose fit is remembered: 64 KB.
const REMEMBERED_LOG2: u32 = 13;

/// The bytes of a token, and its id.
pub type Spelled = (Box<[u8]>, u32);

/// How a token is made of two others, and when; one byte is made of none, at 0.
#[derive(Clone, Copy)]
struct Made {
    left: u32,
    right: u32,
    /// One more than the rank of the merge.
    when: u32,
}

/// What long pieces are encoded with.
pub struct Backtrack {
    trie: Trie,
    made: Vec<Option<Made>>,
    lens: Vec<u32>,
    /// The longest other token that each begins with, or `NONE`.
    shorter: Vec<u32>,
}

/// Which merges make each token of its own bytes, if any do.
struct Derivations {
    made: Vec<Option<Made>>,
}

impl Derivations {
    /// None if there are tokens that only a merge out of order makes.
    fn new(merges: &Merges, bytes: &[Option<u32>; 256]) -> Option<Self> {
        let mut sorted: Vec<_> = merges.iter().collect();
        sorted.sort_unstable_by_key(|&(pair, merge)| (merge.rank, pair));
        let ids = sorted.iter().map(|(_, merge)| merge.id).chain(bytes.iter().flatten().copied());
        // A bit more is kept beside two ids.
        let most = ids.max().filter(|&id| id < 1 << 31)?;
        let mut all = Derivations { made: vec![None; most as usize + 1] };
        for &byte in bytes.iter().flatten() {
            all.made[byte as usize] = Some(Made { left: byte, right: byte, when: 0 });
        }
        let mut late = Vec::new();
        for ((left, right), merge) in sorted {
            let when = merge.rank.checked_add(1).filter(|&when| when < u32::MAX)?;
            let part = |id: u32| all.made.get(id as usize).copied().flatten();
            match (part(left), part(right)) {
                (Some(a), Some(b)) if a.when < when && b.when < when => {
                    if part(merge.id).is_none() && stay_apart(merges, &all.made, left, right) {
                        all.made[merge.id as usize] = Some(Made { left, right, when });
                    }
                }
                _ => late.push((left, right, merge.id)),
            }
        }
        // A token has one derivation, so where there is one in order none is out of it.
        let is_made = |id: u32| all.made.get(id as usize).copied().flatten().is_some();
        let in_order = late.iter().all(|&(left, right, id)| is_made(id) || !is_made(left) || !is_made(right));
        in_order.then_some(all)
    }
}

/// Goes back in time from two tokens side by side: the one that was made last comes apart, and the parts
/// that then stand at the place must not have been merged before one of them was merged otherwise.
fn stay_apart(merges: &Merges, made: &[Option<Made>], mut left: u32, mut right: u32) -> bool {
    // Only made tokens are asked about, and their parts are made.
    let made = |id: u32| made[id as usize].unwrap_or(Made { left: id, right: id, when: 0 });
    // When what stands left and right of the place is merged with its other neighbour.
    let (mut left_leaves, mut right_leaves) = (u32::MAX, u32::MAX);
    loop {
        let (a, b) = (made(left), made(right));
        if a.when == 0 && b.when == 0 {
            return true;
        }
        // Of equal merges the leftmost comes first, so the right one is the later.
        if a.when > b.when {
            left_leaves = a.when;
            left = a.right;
        } else {
            right_leaves = b.when;
            right = b.left;
        }
        if let Some(merge) = merges.get(left, right)
            && merge.rank + 1 < left_leaves
            && merge.rank < right_leaves
        {
            return false;
        }
    }
}

/// What one call remembers.
#[derive(Default)]
pub struct Tried {
    /// Places that lead to no encoding, a bit each.
    dead: Vec<u64>,
    /// Of pairs of tokens: both, and in the lowest bit whether they fit.
    fits: Vec<u64>,
}

impl Tried {
    fn start(&mut self, len: usize) {
        self.dead.clear();
        self.dead.resize(len / 64 + 1, 0);
    }
}

impl Backtrack {
    /// None if the merges do not allow it. `bytes` has the token of each byte, `tokens` what all spell.
    pub fn new(merges: &Merges, bytes: &[Option<u32>; 256], tokens: &[Spelled]) -> Option<Self> {
        let derivations = Derivations::new(merges, bytes)?;
        let count = derivations.made.len();
        let is_made = |id: u32| derivations.made.get(id as usize).copied().flatten().is_some();
        let made = || tokens.iter().filter(|&&(_, id)| is_made(id)).map(|(token, id)| (&**token, *id));
        let trie = Trie::new(made().collect());
        let mut shorter = vec![NONE; count];
        let mut lens = vec![0; count];
        for (token, id) in made() {
            lens[id as usize] = token.len() as u32;
            let beginning = token.split_last().map_or(&[][..], |(_, beginning)| beginning);
            shorter[id as usize] = trie.longest(beginning).map_or(NONE, |found| found.token);
        }
        Some(Backtrack { trie, made: derivations.made, lens, shorter })
    }

    /// Whether merges make a token of its own bytes.
    pub fn is_made(&self, id: u32) -> bool {
        self.made.get(id as usize).copied().flatten().is_some()
    }

    /// Leaves the tokens of a piece in `scratch.symbols`; false, and nothing of use there, if it has a byte
    /// without a token.
    pub fn encode(&self, merges: &Merges, piece: &[u8], scratch: &mut Scratch) -> Result<bool> {
        let Scratch { symbols, tried, .. } = scratch;
        symbols.clear();
        tried.start(piece.len());
        let mut at = 0;
        let mut steps = 0usize;
        // The last step's token before, and what it found; most repetitions repeat it.
        let mut last_step = (NONE, NONE, 0..0);
        let mut last = NONE;
        while at < piece.len() {
            steps += 1;
            if steps.is_multiple_of(STEPS_BETWEEN_CHECKS) {
                interrupt::check()?;
            }
            let (before, token, seen) = &last_step;
            if *before == last && piece[at..].starts_with(&piece[seen.clone()]) && !seen.is_empty() {
                let len = self.lens[*token as usize];
                if !is_dead(&tried.dead, at + len as usize) {
                    symbols.push(Symbol { id: *token, len });
                    at += len as usize;
                    last = *token;
                    continue;
                }
            }
            let Some(longest) = self.trie.longest(&piece[at..]) else { return Ok(false) };
            let (looked_at, mut token) = (at, longest.token);
            loop {
                if token == NONE {
                    tried.dead[at / 64] |= 1 << (at % 64);
                    // The beginning of a piece leads to its encoding.
                    let Some(taken_back) = symbols.pop() else { return Ok(false) };
                    at -= taken_back.len as usize;
                    last = symbols.last().map_or(NONE, |symbol| symbol.id);
                    token = self.shorter[taken_back.id as usize];
                    continue;
                }
                let len = self.lens[token as usize];
                if !is_dead(&tried.dead, at + len as usize) && self.fit(merges, &mut tried.fits, last, token)
                {
                    if (at, token) == (looked_at, longest.token) {
                        last_step = (last, token, at..at + longest.seen);
                    }
                    symbols.push(Symbol { id: token, len });
                    at += len as usize;
                    last = token;
                    break;
                }
                token = self.shorter[token as usize];
            }
        }
        Ok(true)
    }

    /// Whether two tokens are those of the bytes of both.
    #[inline]
    fn fit(&self, merges: &Merges, remembered: &mut Vec<u64>, left: u32, right: u32) -> bool {
        if left == NONE {
            return true;
        }
        if remembered.is_empty() {
            remembered.resize(1 << REMEMBERED_LOG2, u64::MAX);
        }
        let both = u64::from(left) << 32 | u64::from(right);
        let at = both.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - REMEMBERED_LOG2);
        let entry = &mut remembered[at as usize];
        if *entry >> 1 != both {
            let fit = merges.get(left, right).is_none() && stay_apart(merges, &self.made, left, right);
            *entry = both << 1 | u64::from(fit);
        }
        *entry & 1 != 0
    }
}

#[inline(always)]
fn is_dead(dead: &[u64], at: usize) -> bool {
    dead[at / 64] >> (at % 64) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::super::merges::Merge;
    use super::*;

    /// Merges of random pairs of a growing vocabulary over the bytes a, b, c; `all_ways`: as of a .tiktoken,
    /// where every way to cut a token into two is a merge.
    fn random_merges(random: &mut impl FnMut(usize) -> usize, all_ways: bool) -> (Merges, Vec<Spelled>) {
        let mut spelled: Vec<Vec<u8>> = (b'a'..=b'c').map(|byte| vec![byte]).collect();
        let mut merges = Merges::default();
        for rank in 0..2 + random(40) as u32 {
            let (left, right) = (random(spelled.len()), random(spelled.len()));
            let whole = [&*spelled[left], &*spelled[right]].concat();
            if spelled.contains(&whole) || whole.len() > 12 {
                continue;
            }
            let id = spelled.len() as u32;
            if all_ways {
                for cut in 1..whole.len() {
                    let of = |part: &[u8]| spelled.iter().position(|token| token == part);
                    if let (Some(left), Some(right)) = (of(&whole[..cut]), of(&whole[cut..])) {
                        merges.insert(left as u32, right as u32, Merge { rank: id, id });
                    }
                }
            } else {
                merges.insert(left as u32, right as u32, Merge { rank, id });
            }
            spelled.push(whole);
        }
        (merges, spelled.into_iter().map(Vec::into_boxed_slice).zip(0..).collect())
    }

    fn bytes() -> [Option<u32>; 256] {
        std::array::from_fn(|byte| (97..=99).contains(&byte).then(|| byte as u32 - 97))
    }

    #[test]
    fn backtracking_equals_merging() {
        let mut state = 7u64;
        let mut random = move |bound: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        };
        let mut compared = 0;
        for round in 0..3000 {
            let (merges, tokens) = random_merges(&mut random, round % 2 == 0);
            let Some(backtrack) = Backtrack::new(&merges, &bytes(), &tokens) else { continue };
            for _ in 0..10 {
                let few = 1 + random(3);
                let text: Vec<u8> = (0..1 + random(60)).map(|_| b'a' + random(few) as u8).collect();
                let mut merged = Scratch::default();
                merged.symbols =
                    text.iter().map(|&byte| Symbol { id: u32::from(byte - b'a'), len: 1 }).collect();
                merges.apply(&mut merged).unwrap();
                let mut backtracked = Scratch::default();
                assert!(backtrack.encode(&merges, &text, &mut backtracked).unwrap());
                assert_eq!(backtracked.symbols, merged.symbols, "{}", String::from_utf8_lossy(&text));
                compared += 1;
            }
        }
        assert!(compared > 20_000, "{compared}");
    }

    #[test]
    fn tokens_made_out_of_order_are_left_to_merging() {
        let mut merges = Merges::default();
        merges.insert(0, 1, Merge { rank: 5, id: 3 });
        merges.insert(3, 1, Merge { rank: 3, id: 4 });
        assert!(Backtrack::new(&merges, &bytes(), &[]).is_none());
    }
}
