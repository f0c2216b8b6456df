//! Where a piece may be cut in two without a change to its tokens.
//!
//! Merging makes tokens of the vocabulary and nothing else. So where no token holds the last byte of what
//! is on the left of a place next to the first byte of what is on its right, no merge ever reaches across
//! that place, and since a merge depends on nothing but its two symbols, either side becomes what it
//! would become alone.
//!
//! Places between characters are looked at. Most tokens hold whole characters, and what is kept of them is
//! which characters stand side by side; of a token that holds a part of a character beside another one,
//! the two bytes that meet are kept.

use std::ops::Range;

/// Bits of the table of pairs of characters: 100,000 pairs, more than vocabularies have, take a tenth.
const BITS_LOG2: u32 = 20;

/// What stands side by side in the tokens of a vocabulary.
pub struct Pairs {
    /// By hash: where two pairs share a bit, a cut is missed and none is wrong.
    characters: Vec<u64>,
    /// A bit for every two bytes, ASCII characters among them.
    bytes: Vec<u64>,
}

impl Default for Pairs {
    fn default() -> Self {
        Pairs { characters: vec![0; 1 << (BITS_LOG2 - 6)], bytes: vec![0; 1 << (16 - 6)] }
    }
}

fn set(bits: &mut [u64], at: usize) {
    bits[at / 64] |= 1 << (at % 64);
}

fn is_set(bits: &[u64], at: usize) -> bool {
    bits[at / 64] >> (at % 64) & 1 != 0
}

fn hash(left: char, right: char) -> usize {
    let both = u64::from(left) << 32 | u64::from(right);
    (both.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - BITS_LOG2)) as usize
}

fn two_bytes(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

impl Pairs {
    /// Adds what stands side by side in a token.
    pub fn add(&mut self, token: &[u8]) {
        let mut last: Option<char> = None;
        let mut done = 0;
        for chunk in token.utf8_chunks() {
            for c in chunk.valid().chars() {
                match last {
                    Some(last) if last.is_ascii() && c.is_ascii() => self.meet(token, done),
                    Some(last) => set(&mut self.characters, hash(last, c)),
                    None => self.meet(token, done),
                }
                last = Some(c);
                done += c.len_utf8();
            }
            // A part of a character: every two bytes that meet in it or at its ends.
            for _ in chunk.invalid() {
                self.meet(token, done);
                last = None;
                done += 1;
            }
        }
    }

    /// Adds the bytes on both sides of a place in a token.
    fn meet(&mut self, token: &[u8], place: usize) {
        if let (Some(left), Some(&right)) =
            (place.checked_sub(1).and_then(|i| token.get(i)), token.get(place))
        {
            set(&mut self.bytes, two_bytes(*left, right));
        }
    }

    /// Whether a piece is one ASCII character again and again, of which no token holds two.
    pub fn repeats_alone(&self, piece: &[u8]) -> bool {
        let Some(&first) = piece.first() else { return false };
        first.is_ascii()
            && !is_set(&self.bytes, two_bytes(first, first))
            && piece.iter().all(|&byte| byte == first)
    }

    /// Calls `part` with the parts that a piece may be cut into.
    pub fn each_part<E>(
        &self,
        piece: &str,
        mut part: impl FnMut(Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = piece.as_bytes();
        let mut start = 0;
        let mut characters = piece.char_indices();
        let Some((_, mut left)) = characters.next() else { return Ok(()) };
        for (at, right) in characters {
            let ascii = left.is_ascii() && right.is_ascii();
            if !is_set(&self.bytes, two_bytes(bytes[at - 1], bytes[at]))
                && (ascii || !is_set(&self.characters, hash(left, right)))
            {
                part(start..at)?;
                start = at;
            }
            left = right;
        }
        part(start..piece.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>(tokens: &[&[u8]], piece: &'a str) -> Vec<&'a str> {
        let mut pairs = Pairs::default();
        tokens.iter().for_each(|token| pairs.add(token));
        let mut parts = Vec::new();
        let cut = |range: Range<usize>| {
            parts.push(&piece[range]);
            Ok::<(), ()>(())
        };
        pairs.each_part(piece, cut).unwrap();
        parts
    }

    #[test]
    fn a_piece_is_cut_where_no_token_reaches_across() {
        assert_eq!(parts(&[b"ab", b"cd"], "abcdab"), ["ab", "cd", "ab"]);
        assert_eq!(parts(&["漢字".as_bytes()], "漢字漢漢字"), ["漢字", "漢", "漢字"]);
    }

    #[test]
    fn a_character_repeats_alone_unless_a_token_holds_two() {
        let mut pairs = Pairs::default();
        pairs.add(b"aab ");
        for (piece, expected) in
            [("bb", true), ("aa", false), ("bab", false), ("b", true), ("", false), ("éé", false)]
        {
            assert_eq!(pairs.repeats_alone(piece.as_bytes()), expected, "{piece}");
        }
    }

    #[test]
    fn parts_of_characters_hold_together_what_they_may_be_part_of() {
        let (left, right) = ("é".as_bytes()[1], "漢".as_bytes()[0]);
        assert_eq!(parts(&[&[left, right]], "é漢é"), ["é漢", "é"]);
        assert_eq!(parts(&[&[left, b'x']], "éxé"), ["éx", "é"]);
        assert_eq!(parts(&[&[b'x', right]], "x漢x"), ["x漢", "x"]);
    }
}
