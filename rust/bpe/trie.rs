//! The tokens of a vocabulary as a tree of bytes, to find the longest one at a place of a text.
//!
//! A double array (Aoe 1989): the child of a node by a byte stands at the node's base, exclusive or the
//! byte, if the unit there names the node as its parent. A step is one look into an array.

/// No token, and no parent.
pub const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Unit {
    base: u32,
    parent: u32,
    /// The token that ends here.
    token: u32,
}

const FREE: Unit = Unit { base: 0, parent: NONE, token: NONE };

/// The root; its own parent, so that no byte leads to it.
const ROOT: u32 = 0;

pub struct Trie {
    units: Vec<Unit>,
}

/// The longest token at the start of some bytes.
#[derive(Clone, Copy)]
pub struct Longest {
    pub token: u32,
    /// How many bytes were looked at to know it.
    pub seen: usize,
}

impl Trie {
    pub fn new(mut tokens: Vec<(&[u8], u32)>) -> Self {
        // The first eight bytes as a number decide most comparisons at once.
        tokens.sort_by_cached_key(|&(bytes, _)| {
            let mut first = [0; 8];
            let few = bytes.len().min(8);
            first[..few].copy_from_slice(&bytes[..few]);
            (u64::from_be_bytes(first), bytes)
        });
        let mut builder = Builder { units: vec![FREE; 256], first_free: 1 };
        builder.units[ROOT as usize].parent = ROOT;
        builder.add(&tokens);
        Trie { units: builder.units }
    }

    #[inline(always)]
    fn child(&self, node: u32, byte: u8) -> Option<u32> {
        let child = self.units[node as usize].base ^ u32::from(byte);
        self.units.get(child as usize).filter(|unit| unit.parent == node && child != ROOT).map(|_| child)
    }

    /// The longest token that the bytes begin with.
    #[inline]
    pub fn longest(&self, bytes: &[u8]) -> Option<Longest> {
        let mut node = ROOT;
        let mut token = NONE;
        let mut seen = 0;
        for &byte in bytes {
            seen += 1;
            let Some(child) = self.child(node, byte) else { break };
            node = child;
            let here = self.units[node as usize].token;
            token = if here == NONE { token } else { here };
        }
        (token != NONE).then_some(Longest { token, seen })
    }
}

struct Builder {
    units: Vec<Unit>,
    /// No unit before this one is free.
    first_free: usize,
}

/// Tokens that begin alike, and the node that their first `depth` bytes lead to.
struct Branch<'a> {
    tokens: &'a [(&'a [u8], u32)],
    depth: usize,
    node: u32,
}

impl Builder {
    fn add(&mut self, tokens: &[(&[u8], u32)]) {
        let mut branches = vec![Branch { tokens, depth: 0, node: ROOT }];
        while let Some(Branch { mut tokens, depth, node }) = branches.pop() {
            // The shortest comes first.
            while let Some(((bytes, token), rest)) = tokens.split_first()
                && bytes.len() == depth
            {
                self.units[node as usize].token = *token;
                tokens = rest;
            }
            let children: Vec<_> = tokens.chunk_by(|(a, _), (b, _)| a[depth] == b[depth]).collect();
            let bytes: Vec<u8> = children.iter().map(|tokens| tokens[0].0[depth]).collect();
            if bytes.is_empty() {
                continue;
            }
            let base = self.place(&bytes);
            self.units[node as usize].base = base;
            for (tokens, byte) in children.into_iter().zip(bytes) {
                let child = base ^ u32::from(byte);
                self.units[child as usize].parent = node;
                branches.push(Branch { tokens, depth: depth + 1, node: child });
            }
        }
    }

    /// A base at which the units of all these bytes are free.
    fn place(&mut self, bytes: &[u8]) -> u32 {
        let free = |units: &[Unit], at: usize| units[at].parent == NONE;
        while self.first_free < self.units.len() && !free(&self.units, self.first_free) {
            self.first_free += 1;
        }
        let mut at = self.first_free;
        loop {
            if at == self.units.len() {
                // The units of a base lie in one block of 256.
                self.units.resize(self.units.len() + 256, FREE);
            }
            if free(&self.units, at) {
                let base = at ^ usize::from(bytes[0]);
                if bytes[1..].iter().all(|&byte| free(&self.units, base ^ usize::from(byte))) {
                    return base as u32;
                }
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_token_is_found() {
        let words: Vec<Vec<u8>> = (0..4000u32)
            .map(|i| i.wrapping_mul(2654435761).to_le_bytes()[..1 + i as usize % 4].to_vec())
            .collect();
        let mut tokens: Vec<(&[u8], u32)> = words.iter().map(Vec::as_slice).zip(0..).collect();
        tokens.sort();
        tokens.dedup_by_key(|(word, _)| *word);
        let trie = Trie::new(tokens.clone());
        for i in 0..20_000u32 {
            let text = i.wrapping_mul(40503).wrapping_mul(i).to_le_bytes();
            let expected =
                tokens.iter().filter(|(word, _)| text.starts_with(word)).max_by_key(|(word, _)| word.len());
            assert_eq!(trie.longest(&text).map(|found| found.token), expected.map(|&(_, token)| token));
        }
        assert!(Trie::new(Vec::new()).longest(b"a").is_none());
    }
}
